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
    a->qtiles = tiles(a->T, ATTN_Q);
    a->ktiles = tiles(a->S, ATTN_K);
    for (int64_t i = 0; i < a->B * a->T; i++) {
        const int32_t *r = a->range + 2 * i;
        if (r[0] < r[1] && (r[0] < 0 || r[1] > a->S))
            return err_set(e, E_RANGE, "attention range [%d, %d) leaves the %lld keys", (int)r[0],
                           (int)r[1], (long long)a->S);
    }
    return 0;
}

/* Turns a row of scores into e^(score - max) inside [lo,hi) and 0 elsewhere; returns the sum. */
static float softmax_row(float *p, int64_t n, int64_t lo, int64_t hi, float *max, float *shrink)
{
    float old = *max, now = old, sum = 0;
    for (int64_t j = lo; j < hi; j++) now = p[j] > now ? p[j] : now;
    *max = now;
    *shrink = old > -INFINITY ? mx_exp(old - now) : 0.0f;
    for (int64_t j = 0; j < lo; j++) p[j] = 0;
    for (int64_t j = lo; j < hi; j++) p[j] = mx_exp(p[j] - now);
    for (int64_t j = hi; j < n; j++) p[j] = 0;
    for (int64_t j = lo; j < hi; j++) sum += p[j];
    return sum;
}

static void attn_tile(void *ctx, int64_t task, int thread)
{
    const struct attn *a = ctx;
    const struct step *s = a->s;
    int64_t qt = task % a->qtiles, h = task / a->qtiles % a->H, b = task / a->qtiles / a->H;
    int64_t t0 = qt * ATTN_Q, n = min64(ATTN_Q, a->T - t0), g = h / (a->H / a->G);
    struct span all = attn_union(a, b, t0, n);
    float p[ATTN_Q * ATTN_K], max[ATTN_Q], sum[ATTN_Q];
    float *o = s->out[0], *lse = s->out[1];
    if (o) o += attn_q_at(a, b, t0, h);
    float *scratch = (float *)s->ws + (int64_t)thread * GEMM_SCRATCH;
    int64_t ldq = a->H * a->D, ldk = a->G * a->D;
    for (int64_t i = 0; i < n; i++) {
        max[i] = -INFINITY;
        sum[i] = 0;
        if (o) memset(o + i * ldq, 0, (size_t)a->D * sizeof *o);
    }
    for (int64_t k0 = all.lo; k0 < all.hi; k0 += ATTN_K) {
        int64_t m = min64(ATTN_K, all.hi - k0);
        struct gemm score = {
            .n = n, .m = m, .k = a->D, .alpha = a->scale,
            .a = {a->q + attn_q_at(a, b, t0, h), DT_F32, ldq, false},
            .b = {a->k + attn_k_at(a, b, k0, g), DT_F32, ldk, true},
            .c = p, .ldc = ATTN_K, .scratch = scratch,
        };
        gemm_run(&score);
        for (int64_t i = 0; i < n; i++) {
            struct span r = attn_span(a, b, t0 + i);
            int64_t lo = min64(max64(r.lo - k0, 0), m), hi = max64(min64(r.hi - k0, m), lo);
            float shrink;
            sum[i] = softmax_row(p + i * ATTN_K, m, lo, hi, &max[i], &shrink) + sum[i] * shrink;
            for (int64_t d = 0; o && d < a->D; d++) o[i * ldq + d] *= shrink;
        }
        struct gemm mix = {
            .n = n, .m = a->D, .k = m, .alpha = 1, .a = {p, DT_F32, ATTN_K, false},
            .b = {a->v + attn_k_at(a, b, k0, g), DT_F32, ldk, false},
            .add = o, .ldadd = ldq, .c = o, .ldc = ldq, .scratch = scratch,
        };
        if (o) gemm_run(&mix);
    }
    for (int64_t i = 0; i < n; i++) {
        float k = sum[i] > 0 ? 1.0f / sum[i] : sum[i]; /* NaN stays */
        for (int64_t d = 0; o && d < a->D; d++) o[i * ldq + d] *= k;
        if (lse) lse[(b * a->T + t0 + i) * a->H + h] = max[i] + mx_log(sum[i]);
    }
}

int cpu_attn(const struct step *s, struct exec *x, struct err *e)
{
    struct attn a;
    if (attn_init(&a, s, 0, e)) return -1;
    pool_run(x->pool, a.B * a.H * a.qtiles, attn_tile, &a);
    return 0;
}
