/* attn.cuh: what the attention kernels share. Private to engine/cuda.
 *
 * A block works on one tile of ATTN_TILE queries (or keys) of one head against tile after tile of
 * the other side, and skips tiles that no range of it reaches; inside a tile each query has its
 * own range, so causal masks, packing, padding and caches are all one case. Gradients of queries
 * and of keys come from two kernels, so that every element has one block that adds its terms in
 * the order of the tiles.
 *
 * Two families: plain tiles for f32, for heads wider than ATTN_MMA_D and for the gradient of the
 * bias (k_attn.cu, k_attn_bwd.cu), and tensor cores for bf16 (k_attn_mma.cu).
 */
#ifndef GRAFT_ATTN_CUH
#define GRAFT_ATTN_CUH

#include "engine/cuda/vec.cuh"

enum { ATTN_TILE = 64, ATTN_D = 256, ATTN_MMA_D = 128 };

struct attn {
    int64_t B, T, H, D, S, G;
    const void *q, *k, *v;  /* [B,T,H,D] [B,S,G,D] [B,S,G,D] */
    const int32_t *range;   /* [B,T,2] */
    const void *bias;       /* [H,T,S] or NULL */
    enum dtype bias_type;
    const void *dy, *y;     /* backward only, [B,T,H,D]: gradient of the result, the result */
    const float *lse;       /* backward only, [B,T,H] */
    float *delta;           /* backward only, [B,T,H]: sum of dy o */
    void *o, *dq, *dk, *dv; /* NULL: not wanted */
    float *lse_out, *dbias;
    int32_t *fault;         /* set when a range leaves the keys */
    float scale;
};

/* Keys lo <= s < hi, or queries. */
struct span {
    int lo, hi;
};


/* What the query at row t of batch b may see; empty is {0, 0}. */
CU_FN struct span attn_range(const struct attn *a, int64_t b, int64_t t)
{
    const int32_t *r = a->range + 2 * (b * a->T + t);
    const int lo = max(r[0], 0), hi = min(r[1], (int)a->S);
    if (r[0] < r[1] && (lo != r[0] || hi != r[1])) *a->fault = 1;
    return lo < hi ? span{lo, hi} : span{0, 0};
}

/* The union over queries [t0, t0 + n). To be called by whole warps. */
CU_FN struct span attn_hull(const struct attn *a, int64_t b, int64_t t0, int n)
{
    struct span u = {INT32_MAX, 0};
    for (int i = (int)threadIdx.x % 32; i < n && t0 + i < a->T; i += 32) {
        struct span r = attn_range(a, b, t0 + i);
        if (r.lo >= r.hi) continue;
        u.lo = min(u.lo, r.lo);
        u.hi = max(u.hi, r.hi);
    }
    for (int k = 16; k > 0; k /= 2) {
        u.lo = min(u.lo, __shfl_xor_sync(0xffffffffu, u.lo, k));
        u.hi = max(u.hi, __shfl_xor_sync(0xffffffffu, u.hi, k));
    }
    return u.lo < u.hi ? u : span{0, 0};
}

/* What a block works on: n queries (or keys) from `at` of one head. */
struct attn_tile {
    int64_t b, h, g, at;
    int n;
};

/* Of `high` queries: those that see most under a causal mask come first. */
CU_FN struct attn_tile attn_queries(const struct attn *a, int high)
{
    const int64_t heads = a->B * a->H, bh = blockIdx.x % heads;
    struct attn_tile t;
    t.b = bh / a->H;
    t.h = bh % a->H;
    t.g = t.h / (a->H / a->G);
    t.at = ((a->T - 1) / high - blockIdx.x / heads) * high;
    t.n = (int)min((int64_t)high, a->T - t.at);
    return t;
}

/* Of keys, for all heads of a group; h is its first. */
CU_FN struct attn_tile attn_keys(const struct attn *a)
{
    const int64_t groups = a->B * a->G, bg = blockIdx.x % groups;
    struct attn_tile t;
    t.b = bg / a->G;
    t.g = bg % a->G;
    t.h = t.g * (a->H / a->G);
    t.at = blockIdx.x / groups * ATTN_TILE;
    t.n = (int)min((int64_t)ATTN_TILE, a->S - t.at);
    return t;
}

CU_FN int64_t attn_q_at(const struct attn *a, int64_t b, int64_t t, int64_t h)
{
    return ((b * a->T + t) * a->H + h) * a->D;
}

CU_FN int64_t attn_k_at(const struct attn *a, int64_t b, int64_t s, int64_t g)
{
    return ((b * a->S + s) * a->G + g) * a->D;
}

CU_FN float attn_bias(const struct attn *a, int64_t h, int64_t t, int64_t s)
{
    return vec_any(a->bias, a->bias_type, (h * a->T + t) * a->S + s);
}

/* Shapes, inputs q, k, v and range from input `first` on, and the scale. */
int attn_init(struct attn *a, const struct step *s, int first, const struct exec *x,
              struct err *e);
/* Launches on tensor cores: the dtype is bf16, D <= ATTN_MMA_D. */
void attn_mma(const struct attn *a, struct exec *x);
void attn_mma_bwd(const struct attn *a, struct exec *x);

#endif
