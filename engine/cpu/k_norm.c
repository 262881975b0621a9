/* RMSNORM and its gradients, and the column sum. */
#include "engine/cpu/kernel.h"
#include "engine/cpu/vec.h"

#include <string.h>

enum { NORM_ROWS = 8, PARTIALS = 256 };

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

/* Sums over rows: at most PARTIALS groups of rows are summed apart, then the groups in order. */
struct colsum {
    const struct step *s;
    const float *dy, *x, *rstd; /* x NULL: plain column sum */
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
            const float *x = c->x + n * c->C, r = c->rstd[n];
            for (int64_t i = 0; i < c->C; i++) p[i] += dy[i] * (x[i] * r);
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

int cpu_colsum(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct colsum c = {.s = s, .dy = s->in[0]};
    return colsum(&c, x);
}
