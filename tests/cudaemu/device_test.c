/* An exec on CUDA: training as on the CPU, captured phases, parameters to and fro, and what goes
 * wrong said clearly. Runs on the emulation and on a GPU. */
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "engine/core/exec.h"
#include "engine/op/op.h"
#include "tests/lib/toy_llama.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { B = 2, T = 13, V = 37, STEPS = 5, MICRO = 2 };

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

static const struct toy_config config = {.layers = 2, .width = 24, .heads = 4, .kv_heads = 2,
                                         .ffn = 40, .vocab = V, .batch = B, .time = T, .rank = 3,
                                         .train = true, .dropout = 0.2f};

struct toy {
    struct toy_llama m;
    struct plan *plan;
    struct exec *x;
    double loss[STEPS * MICRO], norm[STEPS];
};

static void toy_open(struct toy *t, struct exec *x)
{
    struct err e = ERR_INIT;
    *t = (struct toy){.x = x};
    if (!x) fail_msg("no exec");
    OK(toy_llama_record(&t->m, &config, &e));
    OK(params_alloc(&t->m.params, &e));
    for (int i = 0; i < t->m.params.n; i++) {
        struct param *p = t->m.params.items[i];
        if (p->kind == PARAM_STATE)
            for (int64_t k = 0; k < p->count; k++)
                ((float *)p->data)[k] = powf(100, -0.3f * (float)k);
        else
            rng_fill_normal(p->data, p->count, 0.3f, 5, RNG_USER, (uint32_t)i);
    }
    t->plan = plan_make(t->m.tape, &(struct plan_options){.threads = 1, .ws = x->device->ws}, &e);
    if (!t->plan || exec_bind(x, t->plan, &e)) fail_msg("%s", e.msg);
    x->seed = 99;
}

static void toy_close(struct toy *t)
{
    exec_free(t->x);
    plan_free(t->plan);
    toy_llama_clear(&t->m);
}

static void feed(struct toy *t, int batch)
{
    struct err e = ERR_INIT;
    int32_t ids[B * T], pos[B * T], range[B * T * 2], target[B * T];
    const float weight = 1.0f / (B * T * MICRO);
    for (int i = 0; i < B * T; i++) {
        ids[i] = (int32_t)(rng_uniform(1, RNG_USER, (uint32_t)batch, (uint64_t)i) * V);
        pos[i] = i % T;
        range[2 * i] = 0;
        range[2 * i + 1] = i % T + 1;
        target[i] = i % T == T - 1 ? -1 : (ids[i] * 7 + 3) % V;
    }
    OK(exec_write(t->x, t->m.ids, ids, sizeof ids, &e));
    OK(exec_write(t->x, t->m.pos, pos, sizeof pos, &e));
    OK(exec_write(t->x, t->m.range, range, sizeof range, &e));
    OK(exec_write(t->x, t->m.target, target, sizeof target, &e));
    OK(exec_write(t->x, t->m.weight, &weight, sizeof weight, &e));
}

static void train(struct toy *t)
{
    struct err e = ERR_INIT;
    for (int s = 0; s < STEPS; s++) {
        const float zero = 0, hyper[8] = {0.01f, 0.1f, 1 - powf(0.9f, (float)(s + 1)),
                                          1 - powf(0.999f, (float)(s + 1))};
        float got;
        for (int m = 0; m < MICRO; m++) {
            feed(t, s * MICRO + m);
            t->x->rng_step = (uint32_t)(s * MICRO + m);
            OK(exec_run(t->x, PHASE_STEP, m, &e));
            OK(exec_read(t->x, t->m.loss, &got, sizeof got, &e));
            t->loss[s * MICRO + m] = (double)got;
        }
        OK(exec_write(t->x, t->m.hyper, hyper, sizeof hyper, &e));
        OK(exec_write(t->x, t->m.acc, &zero, sizeof zero, &e));
        OK(exec_run(t->x, PHASE_UPDATE, 0, &e));
        OK(exec_read(t->x, t->m.norm, &got, sizeof got, &e));
        t->norm[s] = (double)got;
    }
    OK(exec_pull(t->x, &t->m.params, &e));
}

