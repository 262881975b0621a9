/* ATTN_BWD: probabilities are computed again from the saved log-sums. dk and dv belong to tasks
 * over tiles of keys, which take the heads of their group and the tiles of queries in order; dq to
 * tasks over tiles of queries, which take the tiles of keys in order; where the gradient of the
 * bias is wanted too, such a task takes its tile of one sequence after the other and adds them up.
 * Else, where there are enough (batch, group) pairs, one task does all of a pair, tile of keys
 * after tile of keys, and computes the probabilities once for all three gradients. */
#include "engine/cpu/attn.h"

#include <string.h>

/* A tile of queries against a tile of keys, for one head. */
struct pair {
    const struct attn *a;
    int64_t b, h, g, t0, n;
    int64_t k0, m;
    float *kp, *vp;          /* keys and values packed as columns */
    float *kr;               /* keys packed as rows */
    float *yp;               /* rows of queries packed */
};

enum { PAIRS = 8 }; /* (batch, group) pairs that are enough tasks */

static struct pair pair_of(const struct attn *a, int thread)
{
    struct pair x = {.a = a, .kp = (float *)a->s->ws + (int64_t)thread * GEMM_SCRATCH};
    x.vp = x.kp + gemm_panels(a->D, ATTN_K);
    x.kr = x.vp + gemm_panels(a->D, ATTN_K);
    x.yp = x.kr + gemm_panels(ATTN_K, a->D);
    return x;
}

static void pack_keys(struct pair *x, bool for_dq)
{
    int64_t at = attn_k_at(x->a, x->b, x->k0, x->g), ld = x->a->G * x->a->D;
    attn_pack_columns(x->a, x->a->k + at, ld, x->m, x->kp);
    attn_pack_columns(x->a, x->a->v + at, ld, x->m, x->vp);
    if (for_dq) attn_pack_rows(x->a, x->a->k + at, ld, x->m, x->kr);
}

/* Probabilities and the gradients of the scores of the n queries from i, in columns *cols of
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
        attn_add_bias(a, x->h, x->t0 + r, x->k0, own, p);
        for (int64_t j = cols->lo; j < own.lo; j++) p[j] = -INFINITY;
        for (int64_t j = own.hi; j < cols->hi; j++) p[j] = -INFINITY;
        for (int64_t j = cols->lo; j < cols->hi; j += VEC) {
            vec prob = vec_exp(vec_load(p + j) - vec_set(lse));
            vec_store(p + j, prob);
            vec_store(ds + j, prob * (vec_load(ds + j) - vec_set(delta)));
        }
    }
    return true;
}

/* dq of the n queries from i += scale ds, whose columns cols count, times the keys of the tile. */
static void add_dq(const struct pair *x, int64_t i, int64_t n, struct span cols, const float *ds)
{
    const struct attn *a = x->a;
    int64_t ld = a->H * a->D;
    float *dq = (float *)a->s->out[0] + attn_q_at(a, x->b, x->t0 + i, x->h);
    struct gemm_strip t = {
        .kc = min64(cols.hi, x->m) - cols.lo, .cols = a->D, .a = ds + cols.lo, .a_row = ATTN_K,
        .a_k = 1, .b = x->kr + cols.lo * GEMM_NR, .b_k = GEMM_NR, .b_panel = gemm_panel(x->m),
        .alpha = a->scale, .add = dq, .ldadd = ld, .c = dq, .ldc = ld,
    };
    gemm_strips(t, n);
}

/* dbias of the n queries from i += ds */
static void add_dbias(const struct pair *x, int64_t i, int64_t n, const float *ds)
{
    const struct attn *a = x->a;
    for (int64_t r = i; r < i + n; r++, ds += ATTN_K) {
        struct span own = attn_span(a, x->b, x->t0 + r, x->k0, x->m);
        float *to = (float *)a->s->out[3] + (x->h * a->T + x->t0 + r) * a->S + x->k0;
        for (int64_t j = own.lo; j < own.hi; j++) to[j] += ds[j];
    }
}

