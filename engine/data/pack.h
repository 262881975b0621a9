/* pack.h: which documents share a row.
 *
 * Best fit in order of falling length finds how few rows do; then the shortest row length that
 * needs no more rows evens them out, so that little of a batch is padding. Documents of the same
 * length are taken in an order that the seed decides. A pure function of its arguments.
 */
#ifndef GRAFT_PACK_H
#define GRAFT_PACK_H

#include "engine/base/err.h"

#include <stdint.h>

struct pack {
    int64_t n, rows;
    int64_t *doc;   /* [n] documents, those of a row next to each other */
    int64_t *first; /* [rows + 1] where in doc a row begins */
};

/* length[i] in 1..most, n >= 1. Rows of at most `most` tokens. */
int pack_make(struct pack *p, const int64_t *length, int64_t n, int64_t most, uint64_t seed,
              struct err *e);
void pack_clear(struct pack *p);

#endif
