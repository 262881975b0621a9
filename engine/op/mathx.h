/* mathx.h: the scalar functions of all element-wise kernels, for gcc, clang and nvcc.
 *
 * Only exactly rounded operations (+ - * / fmaf fma sqrtf, comparisons, integer bit operations) in
 * a fixed order; fused multiply-adds are written out and the files that include this are compiled
 * without contraction (-ffp-contract=off, -fmad=false) and without fast-math. So the results are
 * the same bits for every compiler, optimisation level, vector width and device.
 *
 * Errors are in units in the last place (ULP) of the exact result, over all float arguments;
 * tests/unit/mathx_test.c asserts them. Denormals are kept. Straight-line code: loops over these
 * functions vectorise.
 */
#ifndef GRAFT_MATHX_H
#define GRAFT_MATHX_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define MX static __host__ __device__ __forceinline__
#else
#define MX static inline __attribute__((always_inline, unused))
#endif

MX uint32_t mx_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

MX float mx_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* 2^n for -126 <= n <= 127, n given modulo 2^32. */
MX float mx_exp2i(uint32_t n)
{
    return mx_float((n + 127u) << 23);
}

/* e^x. 1 ULP. exp(-inf) = 0, exp(inf) = inf, NaN stays. */
MX float mx_exp(float x)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, kept in the low bits */
    float y = 89.0f < x ? 89.0f : x;
    y = y < -105.0f ? -105.0f : y;
    float t = fmaf(y, 0x1.715476p+0f, magic);
    float n = t - magic;
    float r = fmaf(n, -0x1.62e43p-1f, y);
    r = fmaf(n, 0x1.05c61p-29f, r);
    float q = 0x1.6a240cp-10f;
    q = fmaf(q, r, 0x1.123a1p-7f);
    q = fmaf(q, r, 0x1.5558f2p-5f);
    q = fmaf(q, r, 0x1.555492p-3f);
    q = fmaf(q, r, 0x1.fffffcp-2f);
    float p = fmaf(r * r, q, r) + 1.0f;
    /* Two factors, so that denormal and infinite results round once and correctly. */
    uint32_t k = mx_bits(t) - mx_bits(magic);
    uint32_t half = (uint32_t)((int32_t)k >> 1);
    return p * mx_exp2i(half) * mx_exp2i(k - half);
}

/* Natural logarithm. 1 ULP. log(0) = -inf, log(inf) = inf, log(x < 0) = NaN, NaN stays. */
MX float mx_log(float x)
{
    float y = x < 0x1p-126f ? x * 0x1p23f : x;
    float shift = x < 0x1p-126f ? -23.0f : 0.0f;
    uint32_t u = mx_bits(y);
    int32_t k = (int32_t)(u - 0x3f3504f3u) >> 23; /* y = 2^k m, m in [sqrt(1/2), sqrt(2)) */
    float m = mx_float(u - ((uint32_t)k << 23));
    float e = (float)k + shift, f = m - 1.0f, f2 = f * f;
    float q = -0.07865443080663681f;
    q = fmaf(q, f, 0.12879188358783722f);
    q = fmaf(q, f, -0.1312529295682907f);
    q = fmaf(q, f, 0.1418142169713974f);
    q = fmaf(q, f, -0.16624970734119415f);
    q = fmaf(q, f, 0.2000228315591812f);
    q = fmaf(q, f, -0.2500079572200775f);
    q = fmaf(q, f, 0.33333316445350647f);
    float low = fmaf(e, -0x1.05c61p-29f, fmaf(f2 * f, q, -0.5f * f2));
    float r = fmaf(e, 0x1.62e43p-1f, f + low);
    r = x == 0.0f ? -INFINITY : r;
    r = x < 0.0f ? NAN : r;
    return x < INFINITY ? r : x + x; /* +inf and NaN */
}

/* Sine and cosine of x radians. 2 ULP for |x| <= 2^20, 2^-23 absolute for |x| <= 2^31 (positions
 * times frequencies); +-inf and NaN give NaN. */
MX void mx_sincos(float x, float *sine, float *cosine)
{
    const double magic = 0x1.8p52;
    double t = fma((double)x, 0x1.45f306dc9c883p-1, magic);
    double n = t - magic;
    double d = fma(n, -0x1.921fb54442d18p+0, (double)x);
    float r = (float)fma(n, -0x1.1a62633145c07p-54, d);
    uint64_t quadrant;
    memcpy(&quadrant, &t, sizeof quadrant);
    float z = r * r;
    float s = fmaf(2.718296855164226e-06f, z, -0.00019839333253912628f);
    s = fmaf(s, z, 0.008333329111337662f);
    s = fmaf(s, z, -0.1666666716337204f);
    s = fmaf(s * z, r, r);
    float c = fmaf(-2.721021985507832e-07f, z, 2.4799519451335073e-05f);
    c = fmaf(c, z, -0.0013888883404433727f);
    c = fmaf(c, z, 0.0416666679084301f);
    c = fmaf(c * z, z, fmaf(-0.5f, z, 1.0f));
    uint32_t k = (uint32_t)quadrant;
    float a = k & 1u ? c : s, b = k & 1u ? s : c;
    *sine = mx_float(mx_bits(a) ^ (k & 2u) << 30);
    *cosine = mx_float(mx_bits(b) ^ ((k + 1u) & 2u) << 30);
}

