/* Kernels that move rows by index. Indices come from data, so they are checked before any is
 * used: a bad one is an error, never a wild read. */
#include "engine/cpu/kernel.h"

#include <string.h>

enum { ROWS_PER_TASK = 32 };

static int check_index(const int32_t *idx, int64_t n, int64_t bound, const char *what,
                       struct err *e)
{
    for (int64_t i = 0; i < n; i++)
        if (idx[i] < 0 || idx[i] >= bound)
            return err_set(e, E_RANGE, "%s %d is outside [0, %lld)", what, (int)idx[i],
                           (long long)bound);
    return 0;
}

const float *cpu_floats(const void *data, enum dtype type, int64_t at, int64_t n, float *tmp)
{
    if (type == DT_F32) return (const float *)data + at;
    const uint16_t *h = (const uint16_t *)data + at;
    if (type == DT_BF16)
        for (int64_t i = 0; i < n; i++) tmp[i] = mx_from_bf16(h[i]);
    else
        for (int64_t i = 0; i < n; i++) tmp[i] = mx_from_f16(h[i]);
    return tmp;
}

static void embed_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const int32_t *ids = s->in[0];
    int64_t C = s->tin[1]->shape[1], end = min64((task + 1) * ROWS_PER_TASK, s->tin[0]->count);
    for (int64_t n = task * ROWS_PER_TASK; n < end; n++) {
        float *y = (float *)s->out[0] + n * C;
        const float *row = cpu_floats(s->in[1], s->tin[1]->dtype, ids[n] * C, C, y);
        if (row != y) memcpy(y, row, (size_t)C * sizeof *y);
    }
}

int cpu_embed(const struct step *s, struct exec *x, struct err *e)
{
    struct step copy = *s;
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    if (check_index(s->in[0], n, s->tin[1]->shape[0], "token id", e)) return -1;
    pool_run(x->pool, tiles(n, ROWS_PER_TASK), embed_rows, &copy);
    return 0;
}

/* EMBED_DW: the rows of dy are first sorted by id (stable), so that each row of the table is the
 * sum of its rows of dy in their order and belongs to one task. */
enum { IDS_PER_TASK = 64 };

struct embed_dw {
    const struct step *s;
    const int32_t *start; /* [V+1] into order */
    const int32_t *order; /* [N] */
};

static void embed_dw_ids(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct embed_dw *c = ctx;
    const struct attrs_rows *a = c->s->attrs;
    int64_t C = c->s->tin[1]->shape[1], end = min64((task + 1) * IDS_PER_TASK, a->rows);
    for (int64_t id = task * IDS_PER_TASK; id < end; id++) {
        float *d = (float *)c->s->out[0] + id * C;
        if (!accumulates(c->s, 0)) memset(d, 0, (size_t)C * sizeof *d);
        for (int32_t k = c->start[id]; k < c->start[id + 1]; k++) {
            const float *dy = (const float *)c->s->in[1] + c->order[k] * C;
            for (int64_t i = 0; i < C; i++) d[i] += dy[i];
        }
    }
}

int cpu_embed_dw(const struct step *s, struct exec *x, struct err *e)
{
    const struct attrs_rows *a = s->attrs;
    const int32_t *ids = s->in[0];
    int64_t n = s->tin[0]->count, V = a->rows;
    if (!s->out[0]) return 0;
    if (check_index(ids, n, V, "token id", e)) return -1;
    int32_t *order = s->ws, *start = order + n;
    memset(start, 0, (size_t)(V + 1) * sizeof *start);
    for (int64_t i = 0; i < n; i++) start[ids[i] + 1]++;
    for (int64_t v = 0; v < V; v++) start[v + 1] += start[v];
    for (int64_t i = 0; i < n; i++) order[start[ids[i]]++] = (int32_t)i;
    memmove(start + 1, start, (size_t)V * sizeof *start); /* each entry had moved to its end */
    start[0] = 0;
    struct embed_dw c = {s, start, order};
    pool_run(x->pool, tiles(V, IDS_PER_TASK), embed_dw_ids, &c);
    return 0;
}

static void gather_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const int32_t *idx = s->in[1];
    int64_t C = width(s->tin[0]), end = min64((task + 1) * ROWS_PER_TASK, s->tin[1]->count);
    for (int64_t m = task * ROWS_PER_TASK; m < end; m++)
        memcpy((float *)s->out[0] + m * C, (const float *)s->in[0] + idx[m] * C,
               (size_t)C * sizeof(float));
}

int cpu_rows(const struct step *s, struct exec *x, struct err *e)
{
    struct step copy = *s;
    int64_t m = s->tin[1]->count;
    if (!s->out[0]) return 0;
    if (check_index(s->in[1], m, s->tin[0]->shape[0], "row index", e)) return -1;
    pool_run(x->pool, tiles(m, ROWS_PER_TASK), gather_rows, &copy);
    return 0;
}

static void zero_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t i = task * ELEMENTS, n = min64(ELEMENTS, s->tout[0]->count - i);
    memset((float *)s->out[0] + i, 0, (size_t)n * sizeof(float));
}

static void scatter_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const int32_t *idx = s->in[1];
    int64_t C = width(s->tin[0]), end = min64((task + 1) * ROWS_PER_TASK, s->tin[1]->count);
    for (int64_t m = task * ROWS_PER_TASK; m < end; m++) {
        const float *dy = (const float *)s->in[0] + m * C;
        float *d = (float *)s->out[0] + idx[m] * C;
        if (accumulates(s, 0))
            for (int64_t i = 0; i < C; i++) d[i] += dy[i];
        else
            memcpy(d, dy, (size_t)C * sizeof *d);
    }
}

int cpu_rows_dx(const struct step *s, struct exec *x, struct err *e)
{
    const struct attrs_rows *a = s->attrs;
    struct step copy = *s;
    int64_t m = s->tin[1]->count;
    if (!s->out[0]) return 0;
    if (check_index(s->in[1], m, a->rows, "row index", e)) return -1;
    if (!accumulates(s, 0))
        pool_run(x->pool, tiles(s->tout[0]->count, ELEMENTS), zero_rows, &copy);
    pool_run(x->pool, tiles(m, ROWS_PER_TASK), scatter_rows, &copy);
    return 0;
}

int cpu_kv_store(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    const int32_t *pos = s->in[2];
    int64_t S = s->tin[0]->shape[1], row = s->tin[0]->shape[2] * s->tin[0]->shape[3];
    int64_t B = s->tin[1]->shape[0], T = s->tin[1]->shape[1];
    if (!s->out[0]) return 0;
    if (check_index(pos, B * T, S, "cache position", e)) return -1;
    /* In order, so that of two rows for one position the later stays. */
    for (int64_t i = 0; i < B * T; i++)
        memcpy((float *)s->out[0] + (i / T * S + pos[i]) * row,
               (const float *)s->in[1] + i * row, (size_t)row * sizeof(float));
    return 0;
}
