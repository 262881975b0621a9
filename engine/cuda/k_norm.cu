/* RMSNORM, LAYERNORM and their gradients, and the column sum. A warp per row; sums in f32 over the
 * lanes' parts, then a butterfly. Each pass reads the row again: from the first-level cache. */
#include "engine/cuda/vec.cuh"

/* y = (x - mean) rstd w + b; rms: mean = 0 and no b. */
template <typename T> struct norm_fwd {
    const T *x;
    const void *w, *b;
    enum dtype tw, tb;
    T *y;                /* outputs: NULL if not wanted */
    float *mean, *rstd;
    int64_t N, C;
    float eps;
    bool rms;
};

template <typename T> CU_FN float row_sum(const T *x, int64_t C)
{
    float sum = 0, v[VEC];
    EACH_COLUMN(c, C) {
        vec_load(x + c, C - c, v);
        for (int k = 0; k < VEC; k++) sum += v[k];
    }
    return cu_warp_sum(sum);
}

/* Sum of (x - mean)^2. */
template <typename T> CU_FN float row_squares(const T *x, int64_t C, float mean)
{
    float sum = 0, v[VEC];
    EACH_COLUMN(c, C) {
        vec_load(x + c, C - c, v);
        for (int k = 0; k < VEC; k++) {
            float d = c + k < C ? v[k] - mean : 0.0f;
            sum = fmaf(d, d, sum);
        }
    }
    return cu_warp_sum(sum);
}

template <typename T, typename W>
CU_KERNEL void norm_kernel(struct norm_fwd<T> a)
{
    EACH_ROW(n, a.N) {
        const T *x = a.x + n * a.C;
        const float mean = a.rms ? 0.0f : row_sum(x, a.C) / (float)a.C;
        const float r = 1.0f / sqrtf(row_squares(x, a.C, mean) / (float)a.C + a.eps);
        if (threadIdx.x % 32 == 0) {
            if (a.mean) a.mean[n] = mean;
            if (a.rstd) a.rstd[n] = r;
        }
        if (!a.y) continue;
        EACH_COLUMN(c, a.C) {
            float v[VEC], w[VEC];
            vec_load(x + c, a.C - c, v);
            vec_load((const W *)a.w + c, a.C - c, w);
            for (int k = 0; k < VEC; k++) v[k] = (v[k] - mean) * r * w[k];
            for (int k = 0; a.b && k < VEC; k++)
                if (c + k < a.C) v[k] += vec_any(a.b, a.tb, c + k);
            vec_store(a.y + n * a.C + c, a.C - c, v);
        }
    }
}

static int norm_run(const struct step *s, struct exec *x, bool rms)
{
    const struct attrs_norm *attrs = (const struct attrs_norm *)s->attrs;
    int64_t N = s->tin[0]->shape[0], C = s->tin[0]->shape[1];
    enum dtype tw = s->tin[1]->dtype;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct norm_fwd<T> a = {};
        a.x = (const T *)s->in[0];
        a.w = s->in[1];
        a.b = rms ? NULL : s->in[2];
        a.tb = rms ? DT_F32 : s->tin[2]->dtype;
        a.y = (T *)s->out[0];
        a.mean = rms ? NULL : (float *)s->out[1];
        a.rstd = (float *)s->out[rms ? 1 : 2];
        a.N = N;
        a.C = C;
        a.eps = attrs->eps;
        a.rms = rms;
        CU_ANY(tw, W, { CU_LAUNCH(x, (norm_kernel<T, W>), row_blocks(N), CU_THREADS, 0, a); });
    });
    return 0;
}

int cuda_rmsnorm(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return norm_run(s, x, true);
}

int cuda_layernorm(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return norm_run(s, x, false);
}

/* With xhat = (x - mean) rstd and g = w dy:
 * dx = rstd (g - xhat mean(g xhat) - mean(g)), the last term not for rms. */
template <typename T> struct norm_dx {
    const T *dy, *x;
    const void *w;
    const float *mean, *rstd; /* mean NULL: rms */
    T *dx;
    int64_t N, C;
    bool add;
};