/* 1 / (1 + e^-x), and its complement 1 - sigmoid(x) without cancellation. 3 ULP. NaN stays. */
MX float mx_sigmoid2(float x, float *complement)
{
    float e = mx_exp(-fabsf(x));
    float big = 1.0f / (1.0f + e), small = e * big;
    *complement = x < 0.0f ? big : small;
    return x < 0.0f ? small : big;
}

MX float mx_sigmoid(float x)
{
    float unused;
    return mx_sigmoid2(x, &unused);
}

/* x sigmoid(x). 4 ULP for x >= -87; below, where e^x leaves the normal range, 2^-140 absolute.
 * silu(-inf) = NaN, silu(inf) = inf. */
MX float mx_silu(float x)
{
    return x * mx_sigmoid(x);
}

/* Slope of silu. Absolute error 4e-7 (it has a zero near -1.278). */
MX float mx_silu_slope(float x)
{
    float c, s = mx_sigmoid2(x, &c);
    return s * fmaf(x, c, 1.0f);
}

/* Distribution function Phi of the normal law at x, and its density e^(-x^2/2) / sqrt(2 pi) there.
 * 6 and 3 ULP for |x| <= 13; beyond, where they leave the normal range, 2^-140 absolute. NaN
 * stays. */
MX float mx_normal(float x, float *density)
{
    float a = fabsf(x);
    a = a > 16.0f ? 16.0f : a;
    /* e^(-a^2/2) with the rounding error of the square put back */
    float half = -0.5f * a, h = half * a, e = mx_exp(h);
    e = fmaf(e, fmaf(half, a, -h), e);
    /* Phi(-a) = e^(-a^2/2) g(q) / (a + 4), q = (a - 4) / (a + 4), g by a polynomial */
    float r = 1.0f / (a + 4.0f), q = (a - 4.0f) * r;
    float g = -0x1.21917ap-13f;
    g = fmaf(g, q, 0x1.5da6b8p-13f);
    g = fmaf(g, q, 0x1.9a9b5ap-10f);
    g = fmaf(g, q, -0x1.cb846ap-9f);
    g = fmaf(g, q, -0x1.ecf56ep-8f);
    g = fmaf(g, q, 0x1.eed1c4p-5f);
    g = fmaf(g, q, -0x1.7e0050p-3f);
    g = fmaf(g, q, 0x1.8c6da2p-2f);
    g = fmaf(g, q, -0x1.373e38p-1f);
    g = fmaf(g, q, 0x1.82b4bcp-1f);
    float small = g * r * e;
    *density = 0x1.988454p-2f * e;
    return x > 0.0f ? 1.0f - small : small;
}

/* x Phi(x). 7 ULP for x >= -13; below 2^-136 absolute. gelu(-inf) = NaN, gelu(inf) = inf. */
MX float mx_gelu(float x)
{
    float unused;
    return x * mx_normal(x, &unused);
}

/* Slope of gelu: Phi + x phi. Absolute error 3e-7 (it has a zero near -0.75). */
MX float mx_gelu_slope(float x)
{
    float d, p = mx_normal(x, &d);
    return fmaf(x, d, p);
}

/* x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the same as x/2 (1 + tanh(u)). Relative error
 * 4e-7 + 3e-7 |u|; denormals within 2^-126. */
MX float mx_gelu_tanh(float x)
{
    float u2 = x * fmaf(0x1.2444f2p-4f * x, x, 0x1.988454p+0f);
    return x * mx_sigmoid(u2);
}

/* Its slope: s + x s (1 - s) (2u)'. Absolute error 5e-7. */
MX float mx_gelu_tanh_slope(float x)
{
    float a = x > 16.0f ? 16.0f : x;
    a = a < -16.0f ? -16.0f : a; /* the slope is 1 or 0 there, and infinity stays out */
    float u2 = a * fmaf(0x1.2444f2p-4f * a, a, 0x1.988454p+0f);
    float du2 = fmaf(0x1.b6676cp-3f * a, a, 0x1.988454p+0f);
    float c, s = mx_sigmoid2(u2, &c);
    return fmaf(a * s * c, du2, s);
}

