/* Kernels that end an optimiser step: norm of the gradients, clipping, AdamW.
 *
 * A model has hundreds of small parameters, each with its own step. Steps that follow one another
 * in the bound plan and differ in their tensors alone are launched together by the first of them,
 * and the others find their work done. A tensor is cut by its own size, so its bytes do not depend
 * on who shares its launch. */
#include "engine/cuda/vec.cuh"

/* ---- steps in one launch ---- */

/* The step's number in the bound plan; -1: it is run by itself. */
static int number_of(const struct exec *x, const struct step *s)
{
    const uintptr_t from = (uintptr_t)x->steps, at = (uintptr_t)s;
    if (!x->plan || at < from || at >= from + (size_t)x->plan->nsteps * sizeof *s) return -1;
    return (int)((at - from) / sizeof *s);
}

static int op_of(const struct exec *x, int i)
{
    return x->plan->tape->nodes[x->plan->steps[i].node].op;
}

/* Whether step i continues what step i - 1 does: the same operation, phase, and input `shared`. */
static bool continues(const struct exec *x, int i, int shared)
{
    return i > 0 && i < x->plan->nsteps && op_of(x, i) == op_of(x, i - 1) &&
           x->plan->steps[i].phase == x->plan->steps[i - 1].phase &&
           x->steps[i].in[shared] == x->steps[i - 1].in[shared];
}

/* How many steps from s on are to be launched with s; 0: s has been launched with another. */
static int64_t run_of(const struct exec *x, const struct step *s, int shared)
{
    const int first = number_of(x, s);
    int end = first + 1;
    if (first < 0) return 1;
    if (continues(x, first, shared)) return 0;
    while (continues(x, end, shared)) end++;
    return end - first;
}

/* ---- SUMSQ ---- */

enum { TENSORS = 48, PIECES = 128, LEAST_PIECE = 16384 }; /* TENSORS: of one launch */

struct sumsq {
    const float *x[TENSORS];
    int64_t n[TENSORS];
    double *part; /* [tensors, PIECES] */
};

CU_FN int64_t piece_of(int64_t n)
{
    return max((int64_t)LEAST_PIECE, (n + PIECES - 1) / PIECES);
}

CU_KERNEL void sumsq_kernel(struct sumsq a)
{
    CU_ARRAY(double, sums, [CU_THREADS]);
    const float *x = a.x[blockIdx.y];
    const int64_t n = a.n[blockIdx.y], piece = piece_of(n), at = blockIdx.x * piece;
    const int64_t end = min(n, at + piece);
    double sum = 0;
    if (at >= n) return;
    for (int64_t i = at + VEC * threadIdx.x; i < end; i += VEC * CU_THREADS) {
        float v[VEC];
        vec_load(x + i, end - i, v);
        for (int k = 0; k < VEC; k++) sum += (double)v[k] * (double)v[k];
    }
    sums[threadIdx.x] = sum;
    for (unsigned half = CU_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) a.part[(int64_t)blockIdx.y * PIECES + blockIdx.x] = sums[0];
}

/* Each step rounds what it leaves in acc. */
CU_KERNEL void sumsq_finish(struct sumsq a, int tensors, float *acc)
{
    for (int t = 0; t < tensors; t++) {
        const int64_t piece = piece_of(a.n[t]);
        double sum = *acc;
        for (int64_t i = 0; i * piece < a.n[t]; i++) sum += a.part[t * PIECES + i];
        *acc = (float)sum;
    }
}

int cuda_sumsq(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const int64_t all = run_of(x, s, 1);
    for (int64_t first = 0; first < all; first += TENSORS) {
        struct sumsq a = {};
        const int tensors = (int)min64(TENSORS, all - first);
        int64_t pieces = 0;
        a.part = (double *)s->ws;
        for (int t = 0; t < tensors; t++) {
            a.x[t] = (const float *)s[first + t].in[0];
            a.n[t] = s[first + t].tin[0]->count;
            pieces = max64(pieces, min64(PIECES, tiles(a.n[t], LEAST_PIECE)));
        }
        CU_LAUNCH(x, sumsq_kernel, dim3((unsigned)pieces, (unsigned)tensors), CU_THREADS, 0, a);
        CU_LAUNCH(x, sumsq_finish, 1, 1, 0, a, tensors, (float *)s->out[0]);
    }
    return 0;
}

/* ---- CLIP ---- */

CU_KERNEL void clip_kernel(const float *sumsq, float max_norm, float *scale, float *norm)
{
    const float n = sqrtf(*sumsq);
    float k = 1.0f;
    if (!isfinite(n)) k = NAN;
    else if (max_norm > 0) k = fminf(1.0f, max_norm / (n + 1e-6f));
    if (scale) *scale = k;
    if (norm) *norm = n;
}

int cuda_clip(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_clip *a = (const struct attrs_clip *)s->attrs;
    CU_LAUNCH(x, clip_kernel, 1, 1, 0, (const float *)s->in[0], a->max_norm, (float *)s->out[0],
              (float *)s->out[1]);
    return 0;
}

/* ---- ADAMW ---- */

struct adamw_tensor {
    float *w, *m, *v;
    const float *g, *hyper;
    int64_t n;
    struct attrs_adamw a;
};

struct adamw {
    struct adamw_tensor tensor[TENSORS];
    const float *scale; /* NULL: 1 */
};

CU_KERNEL void adamw_kernel(struct adamw a)
{
    const struct adamw_tensor t = a.tensor[blockIdx.y];
    const float scale = a.scale ? *a.scale : 1.0f;
    /* hyper: lr, weight decay, 1 - beta1^t, 1 - beta2^t */
    const struct mx_adamw k = {fmaf(-t.hyper[0], t.hyper[1], 1.0f), t.a.c1, t.a.c2, t.a.beta2,
                               t.a.eps, t.hyper[0] / t.hyper[2], sqrtf(t.hyper[3])};
    if (isnan(scale)) return;
    EACH_VEC(i, t.n) {
        float w[VEC], g[VEC], m[VEC], v[VEC];
        vec_load(t.w + i, t.n - i, w);
        vec_load(t.g + i, t.n - i, g);
        vec_load(t.m + i, t.n - i, m);
        vec_load(t.v + i, t.n - i, v);
        for (int j = 0; j < VEC; j++) mx_adamw(&k, scale * g[j], &w[j], &m[j], &v[j]);
        vec_store(t.w + i, t.n - i, w);
        vec_store(t.m + i, t.n - i, m);
        vec_store(t.v + i, t.n - i, v);
    }
}

static struct adamw_tensor adamw_of(const struct step *s)
{
    return {(float *)s->out[0], (float *)s->in[2], (float *)s->in[3], (const float *)s->in[1],
            (const float *)s->in[4], s->tin[0]->count, *(const struct attrs_adamw *)s->attrs};
}

int cuda_adamw(const struct step *s, struct exec *x, struct err *e)
{
    enum { SHARED = 5 }; /* the scale */
    (void)e;
    const int64_t all = run_of(x, s, SHARED);
    for (int64_t first = 0; first < all; first += TENSORS) {
        struct adamw a = {};
        const int tensors = (int)min64(TENSORS, all - first);
        int64_t most = 0;
        a.scale = (const float *)s->in[SHARED];
        for (int t = 0; t < tensors; t++) {
            a.tensor[t] = adamw_of(&s[first + t]);
            most = max64(most, a.tensor[t].n);
        }
        CU_LAUNCH(x, adamw_kernel, dim3(vec_blocks(most), (unsigned)tensors), CU_THREADS, 0, a);
    }
    return 0;
}
