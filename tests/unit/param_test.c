/* engine/core/param: storage and conversion of weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/mem.h"
#include "engine/core/param.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct param *add(struct params *ps, const char *name, enum param_kind kind, int64_t n)
{
    struct err e = ERR_INIT;
    struct param *p = params_add(ps, name, kind, 1, &n, &e);
    if (!p) fail_msg("%s", e.msg);
    return p;
}

static void alloc(struct params *ps)
{
    struct err e = ERR_INIT;
    if (params_alloc(ps, &e)) fail_msg("%s", e.msg);
}

static void frozen_weights_stay_in_their_file(void **state)
{
    (void)state;
    static const uint16_t bytes[3] = {0x3f80, 0x4000, 0xc000};
    struct params ps;
    params_init(&ps);
    struct param *p = add(&ps, "w", PARAM_FROZEN, 3);
    p->source = bytes;
    p->dtype0 = DT_BF16;
    assert_int_equal(param_dtype(p), DT_BF16);
    alloc(&ps);
    assert_ptr_equal(p->data, bytes);
    assert_int_equal(p->dtype, DT_BF16);
    assert_null(p->grad);
    assert_int_equal(ps.slab_bytes, 0);
    params_clear(&ps);
}

static void trainable_parameters_own_four_aligned_arrays(void **state)
{
    (void)state;
    struct params ps;
    params_init(&ps);
    struct param *p = add(&ps, "a", PARAM_TRAINABLE, 5), *q = add(&ps, "b", PARAM_TRAINABLE, 17);
    struct param *s = add(&ps, "cache", PARAM_STATE, 3);
    alloc(&ps);
    void *arrays[] = {p->data, p->grad, p->m, p->v, q->data, q->grad, q->m, q->v, s->data};
    const int64_t counts[] = {5, 5, 5, 5, 17, 17, 17, 17, 3};
    for (int i = 0; i < 9; i++) {
        assert_int_equal((uintptr_t)arrays[i] % 64, 0);
        for (int64_t k = 0; k < counts[i]; k++) assert_true(((float *)arrays[i])[k] == 0.0f);
        for (int64_t k = 0; k < counts[i]; k++) ((float *)arrays[i])[k] = (float)i;
    }
    for (int i = 0; i < 9; i++) assert_true(((float *)arrays[i])[counts[i] - 1] == (float)i);
    assert_null(s->grad);
    assert_int_equal(params_count(&ps, PARAM_TRAINABLE), 22);
    assert_int_equal(params_count(&ps, PARAM_STATE), 3);
    params_clear(&ps);
}

static void a_second_allocation_serves_only_newcomers(void **state)
{
    (void)state;
    struct params ps;
    params_init(&ps);
    struct param *p = add(&ps, "a", PARAM_TRAINABLE, 4);
    alloc(&ps);
    void *data = p->data;
    ((float *)data)[3] = 7.0f;
    size_t bytes = ps.slab_bytes;
    alloc(&ps);
    assert_int_equal(ps.slab_bytes, bytes);
    struct param *q = add(&ps, "b", PARAM_TRAINABLE, 4);
    alloc(&ps);
    assert_ptr_equal(p->data, data);
    assert_true(((float *)data)[3] == 7.0f);
    assert_non_null(q->data);
    assert_int_equal(ps.slab_bytes, 2 * bytes);
    params_clear(&ps);
}

static void a_frozen_table_without_a_file_is_owned(void **state)
{
    (void)state;
    struct params ps;
    params_init(&ps);
    struct param *p = add(&ps, "freq", PARAM_FROZEN, 4);
    alloc(&ps);
    assert_non_null(p->data);
    assert_null(p->grad);
    assert_int_equal(p->dtype, DT_F32);
    params_clear(&ps);
}

/* value of a binary16 pattern by its definition, in double */
static double f16_value(uint16_t h)
{
    int exp = h >> 10 & 31, frac = h & 1023;
    double v = exp == 31 ? (frac ? (double)NAN : (double)INFINITY)
               : exp     ? ldexp(1024 + frac, exp - 25)
                         : ldexp(frac, -24);
    return h & 0x8000 ? -v : v;
}

static void every_half_converts_exactly(void **state)
{
    (void)state;
    enum { N = 65536 };
    static char raw[2 * N + 1];
    static uint16_t all[N];
    for (int i = 0; i < N; i++) all[i] = (uint16_t)i;
    memcpy(raw + 1, all, sizeof all); /* a source may lie at an odd address */
    struct params ps;
    params_init(&ps);
    struct param *h = add(&ps, "h", PARAM_TRAINABLE, N), *b = add(&ps, "b", PARAM_TRAINABLE, N);
    h->source = b->source = raw + 1;
    h->dtype0 = DT_F16;
    b->dtype0 = DT_BF16;
    alloc(&ps);
    for (int i = 0; i < N; i++) {
        float got = ((float *)h->data)[i];
        double want = f16_value(all[i]);
        uint32_t bits;
        if (isnan(want)) assert_true(isnan(got));
        else assert_true((double)got == want && !signbit(got) == !signbit(want));
        memcpy(&bits, (float *)b->data + i, sizeof bits);
        assert_int_equal(bits, (uint32_t)i << 16);
    }
    params_clear(&ps);
}

