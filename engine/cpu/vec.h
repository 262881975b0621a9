/* vec.h: floats by the vector, through compiler vectors. Private to engine/cpu.
 *
 * The plain build keeps VEC at 8 too (pairs of SSE registers) and its multiply-add rounds twice.
 */
#ifndef GRAFT_VEC_H
#define GRAFT_VEC_H

#include "engine/op/mathx.h"

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { VEC = 16 };
#else
enum { VEC = 8 };
#endif

typedef float vec __attribute__((vector_size(VEC * sizeof(float))));

#define VFN static inline __attribute__((always_inline, unused))

VFN vec vec_load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

VFN void vec_store(float *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

VFN vec vec_set(float x)
{
    return x - (vec){0};
}

VFN vec vec_fma(vec a, vec b, vec c)
{
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* The same of one lane. */
VFN float one_fma(float a, float b, float c)
{
#ifdef __FMA__
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* The larger of each pair; b where either is NaN. */
VFN vec vec_max(vec a, vec b)
{
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    for (int i = 0; i < VEC; i++) b[i] = a[i] > b[i] ? a[i] : b[i];
    return b;
#endif
}

/* e^x, lane by lane: a loop of fixed length becomes straight vector code. */
VFN vec vec_exp(vec x)
{
    float lane[VEC];
    vec_store(lane, x);
    for (int i = 0; i < VEC; i++) lane[i] = mx_exp(lane[i]);
    return vec_load(lane);
}

typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

VFN vec8 vec8_max(vec8 a, vec8 b)
{
#ifdef __AVX2__
    return (vec8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    for (int i = 0; i < 8; i++) b[i] = a[i] > b[i] ? a[i] : b[i];
    return b;
#endif
}

/* Halves of a vector, combined by `op`, until eight lanes are left. */
#if defined(__AVX512F__)
#define VEC_FOLD8(v, op) op(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), \
                            __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15))
#else
#define VEC_FOLD8(v, op) (v)
#endif

VFN vec8 vec8_add(vec8 a, vec8 b)
{
    return a + b;
}

/* Sum of the lanes in a fixed order. */
VFN float vec_sum(vec v)
{
    vec8 e = VEC_FOLD8(v, vec8_add);
    vec4 f = __builtin_shufflevector(e, e, 0, 1, 2, 3) + __builtin_shufflevector(e, e, 4, 5, 6, 7);
    f += __builtin_shufflevector(f, f, 2, 3, 0, 1);
    return f[0] + f[1];
}

VFN float vec_top(vec v)
{
    vec8 e = VEC_FOLD8(v, vec8_max);
    e = vec8_max(e, __builtin_shufflevector(e, e, 4, 5, 6, 7, 0, 1, 2, 3));
    e = vec8_max(e, __builtin_shufflevector(e, e, 2, 3, 0, 1, 6, 7, 4, 5));
    return e[0] > e[1] ? e[0] : e[1];
}

/* Sum of a[i] b[i] in four chains of vectors: fast, and more exact than one chain. */
VFN float vec_dot(const float *a, const float *b, int64_t n)
{
    vec s0 = {0}, s1 = s0, s2 = s0, s3 = s0;
    int64_t i = 0;
    for (; i + 4 * VEC <= n; i += 4 * VEC) {
        s0 = vec_fma(vec_load(a + i), vec_load(b + i), s0);
        s1 = vec_fma(vec_load(a + i + VEC), vec_load(b + i + VEC), s1);
        s2 = vec_fma(vec_load(a + i + 2 * VEC), vec_load(b + i + 2 * VEC), s2);
        s3 = vec_fma(vec_load(a + i + 3 * VEC), vec_load(b + i + 3 * VEC), s3);
    }
    for (; i + VEC <= n; i += VEC) s0 = vec_fma(vec_load(a + i), vec_load(b + i), s0);
    float tail = 0;
    for (; i < n; i++) tail += a[i] * b[i];
    return vec_sum((s0 + s1) + (s2 + s3)) + tail;
}

/* Eight rows of eight: out[i] holds element i of each in[]. */
VFN void vec_transpose8(const vec8 in[8], vec8 out[8])
{
    vec8 a[8], b[8];
    for (int i = 0; i < 8; i += 2) { /* pairs of rows */
        a[i] = __builtin_shufflevector(in[i], in[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = __builtin_shufflevector(in[i], in[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) { /* rows by four, halves apart */
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] =
                __builtin_shufflevector(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * j + 1] =
                __builtin_shufflevector(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; i++) {
        out[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        out[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

#endif