/* x sigmoid(1.702 x). Relative error 3e-7 + 1e-7 |1.702 x|; denormals within 2^-126. */
MX float mx_quick_gelu(float x)
{
    return x * mx_sigmoid(1.702f * x);
}

/* Absolute error 5e-7. */
MX float mx_quick_gelu_slope(float x)
{
    float z = 1.702f * x, c, s = mx_sigmoid2(z, &c);
    return s * fmaf(z, c, 1.0f);
}

/* NaN stays. The slope at 0 is 0. */
MX float mx_relu(float x)
{
    return x < 0.0f ? 0.0f : x;
}

MX float mx_relu_slope(float x)
{
    float slope = x > 0.0f ? 1.0f : 0.0f;
    return x == x ? slope : x;
}

/* Hyperbolic tangent. 3 ULP. NaN stays. */
MX float mx_tanh(float x)
{
    float a = fabsf(x), z = x * x;
    float q = -0x1.9bba68p-8f; /* (tanh(x)/x - 1) / x^2 for |x| < 0.55 */
    q = fmaf(q, z, 0x1.595686p-6f);
    q = fmaf(q, z, -0x1.b92bbap-5f);
    q = fmaf(q, z, 0x1.110d3cp-3f);
    q = fmaf(q, z, -0x1.55554cp-2f);
    float near = fmaf(x * z, q, x);
    float far = 1.0f - 2.0f / (mx_exp(2.0f * a) + 1.0f);
    far = x < 0.0f ? -far : far;
    return a < 0.55f ? near : far;
}

/* 1 - tanh(x)^2 = 4 e / (1 + e)^2, e = e^-2|x|. 5 ULP for |x| <= 43; beyond 2^-140 absolute. */
MX float mx_tanh_slope(float x)
{
    float e = mx_exp(-2.0f * fabsf(x)), r = 2.0f / (1.0f + e);
    return e * r * r;
}

MX float mx_swiglu(float g, float u)
{
    return mx_silu(g) * u;
}

MX void mx_swiglu_bwd(float dy, float g, float u, float *dg, float *du)
{
    float c, s = mx_sigmoid2(g, &c);
    *dg = dy * u * (s * fmaf(g, c, 1.0f));
    *du = dy * (g * s);
}

/* bfloat16 <-> float. To bf16: nearest, ties to even; overflow to inf; NaN stays (quiet). */
MX float mx_from_bf16(uint16_t h)
{
    return mx_float((uint32_t)h << 16);
}

MX uint16_t mx_to_bf16(float x)
{
    uint32_t u = mx_bits(x);
    uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, quiet = u >> 16 | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/* IEEE half <-> float. Exact one way; nearest, ties to even, the other; NaN stays (quiet). */
MX float mx_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;
    uint32_t u = mx_bits(mx_float(mag << 13) * 0x1p112f); /* also normalises denormals */
    u = mag >= 0x7c00u ? u | 0x7f800000u : u;
    return mx_float(u | sign);
}

MX uint16_t mx_to_f16(float x)
{
    uint32_t u = mx_bits(x), sign = u >> 16 & 0x8000u, mag = u & 0x7fffffffu;
    uint32_t normal = (mag + 0xc8000fffu + (mag >> 13 & 1u)) >> 13;
    uint32_t tiny = mx_bits(mx_float(mag) + 0.5f) - mx_bits(0.5f); /* the addition rounds */
    uint32_t huge = mag > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t r = mag < 0x38800000u ? tiny : normal;
    return (uint16_t)(sign | (mag >= 0x47800000u ? huge : r));
}

/* Philox4x32-10 in place: the counter becomes four random words. As rng_philox (base/rng.h). */
MX void mx_philox(uint64_t key, uint32_t c[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    c[0] = c0;
    c[1] = c1;
    c[2] = c2;
    c[3] = c3;
}

/* Uniform in [0,1) from random bits, 24 of them. As rng_uniform. */
MX float mx_uniform(uint32_t bits)
{
    return (float)(int32_t)(bits >> 8) * 0x1p-24f;
}

/* One weight of AdamW, in the order of operations of torch.optim.AdamW. g: the scaled gradient. */
struct mx_adamw {
    float decay;    /* 1 - lr * weight decay */
    float c1, c2;   /* 1 - beta1, 1 - beta2 */
    float beta2, eps;
    float step;     /* lr / (1 - beta1^t) */
    float root2;    /* sqrt(1 - beta2^t) */
};

MX void mx_adamw(const struct mx_adamw *a, float g, float *w, float *m, float *v)
{
    float m1 = *m + a->c1 * (g - *m);
    float v1 = a->beta2 * *v + a->c2 * (g * g);
    *w = *w * a->decay - a->step * (m1 / (sqrtf(v1) / a->root2 + a->eps));
    *m = m1;
    *v = v1;
}

#endif
