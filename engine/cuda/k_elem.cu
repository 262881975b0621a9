/* Element-wise kernels: a vector per thread. In bf16 they compute in f32 and round once. */
#include "engine/cuda/vec.cuh"

extern "C" {
#include "engine/base/rng.h"
}

template <typename T>
CU_KERNEL void add_kernel(const T *a, const T *b, T *y, int64_t n)
{
    EACH_VEC(i, n) {
        float u[VEC], v[VEC];
        vec_load(a + i, n - i, u);
        vec_load(b + i, n - i, v);
        for (int k = 0; k < VEC; k++) u[k] = u[k] + v[k];
        vec_store(y + i, n - i, u);
    }
}

int cuda_add(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, add_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (const T *)s->in[1], (T *)s->out[0], n);
    });
    return 0;
}

template <typename T>
CU_KERNEL void scale_kernel(const T *a, const float *s, float alpha, T *y, int64_t n, bool add)
{
    const float k = alpha * *s;
    EACH_VEC(i, n) {
        float v[VEC];
        vec_load(a + i, n - i, v);
        for (int j = 0; j < VEC; j++) v[j] = k * v[j];
        vec_put(y + i, n - i, v, add);
    }
}

int cuda_scale(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_alpha *a = (const struct attrs_alpha *)s->attrs;
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, scale_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (const float *)s->in[1], a->alpha, (T *)s->out[0], n, accumulates(s, 0));
    });
    return 0;
}

template <typename T>
CU_KERNEL void swiglu_kernel(const T *g, const T *u, T *y, int64_t n)
{
    EACH_VEC(i, n) {
        float a[VEC], b[VEC];
        vec_load(g + i, n - i, a);
        vec_load(u + i, n - i, b);
        for (int k = 0; k < VEC; k++) a[k] = mx_swiglu(a[k], b[k]);
        vec_store(y + i, n - i, a);
    }
}

int cuda_swiglu(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, swiglu_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (const T *)s->in[1], (T *)s->out[0], n);
    });
    return 0;
}

template <typename T> struct swiglu_bwd {
    const T *dy, *g, *u;
    T *dg, *du; /* NULL: not wanted */
};

template <typename T>
CU_KERNEL void swiglu_bwd_kernel(struct swiglu_bwd<T> a, int64_t n)
{
    EACH_VEC(i, n) {
        float dy[VEC], g[VEC], u[VEC];
        vec_load(a.dy + i, n - i, dy);
        vec_load(a.g + i, n - i, g);
        vec_load(a.u + i, n - i, u);
        for (int k = 0; k < VEC; k++) mx_swiglu_bwd(dy[k], g[k], u[k], &g[k], &u[k]);
        if (a.dg) vec_store(a.dg + i, n - i, g);
        if (a.du) vec_store(a.du + i, n - i, u);
    }
}

int cuda_swiglu_bwd(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    int64_t n = s->tin[0]->count;
    if (!s->out[0] && !s->out[1]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct swiglu_bwd<T> a = {(const T *)s->in[0], (const T *)s->in[1], (const T *)s->in[2],
                                  (T *)s->out[0], (T *)s->out[1]};
        CU_LAUNCH(x, swiglu_bwd_kernel<T>, vec_blocks(n), CU_THREADS, 0, a, n);
    });
    return 0;
}

