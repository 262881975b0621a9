/* engine/core/exec: binding, transfers, phases, micro-batches, poison and checks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/mem.h"
#include "engine/core/exec.h"
#include "engine/core/plan.h"
#include "engine/op/op.h"
#include "tests/lib/naive.h"

#include <math.h>
#include <string.h>

/* loss = sum(x w^T) as a tape whose only weight trains; the update sums squares of its gradient. */
struct rig {
    struct params ps;
    struct tape *t;
    struct plan *p;
    struct exec *x;
    struct param *w;
    int in, ones, loss, acc, sum, unused;
};

static op_run_fn table[OP_COUNT]; /* naive kernels, with one replaced by a test */
static const struct device device = {.name = "test", .table = table};

static void rig_bind(struct rig *r)
{
    struct err e = ERR_INIT;
    r->p = plan_make(r->t, &(struct plan_options){.threads = 2}, &e);
    if (!r->p || exec_bind(r->x, r->p, &e)) fail_msg("%s", e.msg);
}

static void rig_init(struct rig *r)
{
    struct err e = ERR_INIT;
    memcpy(table, naive_table, sizeof table);
    *r = (struct rig){0};
    params_init(&r->ps);
    r->t = tape_new(&e);
    r->x = exec_new(&device, 2, &e);
    r->w = params_add(&r->ps, "w", PARAM_TRAINABLE, 2, (int64_t[]){1, 3}, &e);
    assert_true(r->t && r->x && r->w);
    r->in = tape_input(r->t, "x", DT_F32, 2, (int64_t[]){4, 3});
    r->ones = tape_input(r->t, "ones", DT_F32, 2, (int64_t[]){1, 4});
    r->unused = tape_input(r->t, "unused", DT_F32, 1, (int64_t[]){2});
    int y = op_linear(r->t, r->in, tape_param(r->t, r->w, SLOT_DATA), -1, -1, 1.0f); /* [4,1] */
    y = tape_reshape(r->t, y, 2, (int64_t[]){1, 4});
    y = op_linear(r->t, y, r->ones, -1, -1, 1.0f);
    r->loss = tape_reshape(r->t, y, 1, (int64_t[]){1});
    tape_output(r->t, r->loss);
    if (tape_backward(r->t, r->loss, &e)) fail_msg("%s", e.msg);
    tape_set_phase(r->t, PHASE_UPDATE);
    r->acc = tape_input(r->t, "acc", DT_F32, 1, (int64_t[]){1});
    r->sum = op_sumsq(r->t, tape_param(r->t, r->w, SLOT_GRAD), r->acc);
    tape_output(r->t, r->sum);
    if (params_alloc(&r->ps, &e)) fail_msg("%s", e.msg);
    rig_bind(r);
}

static void rig_clear(struct rig *r)
{
    exec_free(r->x);
    plan_free(r->p);
    tape_free(r->t);
    params_clear(&r->ps);
}

static void put(struct rig *r, int id, const float *from, int n)
{
    struct err e = ERR_INIT;
    if (exec_write(r->x, id, from, (size_t)n * 4, &e)) fail_msg("%s", e.msg);
}

static float get(struct rig *r, int id)
{
    struct err e = ERR_INIT;
    float y = NAN;
    if (exec_read(r->x, id, &y, sizeof y, &e)) fail_msg("%s", e.msg);
    return y;
}

static void run(struct rig *r, enum phase phase, int micro)
{
    struct err e = ERR_INIT;
    if (exec_run(r->x, phase, micro, &e)) fail_msg("%s", e.msg);
}

