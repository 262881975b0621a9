/* mathx: the stated error bounds over samples of all floats, special values, and conversions
 * against the compiler's own half type. Every STRIDE-th float is tried; STRIDE is odd, so all
 * exponents and mantissa ends are met. */
#include "engine/op/mathx.h"

#include "engine/base/rng.h"
#include "engine/op/attrs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

enum { STRIDE = 257 };

/* |got - want| in units of the last place of want as a float. */
static double ulps(float got, double want)
{
    int exp;
    if (want > 0x1.ffffffp127) return got == INFINITY ? 0 : 1e9; /* rounds to infinity */
    frexp(want, &exp);
    if (want == 0 || exp < -125) exp = -125; /* denormals share one unit */
    return fabs((double)got - want) / ldexp(1, exp - 24);
}

static float sample(uint64_t i)
{
    return mx_float((uint32_t)i);
}

static void within(const char *what, double got, double allowed)
{
    printf("%-8s worst %.3g, allowed %.3g\n", what, got, allowed);
    assert_true(got <= allowed);
}

static void exponentials_and_logarithms_are_within_1_ulp(void **state)
{
    (void)state;
    double worst_exp = 0, worst_log = 0;
    for (uint64_t i = 0; i < 1ull << 32; i += STRIDE) {
        float x = sample(i);
        if (isnan(x)) continue;
        double u = ulps(mx_exp(x), exp((double)x));
        if (u > worst_exp) worst_exp = u;
        if (x <= 0 || isinf(x)) continue;
        u = ulps(mx_log(x), log((double)x));
        if (u > worst_log) worst_log = u;
    }
    within("exp", worst_exp, 1);
    within("log", worst_log, 1);
}

static void sines_are_within_2_ulp_to_2_20_and_exact_in_quadrant_beyond(void **state)
{
    (void)state;
    double near = 0, far = 0;
    for (uint64_t i = 0; i < 1ull << 32; i += STRIDE) {
        float x = sample(i), s, c;
        if (!(fabsf(x) <= 0x1p31f)) continue;
        mx_sincos(x, &s, &c);
        double ws = sin((double)x), wc = cos((double)x);
        double a = fmax(fabs((double)s - ws), fabs((double)c - wc));
        double u = fmax(ulps(s, ws), ulps(c, wc));
        if (a > far) far = a;
        if (fabsf(x) <= 0x1p20f && u > near) near = u;
    }
    within("sincos", near, 2);
    within("far", far, 0x1p-23);
}

static void sigmoid_and_its_kin_keep_their_bounds(void **state)
{
    (void)state;
    double sigmoid = 0, silu = 0, tail = 0, slope = 0;
    for (uint64_t i = 0; i < 1ull << 32; i += STRIDE) {
        float x = sample(i), c;
        if (!isfinite(x)) continue;
        double d = (double)x, s = 1 / (1 + exp(-d)), r = 1 / (1 + exp(d));
        sigmoid = fmax(sigmoid, ulps(mx_sigmoid2(x, &c), s));
        sigmoid = fmax(sigmoid, ulps(c, r));
        if (x >= -87) silu = fmax(silu, ulps(mx_silu(x), d * s));
        else tail = fmax(tail, fabs((double)mx_silu(x) - d * s));
        slope = fmax(slope, fabs((double)mx_silu_slope(x) - s * (1 + d * r)));
    }
    within("sigmoid", sigmoid, 3);
    within("silu", silu, 4);
    within("tail", tail, 0x1p-140);
    within("slope", slope, 4e-7);
}

static const double root_half = 0.70710678118654752440, root_2_pi = 2.50662827463100050242;

static void the_normal_law_and_gelu_keep_their_bounds(void **state)
{
    (void)state;
    double phi = 0, density = 0, far = 0, gelu = 0, tail = 0, slope = 0;
    for (uint64_t i = 0; i < 1ull << 32; i += STRIDE) {
        float x = sample(i), d;
        if (!isfinite(x)) continue;
        double v = (double)x, p = erfc(-v * root_half) / 2, n = exp(-v * v / 2) / root_2_pi;
        float got = mx_normal(x, &d);
        if (fabsf(x) <= 13) {
            phi = fmax(phi, ulps(got, p));
            density = fmax(density, ulps(d, n));
        } else {
            far = fmax(far, fmax(fabs((double)got - p), fabs((double)d - n)));
        }
        if (x >= -13) gelu = fmax(gelu, ulps(mx_gelu(x), v * p));
        else tail = fmax(tail, fabs((double)mx_gelu(x) - v * p));
        slope = fmax(slope, fabs((double)mx_gelu_slope(x) - (p + v * n)));
    }
    within("normal", phi, 6);
    within("density", density, 3);
    within("far", far, 0x1p-140);
    within("gelu", gelu, 7);
    within("tail", tail, 0x1p-136);
    within("slope", slope, 3e-7);
}