/* What the tile of queries t0 of sequence b and head h adds to dq and dbias. */
static void queries_tile(struct pair *x)
{
    const struct attn *a = x->a;
    float p[GEMM_MR * ATTN_K], ds[GEMM_MR * ATTN_K];
    x->g = x->h / (a->H / a->G);
    x->n = min64(ATTN_Q, a->T - x->t0);
    struct span all = attn_union(a, x->b, x->t0, x->n, 0, a->S), cols;
    for (x->k0 = all.lo / ATTN_K * ATTN_K; x->k0 < all.hi; x->k0 += ATTN_K) {
        x->m = min64(ATTN_K, a->S - x->k0);
        pack_keys(x, true);
        for (int64_t i = 0; i < x->n; i += GEMM_MR) {
            int64_t n = min64(GEMM_MR, x->n - i);
            if (!pair_strip(x, i, n, &cols, p, ds)) continue;
            if (a->s->out[0]) add_dq(x, i, n, cols, ds);
            if (a->s->out[3]) add_dbias(x, i, n, ds);
        }
    }
}

static void dq_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct pair x = pair_of(a, thread);
    x.b = task / a->qtiles / a->H;
    x.h = task / a->qtiles % a->H;
    x.t0 = task % a->qtiles * ATTN_Q;
    queries_tile(&x);
}

static void dbias_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct pair x = pair_of(a, thread);
    x.h = task / a->qtiles;
    x.t0 = task % a->qtiles * ATTN_Q;
    float *rows_ = (float *)a->s->out[3] + (x.h * a->T + x.t0) * a->S;
    memset(rows_, 0, (size_t)(min64(ATTN_Q, a->T - x.t0) * a->S) * sizeof *rows_);
    for (x.b = 0; x.b < a->B; x.b++) queries_tile(&x);
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

enum { KEY_STRIPS = (ATTN_K + GEMM_MR - 1) / GEMM_MR };

/* out[m,D] += alpha f^T y for the keys of the tile; f[n, ATTN_K], y packed rows of the queries,
 * seen: which queries count for each strip of keys. */
static void add_product(const struct pair *x, const float *f, const struct span *seen, float alpha,
                        float *out)
{
    const struct attn *a = x->a;
    int64_t ld = a->G * a->D;
    for (int64_t j = 0; j < x->m; j += GEMM_MR, seen++) {
        if (seen->lo >= seen->hi) continue;
        float *to = out + attn_k_at(a, x->b, x->k0 + j, x->g);
        struct gemm_strip t = {
            .kc = seen->hi - seen->lo, .cols = a->D, .a = f + seen->lo * ATTN_K + j, .a_row = 1,
            .a_k = ATTN_K, .b = x->yp + seen->lo * GEMM_NR, .b_k = GEMM_NR,
            .b_panel = gemm_panel(x->n), .alpha = alpha, .add = to, .ldadd = ld, .c = to,
            .ldc = ld,
        };
        gemm_strips(t, min64(GEMM_MR, x->m - j));
    }
}

/* A tile of queries: its part of dk and dv, and of dq if wanted here. */
static void keys_pair(struct pair *x, bool with_dq)
{
    const struct attn *a = x->a;
    float p[ATTN_Q * ATTN_K], ds[ATTN_Q * ATTN_K], *dk = a->s->out[1], *dv = a->s->out[2];
    struct span seen[KEY_STRIPS];
    int64_t ldq = a->H * a->D, at = attn_q_at(a, x->b, x->t0, x->h);
    for (int64_t i = 0; i < x->n; i += GEMM_MR) {
        int64_t n = min64(GEMM_MR, x->n - i);
        struct span cols = {0, 0};
        float *pi = p + i * ATTN_K, *dsi = ds + i * ATTN_K;
        if (pair_strip(x, i, n, &cols, pi, dsi) && with_dq) add_dq(x, i, n, cols, dsi);
        for (int64_t r = 0; r < n; r++, pi += ATTN_K, dsi += ATTN_K) {
            for (int64_t j = 0; j < cols.lo; j++) pi[j] = dsi[j] = 0;
            for (int64_t j = cols.hi; j < ATTN_K; j++) pi[j] = dsi[j] = 0;
        }
    }
    for (int64_t j = 0; j < x->m; j += GEMM_MR)
        seen[j / GEMM_MR] = seen_by(x, j, min64(GEMM_MR, x->m - j));
    if (dv) {
        attn_pack_rows(a, a->dy + at, ldq, x->n, x->yp);
        add_product(x, p, seen, 1, dv);
    }
    if (dk) {
        attn_pack_rows(a, a->q + at, ldq, x->n, x->yp);
        add_product(x, ds, seen, a->scale, dk);
    }
}