static const float x4[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, ones4[4] = {1, 1, 1, 1};

static void step(struct rig *r, int micro)
{
    put(r, r->in, x4, 12);
    put(r, r->ones, ones4, 4);
    run(r, PHASE_STEP, micro);
}

static void the_first_micro_batch_overwrites_and_later_ones_add(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    for (int i = 0; i < 3; i++) {
        ((float *)r.w->data)[i] = 1.0f;
        r.w->grad[i] = 1000.0f; /* of an earlier step: must vanish */
    }
    step(&r, 0);
    assert_true(get(&r, r.loss) == 78.0f);
    assert_true(r.w->grad[0] == 22 && r.w->grad[1] == 26 && r.w->grad[2] == 30);
    step(&r, 1);
    step(&r, 2);
    assert_true(r.w->grad[0] == 66 && r.w->grad[1] == 78 && r.w->grad[2] == 90);
    step(&r, 0);
    assert_true(r.w->grad[0] == 22);
    rig_clear(&r);
}

static void phases_run_apart_and_state_is_written_in_place(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    put(&r, r.acc, (float[]){1}, 1);
    step(&r, 0);
    put(&r, r.acc, (float[]){5}, 1);
    run(&r, PHASE_UPDATE, 0);
    assert_true(get(&r, r.sum) == 5 + 22 * 22 + 26 * 26 + 30 * 30);
    rig_clear(&r);
}

static void an_input_of_the_update_survives_the_steps(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    r.x->poison = true;
    put(&r, r.acc, (float[]){7}, 1); /* written once, before two micro-batches */
    step(&r, 0);
    step(&r, 1);
    run(&r, PHASE_UPDATE, 0);
    assert_true(get(&r, r.sum) == 7 + 44 * 44 + 52 * 52 + 60 * 60);
    rig_clear(&r);
}

static void transfers_check_the_size_and_the_direction(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    float y[12];
    rig_init(&r);
    assert_int_equal(exec_write(r.x, r.in, x4, 44, &e), -1);
    assert_non_null(strstr(e.msg, "x has 48 bytes, not 44"));
    assert_int_equal(exec_write(r.x, r.loss, x4, 4, &e), -1); /* computed, not given */
    assert_int_equal(exec_write(r.x, 999, x4, 4, &e), -1);
    assert_int_equal(exec_read(r.x, r.loss, y, 8, &e), -1);
    assert_int_equal(exec_read(r.x, r.in, y, 48, &e), -1); /* not kept */
    assert_int_equal(exec_write(r.x, r.unused, y, 8, &e), 0); /* dropped */
    assert_int_equal(exec_read(r.x, r.unused, y, 8, &e), -1);
    int w = tape_param(r.t, r.w, SLOT_DATA);
    assert_int_equal(exec_write(r.x, w, (float[]){1, 2, 3}, 12, &e), 0);
    assert_true(((float *)r.w->data)[2] == 3);
    assert_int_equal(exec_read(r.x, w, y, 12, &e), 0);
    assert_true(y[1] == 2);
    assert_int_equal(exec_write(r.x, tape_one(r.t), y, 4, &e), -1); /* frozen */
    rig_clear(&r);
}

static void the_step_buffer_only_grows(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    rig_init(&r);
    int64_t before = r.x->buffer_bytes;
    struct tape *t = tape_new(&e);
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){1000, 1000});
    tape_output(t, op_scale(t, x, -1, 2.0f));
    struct plan *big = plan_make(t, &(struct plan_options){.threads = 2}, &e);
    assert_non_null(big);
    assert_int_equal(exec_bind(r.x, big, &e), 0);
    int64_t grown = r.x->buffer_bytes;
    assert_true(grown > before && grown == big->report.step_bytes);
    assert_int_equal(exec_bind(r.x, r.p, &e), 0);
    assert_int_equal(r.x->buffer_bytes, grown);
    assert_int_equal((uintptr_t)r.x->buffer % 256, 0);
    step(&r, 0);
    assert_true(get(&r, r.loss) == 0.0f); /* weights are zero */
    rig_clear(&r);
    plan_free(big);
    tape_free(t);
}