/* ACT: one branch per vector, not per element. */
#define ACT_LOOP(fn) for (int k = 0; k < VEC; k++) v[k] = fn(v[k])
#define ACT_SWITCH(suffix)                                                \
    switch (kind) {                                                       \
    case ACT_GELU: ACT_LOOP(mx_gelu##suffix); break;                      \
    case ACT_GELU_TANH: ACT_LOOP(mx_gelu_tanh##suffix); break;            \
    case ACT_QUICK_GELU: ACT_LOOP(mx_quick_gelu##suffix); break;          \
    case ACT_RELU: ACT_LOOP(mx_relu##suffix); break;                      \
    case ACT_SILU: ACT_LOOP(mx_silu##suffix); break;                      \
    case ACT_TANH: ACT_LOOP(mx_tanh##suffix); break;                      \
    }

template <typename T>
CU_KERNEL void act_kernel(const T *x, T *y, int64_t n, int kind)
{
    EACH_VEC(i, n) {
        float v[VEC];
        vec_load(x + i, n - i, v);
        ACT_SWITCH()
        vec_store(y + i, n - i, v);
    }
}

int cuda_act(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_act *a = (const struct attrs_act *)s->attrs;
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, act_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (T *)s->out[0], n, a->kind);
    });
    return 0;
}

template <typename T>
CU_KERNEL void act_bwd_kernel(const T *dy, const T *x, T *dx, int64_t n, int kind)
{
    EACH_VEC(i, n) {
        float d[VEC], v[VEC];
        vec_load(dy + i, n - i, d);
        vec_load(x + i, n - i, v);
        ACT_SWITCH(_slope)
        for (int k = 0; k < VEC; k++) d[k] = d[k] * v[k];
        vec_store(dx + i, n - i, d);
    }
}

int cuda_act_bwd(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_act *a = (const struct attrs_act *)s->attrs;
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, act_bwd_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (const T *)s->in[1], (T *)s->out[0], n, a->kind);
    });
    return 0;
}

/* DROPOUT: a Philox block makes four neighbours; a vector is two of them. */
struct dropout {
    const struct cu_scalars *scalars;
    uint64_t salt; /* of element 0, in blocks */
    float p, k;    /* k = 1 / (1 - p) */
};

/* Not only x * 0: a dropped NaN or Inf is dropped. */
CU_FN float dropped(const struct dropout *d, uint32_t bits, float x)
{
    float keep = mx_uniform(bits) >= d->p ? d->k : 0.0f, v = x * keep;
    return keep != 0.0f ? v : 0.0f;
}

template <typename T>
CU_KERNEL void dropout_kernel(const T *x, T *y, int64_t n, struct dropout d, bool add)
{
    const uint64_t seed = d.scalars->seed;
    const uint32_t step = d.scalars->rng_step;
    EACH_VEC(i, n) {
        float v[VEC];
        vec_load(x + i, n - i, v);
        for (int h = 0; h < VEC; h += 4) {
            uint64_t block = d.salt + (uint64_t)(i + h) / 4;
            uint32_t c[4] = {(uint32_t)block, (uint32_t)(block >> 32), step, RNG_DROPOUT};
            mx_philox(seed, c);
            for (int k = 0; k < 4; k++) v[h + k] = dropped(&d, c[k], v[h + k]);
        }
        vec_put(y + i, n - i, v, add);
    }
}

int cuda_dropout(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_dropout *a = (const struct attrs_dropout *)s->attrs;
    struct dropout d = {cu_scalars(x), ((uint64_t)a->salt << 40) / 4, a->p, 1.0f / (1.0f - a->p)};
    int64_t n = s->tin[0]->count;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, dropout_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (T *)s->out[0], n, d, accumulates(s, 0));
    });
    return 0;
}

template <typename From, typename To>
CU_KERNEL void convert_kernel(const From *x, To *y, int64_t n)
{
    EACH_VEC(i, n) {
        float v[VEC];
        vec_load(x + i, n - i, v);
        vec_store(y + i, n - i, v);
    }
}

const void *vec_input(const struct step *s, int i, enum dtype t, struct exec *x, char **ws)
{
    void *copy = *ws;
    if (!s->in[i] || s->tin[i]->dtype == t) return s->in[i];
    const int64_t n = s->tin[i]->count;
    CU_ANY(s->tin[i]->dtype, From, {
        CU_COMPUTE(t, To, {
            CU_LAUNCH(x, (convert_kernel<From, To>), vec_blocks(n), CU_THREADS, 0,
                      (const From *)s->in[i], (To *)copy, n);
        });
    });
    *ws += tiles(n * (int64_t)dtype_size(t), VEC_ALIGN) * VEC_ALIGN;
    return copy;
}
