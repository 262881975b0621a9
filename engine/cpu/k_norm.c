/* RMSNORM, LAYERNORM and their gradients, and the column sum. */
#include "engine/cpu/kernel.h"
#include "engine/cpu/vec.h"

#include <string.h>

enum { NORM_ROWS = 8, PART = 256, PARTIALS = 256 }; /* PART: weights converted at a time */

static void norm_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const struct attrs_norm *a = s->attrs;
    int64_t C = width(s->tin[0]), N = rows(s->tin[0]);
    int64_t end = min64((task + 1) * NORM_ROWS, N);
    float *rstd = s->out[1];
    for (int64_t n = task * NORM_ROWS; n < end; n++) {
        const float *x = (const float *)s->in[0] + n * C;
        float r = 1.0f / sqrtf(vec_dot(x, x, C) / (float)C + a->eps), tmp[256];
        if (rstd) rstd[n] = r;
        if (!s->out[0]) continue;
        float *y = (float *)s->out[0] + n * C;
        for (int64_t c0 = 0; c0 < C; c0 += 256) {
            int64_t m = min64(256, C - c0);
            const float *w = cpu_floats(s->in[1], s->tin[1]->dtype, c0, m, tmp);
            for (int64_t c = 0; c < m; c++) y[c0 + c] = x[c0 + c] * r * w[c];
        }
    }
}

int cpu_rmsnorm(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    pool_run(x->pool, tiles(rows(s->tin[0]), NORM_ROWS), norm_rows, &copy);
    return 0;
}

/* dx = rstd (w dy - x rstd^2 mean(w dy x)) */
static void norm_dx_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t C = width(s->tin[0]), N = rows(s->tin[0]);
    int64_t end = min64((task + 1) * NORM_ROWS, N);
    const float *rstd = s->in[3];
    for (int64_t n = task * NORM_ROWS; n < end; n++) {
        const float *dy = (const float *)s->in[0] + n * C, *x = (const float *)s->in[1] + n * C;
        float *dx = (float *)s->out[0] + n * C, r = rstd[n], sum = 0, wdy[256], tmp[256];
        for (int64_t c0 = 0; c0 < C; c0 += 256) {
            int64_t m = min64(256, C - c0);
            const float *w = cpu_floats(s->in[2], s->tin[2]->dtype, c0, m, tmp);
            for (int64_t c = 0; c < m; c++) wdy[c] = w[c] * dy[c0 + c];
            sum += vec_dot(wdy, x + c0, m);
        }
        float k = sum / (float)C * r * r;
        for (int64_t c0 = 0; c0 < C; c0 += 256) {
            int64_t m = min64(256, C - c0);
            const float *w = cpu_floats(s->in[2], s->tin[2]->dtype, c0, m, tmp);
            if (accumulates(s, 0))
                for (int64_t c = 0; c < m; c++)
                    dx[c0 + c] += r * (w[c] * dy[c0 + c] - x[c0 + c] * k);
            else
                for (int64_t c = 0; c < m; c++)
                    dx[c0 + c] = r * (w[c] * dy[c0 + c] - x[c0 + c] * k);
        }
    }
}

int cpu_rmsnorm_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0]) pool_run(x->pool, tiles(rows(s->tin[0]), NORM_ROWS), norm_dx_rows, &copy);
    return 0;
}

/* Sums of x - shift and of its square, the latter only if wanted. */
static float sum_from(const float *x, int64_t n, float shift, float *squares)
{
    vec a = {0}, b = a, a2 = a, b2 = a, k = vec_set(shift);
    float tail = 0, tail2 = 0;
    int64_t i = 0;
    for (; i + 2 * VEC <= n; i += 2 * VEC) {
        vec p = vec_load(x + i) - k, q = vec_load(x + i + VEC) - k;
        a += p;
        b += q;
        a2 = vec_fma(p, p, a2);
        b2 = vec_fma(q, q, b2);
    }
    for (; i < n; i++) {
        tail += x[i] - shift;
        tail2 += (x[i] - shift) * (x[i] - shift);
    }
    *squares = vec_sum(a2 + b2) + tail2;
    return vec_sum(a + b) + tail;
}

static void layer_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const struct attrs_norm *a = s->attrs;
    int64_t C = width(s->tin[0]), end = min64((task + 1) * NORM_ROWS, rows(s->tin[0]));
    float *mean = s->out[1], *rstd = s->out[2], wt[PART], bt[PART];
    for (int64_t n = task * NORM_ROWS; n < end; n++) {
        const float *x = (const float *)s->in[0] + n * C;
        float squares, m = sum_from(x, C, 0, &squares) / (float)C;
        sum_from(x, C, m, &squares);
        float r = 1.0f / sqrtf(squares / (float)C + a->eps);
        if (mean) mean[n] = m;
        if (rstd) rstd[n] = r;
        if (!s->out[0]) continue;
        float *y = (float *)s->out[0] + n * C;
        for (int64_t c0 = 0; c0 < C; c0 += PART) {
            int64_t k = min64(PART, C - c0);
            const float *w = cpu_floats(s->in[1], s->tin[1]->dtype, c0, k, wt);
            const float *b = cpu_floats(s->in[2], s->tin[2]->dtype, c0, k, bt);
            ELEMENTWISE
            for (int64_t c = 0; c < k; c++) y[c0 + c] = (x[c0 + c] - m) * r * w[c] + b[c];
        }
    }
}

