/* The end of an optimiser step on CUDA, where steps that follow one another share launches: the
 * same bits as on the CPU, which takes them one by one, also when the phase is replayed. */
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/cuda/cuda.h"
#include "engine/op/op.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

enum { PARAMS = 117, UPDATES = 4, SAMPLE = 50000 }; /* more than two launches; runs + replays */

/* One side. */
struct rig {
    struct params ps, state;
    struct tape *t;
    struct plan *plan;
    struct exec *x;
    int hyper[2], acc, norm;
};

/* From one element to some pieces of SUMSQ. */
static int64_t size_of(int i)
{
    return i % 39 == 7 ? SAMPLE + i : 1 + i * i % 700;
}

static void make_params(struct rig *r)
{
    struct err e = ERR_INIT;
    params_init(&r->ps);
    params_init(&r->state);
    for (int i = 0; i < PARAMS; i++) {
        char name[16];
        int64_t n = size_of(i);
        snprintf(name, sizeof name, "p%d", i);
        struct param *p = params_add(&r->ps, name, PARAM_TRAINABLE, 1, &n, &e);
        assert_non_null(p);
        p->group = i % 5 == 0;
    }
    assert_non_null(params_add(&r->state, "acc", PARAM_STATE, 1, (int64_t[]){1}, &e));
    if (params_alloc(&r->ps, &e) || params_alloc(&r->state, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < PARAMS; i++)
        rng_fill_normal(r->ps.items[i]->data, size_of(i), 0.5f, 1, RNG_USER, (uint32_t)i);
}

static void rig_init(struct rig *r, struct exec *x)
{
    const struct plan_options o = {.threads = 2, .ws = x->device->ws};
    struct err e = ERR_INIT;
    make_params(r);
    r->x = x;
    r->t = tape_new(&e);
    assert_non_null(r->t);
    tape_set_phase(r->t, PHASE_UPDATE);
    r->hyper[0] = tape_input(r->t, "decay", DT_F32, 1, (int64_t[]){8});
    r->hyper[1] = tape_input(r->t, "plain", DT_F32, 1, (int64_t[]){8});
    int sum = r->acc = tape_param(r->t, r->state.items[0], SLOT_DATA);
    for (int i = 0; i < PARAMS; i++)
        sum = op_sumsq(r->t, tape_param(r->t, r->ps.items[i], SLOT_GRAD), sum);
    int scale = op_clip(r->t, sum, 1.0f, &r->norm);
    tape_output(r->t, r->norm);
    for (int i = 0; i < PARAMS; i++) {
        struct param *p = r->ps.items[i];
        const struct attrs_adamw a = attrs_adamw(0.9, i % 7 ? 0.999 : 0.98, 1e-8, p->group);
        op_adamw(r->t, p, r->hyper[p->group], scale, &a);
    }
    if (tape_ok(r->t, &e) || !(r->plan = plan_make(r->t, &o, &e)) || exec_bind(x, r->plan, &e))
        fail_msg("%s", e.msg);
}

static void rig_clear(struct rig *r)
{
    exec_forget(r->x, &r->ps);
    exec_forget(r->x, &r->state);
    exec_free(r->x);
    plan_free(r->plan);
    tape_free(r->t);
    params_clear(&r->ps);
    params_clear(&r->state);
}

/* Gradients from the number of the step, then one step. */
static float update(struct rig *r, int step)
{
    static float g[SAMPLE + PARAMS];
    const float zero = 0;
    float norm, b1 = 1 - 0.9f / (float)step, b2 = 1 - 0.999f / (float)step;
    const float decay[8] = {1e-2f, 0.1f, b1, b2}, plain[8] = {2e-2f, 0, b1, b2};
    struct err e = ERR_INIT;
    for (int i = 0; i < PARAMS; i++) {
        size_t bytes = (size_t)size_of(i) * sizeof *g;
        rng_fill_normal(g, size_of(i), 0.1f, (uint64_t)step, RNG_USER, (uint32_t)i);
        int id = tape_param(r->t, r->ps.items[i], SLOT_GRAD);
        if (exec_write(r->x, id, g, bytes, &e)) fail_msg("%s", e.msg);
    }
    if (exec_write(r->x, r->hyper[0], decay, sizeof decay, &e) ||
        exec_write(r->x, r->hyper[1], plain, sizeof plain, &e) ||
        exec_write(r->x, r->acc, &zero, sizeof zero, &e) ||
        exec_run(r->x, PHASE_UPDATE, 0, &e) ||
        exec_read(r->x, r->norm, &norm, sizeof norm, &e) || exec_pull(r->x, &r->ps, &e))
        fail_msg("%s", e.msg);
    return norm;
}

static void shared_launches_give_the_bits_of_single_steps(void **state)
{
    struct err e = ERR_INIT;
    struct rig cpu, cuda;
    (void)state;
    struct exec *a = exec_new_cpu(2, &e), *b = exec_new_cuda(2, &e);
    if (!a || !b) fail_msg("%s", e.msg);
    rig_init(&cpu, a);
    rig_init(&cuda, b);
    for (int step = 1; step <= UPDATES; step++) {
        float want = update(&cpu, step), got = update(&cuda, step);
        assert_true(want == got && want > 1);
        for (int i = 0; i < PARAMS; i++) {
            const struct param *p = cpu.ps.items[i], *q = cuda.ps.items[i];
            size_t bytes = (size_t)p->count * sizeof(float);
            assert_memory_equal(p->data, q->data, bytes);
            assert_memory_equal(p->m, q->m, bytes);
            assert_memory_equal(p->v, q->v, bytes);
        }
    }
    rig_clear(&cpu);
    rig_clear(&cuda);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_launches_give_the_bits_of_single_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
