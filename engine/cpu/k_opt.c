/* Kernels that end an optimiser step: norm of the gradients, clipping, AdamW. */
#include "engine/cpu/kernel.h"

/* SUMSQ: sums of pieces in double, then the pieces in order. */
struct sumsq {
    const float *x;
    int64_t n, piece;
    double *part;
};

static void sumsq_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct sumsq *c = ctx;
    int64_t i = task * c->piece, end = min64(i + c->piece, c->n);
    double lane[16] = {0}, sum = 0;
    for (; i + 16 <= end; i += 16)
        for (int j = 0; j < 16; j++) lane[j] += (double)c->x[i + j] * (double)c->x[i + j];
    for (; i < end; i++) sum += (double)c->x[i] * (double)c->x[i];
    for (int j = 0; j < 16; j++) sum += lane[j];
    c->part[task] = sum;
}

int cpu_sumsq(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    enum { MOST = 8192 }; /* doubles in the 64 KiB that the op always gets */
    int64_t n = s->tin[0]->count;
    struct sumsq c = {s->in[0], n, max64(ELEMENTS, tiles(n, MOST)), s->ws};
    int64_t pieces = tiles(n, c.piece);
    double sum = *(const float *)s->in[1];
    pool_run(x->pool, pieces, sumsq_piece, &c);
    for (int64_t i = 0; i < pieces; i++) sum += c.part[i];
    *(float *)s->out[0] = (float)sum;
    return 0;
}

int cpu_clip(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    const struct attrs_clip *a = s->attrs;
    float norm = sqrtf(*(const float *)s->in[0]), scale = 1.0f;
    if (!isfinite(norm)) scale = NAN;
    else if (a->max_norm > 0) scale = fminf(1.0f, a->max_norm / (norm + 1e-6f));
    if (s->out[0]) *(float *)s->out[0] = scale;
    if (s->out[1]) *(float *)s->out[1] = norm;
    return 0;
}

struct adamw {
    struct mx_adamw a;
    const float *g;
    float *w, *m, *v, scale;
    int64_t n;
};

static void adamw_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct adamw *c = ctx;
    int64_t end = min64((task + 1) * ELEMENTS, c->n);
    const float *restrict g = c->g;
    float *restrict w = c->w, *restrict m = c->m, *restrict v = c->v;
    const struct mx_adamw a = c->a;
    for (int64_t i = task * ELEMENTS; i < end; i++)
        mx_adamw(&a, c->scale * g[i], &w[i], &m[i], &v[i]);
}

int cpu_adamw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_adamw *a = s->attrs;
    const float *hyper = s->in[4]; /* lr, weight decay, 1 - beta1^t, 1 - beta2^t */
    float scale = s->in[5] ? *(const float *)s->in[5] : 1.0f;
    if (isnan(scale)) return 0;
    struct adamw c = {
        .a = {.decay = fmaf(-hyper[0], hyper[1], 1.0f), .c1 = a->c1, .c2 = a->c2,
              .beta2 = a->beta2, .eps = a->eps,
              .step = hyper[0] / hyper[2], .root2 = sqrtf(hyper[3])},
        .g = s->in[1], .w = s->out[0], .m = (void *)s->in[2], .v = (void *)s->in[3],
        .scale = scale, .n = s->tin[0]->count,
    };
    pool_run(x->pool, tiles(c.n, ELEMENTS), adamw_piece, &c);
    return 0;
}
