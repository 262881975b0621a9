/* Every operation's CUDA kernel against its double-precision reference, in f32 and in bf16, several
 * orders of threads; the bits of the CPU where the operation promises them. Runs on whatever CUDA
 * library it is given: the emulation (make check-cudaemu) or a GPU (make check-gpu). */
#include "engine/base/str.h"
#include "tests/op/optest.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

enum { F32, BF16, TABLES };

struct unit {
    int op;
    const struct kernels *tables; /* [TABLES] */
};

static void check(const struct unit *u, int table)
{
    struct op_sample s;
    struct err e = ERR_INIT;
    char shapes[200];
    int k = 0;
    for (int more; (more = sample_make(&s, u->op, k, &e)); k++) {
        struct mutant none = {0};
        if (more < 0) fail_msg("sample %d: %s", k, e.msg);
        if (kernel_check(&u->tables[table], u->op, &s, &none, &e))
            fail_msg("%s, sample %d (%s): %s", op_table[u->op].name, k,
                     optest_shapes(&s, shapes), e.msg);
        sample_clear(&s);
    }
    assert_true(k > 0);
}

static void matches_in_f32(void **state)
{
    check(*state, F32);
}

static void matches_in_bf16(void **state)
{
    check(*state, BF16);
}

static void planned_with_its_gradient(void **state)
{
    const struct unit *u = *state;
    struct op_sample s;
    struct err e = ERR_INIT;
    char shapes[200];
    for (int k = 0; sample_make(&s, u->op, k, &e) > 0; k++) {
        if (s.diff && plan_check(&u->tables[F32], u->op, &s, &e))
            fail_msg("%s, sample %d (%s): %s", op_table[u->op].name, k,
                     optest_shapes(&s, shapes), e.msg);
        sample_clear(&s);
    }
    assert_int_equal(e.code, E_OK);
}

static bool has_compute(int op)
{
    const char *w = op_table[op].signature;
    for (; *w; w++)
        if (w[0] == 'c' && w[1] == ':') return true;
    return false;
}

/* "2/3": the tests 2, 5, 8, ... move to the front; how many. */
static size_t keep_part(struct CMUnitTest *tests, size_t n, const char *part)
{
    size_t k = (size_t)(part[0] - '1'), of = (size_t)(part[2] - '0'), kept = 0;
    for (size_t i = k; i < n; i += of) tests[kept++] = tests[i];
    return kept;
}

static void open_tables(struct kernels tables[TABLES], struct kernels *cpu)
{
    struct err e = ERR_INIT;
    struct exec *c = exec_new_cpu(1, &e), *x = c ? exec_new_cuda(1, &e) : NULL;
    if (!x) {
        fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
    *cpu = (struct kernels){.name = "cpu", .table = c->device->table};
    tables[F32] = (struct kernels){.name = "cuda f32", .table = x->device->table, .peer = cpu};
    const char *lib = getenv("GRAFT_CUDA_LIB");
    void *handle = lib ? dlopen(lib, RTLD_NOW | RTLD_NOLOAD) : NULL;
    *(void **)&tables[F32].order = handle ? dlsym(handle, "emu_seed") : NULL;
    tables[F32].watched = tables[F32].order != NULL; /* by AddressSanitizer */
    for (int i = 0; i < OPTEST_EXECS; i++) {
        cpu->exec[i] = c;
        tables[F32].exec[i] = x;
    }
    tables[BF16] = tables[F32];
    tables[BF16].name = "cuda bf16";
    tables[BF16].compute = DT_BF16;
    tables[BF16].peer = NULL; /* the CPU computes in f32 */
}

/* usage: op_test [PATTERN | --part K/N]
 *   PATTERN: only tests whose name matches, e.g. "linear_*"; --part: every N-th, from the K-th */
int main(int argc, char **argv)
{
    enum { PER_OP = 3 };
    static char names[PER_OP * OP_COUNT][80];
    struct CMUnitTest tests[PER_OP * OP_COUNT];
    struct kernels tables[TABLES], cpu;
    struct unit units[OP_COUNT];
    size_t n = 0;
    open_tables(tables, &cpu);
    for (int i = 0; i < OP_COUNT; i++) {
        units[i] = (struct unit){i, tables};
        const struct { const char *name; CMUnitTestFunction fn; bool on; } row[PER_OP] = {
            {"%s_matches_the_reference_in_f32", matches_in_f32, true},
            {"%s_matches_the_reference_in_bf16", matches_in_bf16, has_compute(i)},
            {"%s_planned_with_its_gradient_matches_the_reference", planned_with_its_gradient,
             op_table[i].flags & F_GRAD},
        };
        for (int k = 0; k < PER_OP; k++) {
            if (!row[k].on) continue;
            snprintf(names[n], sizeof *names, row[k].name, op_table[i].name);
            tests[n] = (struct CMUnitTest){names[n], row[k].fn, NULL, NULL, &units[i]};
            n++;
        }
    }
    if (argc > 2 && str_eq(argv[1], "--part")) n = keep_part(tests, n, argv[2]);
    else if (argc > 1) cmocka_set_test_filter(argv[1]);
    int failed = _cmocka_run_group_tests("cuda", tests, n, NULL, NULL);
    exec_free(tables[F32].exec[0]);
    exec_free(cpu.exec[0]);
    return failed;
}
