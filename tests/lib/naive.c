#include "tests/lib/naive.h"

#include <math.h>

static void put(const struct step *s, int k, int64_t i, double value)
{
    float *y = s->out[k];
    if (!y) return;
    y[i] = (float)(s->accum >> k & 1 ? (double)y[i] + value : value);
}

static double get(const struct step *s, int k, int64_t i)
{
    return (double)((const float *)s->in[k])[i];
}

static double alpha(const struct step *s)
{
    return (double)((const struct attrs_alpha *)s->attrs)->alpha;
}

static int run_add(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    for (int64_t i = 0; i < s->tin[0]->count; i++) put(s, 0, i, get(s, 0, i) + get(s, 1, i));
    return 0;
}

static int run_scale(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    for (int64_t i = 0; i < s->tin[0]->count; i++)
        put(s, 0, i, alpha(s) * get(s, 1, 0) * get(s, 0, i));
    return 0;
}

static double silu_slope(double g)
{
    double sig = 1 / (1 + exp(-g));
    return sig * (1 + g * (1 - sig));
}

static int run_swiglu(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    for (int64_t i = 0; i < s->tin[0]->count; i++)
        put(s, 0, i, get(s, 0, i) / (1 + exp(-get(s, 0, i))) * get(s, 1, i));
    return 0;
}

static int run_swiglu_bwd(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    for (int64_t i = 0; i < s->tin[0]->count; i++) {
        double dy = get(s, 0, i), g = get(s, 1, i), u = get(s, 2, i);
        put(s, 0, i, dy * u * silu_slope(g));
        put(s, 1, i, dy * g / (1 + exp(-g)));
    }
    return 0;
}

static int run_linear(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    int64_t N = s->tin[0]->shape[0], K = s->tin[0]->shape[1], M = s->tin[1]->shape[0];
    for (int64_t i = 0; i < N * M; i++) {
        double sum = 0;
        for (int64_t k = 0; k < K; k++) sum += get(s, 0, i / M * K + k) * get(s, 1, i % M * K + k);
        sum *= alpha(s);
        if (s->in[2]) sum += get(s, 2, i % M);
        if (s->in[3]) sum += get(s, 3, i);
        put(s, 0, i, sum);
    }
    return 0;
}

static int run_linear_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    int64_t N = s->tin[0]->shape[0], M = s->tin[0]->shape[1], K = s->tin[1]->shape[1];
    for (int64_t i = 0; i < N * K; i++) {
        double sum = 0;
        for (int64_t m = 0; m < M; m++) sum += get(s, 0, i / K * M + m) * get(s, 1, m * K + i % K);
        put(s, 0, i, alpha(s) * sum);
    }
    return 0;
}

static int run_linear_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    int64_t N = s->tin[0]->shape[0], M = s->tin[0]->shape[1], K = s->tin[1]->shape[1];
    for (int64_t i = 0; i < M * K; i++) {
        double sum = 0;
        for (int64_t n = 0; n < N; n++) sum += get(s, 0, n * M + i / K) * get(s, 1, n * K + i % K);
        put(s, 0, i, alpha(s) * sum);
    }
    return 0;
}

static int run_colsum(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    int64_t N = s->tin[0]->shape[0], M = s->tin[0]->shape[1];
    for (int64_t m = 0; m < M; m++) {
        double sum = 0;
        for (int64_t n = 0; n < N; n++) sum += get(s, 0, n * M + m);
        put(s, 0, m, sum);
    }
    return 0;
}

static int run_sumsq(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    double sum = get(s, 1, 0);
    for (int64_t i = 0; i < s->tin[0]->count; i++) sum += get(s, 0, i) * get(s, 0, i);
    put(s, 0, 0, sum);
    return 0;
}

const op_run_fn naive_table[OP_COUNT] = {
    [OP_ADD] = run_add,
    [OP_SCALE] = run_scale,
    [OP_SWIGLU] = run_swiglu,
    [OP_SWIGLU_BWD] = run_swiglu_bwd,
    [OP_LINEAR] = run_linear,
    [OP_LINEAR_DX] = run_linear_dx,
    [OP_LINEAR_DW] = run_linear_dw,
    [OP_COLSUM] = run_colsum,
    [OP_SUMSQ] = run_sumsq,
};
