/* engine/core/recompute: the same bits with fewer bytes. That no operand is overwritten is
 * plan_test's matter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/core/plan.h"
#include "engine/core/recompute.h"
#include "engine/op/op.h"
#include "tests/lib/toy_llama.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SEED = 7, MICROS = 2, STEPS = 2 };

static const struct toy_config shape = {.layers = 2, .width = 32, .heads = 4, .kv_heads = 2,
                                        .ffn = 48, .vocab = 60, .batch = 2, .time = 24,
                                        .rank = 4, .train = true, .dropout = 0.2f};

struct engine {
    struct toy_llama m;
    struct tape *tape;
    struct plan *p;
    struct exec *x;
};

static void check(int rc, const struct err *e)
{
    if (rc) fail_msg("%s", e->msg);
}

static void open_engine(struct engine *n, struct toy_config c, enum recompute policy, int threads)
{
    struct err e = ERR_INIT;
    check(toy_llama_record(&n->m, &c, &e) || params_alloc(&n->m.params, &e), &e);
    for (int i = 0; i < n->m.params.n; i++) {
        struct param *p = n->m.params.items[i];
        float mid = p->rank == 1 ? 1.0f : 0.0f;
        rng_fill_uniform(p->data, p->count, mid - 0.4f, mid + 0.4f, SEED, RNG_INIT, (uint32_t)i);
    }
    n->tape = recompute_tape(n->m.tape, policy, &e);
    n->p = n->tape ? plan_make(n->tape, &(struct plan_options){.threads = threads}, &e) : NULL;
    n->x = n->p ? exec_new_cpu(threads, &e) : NULL;
    check(!n->x || exec_bind(n->x, n->p, &e), &e);
    n->x->seed = SEED;
    n->x->poison = n->x->check = true;
}

static void close_engine(struct engine *n)
{
    exec_free(n->x);
    plan_free(n->p);
    tape_free(n->tape);
    toy_llama_clear(&n->m);
}

static void feed(struct engine *n, const struct toy_config *c, uint32_t which)
{
    enum { MOST = 64 };
    int32_t ids[MOST], pos[MOST], range[2 * MOST], target[MOST];
    size_t rows = (size_t)(c->batch * c->time);
    const float weight = 0.125f;
    struct err e = ERR_INIT;
    assert_true(rows <= MOST);
    for (size_t i = 0; i < rows; i++) {
        ids[i] = (int32_t)(rng_u32(SEED, RNG_USER, which, i) % (uint32_t)c->vocab);
        target[i] = (int32_t)(rng_u32(SEED, RNG_USER + 1, which, i) % (uint32_t)c->vocab);
        pos[i] = (int32_t)i % c->time;
        range[2 * i] = 0;
        range[2 * i + 1] = pos[i] + 1;
    }
    check(exec_write(n->x, n->m.ids, ids, rows * 4, &e) ||
          exec_write(n->x, n->m.pos, pos, rows * 4, &e) ||
          exec_write(n->x, n->m.range, range, rows * 8, &e) ||
          exec_write(n->x, n->m.target, target, rows * 4, &e) ||
          exec_write(n->x, n->m.weight, &weight, 4, &e), &e);
}

/* Two steps of two micro-batches; the hash is of every loss, gradient, moment and weight. */
static void train(struct toy_config c, enum recompute policy, int threads, char hex[65])
{
    struct engine n;
    struct err e = ERR_INIT;
    struct hash *h = hash_new("SHA256", &e);
    float loss, zero = 0;
    open_engine(&n, c, policy, threads);
    for (int step = 0; step < STEPS; step++) {
        const float hyper[8] = {0.01f, 0.1f, (float)(1 - pow(0.9, step + 1)),
                                (float)(1 - pow(0.999, step + 1))};
        for (int micro = 0; micro < MICROS; micro++) {
            feed(&n, &c, (uint32_t)(step * MICROS + micro));
            n.x->rng_step = (uint32_t)(step * MICROS + micro);
            check(exec_run(n.x, PHASE_STEP, micro, &e) ||
                  exec_read(n.x, n.m.loss, &loss, sizeof loss, &e) ||
                  hash_add(h, &loss, sizeof loss, &e), &e);
        }
        check(exec_write(n.x, n.m.hyper, hyper, sizeof hyper, &e) ||
              exec_write(n.x, n.m.acc, &zero, sizeof zero, &e) ||
              exec_run(n.x, PHASE_UPDATE, 0, &e), &e);
        for (int i = 0; i < n.m.params.n; i++) {
            const struct param *p = n.m.params.items[i];
            size_t bytes = (size_t)p->count * 4;
            check(hash_add(h, p->data, bytes, &e), &e);
            if (p->kind == PARAM_TRAINABLE)
                check(hash_add(h, p->grad, bytes, &e) || hash_add(h, p->m, bytes, &e) ||
                      hash_add(h, p->v, bytes, &e), &e);
        }
    }
    check(hash_hex(h, hex, &e), &e);
    hash_free(h);
    close_engine(&n);
}