static void training_is_that_of_the_cpu(void **state)
{
    struct toy a, b;
    struct err e = ERR_INIT;
    (void)state;
    toy_open(&a, exec_new_cpu(1, &e));
    toy_open(&b, exec_new_cuda(1, &e));
    train(&a);
    train(&b);
    assert_true(a.norm[0] > 0 && a.loss[0] != a.loss[2]);
    for (int i = 0; i < STEPS * MICRO; i++)
        if (!(fabs(a.loss[i] - b.loss[i]) <= 1e-4 * a.loss[i]))
            fail_msg("loss %d: %.9g on the CPU, %.9g", i, a.loss[i], b.loss[i]);
    for (int i = 0; i < STEPS; i++) assert_true(fabs(a.norm[i] - b.norm[i]) <= 1e-3 * a.norm[i]);
    for (int i = 0; i < a.m.params.n; i++) {
        const struct param *p = a.m.params.items[i], *q = b.m.params.items[i];
        double diff = 0, all = 0;
        for (int64_t k = 0; k < p->count; k++) {
            double u = (double)((float *)p->data)[k], v = (double)((float *)q->data)[k];
            diff += (u - v) * (u - v);
            all += u * u;
        }
        if (!(diff <= 1e-6 * all)) fail_msg("%s: off by %g", p->name, sqrt(diff / all));
    }
    toy_close(&a);
    toy_close(&b);
}

/* Steps 3 and later replay what was captured; with trace nothing is. */
static void captured_phases_give_the_same_bytes(void **state)
{
    struct toy a, b;
    struct err e = ERR_INIT;
    (void)state;
    toy_open(&a, exec_new_cuda(1, &e));
    toy_open(&b, exec_new_cuda(1, &e));
    b.x->trace = true;
    train(&a);
    train(&b);
    assert_memory_equal(a.loss, b.loss, sizeof a.loss);
    assert_memory_equal(a.norm, b.norm, sizeof a.norm);
    for (int i = 0; i < a.m.params.n; i++)
        assert_memory_equal(a.m.params.items[i]->data, b.m.params.items[i]->data,
                            (size_t)a.m.params.items[i]->count * sizeof(float));
    toy_close(&a);
    toy_close(&b);
}

static void a_nan_is_found_where_it_was_made(void **state)
{
    struct toy t;
    struct err e = ERR_INIT;
    (void)state;
    toy_open(&t, exec_new_cuda(1, &e));
    struct param *up = params_find(&t.m.params, "layers.1.up");
    ((float *)up->data)[5] = INFINITY;
    OK(exec_push(t.x, &t.m.params, &e));
    t.x->check = true;
    feed(&t, 0);
    assert_int_equal(exec_run(t.x, PHASE_STEP, 0, &e), -1);
    assert_int_equal(e.code, E_NUMERIC);
    if (!str_starts(e.msg, "linear")) fail_msg("%s", e.msg);
    toy_close(&t);
}

static void parameters_go_there_and_back(void **state)
{
    struct toy t;
    struct err e = ERR_INIT;
    (void)state;
    toy_open(&t, exec_new_cuda(1, &e));
    struct param *p = params_find(&t.m.params, "layers.0.q.lora_A");
    float *v = p->data, was = v[3];
    assert_true(exec_mirror_bytes(t.x) > 0);
    v[3] = 123;
    OK(exec_pull(t.x, &t.m.params, &e));
    assert_true(v[3] == was);
    v[3] = 123;
    OK(exec_push(t.x, &t.m.params, &e));
    v[3] = 0;
    OK(exec_pull(t.x, &t.m.params, &e));
    assert_true(v[3] == 123);
    exec_forget(t.x, &t.m.params);
    assert_true(exec_mirror_bytes(t.x) <= 4); /* the constant 1 of the tape */
    v[3] = 7;
    OK(exec_bind(t.x, t.plan, &e)); /* takes the values anew */
    v[3] = 0;
    OK(exec_pull(t.x, &t.m.params, &e));
    assert_true(v[3] == 7);
    toy_close(&t);
}

