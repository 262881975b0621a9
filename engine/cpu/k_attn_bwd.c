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
    int64_t b, h, g, t0, n;
    int64_t k0, m;
    float *kp, *vp;          /* keys and values packed as columns */
    float *more;             /* the rest of the scratch */
};

static struct pair pair_of(const struct attn *a, int thread)
{
    struct pair x = {.a = a, .kp = (float *)a->s->ws + (int64_t)thread * GEMM_SCRATCH};
    x.vp = x.kp + gemm_panels(a->D, ATTN_K);
    x.more = x.vp + gemm_panels(a->D, ATTN_K);
    return x;
}

static void pack_keys(struct pair *x)
{
    int64_t at = attn_k_at(x->a, x->b, x->k0, x->g), ld = x->a->G * x->a->D;
    attn_pack_columns(x->a, x->a->k + at, ld, x->m, x->kp);
    attn_pack_columns(x->a, x->a->v + at, ld, x->m, x->vp);
}

/* Probabilities and their gradients (times scale) of the n queries from i, in columns *cols of
 * p and ds [n, ATTN_K]; false if none of them sees a key of the tile. */
static bool pair_strip(const struct pair *x, int64_t i, int64_t n, struct span *cols, float *p,
                       float *ds)
{
    const struct attn *a = x->a;
    struct span u = attn_union(a, x->b, x->t0 + i, n, x->k0, x->m);
    int64_t q = attn_q_at(a, x->b, x->t0 + i, x->h);
    if (u.lo >= u.hi) return false;
    *cols = attn_panels(u);
    struct gemm_strip score = attn_scores(a, a->q + q, x->kp, *cols, p);
    score.alpha = a->scale;
    gemm_strips(score, n);
    gemm_strips(attn_scores(a, a->dy + q, x->vp, *cols, ds), n);
    for (int64_t r = i; r < i + n; r++, p += ATTN_K, ds += ATTN_K) {
        int64_t at = (x->b * a->T + x->t0 + r) * a->H + x->h;
        struct span own = attn_span(a, x->b, x->t0 + r, x->k0, x->m);
        float lse = own.lo < own.hi ? a->lse[at] : 0, delta = a->delta[at];
        for (int64_t j = cols->lo; j < own.lo; j++) p[j] = -INFINITY;
        for (int64_t j = own.hi; j < cols->hi; j++) p[j] = -INFINITY;
        for (int64_t j = cols->lo; j < cols->hi; j += VEC)
            for (int64_t c = j; c < j + VEC; c++) {
                p[c] = mx_exp(p[c] - lse);
                ds[c] = p[c] * (ds[c] - delta) * a->scale;
            }
    }
    return true;
}

static void zero_rows(float *p, int64_t n, int64_t ld, int64_t wide)
{
    for (int64_t i = 0; i < n; i++) memset(p + i * ld, 0, (size_t)wide * sizeof *p);
}

static void dq_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct pair x = pair_of(a, thread);
    int64_t ldq = a->H * a->D;
    x.b = task / a->qtiles / a->H;
    x.h = task / a->qtiles % a->H;
    x.g = x.h / (a->H / a->G);
    x.t0 = task % a->qtiles * ATTN_Q;
    x.n = min64(ATTN_Q, a->T - x.t0);
    struct span all = attn_union(a, x.b, x.t0, x.n, 0, a->S), cols;
    float *dq = (float *)a->s->out[0] + attn_q_at(a, x.b, x.t0, x.h);
    float p[GEMM_MR * ATTN_K], ds[GEMM_MR * ATTN_K];
    zero_rows(dq, x.n, ldq, a->D);
    for (x.k0 = all.lo; x.k0 < all.hi; x.k0 += ATTN_K) {
        x.m = min64(ATTN_K, all.hi - x.k0);
        pack_keys(&x);
        attn_pack_rows(a, a->k + attn_k_at(a, x.b, x.k0, x.g), a->G * a->D, x.m, x.more);
        for (int64_t i = 0; i < x.n; i += GEMM_MR) {
            int64_t n = min64(GEMM_MR, x.n - i);
            if (!pair_strip(&x, i, n, &cols, p, ds)) continue;
            struct gemm_strip t = {
                .kc = min64(cols.hi, x.m) - cols.lo, .cols = a->D, .a = ds + cols.lo,
                .a_row = ATTN_K, .a_k = 1, .b = x.more + cols.lo * GEMM_NR, .b_k = GEMM_NR,
                .b_panel = gemm_panel(x.m), .alpha = 1, .add = dq + i * ldq, .ldadd = ldq,
                .c = dq + i * ldq, .ldc = ldq,
            };
            gemm_strips(t, n);
        }
    }
}

