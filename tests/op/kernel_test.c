/* Every kernel of every instruction-set level against the double-precision references, on buffers
 * that catch stray reads and writes; bytes that may not depend on threads, alignment, workspace or
 * place; planted faults that this must notice. Generated per operation from ops.def. */
#include "tests/op/optest.h"

#include "engine/cpu/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

enum { LEAST_SAMPLES = 12, TABLES = 4 };

/* Shared by the tests of this program: set up once, because threads are slow to start. */
struct bench_state {
    struct kernels tables[TABLES];
    int ntables;
    struct exec *exec[OPTEST_EXECS];
};

/* What a test of one operation gets. */
struct unit {
    int op;
    struct bench_state *bench;
};

static void kernels_match_the_reference(void **state)
{
    const struct unit *u = *state;
    struct op_sample s;
    struct err e = ERR_INIT;
    char shapes[200];
    int k = 0;
    for (int more; (more = sample_make(&s, u->op, k, &e)); k++) {
        if (more < 0) fail_msg("sample %d: %s", k, e.msg);
        for (int t = 0; t < u->bench->ntables; t++) {
            struct mutant none = {0};
            if (kernel_check(&u->bench->tables[t], u->op, &s, &none, &e))
                fail_msg("%s %s, sample %d (%s): %s", u->bench->tables[t].name,
                         op_table[u->op].name, k, optest_shapes(&s, shapes), e.msg);
        }
        sample_clear(&s);
    }
    assert_true(k >= LEAST_SAMPLES);
}

static void plans_match_the_reference(void **state)
{
    const struct unit *u = *state;
    struct op_sample s;
    struct err e = ERR_INIT;
    char shapes[200];
    for (int k = 0; sample_make(&s, u->op, k, &e) > 0; k++) {
        if (s.diff && plan_check(&u->bench->tables[0], u->op, &s, &e))
            fail_msg("%s, sample %d (%s): %s", op_table[u->op].name, k,
                     optest_shapes(&s, shapes), e.msg);
        sample_clear(&s);
    }
    assert_int_equal(e.code, E_OK);
}

/* Faults test the harness, not the kernels: small samples do. */
static bool small(const struct op_sample *s)
{
    int64_t n = 0;
    for (int i = 0; i < s->nin; i++) n += s->in[i].count;
    return n < 20000;
}

static bool caught(const struct unit *u, struct mutant *m, bool *applied)
{
    struct op_sample s;
    struct err e = ERR_INIT;
    bool found = false;
    *applied = false;
    for (int k = 0; !found && sample_make(&s, u->op, k, &e) > 0; k++) {
        *m = (struct mutant){.kind = m->kind, .at = m->at};
        if (small(&s) && mutant_fits(m, u->op, &s))
            found = kernel_check(&u->bench->tables[0], u->op, &s, m, &e) && m->applied;
        *applied = *applied || m->applied;
        sample_clear(&s);
    }
    return found;
}

static void planted_faults_are_caught(void **state)
{
    const struct unit *u = *state;
    int planted = 0, survivors = 0;
    for (struct mutant m = {0}; mutant_next(&m, false);) {
        bool applied, found = caught(u, &m, &applied);
        planted += applied;
        survivors += applied && !found;
        if (applied && !found)
            print_error("%s: survived: %s (%d)\n", op_table[u->op].name, mutant_name(m.kind), m.at);
    }
    assert_int_equal(survivors, 0);
    assert_true(planted >= 7); /* scaled, negated, row, out of bounds twice, threads, random */
}

/* ---- what was run ---- */

static void every_dtype_of_every_input_was_run(void **state)
{
    (void)state;
    static const enum dtype any[] = {DT_F32, DT_BF16, DT_F16};
    struct err e = ERR_INIT;
    for (int op = 0; op < OP_COUNT; op++) {
        bool seen[NODE_IN][DT_COUNT] = {{0}};
        struct op_sample s;
        int k = 0, half[NODE_IN] = {0};
        for (; sample_make(&s, op, k, &e) > 0; k++) {
            for (int i = 0; i < s.nin; i++)
                if (s.in[i].d) seen[i][s.in[i].dtype] = true;
            sample_clear(&s);
        }
        printf("%-12s %3d samples ", op_table[op].name, k);
        for (int i = 0; i < op_table[op].most_in; i++) {
            printf(" ");
            for (int t = 0; t < DT_COUNT; t++)
                if (seen[i][t]) printf("/%s", dtype_name(t));
            for (int t = 0; t < REF_LEN(any); t++) half[i] += seen[i][any[t]];
            /* An input that takes any float type was tried with each, a plain one with its own. */
            assert_true(half[i] == 3 || half[i] == 1 || seen[i][DT_I32]);
        }
        printf("\n");
    }
}

/* ---- cost() against closed formulas ---- */

static int64_t flops(int op, const void *attrs, int nin, const struct tensor *in)
{
    const struct tensor *pin[NODE_IN] = {NULL}, *pout[NODE_OUT] = {NULL};
    struct tensor out[NODE_OUT] = {{.rank = 0}};
    struct op_cost c = {0};
    struct err e = ERR_INIT;
    for (int i = 0; i < nin; i++) pin[i] = &in[i];
    if (op_table[op].shape(attrs, pin, out, &e)) fail_msg("%s: %s", op_table[op].name, e.msg);
    for (int j = 0; j < op_table[op].nout; j++) {
        out[j].count = 1;
        for (int k = 0; k < out[j].rank; k++) out[j].count *= out[j].shape[k];
        pout[j] = &out[j];
    }
    op_table[op].cost(attrs, pin, pout, 1, &c);
    return c.flops;
}