static void large_copies_pass_through_both_halves(void **state)
{
    enum { N = 50 << 20 };
    struct err e = ERR_INIT;
    void *there;
    (void)state;
    struct exec *x = exec_new_cuda(1, &e);
    unsigned char *a = mem_alloc(N, &e), *b = mem_zalloc(N, &e);
    assert_true(x && a && b);
    for (size_t i = 0; i < N; i++) a[i] = (unsigned char)(i * 2654435761u >> 13);
    OK(exec_alloc(x, N, &there, &e));
    OK(exec_put(x, there, a, N, &e));
    OK(exec_get(x, b, there, N, &e));
    assert_memory_equal(a, b, N);
    exec_release(x, there);
    mem_free(a);
    mem_free(b);
    exec_free(x);
}

static void a_bad_token_is_refused(void **state)
{
    struct toy t;
    struct err e = ERR_INIT;
    int32_t ids[B * T] = {0};
    float loss;
    (void)state;
    toy_open(&t, exec_new_cuda(1, &e));
    feed(&t, 0);
    ids[4] = V;
    OK(exec_write(t.x, t.m.ids, ids, sizeof ids, &e));
    OK(exec_run(t.x, PHASE_STEP, 0, &e));
    assert_int_equal(exec_read(t.x, t.m.loss, &loss, sizeof loss, &e), -1);
    assert_int_equal(e.code, E_RANGE);
    feed(&t, 0); /* and the exec is as good as before */
    OK(exec_run(t.x, PHASE_STEP, 0, &e));
    OK(exec_read(t.x, t.m.loss, &loss, sizeof loss, &e));
    assert_true(isfinite(loss));
    toy_close(&t);
}

static void too_much_memory_is_refused_with_the_numbers(void **state)
{
    struct err e = ERR_INIT;
    void *p;
    int64_t left, total;
    (void)state;
    struct exec *x = exec_new_cuda(1, &e);
    assert_non_null(x);
    x->device->ops->memory(x, &left, &total);
    assert_in_range(left, 1, total);
    assert_int_equal(exec_alloc(x, (size_t)total + 1, &p, &e), -1);
    assert_int_equal(e.code, E_DEVMEM);
    assert_non_null(strstr(e.msg, "MiB are free"));
    OK(exec_alloc(x, 1000, &p, &e)); /* not the end of the exec */
    exec_release(x, p);
    exec_free(x);
}

/* Only the emulation can be without one. */
static void a_machine_without_a_gpu_is_said(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    setenv("GRAFT_EMU_GPUS", "0", 1);
    struct exec *x = exec_new_cuda(1, &e);
    setenv("GRAFT_EMU_GPUS", "1", 1);
    if (!x) {
        assert_int_equal(e.code, E_DEVICE);
        assert_non_null(strstr(e.msg, "no CUDA-capable device"));
    }
    exec_free(x);
}

static void a_missing_library_is_said(void **state)
{
    struct err e = ERR_INIT;
    char *was = mem_strdup(getenv("GRAFT_CUDA_LIB") ? getenv("GRAFT_CUDA_LIB") : "", &e);
    (void)state;
    setenv("GRAFT_CUDA_LIB", "/nowhere/libgraft_cuda.so", 1);
    assert_null(exec_new_cuda(1, &e));
    assert_int_equal(e.code, E_DEVICE);
    assert_non_null(strstr(e.msg, "/nowhere/libgraft_cuda.so"));
    setenv("GRAFT_CUDA_LIB", was, 1);
    mem_free(was);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_is_that_of_the_cpu),
        cmocka_unit_test(captured_phases_give_the_same_bytes),
        cmocka_unit_test(a_nan_is_found_where_it_was_made),
        cmocka_unit_test(parameters_go_there_and_back),
        cmocka_unit_test(large_copies_pass_through_both_halves),
        cmocka_unit_test(a_bad_token_is_refused),
        cmocka_unit_test(too_much_memory_is_refused_with_the_numbers),
        cmocka_unit_test(a_machine_without_a_gpu_is_said),
        cmocka_unit_test(a_missing_library_is_said),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
