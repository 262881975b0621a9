/* Kernels that put columns, patches and rows elsewhere. */
#include "engine/cpu/kernel.h"

#include <string.h>

enum { ROWS_PER_TASK = 32, SUM = 256 };

static void copy_floats(float *to, const float *from, int64_t n, bool add)
{
    if (add)
        for (int64_t i = 0; i < n; i++) to[i] += from[i];
    else
        memcpy(to, from, (size_t)n * sizeof *to);
}

static void slice_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const struct attrs_slice *a = s->attrs;
    int64_t C = width(s->tin[0]), end = min64((task + 1) * ROWS_PER_TASK, s->tin[0]->shape[0]);
    for (int64_t n = task * ROWS_PER_TASK; n < end; n++)
        copy_floats((float *)s->out[0] + n * a->width, (const float *)s->in[0] + n * C + a->at,
                    a->width, false);
}

int cpu_slice(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0])
        pool_run(x->pool, tiles(s->tin[0]->shape[0], ROWS_PER_TASK), slice_rows, &copy);
    return 0;
}

static void slice_dx_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const struct attrs_slice *a = s->attrs;
    int64_t W = width(s->tin[0]), end = min64((task + 1) * ROWS_PER_TASK, s->tin[0]->shape[0]);
    bool add = accumulates(s, 0);
    for (int64_t n = task * ROWS_PER_TASK; n < end; n++) {
        float *dx = (float *)s->out[0] + n * a->width;
        if (!add) {
            memset(dx, 0, (size_t)a->at * sizeof *dx);
            memset(dx + a->at + W, 0, (size_t)(a->width - a->at - W) * sizeof *dx);
        }
        copy_floats(dx + a->at, (const float *)s->in[0] + n * W, W, add);
    }
}

int cpu_slice_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0])
        pool_run(x->pool, tiles(s->tin[0]->shape[0], ROWS_PER_TASK), slice_dx_rows, &copy);
    return 0;
}

/* A task is one row of patches. */
static void patch_row(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const int64_t *shape = s->tin[0]->shape, I = shape[1], Y = shape[2], X = shape[3];
    int64_t S = ((const struct attrs_patches *)s->attrs)->size, high = Y / S, wide = X / S;
    int64_t b = task / high, y0 = task % high * S;
    float *to = (float *)s->out[0] + task * wide * I * S * S;
    for (int64_t i = 0; i < I; i++) {
        const float *from = (const float *)s->in[0] + ((b * I + i) * Y + y0) * X;
        for (int64_t y = 0; y < S; y++)
            for (int64_t p = 0; p < wide; p++)
                memcpy(to + ((p * I + i) * S + y) * S, from + y * X + p * S,
                       (size_t)S * sizeof *to);
    }
}

int cpu_patches(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    int64_t S = ((const struct attrs_patches *)s->attrs)->size;
    if (s->out[0])
        pool_run(x->pool, s->tin[0]->shape[0] * (s->tin[0]->shape[2] / S), patch_row, &copy);
    return 0;
}

/* Rows of y[B,P+T,C] in order. */
static void prefix_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t P = s->tin[0]->shape[0], T = s->tin[1]->shape[1], C = width(s->tin[1]), R = P + T;
    int64_t end = min64((task + 1) * ROWS_PER_TASK, s->tin[1]->shape[0] * R);
    for (int64_t n = task * ROWS_PER_TASK; n < end; n++) {
        float *y = (float *)s->out[0] + n * C;
        int64_t b = n / R, r = n % R;
        const float *from = r < P ? cpu_floats(s->in[0], s->tin[0]->dtype, r * C, C, y)
                                  : (const float *)s->in[1] + (b * T + r - P) * C;
        if (from != y) memcpy(y, from, (size_t)C * sizeof *y);
    }
}

int cpu_prefix(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    int64_t n = s->tin[1]->shape[0] * (s->tin[0]->shape[0] + s->tin[1]->shape[1]);
    if (s->out[0]) pool_run(x->pool, tiles(n, ROWS_PER_TASK), prefix_rows, &copy);
    return 0;
}

static void prefix_dx_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t P = ((const struct attrs_rows *)s->attrs)->rows, R = s->tin[0]->shape[1], T = R - P;
    int64_t C = width(s->tin[0]), end = min64((task + 1) * ROWS_PER_TASK, s->tin[0]->shape[0] * T);
    for (int64_t n = task * ROWS_PER_TASK; n < end; n++)
        copy_floats((float *)s->out[0] + n * C,
                    (const float *)s->in[0] + (n / T * R + P + n % T) * C, C, accumulates(s, 0));
}

int cpu_prefix_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    int64_t T = s->tin[0]->shape[1] - ((const struct attrs_rows *)s->attrs)->rows;
    if (s->out[0])
        pool_run(x->pool, tiles(s->tin[0]->shape[0] * T, ROWS_PER_TASK), prefix_dx_rows, &copy);
    return 0;
}

/* A piece of the prefix: the batch added up in order. */
static void prefix_dw_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t C = width(s->tin[0]), total = ((const struct attrs_rows *)s->attrs)->rows * C;
    int64_t at = task * SUM, n = min64(SUM, total - at), step = s->tin[0]->shape[1] * C;
    float sum[SUM] = {0}, *out = (float *)s->out[0] + at;
    for (int64_t b = 0; b < s->tin[0]->shape[0]; b++) {
        const float *dy = (const float *)s->in[0] + b * step + at;
        for (int64_t i = 0; i < n; i++) sum[i] += dy[i];
    }
    copy_floats(out, sum, n, accumulates(s, 0));
}

int cpu_prefix_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0]) pool_run(x->pool, tiles(s->tout[0]->count, SUM), prefix_dw_piece, &copy);
    return 0;
}
