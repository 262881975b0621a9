/* LINEAR and its gradients: tiles of the result are tasks, each computed whole by one of them. */
#include "engine/cpu/gemm.h"
#include "engine/cpu/vec.h"

enum {
    FEW = 8,                /* up to so many rows, LINEAR reads the weights once, row by row */
    WIDE = 256,             /* columns of a tile at most: the packed weights stay in L2 */
    HIGH = 1024, LOW = 96,  /* rows of a tile: tall tiles pay for packing, low ones make tasks */
    TASKS = 12,             /* wanted at least, so that any number of threads is kept busy */
    NARROW = 48,            /* as in gemm.c */
    DW_TASKS = 6,           /* of dw, where both factors are packed: taller tiles pay more */
};

struct linear {
    const struct step *s;
    int64_t N, M, K;        /* x[N,K] w[M,K] y[N,M] */
    bool wt;                /* w is stored as [K,M] */
    int64_t high, wide;     /* rows and columns of a tile */
    int64_t across;         /* tiles side by side */
    float alpha;
};

static int64_t even(int64_t n, int64_t parts, int64_t unit)
{
    return tiles(tiles(n, parts), unit) * unit;
}

/* Cuts a result of n x m into even tiles, `tasks` or more if it is large; returns how many. Their
 * rows come in strips, but those of a narrow dw, which is computed transposed, in panels. */
static int64_t cut(struct linear *c, int64_t n, int64_t m, int64_t tasks)
{
    int64_t unit = tasks == DW_TASKS && m <= NARROW ? 32 : 12;
    c->wide = even(m, max64(1, tiles(m, WIDE)), 32);
    c->across = c->wide ? tiles(m, c->wide) : 0;
    if (!n || !m) return 0;
    int64_t parts = tiles(n, HIGH), most = max64(parts, n / LOW);
    c->high = even(n, min64(most, max64(parts, tiles(tasks, c->across))), unit);
    return tiles(n, c->high) * c->across;
}

static struct linear linear_of(const struct step *s, const struct tensor *x,
                               const struct tensor *y)
{
    const struct attrs_linear *a = s->attrs;
    return (struct linear){.s = s, .N = x->shape[0], .M = y->shape[1], .K = x->shape[1],
                           .wt = a->wt, .alpha = a->alpha};
}

/* The weight from output m and input k on, as the right factor of y if `down` (rows of inputs), of
 * dx if not (rows of outputs). */
static struct gemm_mat weight(const struct linear *c, int64_t m, int64_t k, bool down)
{
    const struct tensor *w = c->s->tin[1];
    int64_t at = c->wt ? k * c->M + m : m * c->K + k;
    return (struct gemm_mat){(const char *)c->s->in[1] + at * (int64_t)dtype_size(w->dtype),
                             w->dtype, c->wt ? c->M : c->K, down != c->wt};
}

static float *scratch(const struct linear *c, int thread)
{
    return (float *)c->s->ws + (int64_t)thread * GEMM_SCRATCH;
}

static void linear_tile(void *ctx, int64_t task, int thread)
{
    const struct linear *c = ctx;
    const struct step *s = c->s;
    int64_t n0 = task / c->across * c->high, n = min64(c->high, c->N - n0);
    int64_t m0 = task % c->across * c->wide, m = min64(c->wide, c->M - m0);
    float bias[WIDE];
    struct gemm g = {
        .n = n, .m = m, .k = c->K, .alpha = c->alpha,
        .a = {(const float *)s->in[0] + n0 * c->K, DT_F32, c->K, false},
        .b = weight(c, m0, 0, true),
        .bias = s->in[2] ? cpu_floats(s->in[2], s->tin[2]->dtype, m0, m, bias) : NULL,
        .add = s->in[3] ? (const float *)s->in[3] + n0 * c->M + m0 : NULL, .ldadd = c->M,
        .c = (float *)s->out[0] + n0 * c->M + m0, .ldc = c->M, .scratch = scratch(c, thread),
    };
    gemm_run(&g);
}

/* Few rows: one dot product per element, with the weight row converted once for all of them. */
enum { GEMV_M = 32, GEMV_K = 2048 };

