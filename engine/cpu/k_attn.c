/* ATTN forward: scores of a tile of queries against tile after tile of keys, with the softmax
 * rescaled as the maximum grows, so that no [T,S] matrix ever exists. A task is one tile of
 * queries of one head. */
#include "engine/cpu/attn.h"

#include <string.h>

int attn_init(struct attn *a, const struct step *s, int first, struct err *e)
{
    const struct attrs_attn *attrs = s->attrs;
    const struct tensor *q = s->tin[first], *k = s->tin[first + 1];
    *a = (struct attn){
        .s = s, .B = q->shape[0], .T = q->shape[1], .H = q->shape[2], .D = q->shape[3],
        .S = k->shape[1], .G = k->shape[2], .scale = attrs->scale, .q = s->in[first],
        .k = s->in[first + 1], .v = s->in[first + 2], .range = s->in[first + 3],
    };
    int bias = first ? 7 : 4;
    a->bias = s->in[bias];
    if (a->bias) a->bias_type = s->tin[bias]->dtype;
    a->qtiles = tiles(a->T, ATTN_Q);
    a->ktiles = tiles(a->S, ATTN_K);
    if (a->D > ATTN_D)
        return err_set(e, E_UNSUPPORTED, "attention heads are %lld wide; at most %d is supported",
                       (long long)a->D, ATTN_D);
    for (int64_t i = 0; i < a->B * a->T; i++) {
        const int32_t *r = a->range + 2 * i;
        if (r[0] < r[1] && (r[0] < 0 || r[1] > a->S))
            return err_set(e, E_RANGE, "attention range [%d, %d) leaves the %lld keys", (int)r[0],
                           (int)r[1], (long long)a->S);
    }
    return 0;
}

/* A tile of queries against a tile of keys, for one head. */
struct forward {
    const struct attn *a;
    int64_t b, h, g, t0, n;
    int64_t k0, m;
    float *kp, *vp;              /* packed keys and values */
    float *o;                    /* of query t0, or NULL: not wanted */
    float max[ATTN_Q], sum[ATTN_Q];
};

/* Turns scores [cols) of a row, of which those in u count, into e^(score - max), 0 for the others.
 * *shrink is what earlier terms must be multiplied by. Returns the sum. */
static float softmax_row(float *p, struct span cols, struct span u, float *max, float *shrink)
{
    float old = *max, now;
    vec top, sum = {0};
    *shrink = 1;
    if (u.lo == u.hi) {
        memset(p + cols.lo, 0, (size_t)(cols.hi - cols.lo) * sizeof *p);
        return 0;
    }
    for (int64_t j = cols.lo; j < u.lo; j++) p[j] = -INFINITY;
    for (int64_t j = u.hi; j < cols.hi; j++) p[j] = -INFINITY;
    top = vec_load(p + cols.lo);
    for (int64_t j = cols.lo; j < cols.hi; j += VEC) top = vec_max(top, vec_load(p + j));
    now = vec_top(top);
    if (now < old) now = old;
    for (int64_t j = cols.lo; j < cols.hi; j += VEC) {
        vec x = vec_exp(vec_load(p + j) - vec_set(now));
        vec_store(p + j, x);
        sum += x;
    }
    *max = now;
    *shrink = now > old ? mx_exp(old - now) : 1;
    return vec_sum(sum);
}

/* Softmax of n rows of scores from query i of the tile on; shrinks what o has so far. */
static void softmax_rows(struct forward *f, int64_t i, int64_t n, struct span cols, float *p)
{
    int64_t ld = f->a->H * f->a->D;
    for (int64_t r = i; r < i + n; r++, p += ATTN_K) {
        struct span u = attn_span(f->a, f->b, f->t0 + r, f->k0, f->m);
        attn_add_bias(f->a, f->h, f->t0 + r, f->k0, u, p);
        float shrink, sum = softmax_row(p, cols, u, &f->max[r], &shrink);
        f->sum[r] = f->sum[r] * shrink + sum;
        for (int64_t d = 0; f->o && shrink != 1 && d < f->a->D; d++) f->o[r * ld + d] *= shrink;
    }
}

