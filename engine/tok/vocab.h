/* vocab.h: token strings and their ids, 0 .. n-1 without gaps, found by hash.
 *
 * Immutable once built: threads may share one.
 */
#ifndef GRAFT_VOCAB_H
#define GRAFT_VOCAB_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { VOCAB_MAX = 1 << 20 };

struct vocab {
    char *text;     /* the strings by id, each with its NUL */
    uint32_t *off;  /* [n + 1] */
    int32_t *slot;  /* ids by hash, -1: free; a power of two */
    uint32_t mask;
    int32_t n;
};

/* Strings [n], borrowed for the call only, all different. */
int vocab_build(struct vocab *v, const char *const *strings, int32_t n, struct err *e);
void vocab_clear(struct vocab *v);
int32_t vocab_find(const struct vocab *v, const char *s, size_t n); /* -1 if there is none */
const char *vocab_str(const struct vocab *v, int32_t id, size_t *n); /* 0 <= id < n */

#endif
