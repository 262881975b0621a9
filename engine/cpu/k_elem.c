/* Element-wise kernels. Each is a loop over a piece of [0,count), run as tasks of ELEMENTS. */
#include "engine/base/rng.h"
#include "engine/cpu/kernel.h"

struct piece_ctx {
    const struct step *s;
    int64_t n;
    float k;       /* scale: factor; dropout: 1/(1-p) */
    uint64_t seed; /* dropout */
    uint32_t rng_step;
};

static void each(struct exec *x, pool_task_fn fn, struct piece_ctx *c)
{
    pool_run(x->pool, tiles(c->n, ELEMENTS), fn, c);
}

static void add_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct piece_ctx *c = ctx;
    int64_t end = min64((task + 1) * ELEMENTS, c->n);
    const float *a = c->s->in[0], *b = c->s->in[1];
    float *y = c->s->out[0];
    ELEMENTWISE
    for (int64_t i = task * ELEMENTS; i < end; i++) y[i] = a[i] + b[i];
}

int cpu_add(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct piece_ctx c = {.s = s, .n = s->tin[0]->count};
    if (s->out[0]) each(x, add_piece, &c);
    return 0;
}

static void scale_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct piece_ctx *c = ctx;
    int64_t i = task * ELEMENTS, end = min64(i + ELEMENTS, c->n);
    const float *a = c->s->in[0], k = c->k;
    float *y = c->s->out[0];
    if (accumulates(c->s, 0))
        ELEMENTWISE
        for (; i < end; i++) y[i] += k * a[i];
    else
        ELEMENTWISE
        for (; i < end; i++) y[i] = k * a[i];
}

int cpu_scale(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_alpha *a = s->attrs;
    struct piece_ctx c = {.s = s, .n = s->tin[0]->count};
    c.k = a->alpha * *(const float *)s->in[1];
    if (s->out[0]) each(x, scale_piece, &c);
    return 0;
}

static void swiglu_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct piece_ctx *c = ctx;
    int64_t end = min64((task + 1) * ELEMENTS, c->n);
    const float *g = c->s->in[0], *u = c->s->in[1];
    float *y = c->s->out[0];
    ELEMENTWISE
    for (int64_t i = task * ELEMENTS; i < end; i++) y[i] = mx_swiglu(g[i], u[i]);
}

int cpu_swiglu(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct piece_ctx c = {.s = s, .n = s->tin[0]->count};
    if (s->out[0]) each(x, swiglu_piece, &c);
    return 0;
}

static void swiglu_bwd_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct piece_ctx *c = ctx;
    int64_t i = task * ELEMENTS, end = min64(i + ELEMENTS, c->n);
    const float *dy = c->s->in[0], *g = c->s->in[1], *u = c->s->in[2];
    float *dg = c->s->out[0], *du = c->s->out[1], unused;
    if (dg && du)
        ELEMENTWISE
        for (; i < end; i++) mx_swiglu_bwd(dy[i], g[i], u[i], &dg[i], &du[i]);
    else if (dg)
        ELEMENTWISE
        for (; i < end; i++) mx_swiglu_bwd(dy[i], g[i], u[i], &dg[i], &unused);
    else
        ELEMENTWISE
        for (; i < end; i++) mx_swiglu_bwd(dy[i], g[i], u[i], &unused, &du[i]);
}

int cpu_swiglu_bwd(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct piece_ctx c = {.s = s, .n = s->tin[0]->count};
    if (s->out[0] || s->out[1]) each(x, swiglu_bwd_piece, &c);
    return 0;
}

enum { BATCH = 64 }; /* Philox blocks of four at a time, word by word: that vectorises */