static void forward_strip(struct forward *f, int64_t i, int64_t n)
{
    const struct attn *a = f->a;
    int64_t ld = a->H * a->D;
    struct span u = attn_union(a, f->b, f->t0 + i, n, f->k0, f->m), cols = attn_panels(u);
    float p[GEMM_MR * ATTN_K];
    if (u.lo >= u.hi) return;
    const float *q = a->q + attn_q_at(a, f->b, f->t0 + i, f->h);
    struct gemm_strip score = attn_scores(a, q, f->kp, cols, p);
    score.alpha = a->scale;
    gemm_strips(score, n);
    softmax_rows(f, i, n, cols, p);
    if (!f->o) return;
    struct gemm_strip mix = {
        .kc = u.hi - cols.lo, .cols = a->D, .a = p + cols.lo, .a_row = ATTN_K, .a_k = 1,
        .b = f->vp + cols.lo * GEMM_NR, .b_k = GEMM_NR, .b_panel = gemm_panel(f->m), .alpha = 1,
        .add = f->o + i * ld, .ldadd = ld, .c = f->o + i * ld, .ldc = ld,
    };
    gemm_strips(mix, n);
}

/* One query, as in decoding: packing would cost more than the products. */
static void forward_one(struct forward *f)
{
    const struct attn *a = f->a;
    struct span u = attn_span(a, f->b, f->t0, f->k0, f->m), cols = attn_panels(u);
    const float *q = a->q + attn_q_at(a, f->b, f->t0, f->h);
    float p[ATTN_K];
    if (u.lo >= u.hi) return;
    for (int64_t j = u.lo; j < u.hi; j++)
        p[j] = a->scale * vec_dot(q, a->k + attn_k_at(a, f->b, f->k0 + j, f->g), a->D);
    softmax_rows(f, 0, 1, cols, p);
    for (int64_t j = u.lo; f->o && j < u.hi; j++) {
        const float *v = a->v + attn_k_at(a, f->b, f->k0 + j, f->g);
        for (int64_t d = 0; d < a->D; d++) f->o[d] = fmaf(p[j], v[d], f->o[d]);
    }
}

static void forward_finish(struct forward *f)
{
    const struct attn *a = f->a;
    float *lse = a->s->out[1];
    int64_t ld = a->H * a->D;
    for (int64_t i = 0; i < f->n; i++) {
        float sum = f->sum[i], k = sum > 0 ? 1.0f / sum : sum; /* NaN stays */
        for (int64_t d = 0; f->o && d < a->D; d++) f->o[i * ld + d] *= k;
        if (lse) lse[(f->b * a->T + f->t0 + i) * a->H + f->h] = f->max[i] + mx_log(sum);
    }
}

static void forward_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    struct forward f = {.a = a, .b = task / a->qtiles / a->H, .h = task / a->qtiles % a->H,
                        .t0 = task % a->qtiles * ATTN_Q, .o = a->s->out[0]};
    int64_t ldk = a->G * a->D;
    f.g = f.h / (a->H / a->G);
    f.n = min64(ATTN_Q, a->T - f.t0);
    f.kp = (float *)a->s->ws + (int64_t)thread * GEMM_SCRATCH;
    f.vp = f.kp + gemm_panels(a->D, ATTN_K);
    if (f.o) f.o += attn_q_at(a, f.b, f.t0, f.h);
    for (int64_t i = 0; i < f.n; i++) {
        f.max[i] = -INFINITY;
        f.sum[i] = 0;
        if (f.o) memset(f.o + i * a->H * a->D, 0, (size_t)a->D * sizeof *f.o);
    }
    struct span all = attn_union(a, f.b, f.t0, f.n, 0, a->S);
    for (f.k0 = all.lo; f.k0 < all.hi; f.k0 += ATTN_K) {
        f.m = min64(ATTN_K, all.hi - f.k0);
        if (f.n == 1) {
            forward_one(&f);
            continue;
        }
        int64_t at = attn_k_at(a, f.b, f.k0, f.g);
        attn_pack_columns(a, a->k + at, ldk, f.m, f.kp);
        if (f.o) attn_pack_rows(a, a->v + at, ldk, f.m, f.vp);
        for (int64_t i = 0; i < f.n; i += GEMM_MR) forward_strip(&f, i, min64(GEMM_MR, f.n - i));
    }
    forward_finish(&f);
}

int cpu_attn(const struct step *s, struct exec *x, struct err *e)
{
    struct attn a;
    if (attn_init(&a, s, 0, e)) return -1;
    pool_run(x->pool, a.B * a.H * a.qtiles, forward_tile, &a);
    return 0;
}