static void the_cheaper_gelus_keep_their_bounds(void **state)
{
    (void)state;
    double value = 0, slope = 0, quick = 0, quick_slope = 0;
    for (uint64_t i = 0; i < 1ull << 32; i += STRIDE) {
        float x = sample(i);
        if (!isfinite(x)) continue;
        double v = (double)x, u = 2 / root_2_pi * (v + 0.044715 * v * v * v);
        double s = 1 / (1 + exp(-2 * u)), c = 1 / (1 + exp(2 * u));
        double du = 2 / root_2_pi * (1 + 3 * 0.044715 * v * v), want = v * s;
        if (fabs(want) >= 0x1p-126)
            value = fmax(value, fabs((double)mx_gelu_tanh(x) / want - 1) / (4e-7 + 3e-7 * fabs(u)));
        else
            value = fmax(value, fabs((double)mx_gelu_tanh(x) - want) / 0x1p-126);
        double far = fabs(v) > 16 ? (v > 0 ? 1 : 0) : s + v * s * c * 2 * du;
        slope = fmax(slope, fabs((double)mx_gelu_tanh_slope(x) - far));
        s = 1 / (1 + exp(-1.702 * v));
        c = 1 / (1 + exp(1.702 * v));
        want = v * s;
        if (fabs(want) >= 0x1p-126)
            quick = fmax(quick, fabs((double)mx_quick_gelu(x) / want - 1) /
                                    (3e-7 + 1e-7 * fabs(1.702 * v)));
        else
            quick = fmax(quick, fabs((double)mx_quick_gelu(x) - want) / 0x1p-126);
        far = s * (1 + 1.702 * v * c);
        quick_slope = fmax(quick_slope, fabs((double)mx_quick_gelu_slope(x) - far));
    }
    within("tanh", value, 1);
    within("slope", slope, 5e-7);
    within("quick", quick, 1);
    within("slope", quick_slope, 5e-7);
}

static void tanh_and_relu_keep_their_bounds(void **state)
{
    (void)state;
    double value = 0, slope = 0, tail = 0;
    for (uint64_t i = 0; i < 1ull << 32; i += STRIDE) {
        float x = sample(i);
        if (!isfinite(x)) continue;
        double v = (double)x, c = cosh(v);
        value = fmax(value, ulps(mx_tanh(x), tanh(v)));
        if (fabsf(x) <= 43) slope = fmax(slope, ulps(mx_tanh_slope(x), 1 / (c * c)));
        else tail = fmax(tail, fabs((double)mx_tanh_slope(x) - 1 / (c * c)));
        assert_true(mx_relu(x) == (x > 0 ? x : 0));
        assert_true(mx_relu_slope(x) == (x > 0));
    }
    within("tanh", value, 3);
    within("slope", slope, 5);
    within("tail", tail, 0x1p-140);
}

static void swiglu_gradients_are_the_products_of_their_parts(void **state)
{
    (void)state;
    for (int i = 0; i < 10000; i++) {
        float x[3], dg, du;
        for (int k = 0; k < 3; k++)
            x[k] = 8 * rng_uniform(3, RNG_USER, (uint32_t)k, (uint64_t)i) - 4;
        mx_swiglu_bwd(x[0], x[1], x[2], &dg, &du);
        double s = 1 / (1 + exp(-(double)x[1]));
        double want_g = (double)x[0] * (double)x[2] * s * (1 + (double)x[1] * (1 - s));
        double want_u = (double)x[0] * (double)x[1] * s;
        assert_true(fabs((double)dg - want_g) <= 1e-6 * fabs((double)x[0] * (double)x[2]));
        assert_true(ulps(du, want_u) <= 5);
    }
}

static void special_values_go_where_they_should(void **state)
{
    (void)state;
    float s, c;
    assert_true(mx_exp(-INFINITY) == 0 && mx_exp(INFINITY) == INFINITY && isnan(mx_exp(NAN)));
    assert_true(mx_exp(0) == 1 && mx_exp(-0.0f) == 1);
    assert_true(mx_log(0) == -INFINITY && mx_log(-0.0f) == -INFINITY && mx_log(1) == 0);
    assert_true(mx_log(INFINITY) == INFINITY && isnan(mx_log(-1)) && isnan(mx_log(NAN)));
    mx_sincos(INFINITY, &s, &c);
    assert_true(isnan(s) && isnan(c));
    mx_sincos(NAN, &s, &c);
    assert_true(isnan(s) && isnan(c));
    mx_sincos(0, &s, &c);
    assert_true(s == 0 && c == 1);
    assert_true(mx_sigmoid(INFINITY) == 1 && mx_sigmoid(-INFINITY) == 0 && isnan(mx_sigmoid(NAN)));
    assert_true(mx_silu(INFINITY) == INFINITY && isnan(mx_silu(NAN)));
    assert_true(mx_gelu(INFINITY) == INFINITY && isnan(mx_gelu(NAN)) && mx_gelu(0) == 0);
    assert_true(mx_normal(0, &s) == 0.5f && isnan(mx_normal(NAN, &s)) && isnan(s));
    assert_true(mx_gelu_tanh(INFINITY) == INFINITY && isnan(mx_gelu_tanh(NAN)));
    assert_true(mx_gelu_tanh_slope(-INFINITY) == 0 && isnan(mx_gelu_tanh_slope(NAN)));
    assert_true(mx_quick_gelu(INFINITY) == INFINITY && isnan(mx_quick_gelu(NAN)));
    assert_true(mx_tanh(INFINITY) == 1 && mx_tanh(-INFINITY) == -1 && isnan(mx_tanh(NAN)));
    assert_true(mx_tanh_slope(INFINITY) == 0 && isnan(mx_tanh_slope(NAN)));
    assert_true(mx_relu(-INFINITY) == 0 && isnan(mx_relu(NAN)) && isnan(mx_relu_slope(NAN)));
}