/* A tile of keys against all queries that see any of them. */
static void keys_tile(struct pair *x, bool with_dq)
{
    const struct attn *a = x->a;
    int64_t group = a->H / a->G;
    x->m = min64(ATTN_K, a->S - x->k0);
    pack_keys(x, with_dq);
    for (x->h = x->g * group; x->h < (x->g + 1) * group; x->h++) {
        for (x->t0 = 0; x->t0 < a->T; x->t0 += ATTN_Q) {
            x->n = min64(ATTN_Q, a->T - x->t0);
            struct span u = attn_union(a, x->b, x->t0, x->n, x->k0, x->m);
            if (u.lo < u.hi) keys_pair(x, with_dq);
        }
    }
}

static void dkv_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct pair x = pair_of(a, thread);
    x.b = task / a->ktiles / a->G;
    x.g = task / a->ktiles % a->G;
    x.k0 = task % a->ktiles * ATTN_K;
    keys_tile(&x, false);
}

static void all_of_a_pair(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct pair x = pair_of(a, thread);
    x.b = task / a->G;
    x.g = task % a->G;
    for (x.k0 = 0; x.k0 < a->S; x.k0 += ATTN_K) keys_tile(&x, true);
}

/* Before anything is added: delta of 64 rows; zeros of the gradients. */
static void start_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct attn *a = ctx;
    const float *o = a->s->in[5];
    int64_t lo = task * 64, q = a->B * a->T * a->H, k = a->B * a->S * a->G;
    float *dq = a->s->out[0];
    for (int64_t i = lo; i < min64(lo + 64, q); i++)
        a->delta[i] = vec_dot(a->dy + i * a->D, o + i * a->D, a->D);
    for (int64_t i = lo; dq && i < min64(lo + 64, q); i++)
        memset(dq + i * a->D, 0, (size_t)a->D * sizeof *dq);
    for (int j = 1; j <= 2; j++) {
        float *d = a->s->out[j];
        for (int64_t i = lo; d && i < min64(lo + 64, k); i++)
            memset(d + i * a->D, 0, (size_t)a->D * sizeof *d);
    }
}

int cpu_attn_bwd(const struct step *s, struct exec *x, struct err *e)
{
    struct attn a;
    if (attn_init(&a, s, 1, e)) return -1;
    a.dy = s->in[0];
    a.lse = s->in[6];
    a.delta = (float *)s->ws + (int64_t)pool_threads(x->pool) * GEMM_SCRATCH;
    int64_t most = max64(a.B * a.T * a.H, a.B * a.S * a.G);
    pool_run(x->pool, tiles(most, 64), start_rows, &a);
    bool dkv = s->out[1] || s->out[2];
    if (s->out[0] && dkv && !s->out[3] && a.B * a.G >= PAIRS) {
        pool_run(x->pool, a.B * a.G, all_of_a_pair, &a);
        return 0;
    }
    if (s->out[3]) pool_run(x->pool, a.H * a.qtiles, dbias_tile, &a);
    else if (s->out[0]) pool_run(x->pool, a.B * a.H * a.qtiles, dq_tile, &a);
    if (dkv) pool_run(x->pool, a.B * a.G * a.ktiles, dkv_tile, &a);
    return 0;
}
