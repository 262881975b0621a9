/* ATTN_BWD: probabilities are computed again from the saved log-sums. dq belongs to tasks over
 * tiles of queries, dk and dv to tasks over tiles of keys, which take the heads of their group and
 * the tiles of queries in order. */
#include "engine/cpu/attn.h"

#include <string.h>

static void delta_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct attn *a = ctx;
    const float *o = a->s->in[5];
    for (int64_t i = task * 64; i < min64(task * 64 + 64, a->B * a->T * a->H); i++)
        a->delta[i] = vec_dot(a->dy + i * a->D, o + i * a->D, a->D);
}

/* A tile of queries against a tile of keys, for one head. */
struct pair {
    const struct attn *a;
    int64_t b, h, g, t0, n, k0, m;
    float *scratch;
    float p[ATTN_Q * ATTN_K];  /* probabilities [n, ATTN_K] */
    float ds[ATTN_Q * ATTN_K]; /* gradient of scale q k^T, times scale */
};

static void pair_run(struct pair *x)
{
    const struct attn *a = x->a;
    int64_t ldq = a->H * a->D, ldk = a->G * a->D;
    int64_t q = attn_q_at(a, x->b, x->t0, x->h), k = attn_k_at(a, x->b, x->k0, x->g);
    struct gemm score = {.n = x->n, .m = x->m, .k = a->D, .alpha = a->scale,
                         .a = {a->q + q, DT_F32, ldq, false}, .b = {a->k + k, DT_F32, ldk, true},
                         .c = x->p, .ldc = ATTN_K, .scratch = x->scratch};
    struct gemm dp = {.n = x->n, .m = x->m, .k = a->D, .alpha = 1,
                      .a = {a->dy + q, DT_F32, ldq, false}, .b = {a->v + k, DT_F32, ldk, true},
                      .c = x->ds, .ldc = ATTN_K, .scratch = x->scratch};
    gemm_run(&score);
    gemm_run(&dp);
    for (int64_t i = 0; i < x->n; i++) {
        struct span r = attn_span(a, x->b, x->t0 + i);
        int64_t lo = min64(max64(r.lo - x->k0, 0), x->m);
        int64_t hi = max64(min64(r.hi - x->k0, x->m), lo);
        int64_t at = (x->b * a->T + x->t0 + i) * a->H + x->h;
        float lse = a->lse[at], delta = a->delta[at];
        float *p = x->p + i * ATTN_K, *ds = x->ds + i * ATTN_K;
        for (int64_t j = 0; j < lo; j++) p[j] = ds[j] = 0;
        for (int64_t j = lo; j < hi; j++) {
            p[j] = mx_exp(p[j] - lse);
            ds[j] = p[j] * (ds[j] - delta) * a->scale;
        }
        for (int64_t j = hi; j < x->m; j++) p[j] = ds[j] = 0;
    }
}

static void zero_tile(float *p, int64_t n, int64_t ld, int64_t width_)
{
    for (int64_t i = 0; i < n; i++) memset(p + i * ld, 0, (size_t)width_ * sizeof *p);
}

static void dq_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    int64_t qt = task % a->qtiles, h = task / a->qtiles % a->H, b = task / a->qtiles / a->H;
    int64_t t0 = qt * ATTN_Q, n = min64(ATTN_Q, a->T - t0);
    int64_t ldq = a->H * a->D, ldk = a->G * a->D;
    struct pair x = {.a = a, .b = b, .h = h, .g = h / (a->H / a->G), .t0 = t0, .n = n,
                     .scratch = (float *)a->s->ws + (int64_t)thread * GEMM_SCRATCH};
    struct span all = attn_union(a, b, t0, n);
    float *dq = (float *)a->s->out[0] + attn_q_at(a, b, t0, h);
    zero_tile(dq, n, ldq, a->D);
    for (x.k0 = all.lo; x.k0 < all.hi; x.k0 += ATTN_K) {
        x.m = min64(ATTN_K, all.hi - x.k0);
        pair_run(&x);
        struct gemm g = {.n = n, .m = a->D, .k = x.m, .alpha = 1,
                         .a = {x.ds, DT_F32, ATTN_K, false},
                         .b = {a->k + attn_k_at(a, b, x.k0, x.g), DT_F32, ldk, false},
                         .add = dq, .ldadd = ldq, .c = dq, .ldc = ldq, .scratch = x.scratch};
        gemm_run(&g);
    }
}

/* out[m,D] += f^T[m,n] y[n,D] */
static void add_product(const struct pair *x, const float *f, const float *y, float *out)
{
    const struct attn *a = x->a;
    int64_t ldk = a->G * a->D;
    float *to = out + attn_k_at(a, x->b, x->k0, x->g);
    struct gemm g = {.n = x->m, .m = a->D, .k = x->n, .alpha = 1,
                     .a = {f, DT_F32, ATTN_K, true},
                     .b = {y + attn_q_at(a, x->b, x->t0, x->h), DT_F32, a->H * a->D, false},
                     .add = to, .ldadd = ldk, .c = to, .ldc = ldk, .scratch = x->scratch};
    gemm_run(&g);
}

static void dkv_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    int64_t kt = task % a->ktiles, g = task / a->ktiles % a->G, b = task / a->ktiles / a->G;
    float *dk = a->s->out[1], *dv = a->s->out[2];
    struct pair x = {.a = a, .b = b, .g = g, .k0 = kt * ATTN_K,
                     .scratch = (float *)a->s->ws + (int64_t)thread * GEMM_SCRATCH};
    x.m = min64(ATTN_K, a->S - x.k0);
    int64_t at = attn_k_at(a, b, x.k0, g), ldk = a->G * a->D, group = a->H / a->G;
    if (dk) zero_tile(dk + at, x.m, ldk, a->D);
    if (dv) zero_tile(dv + at, x.m, ldk, a->D);
    for (x.h = g * group; x.h < (g + 1) * group; x.h++) {
        for (x.t0 = 0; x.t0 < a->T; x.t0 += ATTN_Q) {
            x.n = min64(ATTN_Q, a->T - x.t0);
            struct span all = attn_union(a, b, x.t0, x.n);
            if (all.lo >= x.k0 + x.m || all.hi <= x.k0) continue;
            pair_run(&x);
            if (dv) add_product(&x, x.p, a->dy, dv);
            if (dk) add_product(&x, x.ds, a->q, dk);
        }
    }
}

int cpu_attn_bwd(const struct step *s, struct exec *x, struct err *e)
{
    struct attn a;
    if (attn_init(&a, s, 1, e)) return -1;
    a.dy = s->in[0];
    a.lse = s->in[6];
    a.delta = (float *)s->ws + (int64_t)pool_threads(x->pool) * GEMM_SCRATCH;
    pool_run(x->pool, tiles(a.B * a.T * a.H, 64), delta_rows, &a);
    if (s->out[0]) pool_run(x->pool, a.B * a.H * a.qtiles, dq_tile, &a);
    if (s->out[1] || s->out[2]) pool_run(x->pool, a.B * a.G * a.ktiles, dkv_tile, &a);
    return 0;
}
