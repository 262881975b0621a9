/* attn.h: what the attention kernels share. Private to engine/cpu.
 *
 * Queries and keys are cut into tiles, and a tile of queries into strips of GEMM_MR. For a strip
 * only keys in the union of its queries' ranges are computed (rounded to panels), and inside it
 * each query has its own range; so causal masks, packing, padding and caches are all one case.
 * Keys and values of a tile are packed once for all strips.
 */
#ifndef GRAFT_ATTN_H
#define GRAFT_ATTN_H

#include "engine/cpu/gemm.h"
#include "engine/cpu/vec.h"

enum {
    ATTN_Q = 96, ATTN_K = 64, /* queries and keys of a tile */
    ATTN_D = 512,             /* widest head: four packed tiles fit into a thread's scratch */
};

struct attn {
    const struct step *s;
    int64_t B, T, H, D, S, G;
    const float *q, *k, *v; /* [B,T,H,D] [B,S,G,D] [B,S,G,D] */
    const int32_t *range;   /* [B,T,2] */
    const void *bias;       /* [H,T,S] of dtype bias_type, or NULL */
    enum dtype bias_type;
    const float *dy, *lse;  /* backward only: [B,T,H,D] [B,T,H] */
    float *delta;           /* backward only: [B,T,H], sum of dy o */
    float scale;
    int64_t qtiles, ktiles;
};

/* Keys that a query may see, or those of several queries together; none if lo >= hi. */
struct span {
    int64_t lo, hi;
};

int attn_init(struct attn *a, const struct step *s, int first, struct err *e)
    LEVEL_NAME("attn_init");

/* The range of query t, clipped to the m keys from k0 and relative to k0. */
static inline struct span attn_span(const struct attn *a, int64_t b, int64_t t, int64_t k0,
                                    int64_t m)
{
    const int32_t *r = a->range + 2 * (b * a->T + t);
    int64_t lo = min64(max64(r[0] - k0, 0), m);
    return (struct span){lo, max64(min64(r[1] - k0, m), lo)};
}

/* The union for n queries from t. */
static inline struct span attn_union(const struct attn *a, int64_t b, int64_t t, int64_t n,
                                     int64_t k0, int64_t m)
{
    struct span u = {m, 0};
    for (int64_t i = 0; i < n; i++) {
        struct span r = attn_span(a, b, t + i, k0, m);
        if (r.lo >= r.hi) continue;
        u.lo = min64(u.lo, r.lo);
        u.hi = max64(u.hi, r.hi);
    }
    return u;
}

/* Adds the bias of query t of head h to its scores of the keys in u, counted from key k0. */
static inline void attn_add_bias(const struct attn *a, int64_t h, int64_t t, int64_t k0,
                                 struct span u, float *score)
{
    float tmp[ATTN_K];
    if (!a->bias) return;
    const float *b = cpu_floats(a->bias, a->bias_type, (h * a->T + t) * a->S + k0 + u.lo,
                                u.hi - u.lo, tmp);
    for (int64_t j = u.lo; j < u.hi; j++) score[j] += b[j - u.lo];
}

static inline int64_t attn_q_at(const struct attn *a, int64_t b, int64_t t, int64_t h)
{
    return ((b * a->T + t) * a->H + h) * a->D;
}

static inline int64_t attn_k_at(const struct attn *a, int64_t b, int64_t s, int64_t g)
{
    return ((b * a->S + s) * a->G + g) * a->D;
}

/* Packs m rows of D floats, ld apart: for products over D (rows become columns), or over rows. */
static inline void attn_pack_columns(const struct attn *a, const float *p, int64_t ld, int64_t m,
                                     float *to)
{
    gemm_pack(&(struct gemm_mat){p, DT_F32, ld, true}, a->D, m, to);
}

static inline void attn_pack_rows(const struct attn *a, const float *p, int64_t ld, int64_t m,
                                  float *to)
{
    gemm_pack(&(struct gemm_mat){p, DT_F32, ld, false}, m, a->D, to);
}

/* Columns cols of c[., ATTN_K] = q[.,D] times packed columns; q may be another [B,T,H,D]. */
static inline struct gemm_strip attn_scores(const struct attn *a, const float *q,
                                            const float *packed, struct span cols, float *c)
{
    return (struct gemm_strip){
        .kc = a->D, .cols = cols.hi - cols.lo, .a = q, .a_row = a->H * a->D, .a_k = 1,
        .b = packed + cols.lo / GEMM_NR * gemm_panel(a->D), .b_k = GEMM_NR,
        .b_panel = gemm_panel(a->D), .alpha = 1, .c = c + cols.lo, .ldc = ATTN_K,
    };
}

/* Whole panels around u. */
static inline struct span attn_panels(struct span u)
{
    return (struct span){u.lo / GEMM_NR * GEMM_NR, tiles(u.hi, GEMM_NR) * GEMM_NR};
}

#endif