/* mx_philox for BATCH counters, counter j in c[0..3][j]. */
static void philox_batch(uint64_t key, uint32_t c[4][BATCH])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int i = 0; i < 10; i++) {
        for (int j = 0; j < BATCH; j++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c[0][j], p1 = (uint64_t)0xCD9E8D57u * c[2][j];
            c[0][j] = (uint32_t)(p1 >> 32) ^ c[1][j] ^ k0;
            c[1][j] = (uint32_t)p1;
            c[2][j] = (uint32_t)(p0 >> 32) ^ c[3][j] ^ k1;
            c[3][j] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* keep[i]: factor of element first + i, for 4 BATCH elements; first is a multiple of 4. */
static void dropout_factors(const struct piece_ctx *c, uint64_t first, float *keep)
{
    const struct attrs_dropout *a = c->s->attrs;
    uint32_t w[4][BATCH];
    uint64_t block = ((uint64_t)a->salt << 40 | first) / 4;
    for (int j = 0; j < BATCH; j++) {
        uint64_t b = block + (uint64_t)j;
        w[0][j] = (uint32_t)b;
        w[1][j] = (uint32_t)(b >> 32);
        w[2][j] = c->rng_step;
        w[3][j] = RNG_DROPOUT;
    }
    philox_batch(c->seed, w);
    float p = a->p, k = c->k;
    for (int j = 0; j < BATCH; j++) {
        keep[4 * j] = mx_uniform(w[0][j]) >= p ? k : 0.0f;
        keep[4 * j + 1] = mx_uniform(w[1][j]) >= p ? k : 0.0f;
        keep[4 * j + 2] = mx_uniform(w[2][j]) >= p ? k : 0.0f;
        keep[4 * j + 3] = mx_uniform(w[3][j]) >= p ? k : 0.0f;
    }
}

/* Not only x * 0: a dropped NaN or Inf is dropped. */
static inline float dropped(float x, float keep)
{
    float v = x * keep;
    return keep != 0.0f ? v : 0.0f;
}

static void dropout_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct piece_ctx *c = ctx;
    int64_t end = min64((task + 1) * ELEMENTS, c->n);
    float keep[4 * BATCH];
    for (int64_t at = task * ELEMENTS; at < end; at += 4 * BATCH) {
        int64_t n = min64(4 * BATCH, end - at);
        const float *a = (const float *)c->s->in[0] + at;
        float *y = (float *)c->s->out[0] + at;
        dropout_factors(c, (uint64_t)at, keep);
        if (accumulates(c->s, 0))
            ELEMENTWISE
            for (int64_t i = 0; i < n; i++) y[i] += dropped(a[i], keep[i]);
        else
            ELEMENTWISE
            for (int64_t i = 0; i < n; i++) y[i] = dropped(a[i], keep[i]);
    }
}

int cpu_dropout(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_dropout *a = s->attrs;
    struct piece_ctx c = {.s = s, .n = s->tin[0]->count, .k = 1.0f / (1.0f - a->p),
                          .seed = x->seed, .rng_step = x->rng_step};
    if (s->out[0]) each(x, dropout_piece, &c);
    return 0;
}

/* Rotation by position: rows of a task, sines of at most ANGLES pairs at a time. */
enum { ROPE_ROWS = 16, ANGLES = 64 };

static void rope_rows(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    const struct attrs_rope *attrs = s->attrs;
    const int32_t *pos = s->in[1];
    const float *freq = s->in[2];
    int64_t N = s->tin[0]->shape[0], H = s->tin[0]->shape[1], D = s->tin[0]->shape[2];
    int64_t half = D / 2, end = min64((task + 1) * ROPE_ROWS, N);
    float cosine[ANGLES], sine[ANGLES];
    for (int64_t n = task * ROPE_ROWS; n < end; n++) {
        for (int64_t i0 = 0; i0 < half; i0 += ANGLES) {
            int64_t m = min64(ANGLES, half - i0);
            /* The angle is rounded to float, as the reference implementations do. */
            for (int64_t i = 0; i < m; i++)
                mx_sincos((float)pos[n] * freq[i0 + i], &sine[i], &cosine[i]);
            for (int64_t i = 0; i < m; i++) sine[i] *= attrs->sign;
            for (int64_t h = 0; h < H; h++) {
                const float *a = (const float *)s->in[0] + (n * H + h) * D + i0;
                float *y = (float *)s->out[0] + (n * H + h) * D + i0;
                ELEMENTWISE
                for (int64_t i = 0; i < m; i++) {
                    float lo = a[i], hi = a[i + half];
                    y[i] = lo * cosine[i] - hi * sine[i];
                    y[i + half] = hi * cosine[i] + lo * sine[i];
                }
            }
        }
    }
}

int cpu_rope(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0]) pool_run(x->pool, tiles(s->tin[0]->shape[0], ROPE_ROWS), rope_rows, &copy);
    return 0;
}