static void half_precision_is_exact_one_way_and_rounds_to_even_the_other(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float b = mx_from_bf16((uint16_t)h), f = mx_from_f16((uint16_t)h);
        if (!isnan(b)) assert_int_equal(mx_to_bf16(b), h);
        if (isnan(f)) {
            assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0);
            assert_true(isnan(mx_from_f16(mx_to_f16(f))));
            continue;
        }
        assert_int_equal(mx_to_f16(f), h);
        int exp = h >> 10 & 31, frac = h & 0x3ff;
        double want = exp == 31 ? INFINITY : exp ? ldexp(1024 + frac, exp - 25) : ldexp(frac, -24);
        assert_true((double)f == (h & 0x8000 ? -want : want));
        /* Half way to the next: to the even one; a hair more or less: to the nearer one. */
        uint32_t up = h + 1;
        float next = mx_from_f16((uint16_t)up);
        if ((h & 0x7fff) >= 0x7bff) continue;
        float middle = (f + next) / 2;
        assert_int_equal(mx_to_f16(middle), h & 1 ? up : h);
        assert_int_equal(mx_to_f16(nextafterf(middle, next)), up);
        assert_int_equal(mx_to_f16(nextafterf(middle, f)), h);
    }
    assert_int_equal(mx_to_f16(65519.996f), 0x7bff);
    assert_int_equal(mx_to_f16(65520.0f), 0x7c00);
    assert_int_equal(mx_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(mx_to_bf16(mx_float(0x3f808000u)), 0x3f80);
    assert_int_equal(mx_to_bf16(mx_float(0x3f818000u)), 0x3f82);
    assert_int_equal(mx_to_bf16(mx_float(0x3f808001u)), 0x3f81);
    assert_int_equal(mx_to_bf16(mx_float(0x7f7fffffu)), 0x7f80);
    assert_true(isnan(mx_from_bf16(mx_to_bf16(mx_float(0x7f800001u)))));
}

static void random_bits_are_those_of_the_generator(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t block = (i << 33) + i, seed = 0x9e3779b97f4a7c15ull * i;
        uint32_t c[4] = {(uint32_t)block, (uint32_t)(block >> 32), 7, RNG_DROPOUT};
        mx_philox(seed, c);
        for (uint64_t k = 0; k < 4; k++) {
            assert_int_equal(c[k], rng_u32(seed, RNG_DROPOUT, 7, block * 4 + k));
            assert_true(mx_uniform(c[k]) == rng_uniform(seed, RNG_DROPOUT, 7, block * 4 + k));
        }
    }
}

static void the_betas_of_adamw_are_rounded_once(void **state)
{
    (void)state;
    struct attrs_adamw a = attrs_adamw(0.9, 0.999, 1e-8, 1);
    assert_true(a.c1 == 0.1f && a.c2 == 0.001f && a.beta2 == 0.999f && a.eps == 1e-8f);
    assert_true(a.c2 != 1.0f - a.beta2); /* which is off by 1.3e-5 of itself */
    assert_int_equal(a.group, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_betas_of_adamw_are_rounded_once),
        cmocka_unit_test(exponentials_and_logarithms_are_within_1_ulp),
        cmocka_unit_test(sines_are_within_2_ulp_to_2_20_and_exact_in_quadrant_beyond),
        cmocka_unit_test(sigmoid_and_its_kin_keep_their_bounds),
        cmocka_unit_test(the_normal_law_and_gelu_keep_their_bounds),
        cmocka_unit_test(the_cheaper_gelus_keep_their_bounds),
        cmocka_unit_test(tanh_and_relu_keep_their_bounds),
        cmocka_unit_test(swiglu_gradients_are_the_products_of_their_parts),
        cmocka_unit_test(special_values_go_where_they_should),
        cmocka_unit_test(half_precision_is_exact_one_way_and_rounds_to_even_the_other),
        cmocka_unit_test(random_bits_are_those_of_the_generator),
    };
    return cmocka_run_group_tests_name("mathx", tests, NULL, NULL);
}