static void what_cannot_run_is_refused_when_bound(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    rig_init(&r);
    table[OP_LINEAR_DW] = NULL;
    assert_int_equal(exec_bind(r.x, r.p, &e), -1);
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "linear_dw cannot be computed on test"));
    assert_int_equal(exec_run(r.x, PHASE_STEP, 0, &e), -1);
    assert_non_null(strstr(e.msg, "no plan is bound"));
    table[OP_LINEAR_DW] = naive_table[OP_LINEAR_DW];
    struct plan *one = plan_make(r.t, &(struct plan_options){.threads = 1}, &e);
    assert_int_equal(exec_bind(r.x, one, &e), -1); /* two threads, workspace for one */
    plan_free(one);
    void *data = r.w->data;
    r.w->data = NULL;
    assert_int_equal(exec_bind(r.x, r.p, &e), -1);
    assert_non_null(strstr(e.msg, "linear reads w, which has no storage yet"));
    r.w->data = data;
    r.w->grad = NULL;
    assert_int_equal(exec_bind(r.x, r.p, &e), -1);
    assert_non_null(strstr(e.msg, "linear_dw writes grad w"));
    rig_clear(&r);
}

/* Half-precision weights are no obstacle, half-precision arithmetic is. */
static void a_dtype_without_kernels_is_refused_when_bound(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct exec *x = exec_new_cpu(1, &e);
    assert_non_null(x);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct tape *t = tape_new(&e);
        t->compute = bf16 ? DT_BF16 : DT_F32;
        int ids = tape_input(t, "ids", DT_I32, 1, (int64_t[]){3});
        int w = tape_input(t, "w", DT_BF16, 2, (int64_t[]){5, 4});
        int y = op_linear(t, op_embed(t, ids, w), w, -1, -1, 1);
        tape_output(t, y);
        struct plan *p = plan_make(t, &(struct plan_options){.threads = 1}, &e);
        assert_non_null(p);
        assert_int_equal(exec_bind(x, p, &e), bf16 ? -1 : 0);
        plan_free(p);
        tape_free(t);
    }
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_string_equal(e.msg, "embed has no cpu kernel for BF16");
    exec_free(x);
}

static int run_lazy(const struct step *s, struct exec *x, struct err *e)
{
    (void)s;
    (void)x;
    (void)e;
    return 0; /* a kernel that forgets to write */
}

static int run_nan(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    ((float *)s->out[0])[s->tout[0]->count - 1] = NAN;
    return 0;
}

static void poison_exposes_what_a_kernel_did_not_write(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    step(&r, 0);
    table[OP_LINEAR_DW] = run_lazy;
    r.x->poison = true;
    step(&r, 0);
    assert_true(isnan(r.w->grad[0]) && isnan(r.w->grad[2]));
    table[OP_LINEAR_DW] = naive_table[OP_LINEAR_DW];
    step(&r, 0);
    assert_true(r.w->grad[0] == 22);
    step(&r, 1); /* what is added to is not poisoned */
    assert_true(r.w->grad[0] == 44);
    rig_clear(&r);
}

static int run_nothing(const struct step *s, struct exec *x, struct err *e)
{
    (void)s;
    (void)x;
    (void)e;
    return 0;
}

/* The kernel's own = and += are all there is. */
static void no_pass_sets_gradients_to_zero(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    table[OP_LINEAR_DW] = run_nothing;
    for (int i = 0; i < 3; i++) r.w->grad[i] = 1000.0f;
    step(&r, 0);
    step(&r, 1);
    for (int i = 0; i < 3; i++) assert_true(r.w->grad[i] == 1000.0f);
    rig_clear(&r);
}

static void a_nan_is_reported_with_op_node_and_tensor(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    rig_init(&r);
    r.x->check = true;
    step(&r, 0);
    table[OP_LINEAR_DW] = run_nan;
    assert_int_equal(exec_run(r.x, PHASE_STEP, 0, &e), -1);
    assert_int_equal(e.code, E_NUMERIC);
    assert_non_null(strstr(e.msg, "linear_dw (backward, gradient of w) gave nan at "));
    assert_non_null(strstr(e.msg, "element 2 of grad w"));
    r.x->check = false;
    assert_int_equal(exec_run(r.x, PHASE_STEP, 0, &e), 0);
    rig_clear(&r);
}

static int run_lse(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    (void)e;
    memset(s->out[0], 0, (size_t)s->tout[0]->count * 4);
    for (int64_t i = 0; i < s->tout[1]->count; i++) ((float *)s->out[1])[i] = -INFINITY;
    return 0;
}

