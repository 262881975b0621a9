/* Learning-rate schedules: the values that transformers' get_*_schedule_with_warmup give. */
#include "engine/opt/sched.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void factors_are_those_of_transformers(void **state)
{
    (void)state;
    /* LambdaLR of get_{constant,linear,cosine}_schedule_with_warmup(warmup 3, total 10), peak 1. */
    static const double want[SCHED_COUNT][11] = {
        {0, 1.0 / 3, 2.0 / 3, 1, 1, 1, 1, 1, 1, 1, 1},
        {0, 1.0 / 3, 2.0 / 3, 1, 6.0 / 7, 5.0 / 7, 4.0 / 7, 3.0 / 7, 2.0 / 7, 1.0 / 7, 0},
        {0, 1.0 / 3, 2.0 / 3, 1, 0.9504844339512095, 0.8117449009293668, 0.6112604669781572,
         0.3887395330218429, 0.18825509907063326, 0.04951556604879048, 0},
    };
    for (int k = 0; k < SCHED_COUNT; k++)
        for (int step = 0; step <= 10; step++)
            assert_true(fabs(sched_factor((enum sched)k, step, 10, 3) - want[k][step]) < 1e-15);
}

static void odd_lengths_stay_in_range(void **state)
{
    (void)state;
    assert_true(sched_factor(SCHED_LINEAR, 0, 10, 0) == 1);
    assert_true(sched_factor(SCHED_COSINE, 0, 1, 0) == 1);
    assert_true(sched_factor(SCHED_LINEAR, 5, 5, 5) == 0); /* warm-up as long as the run */
    for (int k = 0; k < SCHED_COUNT; k++)
        for (int total = 0; total < 6; total++)
            for (int warmup = 0; warmup < 8; warmup++)
                for (int step = 0; step < 9; step++) {
                    double f = sched_factor((enum sched)k, step, total, warmup);
                    assert_true(f >= 0 && f <= 1);
                }
}

static void names_go_both_ways(void **state)
{
    (void)state;
    for (int k = 0; k < SCHED_COUNT; k++) {
        enum sched back = SCHED_COUNT;
        assert_true(sched_parse(sched_name((enum sched)k), &back));
        assert_int_equal(back, k);
    }
    enum sched kept = SCHED_COSINE;
    assert_false(sched_parse("exponential", &kept));
    assert_int_equal(kept, SCHED_COSINE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(factors_are_those_of_transformers),
        cmocka_unit_test(odd_lengths_stay_in_range),
        cmocka_unit_test(names_go_both_ways),
    };
    return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
