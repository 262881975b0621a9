/* norm.h: the normalisers of a tokenizer.json, as a flat list of steps.
 *
 * Immutable once built: threads may share one; the pieces belong to the caller.
 */
#ifndef GRAFT_NORM_H
#define GRAFT_NORM_H

#include "engine/tok/pieces.h"
#include "engine/tok/rx.h"

#include <jansson.h>

enum norm_kind { NORM_FORM, NORM_LOWER, NORM_STRIP, NORM_PREPEND, NORM_REPLACE, NORM_BYTES };

struct norm_step {
    enum norm_kind kind;
    int form;         /* NORM_FORM: utf8proc options */
    bool left, right; /* NORM_STRIP */
    char *text;       /* NORM_PREPEND, NORM_REPLACE: what is put in */
    struct rx *rx;    /* NORM_REPLACE */
};

enum { NORM_STEPS = 64 };

struct norm {
    struct norm_step step[NORM_STEPS];
    int n;
};

/* From the value of "normalizer"; NULL or null: none. */
int norm_build(struct norm *m, const json_t *v, struct err *e);
void norm_clear(struct norm *m);
/* Normalises every piece of *a that is still text. The result is in *a; *b is room to work in. */
int norm_run(const struct norm *m, struct pieces *a, struct pieces *b, struct rx_scan *scan,
             struct err *e);

#endif
