/* dec.h: the decoders of a tokenizer.json, as a flat list of steps over token strings.
 *
 * Immutable once built: threads may share one; the pieces belong to the caller.
 */
#ifndef GRAFT_DEC_H
#define GRAFT_DEC_H

#include "engine/tok/pieces.h"
#include "engine/tok/rx.h"

#include <jansson.h>

enum dec_kind { DEC_BYTE_LEVEL, DEC_REPLACE, DEC_BYTE_FALLBACK, DEC_FUSE, DEC_STRIP, DEC_META };

struct dec_step {
    enum dec_kind kind;
    char *text;          /* DEC_REPLACE: the content */
    struct rx *rx;       /* DEC_REPLACE */
    uint32_t cp;         /* DEC_STRIP, DEC_META: the character */
    int64_t start, stop; /* DEC_STRIP: how many at most */
    bool drop_first;     /* DEC_META: the first token loses it instead of getting a space */
};

enum { DEC_STEPS = 64 };

struct dec {
    struct dec_step step[DEC_STEPS];
    int n;
    bool none; /* no decoder: tokens are joined by spaces */
};

/* From the value of "decoder"; NULL or null: none. */
int dec_build(struct dec *d, const json_t *v, struct err *e);
void dec_clear(struct dec *d);
/* Decodes the token strings of *a, each one a piece; the text is that of the pieces of *a in a row.
 * *b is room to work in. */
int dec_run(const struct dec *d, struct pieces *a, struct pieces *b, struct rx_scan *scan,
            struct err *e);

#endif
