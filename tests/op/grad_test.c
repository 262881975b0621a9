/* Every gradient rule: the nodes it records, executed by the references, against finite
 * differences of the references; and planted faults that this must notice. Generated per
 * operation from ops.def. */
#include "tests/op/optest.h"

#include "engine/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

enum { LEAST_SAMPLES = 12 };

static void gradients_match_finite_differences(void **state)
{
    int op = *(const int *)*state, k = 0, checked = 0;
    struct op_sample s;
    struct err e = ERR_INIT;
    char shapes[200];
    for (int more; (more = sample_make(&s, op, k, &e)); k++) {
        struct mutant none = {0};
        if (more < 0) fail_msg("sample %d: %s", k, e.msg);
        if (s.diff && grad_check(op, &s, &none, &e))
            fail_msg("%s, sample %d (%s): %s", op_table[op].name, k, optest_shapes(&s, shapes),
                     e.msg);
        checked += s.diff != 0;
        sample_clear(&s);
    }
    assert_true(k >= LEAST_SAMPLES);
    assert_true(checked >= LEAST_SAMPLES / 2);
}

/* Whether some sample tells the fault; *applied: whether any could. */
static bool caught(int op, struct mutant *m, bool *applied)
{
    struct op_sample s;
    struct err e = ERR_INIT;
    bool found = false;
    *applied = false;
    for (int k = 0; !found && sample_make(&s, op, k, &e) > 0; k++) {
        *m = (struct mutant){.kind = m->kind, .at = m->at};
        if (s.diff) found = grad_check(op, &s, m, &e) && m->applied;
        *applied = *applied || m->applied;
        sample_clear(&s);
    }
    return found;
}

static void planted_faults_are_caught(void **state)
{
    int op = *(const int *)*state, planted = 0, survivors = 0;
    for (struct mutant m = {0}; mutant_next(&m, true);) {
        bool applied, found = caught(op, &m, &applied);
        planted += applied;
        survivors += applied && !found;
        if (applied && !found)
            print_error("%s: survived: %s (%d)\n", op_table[op].name, mutant_name(m.kind), m.at);
    }
    assert_int_equal(survivors, 0);
    assert_true(planted >= 5); /* scaled, negated, dropped, row, overwritten */
}

static const int ids[OP_COUNT] = {
#define OP(ID, name, attrs, least, most, outs, inplace, flags) OP_##ID,
#include "engine/op/ops.def"
#undef OP
};

/* usage: NAME_test [PATTERN]   only tests whose name matches, e.g. "linear_*" */
int main(int argc, char **argv)
{
    struct CMUnitTest tests[2 * OP_COUNT];
    static char names[2 * OP_COUNT][80];
    size_t n = 0;
    for (int i = 0; i < OP_COUNT; i++) {
        if (!(op_table[i].flags & F_GRAD)) continue;
        snprintf(names[n], sizeof *names, "gradients_of_%s_match_finite_differences",
                 op_table[i].name);
        tests[n] = (struct CMUnitTest){names[n], gradients_match_finite_differences, NULL, NULL,
                                       (void *)&ids[i]};
        n++;
        snprintf(names[n], sizeof *names, "faults_in_the_gradient_of_%s_are_caught",
                 op_table[i].name);
        tests[n] = (struct CMUnitTest){names[n], planted_faults_are_caught, NULL, NULL,
                                       (void *)&ids[i]};
        n++;
    }
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("gradients", tests, n, NULL, NULL);
}
