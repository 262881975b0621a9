/* A whole Llama-like step on the CPU: gradients against finite differences of the references in
 * double, micro-batches, thread invariance, and a loss that falls. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/core/exec.h"
#include "engine/op/op.h"
#include "engine/op/ref/ref.h"
#include "tests/lib/toy_llama.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BATCH = 2, TIME = 6, ROWS = BATCH * TIME, VOCAB = 29, SEED = 11 };

static const struct toy_config tiny = {.layers = 2, .width = 16, .heads = 4, .kv_heads = 2,
                                       .ffn = 24, .vocab = VOCAB, .batch = BATCH, .time = TIME};

struct data {
    int32_t ids[ROWS], pos[ROWS], range[2 * ROWS], target[ROWS];
    float weight;
};

static void make_data(struct data *d, uint32_t which)
{
    for (int i = 0; i < ROWS; i++) {
        d->ids[i] = (int32_t)(rng_u32(SEED, RNG_USER, which, (uint64_t)i) % VOCAB);
        d->target[i] = (int32_t)(rng_u32(SEED, RNG_USER + 1, which, (uint64_t)i) % VOCAB);
        if (i % 5 == 3) d->target[i] = -1;
        d->pos[i] = i % TIME;
        d->range[2 * i] = i >= TIME && i % TIME > 3 ? 2 : 0; /* a window in the second row */
        d->range[2 * i + 1] = i % TIME + 1;
    }
    d->weight = 0.125f;
}