template <typename T, typename W>
CU_KERNEL void norm_dx_kernel(struct norm_dx<T> a)
{
    EACH_ROW(n, a.N) {
        const T *dy = a.dy + n * a.C, *x = a.x + n * a.C;
        const float mean = a.mean ? a.mean[n] : 0.0f, r = a.rstd[n];
        float g[VEC], v[VEC], w[VEC], sum = 0, dot = 0;
        EACH_COLUMN(c, a.C) {
            vec_load(dy + c, a.C - c, g);
            vec_load(x + c, a.C - c, v);
            vec_load((const W *)a.w + c, a.C - c, w);
            for (int k = 0; k < VEC; k++) {
                g[k] *= w[k];
                sum += g[k];
                dot = fmaf(g[k], (v[k] - mean) * r, dot);
            }
        }
        dot = cu_warp_sum(dot) / (float)a.C;
        sum = a.mean ? cu_warp_sum(sum) / (float)a.C : 0.0f;
        EACH_COLUMN(c, a.C) {
            vec_load(dy + c, a.C - c, g);
            vec_load(x + c, a.C - c, v);
            vec_load((const W *)a.w + c, a.C - c, w);
            for (int k = 0; k < VEC; k++)
                v[k] = r * (g[k] * w[k] - (v[k] - mean) * r * dot - sum);
            vec_put(a.dx + n * a.C + c, a.C - c, v, a.add);
        }
    }
}

static int norm_dx_run(const struct step *s, struct exec *x, bool rms)
{
    int64_t N = s->tin[0]->shape[0], C = s->tin[0]->shape[1];
    enum dtype tw = s->tin[2]->dtype;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct norm_dx<T> a = {(const T *)s->in[0], (const T *)s->in[1], s->in[2],
                               rms ? NULL : (const float *)s->in[3],
                               (const float *)s->in[rms ? 3 : 4], (T *)s->out[0], N, C,
                               accumulates(s, 0)};
        CU_ANY(tw, W, { CU_LAUNCH(x, (norm_dx_kernel<T, W>), row_blocks(N), CU_THREADS, 0, a); });
    });
    return 0;
}

int cuda_rmsnorm_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return norm_dx_run(s, x, true);
}

int cuda_layernorm_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return norm_dx_run(s, x, false);
}

/* Sums over rows: at most PARTIALS groups of rows are summed apart, then the groups in order. A
 * block sums STRIP columns of a group, its warps every WARPS-th row. */
enum { PARTIALS = 256, STRIP = 32 };

template <typename T> struct colsum {
    const T *dy, *x;          /* x NULL: plain column sum */
    const float *mean, *rstd; /* mean NULL: 0 */
    int64_t N, C, group;      /* group: rows per partial sum */
    float *part;              /* [groups, C] */
};

template <typename T>
CU_KERNEL void colsum_kernel(struct colsum<T> a)
{
    CU_ARRAY(float, sums, [WARPS][STRIP]);
    const int64_t strips = (a.C + STRIP - 1) / STRIP, lane = threadIdx.x % 32;
    const int64_t c = blockIdx.x % strips * STRIP + lane, g = blockIdx.x / strips;
    const int64_t end = min(a.N, (g + 1) * a.group);
    float sum = 0;
    for (int64_t n = g * a.group + threadIdx.x / 32; n < end && c < a.C; n += WARPS) {
        float v = cu_float(a.dy[n * a.C + c]), m = a.mean ? a.mean[n] : 0.0f;
        sum += a.x ? v * ((cu_float(a.x[n * a.C + c]) - m) * a.rstd[n]) : v;
    }
    sums[threadIdx.x / 32][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= STRIP || c >= a.C) return;
    for (int i = 1; i < WARPS; i++) sum += sums[i][lane];
    a.part[g * a.C + c] = sum;
}

CU_KERNEL void colsum_combine(const float *part, int64_t groups, int64_t C, float *to, bool add)
{
    CU_EACH(c, C) {
        float sum = 0;
        for (int64_t g = 0; g < groups; g++) sum += part[g * C + c];
        to[c] = add ? to[c] + sum : sum;
    }
}

/* Inputs dy, then x, mean and rstd by their number, 0 where there is none. */
static int colsum_run(const struct step *s, struct exec *x, int mean, int rstd)
{
    int64_t N = rows(s->tin[0]), C = width(s->tin[0]);
    int64_t group = max64(16, tiles(N, PARTIALS)), groups = tiles(N, group);
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct colsum<T> a = {(const T *)s->in[0], rstd ? (const T *)s->in[1] : NULL,
                              mean ? (const float *)s->in[mean] : NULL,
                              rstd ? (const float *)s->in[rstd] : NULL, N, C, group,
                              (float *)s->ws};
        CU_LAUNCH(x, colsum_kernel<T>, (unsigned)(groups * tiles(C, STRIP)), CU_THREADS, 0, a);
    });
    CU_LAUNCH(x, colsum_combine, cu_blocks(C, CU_THREADS), CU_THREADS, 0, (const float *)s->ws,
              groups, C, (float *)s->out[0], accumulates(s, 0));
    return 0;
}

int cuda_colsum(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return colsum_run(s, x, 0, 0);
}

int cuda_rmsnorm_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return colsum_run(s, x, 0, 2);
}

int cuda_layernorm_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    return colsum_run(s, x, 2, 3);
}