int cpu_layernorm(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    pool_run(x->pool, tiles(rows(s->tin[0]), NORM_ROWS), layer_rows, &copy);
    return 0;
}

/* With n = (x - mean) rstd: dx = rstd (w dy - mean(w dy) - n mean(w dy n)) */
static void layer_dx_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t C = width(s->tin[0]), end = min64((task + 1) * NORM_ROWS, rows(s->tin[0]));
    const float *mean = s->in[3], *rstd = s->in[4];
    float g[PART], f[PART], tmp[PART], unused;
    for (int64_t n = task * NORM_ROWS; n < end; n++) {
        const float *dy = (const float *)s->in[0] + n * C, *x = (const float *)s->in[1] + n * C;
        float *dx = (float *)s->out[0] + n * C, m = mean[n], r = rstd[n], plain = 0, with_n = 0;
        for (int64_t c0 = 0; c0 < C; c0 += PART) {
            int64_t k = min64(PART, C - c0);
            const float *w = cpu_floats(s->in[2], s->tin[2]->dtype, c0, k, tmp);
            for (int64_t c = 0; c < k; c++) g[c] = w[c] * dy[c0 + c];
            for (int64_t c = 0; c < k; c++) f[c] = (x[c0 + c] - m) * r;
            plain += sum_from(g, k, 0, &unused);
            with_n += vec_dot(g, f, k);
        }
        plain /= (float)C;
        with_n /= (float)C;
        for (int64_t c0 = 0; c0 < C; c0 += PART) {
            int64_t k = min64(PART, C - c0);
            const float *w = cpu_floats(s->in[2], s->tin[2]->dtype, c0, k, tmp);
            for (int64_t c = 0; c < k; c++)
                f[c] = r * (w[c] * dy[c0 + c] - plain - (x[c0 + c] - m) * r * with_n);
            if (accumulates(s, 0))
                for (int64_t c = 0; c < k; c++) dx[c0 + c] += f[c];
            else
                memcpy(dx + c0, f, (size_t)k * sizeof *f);
        }
    }
}

int cpu_layernorm_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0]) pool_run(x->pool, tiles(rows(s->tin[0]), NORM_ROWS), layer_dx_rows, &copy);
    return 0;
}

/* Sums over rows: at most PARTIALS groups of rows are summed apart, then the groups in order. */
struct colsum {
    const struct step *s;
    const float *dy, *x, *rstd; /* x NULL: plain column sum */
    const float *mean;          /* NULL: 0 */
    int64_t N, C, group;        /* group: rows per partial sum */
    float *part;                /* [tiles(N, group), C] */
};

static void colsum_group(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct colsum *c = ctx;
    float *p = c->part + task * c->C;
    int64_t end = min64((task + 1) * c->group, c->N);
    memset(p, 0, (size_t)c->C * sizeof *p);
    for (int64_t n = task * c->group; n < end; n++) {
        const float *dy = c->dy + n * c->C;
        if (c->x) {
            const float *x = c->x + n * c->C, r = c->rstd[n], m = c->mean ? c->mean[n] : 0;
            for (int64_t i = 0; i < c->C; i++) p[i] += dy[i] * ((x[i] - m) * r);
        } else {
            for (int64_t i = 0; i < c->C; i++) p[i] += dy[i];
        }
    }
}

static void colsum_combine(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct colsum *c = ctx;
    float *out = c->s->out[0], sum[256];
    int64_t c0 = task * 256, m = min64(256, c->C - c0), groups = tiles(c->N, c->group);
    for (int64_t i = 0; i < m; i++) sum[i] = 0;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < m; i++) sum[i] += c->part[g * c->C + c0 + i];
    for (int64_t i = 0; i < m; i++)
        out[c0 + i] = accumulates(c->s, 0) ? out[c0 + i] + sum[i] : sum[i];
}

static int colsum(struct colsum *c, struct exec *x)
{
    c->C = width(c->s->tin[0]);
    c->N = rows(c->s->tin[0]);
    c->group = max64(16, tiles(c->N, PARTIALS));
    c->part = c->s->ws;
    if (!c->s->out[0]) return 0;
    pool_run(x->pool, tiles(c->N, c->group), colsum_group, c);
    pool_run(x->pool, tiles(c->C, 256), colsum_combine, c);
    return 0;
}

int cpu_rmsnorm_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct colsum c = {.s = s, .dy = s->in[0], .x = s->in[1], .rstd = s->in[2]};
    return colsum(&c, x);
}

int cpu_layernorm_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct colsum c = {.s = s, .dy = s->in[0], .x = s->in[1], .mean = s->in[2], .rstd = s->in[3]};
    return colsum(&c, x);
}

int cpu_colsum(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct colsum c = {.s = s, .dy = s->in[0]};
    return colsum(&c, x);
}