/* Queries of the tile that see any of the n keys from j. */
static struct span seen_by(const struct pair *x, int64_t j, int64_t n)
{
    struct span q = {x->n, 0};
    for (int64_t i = 0; i < x->n; i++) {
        struct span r = attn_span(x->a, x->b, x->t0 + i, x->k0 + j, n);
        if (r.lo >= r.hi) continue;
        q.lo = min64(q.lo, i);
        q.hi = i + 1;
    }
    return q;
}

/* out[m,D] += f^T y for the keys of the tile; f[n, ATTN_K], y packed rows of the queries. */
static void add_product(const struct pair *x, const float *f, const float *packed, float *out)
{
    const struct attn *a = x->a;
    int64_t ld = a->G * a->D;
    for (int64_t j = 0; j < x->m; j += GEMM_MR) {
        int64_t n = min64(GEMM_MR, x->m - j);
        struct span q = seen_by(x, j, n);
        if (q.lo >= q.hi) continue;
        float *to = out + attn_k_at(a, x->b, x->k0 + j, x->g);
        struct gemm_strip t = {
            .kc = q.hi - q.lo, .cols = a->D, .a = f + q.lo * ATTN_K + j, .a_row = 1,
            .a_k = ATTN_K, .b = packed + q.lo * GEMM_NR, .b_k = GEMM_NR,
            .b_panel = gemm_panel(x->n), .alpha = 1, .add = to, .ldadd = ld, .c = to, .ldc = ld,
        };
        gemm_strips(t, n);
    }
}

static void dkv_pair(struct pair *x)
{
    const struct attn *a = x->a;
    float p[ATTN_Q * ATTN_K], ds[ATTN_Q * ATTN_K], *dk = a->s->out[1], *dv = a->s->out[2];
    int64_t ldq = a->H * a->D, at = attn_q_at(a, x->b, x->t0, x->h);
    for (int64_t i = 0; i < x->n; i += GEMM_MR) {
        int64_t n = min64(GEMM_MR, x->n - i);
        struct span cols = {0, 0};
        float *pi = p + i * ATTN_K, *dsi = ds + i * ATTN_K;
        pair_strip(x, i, n, &cols, pi, dsi);
        for (int64_t r = 0; r < n; r++, pi += ATTN_K, dsi += ATTN_K) {
            for (int64_t j = 0; j < cols.lo; j++) pi[j] = dsi[j] = 0;
            for (int64_t j = cols.hi; j < ATTN_K; j++) pi[j] = dsi[j] = 0;
        }
    }
    if (dv) {
        attn_pack_rows(a, a->dy + at, ldq, x->n, x->more);
        add_product(x, p, x->more, dv);
    }
    if (dk) {
        attn_pack_rows(a, a->q + at, ldq, x->n, x->more);
        add_product(x, ds, x->more, dk);
    }
}

static void dkv_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct pair x = pair_of(a, thread);
    int64_t ldk = a->G * a->D, group = a->H / a->G;
    x.b = task / a->ktiles / a->G;
    x.g = task / a->ktiles % a->G;
    x.k0 = task % a->ktiles * ATTN_K;
    x.m = min64(ATTN_K, a->S - x.k0);
    int64_t at = attn_k_at(a, x.b, x.k0, x.g);
    for (int j = 1; j <= 2; j++)
        if (a->s->out[j]) zero_rows((float *)a->s->out[j] + at, x.m, ldk, a->D);
    pack_keys(&x);
    for (x.h = x.g * group; x.h < (x.g + 1) * group; x.h++) {
        for (x.t0 = 0; x.t0 < a->T; x.t0 += ATTN_Q) {
            x.n = min64(ATTN_Q, a->T - x.t0);
            struct span u = attn_union(a, x.b, x.t0, x.n, x.k0, x.m);
            if (u.lo < u.hi) dkv_pair(&x);
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