static void set_weights(struct toy_llama *m)
{
    struct err e = ERR_INIT;
    if (params_alloc(&m->params, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < m->params.n; i++) {
        struct param *p = m->params.items[i];
        if (p->kind == PARAM_STATE) {
            for (int64_t k = 0; k < p->count; k++)
                ((float *)p->data)[k] = powf(100.0f, -(float)k / (float)p->count);
            continue;
        }
        float mid = p->rank == 1 ? 1.0f : 0.0f;
        rng_fill_uniform(p->data, p->count, mid - 0.4f, mid + 0.4f, SEED, RNG_INIT,
                         (uint32_t)p->index);
    }
}

static void model_init(struct toy_llama *m, struct toy_config c, bool train)
{
    struct err e = ERR_INIT;
    c.train = train;
    if (toy_llama_record(m, &c, &e)) fail_msg("%s", e.msg);
    set_weights(m);
}

/* ---- the same in double ---------------------------------------------------------------------- */

static void ref_ints(struct ref_run *r, int tensor, const int32_t *from)
{
    for (int64_t i = 0; i < r->v[tensor].count; i++) r->v[tensor].d[i] = from[i];
}

/* The loss with parameter `which` moved by h along `direction`. */
static double ref_loss(struct ref_run *r, const struct toy_llama *m, const struct data *d,
                       int which, const double *direction, double h)
{
    ref_ints(r, m->ids, d->ids);
    ref_ints(r, m->pos, d->pos);
    ref_ints(r, m->range, d->range);
    ref_ints(r, m->target, d->target);
    r->v[m->weight].d[0] = (double)d->weight;
    for (int i = 0; i < m->tape->ntensors; i++) {
        const struct tensor *x = &m->tape->tensors[i];
        if (!x->param) continue;
        for (int64_t k = 0; k < x->count; k++) {
            r->v[i].d[k] = (double)((const float *)x->param->data)[k];
            if (x->param->index == which) r->v[i].d[k] += h * direction[k];
        }
    }
    ref_run_all(r);
    return r->v[m->loss].d[0];
}

struct reference {
    struct toy_llama m; /* forward only, same weights */
    struct ref_run run;
    const struct data *data;
    int ndata;
};

static void reference_init(struct reference *f, struct toy_config c, const struct data *d, int n)
{
    struct err e = ERR_INIT;
    model_init(&f->m, c, false);
    if (ref_run_init(&f->run, f->m.tape, &e)) fail_msg("%s", e.msg);
    f->run.seed = SEED;
    f->data = d;
    f->ndata = n;
}

static void reference_clear(struct reference *f)
{
    ref_run_clear(&f->run);
    toy_llama_clear(&f->m);
}

static double slope(struct reference *f, int which, const double *direction)
{
    const double h = 1e-4;
    double sum = 0;
    for (int i = 0; i < f->ndata; i++) {
        f->run.rng_step = (uint32_t)i;
        sum += ref_loss(&f->run, &f->m, &f->data[i], which, direction, h) -
               ref_loss(&f->run, &f->m, &f->data[i], which, direction, -h);
    }
    return sum / (2 * h);
}

/* ---- the engine ------------------------------------------------------------------------------ */

struct engine {
    struct toy_llama m;
    struct plan *p;
    struct exec *x;
};

static void engine_init(struct engine *n, struct toy_config c, int threads)
{
    struct err e = ERR_INIT;
    model_init(&n->m, c, true);
    n->x = exec_new_cpu(threads, &e);
    n->p = n->x ? plan_make(n->m.tape, &(struct plan_options){.threads = threads}, &e) : NULL;
    if (!n->p || exec_bind(n->x, n->p, &e)) fail_msg("%s", e.msg);
    n->x->seed = SEED;
    n->x->poison = n->x->check = true;
}

static void engine_clear(struct engine *n)
{
    exec_free(n->x);
    plan_free(n->p);
    toy_llama_clear(&n->m);
}

static void put(struct engine *n, int tensor, const void *from, size_t bytes)
{
    struct err e = ERR_INIT;
    if (exec_write(n->x, tensor, from, bytes, &e)) fail_msg("%s", e.msg);
}

static float engine_step(struct engine *n, const struct data *d, int micro)
{
    struct err e = ERR_INIT;
    float loss = NAN;
    put(n, n->m.ids, d->ids, sizeof d->ids);
    put(n, n->m.pos, d->pos, sizeof d->pos);
    put(n, n->m.range, d->range, sizeof d->range);
    put(n, n->m.target, d->target, sizeof d->target);
    put(n, n->m.weight, &d->weight, sizeof d->weight);
    n->x->rng_step = (uint32_t)micro;
    if (exec_run(n->x, PHASE_STEP, micro, &e)) fail_msg("%s", e.msg);
    if (exec_read(n->x, n->m.loss, &loss, sizeof loss, &e)) fail_msg("%s", e.msg);
    return loss;
}

static float engine_update(struct engine *n, int t, float lr)
{
    struct err e = ERR_INIT;
    float norm, zero = 0;
    const float hyper[8] = {lr, 0.0f, (float)(1 - pow(0.9, t)), (float)(1 - pow(0.999, t))};
    put(n, n->m.hyper, hyper, sizeof hyper);
    put(n, n->m.acc, &zero, sizeof zero);
    if (exec_run(n->x, PHASE_UPDATE, 0, &e)) fail_msg("%s", e.msg);
    if (exec_read(n->x, n->m.norm, &norm, sizeof norm, &e)) fail_msg("%s", e.msg);
    return norm;
}

/* ---- gradients ------------------------------------------------------------------------------- */

static double norm_of(const float *g, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += (double)g[i] * (double)g[i];
    return sqrt(s);
}

/* Along the gradient itself the slope must be its norm; along random directions (unit vectors)
 * the two must agree too. f32 sums of some hundred terms: 3e-6 of the gradient's norm. */
static void check_param(struct reference *f, const struct param *p)
{
    double d[VOCAB * 16], norm = norm_of(p->grad, p->count);
    assert_true(p->count <= VOCAB * 16);
    assert_true(norm > 1e-4); /* every parameter matters here */
    for (int probe = 0; probe < 4; probe++) {
        double length = 0, want, got = 0;
        for (int64_t i = 0; i < p->count; i++) {
            float u = rng_uniform(SEED, RNG_USER + 2, (uint32_t)probe, (uint64_t)i);
            d[i] = (double)(probe ? u - 0.5f : p->grad[i]);
            length += d[i] * d[i];
        }
        for (int64_t i = 0; i < p->count; i++) {
            d[i] /= sqrt(length);
            got += d[i] * (double)p->grad[i];
        }
        want = slope(f, p->index, d);
        if (!(fabs(got - want) <= 3e-6 * norm))
            fail_msg("%s, probe %d: slope %.9g, gradient gives %.9g (norm %g)", p->name, probe,
                     want, got, norm);
    }
}

static void check_gradients(struct toy_config c, int micros)
{
    struct data d[3];
    struct engine n;
    struct reference f;
    double want = 0, got = 0;
    for (int i = 0; i < micros; i++) make_data(&d[i], (uint32_t)i);
    engine_init(&n, c, 2);
    reference_init(&f, c, d, micros);
    for (int i = 0; i < micros; i++) {
        got += (double)engine_step(&n, &d[i], i);
        f.run.rng_step = (uint32_t)i;
        want += ref_loss(&f.run, &f.m, &d[i], -1, NULL, 0);
    }
    assert_true(fabs(got - want) <= 1e-6 * want);
    for (int i = 0; i < n.m.params.n; i++)
        if (n.m.params.items[i]->kind == PARAM_TRAINABLE) check_param(&f, n.m.params.items[i]);
    double sum = 0;
    for (int i = 0; i < n.m.params.n; i++)
        if (n.m.params.items[i]->grad)
            sum += pow(norm_of(n.m.params.items[i]->grad, n.m.params.items[i]->count), 2);
    assert_true(fabs((double)engine_update(&n, 1, 0) - sqrt(sum)) <= 1e-5 * sqrt(sum));
    reference_clear(&f);
    engine_clear(&n);
}

static void full_training_follows_the_true_gradient(void **state)
{
    (void)state;
    check_gradients(tiny, 1);
}

static void tied_embeddings_get_both_parts(void **state)
{
    (void)state;
    struct toy_config c = tiny;
    c.tied = true;
    check_gradients(c, 2);
}

static void adapters_with_dropout_follow_the_true_gradient(void **state)
{
    (void)state;
    struct toy_config c = tiny;
    c.rank = 3;
    c.dropout = 0.25f;
    check_gradients(c, 3);
}

static void frozen_weights_are_untouched_and_trained_ones_move(void **state)
{
    (void)state;
    struct toy_config c = tiny;
    struct engine n;
    struct data d;
    c.rank = 3;
    make_data(&d, 0);
    engine_init(&n, c, 2);
    struct toy_llama start;
    model_init(&start, c, false);
    engine_step(&n, &d, 0);
    engine_update(&n, 1, 0.01f);
    for (int i = 0; i < n.m.params.n; i++) {
        const struct param *p = n.m.params.items[i], *q = start.params.items[i];
        bool same = memcmp(p->data, q->data, (size_t)p->count * 4) == 0;
        assert_int_equal(same, p->kind != PARAM_TRAINABLE);
    }
    toy_llama_clear(&start);
    engine_clear(&n);
}

static void thirty_steps_halve_the_loss_with_any_number_of_threads_alike(void **state)
{
    (void)state;
    struct toy_config c = tiny;
    struct engine n[3];
    struct data d;
    float loss[3] = {0}, first = 0;
    c.rank = 3;
    c.dropout = 0.1f;
    make_data(&d, 0);
    for (int k = 0; k < 3; k++) {
        engine_init(&n[k], c, k + 1);
        for (int t = 1; t <= 30; t++) {
            loss[k] = engine_step(&n[k], &d, 0);
            if (t == 1) first = loss[k];
            engine_update(&n[k], t, 0.01f);
        }
    }
    assert_true(loss[0] < 0.5f * first);
    for (int k = 1; k < 3; k++) {
        assert_memory_equal(&loss[k], &loss[0], sizeof loss[0]);
        for (int i = 0; i < n[0].m.params.n; i++) {
            const struct param *p = n[0].m.params.items[i], *q = n[k].m.params.items[i];
            assert_memory_equal(p->data, q->data, (size_t)p->count * 4);
        }
    }
    for (int k = 0; k < 3; k++) engine_clear(&n[k]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_training_follows_the_true_gradient),
        cmocka_unit_test(tied_embeddings_get_both_parts),
        cmocka_unit_test(adapters_with_dropout_follow_the_true_gradient),
        cmocka_unit_test(frozen_weights_are_untouched_and_trained_ones_move),
        cmocka_unit_test(thirty_steps_halve_the_loss_with_any_number_of_threads_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