static void linear_few(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct linear *c = ctx;
    const struct step *s = c->s;
    const float *x = s->in[0], *add = s->in[3];
    float tmp[GEMV_K], bias, sum[FEW];
    int64_t end = min64((task + 1) * GEMV_M, c->M);
    for (int64_t m = task * GEMV_M; m < end; m++) {
        float b = s->in[2] ? *cpu_floats(s->in[2], s->tin[2]->dtype, m, 1, &bias) : 0;
        for (int64_t n = 0; n < c->N; n++) sum[n] = 0;
        for (int64_t k0 = 0; k0 < c->K; k0 += GEMV_K) {
            int64_t k = min64(GEMV_K, c->K - k0);
            const float *w = cpu_floats(s->in[1], s->tin[1]->dtype, m * c->K + k0, k, tmp);
            for (int64_t n = 0; n < c->N; n++) sum[n] += vec_dot(x + n * c->K + k0, w, k);
        }
        for (int64_t n = 0; n < c->N; n++)
            ((float *)s->out[0])[n * c->M + m] =
                c->alpha * sum[n] + b + (add ? add[n * c->M + m] : 0);
    }
}

int cpu_linear(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    if (!s->out[0]) return 0;
    struct linear c = linear_of(s, s->tin[0], s->tout[0]);
    if (c.N <= FEW && !c.wt) pool_run(x->pool, tiles(c.M, GEMV_M), linear_few, &c);
    else pool_run(x->pool, cut(&c, c.N, c.M, TASKS), linear_tile, &c);
    return 0;
}

/* dx[N,K] = alpha dy[N,M] w[M,K] */
static void dx_tile(void *ctx, int64_t task, int thread)
{
    const struct linear *c = ctx;
    const struct step *s = c->s;
    int64_t n0 = task / c->across * c->high, n = min64(c->high, c->N - n0);
    int64_t k0 = task % c->across * c->wide, k = min64(c->wide, c->K - k0);
    float *dx = (float *)s->out[0] + n0 * c->K + k0;
    struct gemm g = {
        .n = n, .m = k, .k = c->M, .alpha = c->alpha,
        .a = {(const float *)s->in[0] + n0 * c->M, DT_F32, c->M, false},
        .b = weight(c, 0, k0, false),
        .add = accumulates(s, 0) ? dx : NULL, .ldadd = c->K,
        .c = dx, .ldc = c->K, .scratch = scratch(c, thread),
    };
    gemm_run(&g);
}

int cpu_linear_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    if (!s->out[0]) return 0;
    struct linear c = linear_of(s, s->tout[0], s->tin[0]);
    pool_run(x->pool, cut(&c, c.N, c.K, TASKS), dx_tile, &c);
    return 0;
}

/* dw[M,K] = alpha dy[N,M]^T x[N,K], or dw[K,M] = alpha x^T dy: tiles of dw, so that the long sum
 * over N stays in one task. */
static void dw_tile(void *ctx, int64_t task, int thread)
{
    const struct linear *c = ctx;
    const struct step *s = c->s;
    const float *down = s->in[c->wt], *across = s->in[!c->wt];
    int64_t high = c->wt ? c->K : c->M, wide = c->wt ? c->M : c->K;
    int64_t i0 = task / c->across * c->high, n = min64(c->high, high - i0);
    int64_t j0 = task % c->across * c->wide, m = min64(c->wide, wide - j0);
    float *dw = (float *)s->out[0] + i0 * wide + j0;
    struct gemm g = {
        .n = n, .m = m, .k = c->N, .alpha = c->alpha, .a = {down + i0, DT_F32, high, true},
        .b = {across + j0, DT_F32, wide, false}, .add = accumulates(s, 0) ? dw : NULL,
        .ldadd = wide, .c = dw, .ldc = wide, .scratch = scratch(c, thread),
    };
    gemm_run(&g);
}

int cpu_linear_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    if (!s->out[0]) return 0;
    struct linear c = linear_of(s, s->tin[1], s->tin[0]);
    pool_run(x->pool, cut(&c, c.wt ? c.K : c.M, c.wt ? c.M : c.K, DW_TASKS), dw_tile, &c);
    return 0;
}
