/* pretok.h: the pre-tokenisers of a tokenizer.json, as a flat list of a few kinds of steps.
 *
 * ByteLevel, Metaspace and the others are sequences of these. Immutable once built: threads may
 * share one; the pieces belong to the caller.
 */
#ifndef GRAFT_PRETOK_H
#define GRAFT_PRETOK_H

#include "engine/tok/pieces.h"
#include "engine/tok/rx.h"

#include <jansson.h>

enum pretok_kind {
    PRETOK_PREFIX, /* `text` in front of a piece that does not start with it */
    PRETOK_META,   /* spaces become `text` */
    PRETOK_SPLIT,
    PRETOK_BYTES
};

enum pretok_behavior {
    PRETOK_REMOVED, PRETOK_ISOLATED, PRETOK_WITH_PREVIOUS, PRETOK_WITH_NEXT, PRETOK_CONTIGUOUS
};

struct pretok_step {
    enum pretok_kind kind;
    char *text;
    bool first_only; /* PRETOK_PREFIX: only the piece at the very beginning of the input */
    struct rx *rx;   /* PRETOK_META (a space), PRETOK_SPLIT */
    enum pretok_behavior behavior;
    bool invert;
};

enum { PRETOK_STEPS = 64 };

struct pretok {
    struct pretok_step step[PRETOK_STEPS];
    int n;
};

/* Parts of one piece, and whether the pattern matched there. Reused between pieces. */
struct pretok_part {
    uint32_t start, end;
    bool match;
};
struct pretok_parts {
    struct pretok_part *v;
    int64_t n, cap;
};
void pretok_parts_clear(struct pretok_parts *p);

/* From the value of "pre_tokenizer"; NULL or null: none. */
int pretok_build(struct pretok *m, const json_t *v, struct err *e);
void pretok_clear(struct pretok *m);
/* Cuts every piece of *a that is still text. The result is in *a; *b is room to work in. */
int pretok_run(const struct pretok *m, struct pieces *a, struct pieces *b,
               struct pretok_parts *parts, struct rx_scan *scan, struct err *e);

#endif