static void no_policy_changes_a_bit(void **state)
{
    (void)state;
    static const int threads[RECOMPUTE_COUNT][2] = {{2, 1}, {3, 1}, {7, 1}};
    for (int rank = 0; rank <= 4; rank += 4) {
        struct toy_config c = shape;
        char first[65], hex[65];
        c.rank = rank;
        c.tied = rank == 0;
        train(c, RECOMPUTE_NONE, 1, first);
        for (int policy = 0; policy < RECOMPUTE_COUNT; policy++)
            for (int i = 0; i < 2; i++) {
                if (rank == 0 && threads[policy][i] > 2) continue;
                train(c, (enum recompute)policy, threads[policy][i], hex);
                assert_string_equal(hex, first);
            }
        c.dropout = 0.3f; /* and the hash would notice */
        train(c, RECOMPUTE_NONE, 1, hex);
        assert_int_equal(strcmp(hex, first) == 0, rank == 0); /* which has no dropout */
    }
}

/* ---- how much ------------------------------------------------------------------------------- */

struct counts {
    int64_t bytes, flops;
    int ops[OP_COUNT];
};

static void count(struct toy_config c, enum recompute policy, struct counts *out)
{
    struct err e = ERR_INIT;
    struct toy_llama m;
    check(toy_llama_record(&m, &c, &e), &e);
    struct tape *t = recompute_tape(m.tape, policy, &e);
    struct plan *p = t ? plan_make(t, &(struct plan_options){.threads = 2}, &e) : NULL;
    check(!p, &e);
    *out = (struct counts){.bytes = p->report.step_bytes, .flops = p->report.flops[PHASE_STEP]};
    for (int i = 0; i < p->nsteps; i++) out->ops[t->nodes[p->steps[i].node].op]++;
    plan_free(p);
    tape_free(t);
    toy_llama_clear(&m);
}

static void each_policy_needs_fewer_bytes_than_the_one_before(void **state)
{
    (void)state;
    for (int rank = 0; rank <= 8; rank += 8) {
        struct toy_config c = {.layers = 12, .width = 128, .heads = 4, .kv_heads = 2, .ffn = 352,
                               .vocab = 500, .batch = 2, .time = 128, .rank = rank,
                               .train = true};
        struct counts n[RECOMPUTE_COUNT];
        for (int i = 0; i < RECOMPUTE_COUNT; i++) {
            count(c, (enum recompute)i, &n[i]);
            print_message("rank %d, %s: %.1f MiB, %.3f x the work\n", rank, recompute_names[i],
                          (double)n[i].bytes / 1048576, (double)n[i].flops / (double)n[0].flops);
        }
        assert_true(n[1].bytes < 0.85 * (double)n[0].bytes);
        assert_true(n[2].bytes < 0.40 * (double)n[0].bytes);
        /* At most the forward pass once more: a third of full training, half of adapters. */
        assert_true(n[1].flops < 1.01 * (double)n[0].flops);
        assert_true(n[2].flops < 1.5 * (double)n[0].flops);
        /* Linear layers and attention run again under block alone, and then once each. */
        for (int op = 0; op < OP_COUNT; op++) {
            if (!(op_table[op].flags & F_CHEAP)) assert_int_equal(n[1].ops[op], n[0].ops[op]);
            assert_true(n[2].ops[op] <= 2 * n[0].ops[op]);
        }
        assert_int_equal(n[2].ops[OP_ATTN], 24);
        assert_int_equal(n[2].ops[OP_LINEAR_CE], 1);
        assert_int_equal(n[1].ops[OP_ROPE] - n[0].ops[OP_ROPE], 0); /* what it reads is as large */
        assert_int_equal(n[1].ops[OP_SWIGLU] - n[0].ops[OP_SWIGLU], 12);
    }
}

static void no_second_run_where_nothing_is_saved(void **state)
{
    (void)state;
    struct toy_config c = shape;
    struct counts with, without;
    c.train = false;
    count(c, RECOMPUTE_NONE, &without);
    count(c, RECOMPUTE_BLOCK, &with);
    assert_memory_equal(&with, &without, sizeof with);
}

/* ---- what must not run twice ----------------------------------------------------------------- */

