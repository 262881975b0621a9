/* attn.h: what the attention kernels share. Private to engine/cpu.
 *
 * Queries and keys are cut into tiles. For a tile of queries only keys in the union of their
 * ranges are looked at; inside a tile each query has its own range, so causal masks, packing,
 * padding and caches are all the same case.
 */
#ifndef GRAFT_ATTN_H
#define GRAFT_ATTN_H

#include "engine/cpu/gemm.h"
#include "engine/cpu/vec.h"

enum { ATTN_Q = 64, ATTN_K = 64 }; /* rows and keys of a tile of scores */

struct attn {
    const struct step *s;
    int64_t B, T, H, D, S, G;
    const float *q, *k, *v; /* [B,T,H,D] [B,S,G,D] [B,S,G,D] */
    const int32_t *range;   /* [B,T,2] */
    const float *dy, *lse;  /* backward only: [B,T,H,D] [B,T,H] */
    float *delta;           /* backward only: [B,T,H], sum of dy o */
    float scale;
    int64_t qtiles, ktiles;
};

/* Keys that a query may see, or those of several queries together. */
struct span {
    int64_t lo, hi; /* lo >= hi: none */
};

int attn_init(struct attn *a, const struct step *s, int first, struct err *e)
    LEVEL_NAME("attn_init");

static inline struct span attn_span(const struct attn *a, int64_t b, int64_t t)
{
    const int32_t *r = a->range + 2 * (b * a->T + t);
    return (struct span){r[0], r[1]};
}

static inline struct span attn_union(const struct attn *a, int64_t b, int64_t t0, int64_t n)
{
    struct span u = {INT64_MAX, 0};
    for (int64_t t = t0; t < t0 + n; t++) {
        struct span r = attn_span(a, b, t);
        if (r.lo >= r.hi) continue;
        u.lo = min64(u.lo, r.lo);
        u.hi = max64(u.hi, r.hi);
    }
    return u;
}

static inline int64_t attn_q_at(const struct attn *a, int64_t b, int64_t t, int64_t h)
{
    return ((b * a->T + t) * a->H + h) * a->D;
}

static inline int64_t attn_k_at(const struct attn *a, int64_t b, int64_t s, int64_t g)
{
    return ((b * a->S + s) * a->G + g) * a->D;
}

#endif