static void wide_and_single_sources_convert_and_integers_are_refused(void **state)
{
    (void)state;
    static const double d[2] = {1.0 / 3, -1e300};
    static const float f[2] = {0.1f, -2.0f};
    static const int64_t n[2] = {1, 2};
    struct err e = ERR_INIT;
    struct params ps;
    params_init(&ps);
    struct param *a = add(&ps, "a", PARAM_TRAINABLE, 2), *b = add(&ps, "b", PARAM_STATE, 2);
    a->source = d;
    a->dtype0 = DT_F64;
    b->source = f;
    alloc(&ps);
    assert_true(((float *)a->data)[0] == 1.0f / 3 && isinf(((float *)a->data)[1]));
    assert_memory_equal(b->data, f, sizeof f);
    struct param *c = add(&ps, "c", PARAM_TRAINABLE, 2);
    c->source = n;
    c->dtype0 = DT_I64;
    assert_int_equal(params_alloc(&ps, &e), -1);
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "c is stored as I64"));
    assert_null(c->data);
    params_clear(&ps);
}

static void bad_names_and_shapes_are_refused(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct params ps;
    char name[300];
    memset(name, 'x', sizeof name);
    name[299] = 0;
    params_init(&ps);
    add(&ps, "a", PARAM_TRAINABLE, 2);
    assert_null(params_add(&ps, "a", PARAM_FROZEN, 1, (int64_t[]){2}, &e));
    assert_int_equal(e.code, E_CONFLICT);
    assert_null(params_add(&ps, name, PARAM_FROZEN, 1, (int64_t[]){2}, &e));
    assert_int_equal(e.code, E_LIMIT);
    assert_null(params_add(&ps, "b", PARAM_FROZEN, 2, (int64_t[]){1ll << 40, 1ll << 40}, &e));
    assert_int_equal(e.code, E_LIMIT);
    assert_null(params_add(&ps, "b", PARAM_FROZEN, 1, (int64_t[]){-1}, &e));
    assert_null(params_add(&ps, "b", PARAM_FROZEN, 7, (int64_t[7]){1}, &e));
    assert_int_equal(ps.n, 1);
    assert_non_null(params_find(&ps, "a"));
    assert_null(params_find(&ps, "b"));
    params_clear(&ps);
}

static void addresses_survive_growth_and_empty_parameters_have_one(void **state)
{
    (void)state;
    struct params ps;
    char name[16];
    params_init(&ps);
    struct param *first = add(&ps, "first", PARAM_TRAINABLE, 0);
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "p%d", i);
        assert_int_equal(add(&ps, name, PARAM_TRAINABLE, 1)->index, i + 1);
    }
    alloc(&ps);
    assert_ptr_equal(params_find(&ps, "first"), first);
    assert_non_null(first->data);
    assert_ptr_not_equal(first->data, first->grad);
    params_clear(&ps);
}

static void failing_memory_leaks_nothing(void **state)
{
    (void)state;
    size_t before = mem_live();
    for (int n = 1;; n++) {
        struct err e = ERR_INIT;
        struct params ps;
        params_init(&ps);
        fault_arm(FAULT_MEM, n, false);
        int rc = params_add(&ps, "a", PARAM_TRAINABLE, 1, (int64_t[]){9}, &e) ? 0 : -1;
        if (!rc) rc = params_alloc(&ps, &e);
        bool reached = fault_count(FAULT_MEM) >= n;
        fault_arm(FAULT_MEM, 0, false);
        assert_int_equal(rc, reached ? -1 : 0);
        params_clear(&ps);
        assert_int_equal(mem_live(), before);
        if (!reached) break;
        assert_int_equal(e.code, E_NOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frozen_weights_stay_in_their_file),
        cmocka_unit_test(trainable_parameters_own_four_aligned_arrays),
        cmocka_unit_test(a_second_allocation_serves_only_newcomers),
        cmocka_unit_test(a_frozen_table_without_a_file_is_owned),
        cmocka_unit_test(every_half_converts_exactly),
        cmocka_unit_test(wide_and_single_sources_convert_and_integers_are_refused),
        cmocka_unit_test(bad_names_and_shapes_are_refused),
        cmocka_unit_test(addresses_survive_growth_and_empty_parameters_have_one),
        cmocka_unit_test(failing_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