static void the_lse_of_an_empty_range_may_be_minus_infinity(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    rig_init(&r);
    struct tape *t = tape_new(&e);
    int out[NODE_OUT];
    int q = tape_input(t, "q", DT_F32, 4, (int64_t[]){1, 2, 1, 4});
    int range = tape_input(t, "range", DT_I32, 3, (int64_t[]){1, 2, 2});
    const struct attrs_attn a = {1.0f};
    tape_record(t, OP_ATTN, &a, sizeof a, (int[]){q, q, q, range}, 4, out);
    tape_output(t, out[0]);
    tape_output(t, out[1]);
    struct plan *p = plan_make(t, &(struct plan_options){.threads = 2}, &e);
    assert_non_null(p);
    table[OP_ATTN] = run_lse;
    r.x->check = true;
    if (exec_bind(r.x, p, &e) || exec_run(r.x, PHASE_STEP, 0, &e)) fail_msg("%s", e.msg);
    plan_free(p);
    tape_free(t);
    rig_clear(&r);
}

static int run_fails(const struct step *s, struct exec *x, struct err *e)
{
    (void)s;
    (void)x;
    return err_set(e, E_NOMEM, "no room");
}

static void a_failing_kernel_is_named(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    rig_init(&r);
    table[OP_SUMSQ] = run_fails;
    assert_int_equal(exec_run(r.x, PHASE_UPDATE, 0, &e), -1);
    assert_int_equal(e.code, E_NOMEM);
    assert_non_null(strstr(e.msg, "sumsq (update, gradient of w): "));
    rig_clear(&r);
}

static int check_ws(const struct step *s, struct exec *x, struct err *e)
{
    (void)x;
    if ((uintptr_t)s->ws % 256 || s->ws_bytes != 2 << 20) return err_set(e, E_BUG, "workspace");
    return 0;
}

static void workspaces_are_aligned_and_sized_for_the_threads(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    table[OP_LINEAR_DW] = check_ws;
    step(&r, 0);
    rig_clear(&r);
}

static void failing_memory_leaves_nothing_bound(void **state)
{
    (void)state;
    struct rig r;
    struct err e = ERR_INIT;
    rig_init(&r);
    struct exec *x = r.x;
    for (int n = 1; n < 50; n++) {
        fault_arm(FAULT_MEM, n, false);
        r.x = exec_new(&device, 2, &e);
        int rc = r.x ? exec_bind(r.x, r.p, &e) : -1;
        bool reached = fault_count(FAULT_MEM) >= n;
        fault_arm(FAULT_MEM, 0, false);
        assert_int_equal(rc, reached ? -1 : 0);
        if (r.x && rc) assert_null(r.x->plan);
        exec_free(r.x);
        if (!reached) break;
    }
    r.x = x;
    rig_clear(&r);
}

static void nothing_is_left_behind(void **state)
{
    (void)state;
    size_t before = mem_live();
    struct rig r;
    rig_init(&r);
    step(&r, 0);
    rig_clear(&r);
    assert_int_equal(mem_live(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_micro_batch_overwrites_and_later_ones_add),
        cmocka_unit_test(phases_run_apart_and_state_is_written_in_place),
        cmocka_unit_test(an_input_of_the_update_survives_the_steps),
        cmocka_unit_test(transfers_check_the_size_and_the_direction),
        cmocka_unit_test(the_step_buffer_only_grows),
        cmocka_unit_test(a_dtype_without_kernels_is_refused_when_bound),
        cmocka_unit_test(what_cannot_run_is_refused_when_bound),
        cmocka_unit_test(poison_exposes_what_a_kernel_did_not_write),
        cmocka_unit_test(no_pass_sets_gradients_to_zero),
        cmocka_unit_test(a_nan_is_reported_with_op_node_and_tensor),
        cmocka_unit_test(the_lse_of_an_empty_range_may_be_minus_infinity),
        cmocka_unit_test(a_failing_kernel_is_named),
        cmocka_unit_test(workspaces_are_aligned_and_sized_for_the_threads),
        cmocka_unit_test(failing_memory_leaves_nothing_bound),
        cmocka_unit_test(nothing_is_left_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