static struct tensor of(enum dtype t, int rank, const int64_t *shape)
{
    struct tensor x = {.dtype = t, .rank = rank, .count = 1, .view_of = -1, .producer = -1};
    for (int k = 0; k < rank; k++) x.count *= x.shape[k] = shape[k];
    return x;
}

static void within_5_percent(int64_t got, double want)
{
    if ((double)got < 0.95 * want || (double)got > 1.05 * want)
        fail_msg("%lld FLOPs, %.0f expected", (long long)got, want);
}

static void costs_count_the_multiply_adds(void **state)
{
    (void)state;
    enum { N = 384, K = 576, M = 1536, B = 2, T = 100, S = 300, H = 6, G = 2, D = 64, V = 5000 };
    static const struct attrs_linear alpha = {1, 0};
    static const struct attrs_attn attn = {0.1f};
    const struct tensor x = of(DT_F32, DIMS(N, K)), w = of(DT_BF16, DIMS(M, K)),
                        dy = of(DT_F32, DIMS(N, M)), head = of(DT_F32, DIMS(V, K)),
                        target = of(DT_I32, DIMS(N)), one = of(DT_F32, DIMS(1)),
                        q = of(DT_F32, DIMS(B, T, H, D)), kv = of(DT_F32, DIMS(B, S, G, D)),
                        range = of(DT_I32, DIMS(B, T, 2)), lse = of(DT_F32, DIMS(B, T, H));
    const double product = 2.0 * N * K * M, scores = 2.0 * B * T * S * H * D;
    within_5_percent(flops(OP_LINEAR, &alpha, 2, (struct tensor[]){x, w}), product);
    within_5_percent(flops(OP_LINEAR_DX, &alpha, 2, (struct tensor[]){dy, w}), product);
    within_5_percent(flops(OP_LINEAR_DW, &alpha, 2, (struct tensor[]){dy, x}), product);
    /* Ranges are data, so the full rectangle counts: two products forward, five backward. */
    within_5_percent(flops(OP_ATTN, &attn, 4, (struct tensor[]){q, kv, kv, range}), 2 * scores);
    within_5_percent(flops(OP_ATTN_BWD, &attn, 7,
                           (struct tensor[]){q, q, kv, kv, range, q, lse}), 5 * scores);
    within_5_percent(flops(OP_LINEAR_CE, NULL, 4, (struct tensor[]){x, head, target, one}),
                     3 * 2.0 * N * K * V);
}

/* ---- the program ---- */

static int bench_open(struct bench_state *b, struct err *e)
{
    static const int threads[OPTEST_EXECS] = {1, 2, 3, 7};
    for (int i = 0; i < OPTEST_EXECS; i++) {
        b->exec[i] = exec_new_cpu(threads[i], e);
        if (!b->exec[i]) return -1;
    }
    for (const struct cpu_level *l; (l = cpu_level(b->ntables)) && b->ntables < TABLES;)
        b->tables[b->ntables++] = (struct kernels){.name = l->name, .table = l->table};
    for (int t = 0; t < b->ntables; t++)
        for (int i = 0; i < OPTEST_EXECS; i++) b->tables[t].exec[i] = b->exec[i];
    return 0;
}

static void bench_close(struct bench_state *b)
{
    for (int i = 0; i < OPTEST_EXECS; i++) exec_free(b->exec[i]);
}

/* usage: NAME_test [PATTERN]   only tests whose name matches, e.g. "linear_*" */
int main(int argc, char **argv)
{
    enum { PER_OP = 3, OTHERS = 2 };
    struct CMUnitTest tests[PER_OP * OP_COUNT + OTHERS];
    static char names[PER_OP * OP_COUNT][80];
    struct bench_state bench = {.ntables = 0};
    struct unit units[OP_COUNT];
    struct err e = ERR_INIT;
    size_t n = 0;
    if (bench_open(&bench, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    for (int i = 0; i < OP_COUNT; i++) {
        units[i] = (struct unit){i, &bench};
        const struct { const char *name; CMUnitTestFunction fn; bool on; } row[PER_OP] = {
            {"%s_kernels_match_the_reference", kernels_match_the_reference, true},
            {"%s_planned_with_its_gradient_matches_the_reference", plans_match_the_reference,
             op_table[i].flags & F_GRAD},
            {"faults_in_the_%s_kernel_are_caught", planted_faults_are_caught, true},
        };
        for (int k = 0; k < PER_OP; k++) {
            if (!row[k].on) continue;
            snprintf(names[n], sizeof *names, row[k].name, op_table[i].name);
            tests[n] = (struct CMUnitTest){names[n], row[k].fn, NULL, NULL, &units[i]};
            n++;
        }
    }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(every_dtype_of_every_input_was_run);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(costs_count_the_multiply_adds);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    int failed = _cmocka_run_group_tests("kernels", tests, n, NULL, NULL);
    bench_close(&bench);
    return failed;
}