static void state_is_updated_once_and_outputs_are_kept(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct params ps;
    params_init(&ps);
    struct param *w = params_add(&ps, "w", PARAM_TRAINABLE, 2, (int64_t[]){4, 4}, &e);
    struct param *cache = params_add(&ps, "c", PARAM_STATE, 4, (int64_t[]){1, 2, 1, 4}, &e);
    struct tape *t = tape_new(&e);
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){2, 4});
    int pos = tape_input(t, "pos", DT_I32, 2, (int64_t[]){1, 2});
    tape_segment_begin(t);
    int wid = tape_param(t, w, SLOT_DATA);
    int a = op_linear(t, x, wid, -1, -1, 1.0f);
    int kept = op_kv_store(t, tape_param(t, cache, SLOT_DATA),
                           tape_reshape(t, x, 4, (int64_t[]){1, 2, 1, 4}), pos);
    int seen = op_scale(t, tape_reshape(t, kept, 2, (int64_t[]){2, 4}), -1, 2.0f);
    int b = op_swiglu(t, a, seen), c = op_swiglu(t, b, a), d = op_swiglu(t, c, c);
    tape_output(t, b);
    tape_segment_end(t);
    int ones = tape_input(t, "ones", DT_F32, 2, (int64_t[]){1, 8});
    int y = op_linear(t, tape_reshape(t, d, 2, (int64_t[]){1, 8}), ones, -1, -1, 1.0f);
    int loss = tape_reshape(t, y, 1, (int64_t[]){1}), dx;
    check(tape_ok(t, &e), &e);
    check(tape_grad(t, loss, tape_one(t), (int[]){a}, 1, &dx, &e), &e);
    tape_output(t, dx);
    struct tape *again = recompute_tape(t, RECOMPUTE_BLOCK, &e);
    assert_non_null(again);
    int n[OP_COUNT] = {0};
    for (int i = 0; i < again->nnodes; i++) n[again->nodes[i].op]++;
    assert_int_equal(n[OP_LINEAR], 3);   /* a twice, y once */
    assert_int_equal(n[OP_KV_STORE], 1);
    assert_int_equal(n[OP_SCALE], 1);    /* the cache may have moved on since */
    assert_int_equal(n[OP_SWIGLU], 4);   /* b for the host and so for all, c twice, d */
    assert_int_equal(again->tensors[b].flags & TENSOR_OUTPUT, TENSOR_OUTPUT);
    tape_free(again);
    tape_free(t);
    params_clear(&ps);
}

/* LINEAR_CE makes gradients of parameters while it runs forward: twice would be twice as much. */
static void what_writes_parameters_runs_once(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct params ps;
    params_init(&ps);
    struct param *w = params_add(&ps, "w", PARAM_TRAINABLE, 2, (int64_t[]){4, 4}, &e);
    struct param *head = params_add(&ps, "head", PARAM_TRAINABLE, 2, (int64_t[]){6, 4}, &e);
    struct tape *t = tape_new(&e);
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){2, 4});
    int target = tape_input(t, "target", DT_I32, 1, (int64_t[]){2});
    int weight = tape_input(t, "weight", DT_F32, 1, (int64_t[]){1});
    tape_segment_begin(t);
    int h = op_linear(t, x, tape_param(t, w, SLOT_DATA), -1, -1, 1.0f), hits;
    int loss = op_linear_ce(t, h, tape_param(t, head, SLOT_DATA), target, weight, &hits);
    tape_segment_end(t);
    check(tape_backward(t, loss, &e), &e);
    struct tape *again = recompute_tape(t, RECOMPUTE_BLOCK, &e);
    assert_non_null(again);
    int losses = 0;
    for (int i = 0; i < again->nnodes; i++) losses += again->nodes[i].op == OP_LINEAR_CE;
    assert_int_equal(losses, 1);
    tape_free(again);
    tape_free(t);
    params_clear(&ps);
}

static void a_failing_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct toy_llama m;
    struct toy_config c = shape;
    check(toy_llama_record(&m, &c, &e), &e);
    size_t before = mem_live();
    mem_limit(before + 20000);
    assert_null(recompute_tape(m.tape, RECOMPUTE_BLOCK, &e));
    assert_int_equal(e.code, E_NOMEM);
    mem_limit(0);
    assert_int_equal(mem_live(), before);
    toy_llama_clear(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_policy_changes_a_bit),
        cmocka_unit_test(each_policy_needs_fewer_bytes_than_the_one_before),
        cmocka_unit_test(no_second_run_where_nothing_is_saved),
        cmocka_unit_test(state_is_updated_once_and_outputs_are_kept),
        cmocka_unit_test(what_writes_parameters_runs_once),
        cmocka_unit_test(a_failing_allocation_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
