/* engine/model: every family and its variants against numbers made by transformers
 * (golden/make_golden.py), and what a model folder may not look like. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"
#include "engine/op/ref/ref.h"
#include "tests/lib/refbatch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/model/golden/"

static const char *const models[] = {
    "llama", "llama3", "llama-yarn", "mistral-bf16", "mistral-window", "qwen2", "qwen2-window",
    "qwen3", "gpt2", "gpt2-untied", "opt", "opt-postnorm", "opt-plain", "roberta",
};
enum { MODELS = sizeof models / sizeof *models };

struct golden {
    struct model *model;
    struct exec *exec;
    struct graphs graphs;
    struct st *ref;
    struct batch batch;
    int64_t B, T, V; /* V: of the logits */
    bool classifier;
    const int32_t *lengths;
};

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

static const void *tensor(const struct golden *g, const char *name)
{
    const struct st_tensor *t = st_find(g->ref, name);
    if (!t) fail_msg("the reference has no %s", name);
    return t->data;
}

static void open_golden(struct golden *g, const char *name, bool trained, struct err *err)
{
    struct err e = ERR_INIT;
    const struct model_options o = {0};
    struct adaptation a = {.method = &method_full};
    char path[256];
    *g = (struct golden){0};
    snprintf(path, sizeof path, GOLDEN "%s", name);
    if (!(g->model = model_open(path, &o, &e))) fail_msg("%s", e.msg);
    a.model = g->model;
    if (trained) OK(method_full.attach(&a, &e));
    OK(model_alloc(g->model, &e));
    assert_non_null(g->exec = exec_new_cpu(2, &e));
    g->exec->poison = true;
    graphs_init(&g->graphs, g->model, g->exec);
    snprintf(path, sizeof path, GOLDEN "%s/reference.safetensors", name);
    assert_non_null(g->ref = st_open(path, &e));
    g->B = st_find(g->ref, "ids")->shape[0];
    g->T = st_find(g->ref, "ids")->shape[1];
    g->classifier = g->model->arch->task != &task_causal_lm;
    const struct st_tensor *logits = st_find(g->ref, "logits");
    g->V = logits->shape[logits->rank - 1];
    g->lengths = tensor(g, "lengths");
    *err = e;
}

static void close_golden(struct golden *g)
{
    batch_clear(&g->batch);
    exec_free(g->exec);
    graphs_clear(&g->graphs);
    model_free(g->model);
    st_close(g->ref);
}

static double square(const float *a, const float *b, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (b ? b[i] : 0);
        s += d * d;
    }
    return s;
}

static double relative(const float *a, const float *b, int64_t n)
{
    return sqrt(square(a, b, n) / square(b, NULL, n));
}

/* The logits that mean something (not those of padding), packed: got in place of all of them. */
static int64_t pack(const struct golden *g, float *got, float *expected)
{
    const float *want = tensor(g, "logits");
    int64_t rows = 0;
    if (g->classifier) {
        memcpy(expected, want, (size_t)(g->B * g->V) * 4);
        return g->B;
    }
    for (int64_t n = 0; n < g->B * g->T; n++) {
        if (n % g->T >= g->lengths[n / g->T]) continue;
        memcpy(expected + rows * g->V, want + n * g->V, (size_t)g->V * 4);
        memmove(got + rows++ * g->V, got + n * g->V, (size_t)g->V * 4);
    }
    return rows;
}

static void logits_equal_those_of_transformers(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        struct golden g;
        struct err e;
        open_golden(&g, models[m], false, &e);
        OK(refbatch_fill(&g.batch, g.ref, &e));
        int64_t rows = g.classifier ? g.B : g.B * g.T;
        const struct graph_key k = {.kind = GRAPH_LOGITS, .B = g.B, .T = g.T, .rows = rows};
        int32_t *idx = mem_array(rows, sizeof *idx, &e);
        float *got = mem_array(rows * g.V, sizeof *got, &e);
        float *expected = mem_array(rows * g.V, sizeof *got, &e);
        struct graph *p = graphs_bind(&g.graphs, &k, &e);
        if (!p) fail_msg("%s", e.msg);
        for (int64_t i = 0; i < rows; i++) idx[i] = (int32_t)i;
        OK(graph_feed_tokens(g.exec, p, g.batch.ids, g.batch.pos, g.batch.range, &e));
        if (!g.classifier) OK(exec_write(g.exec, p->io.idx, idx, (size_t)rows * 4, &e));
        OK(exec_run(g.exec, PHASE_STEP, 0, &e));
        OK(exec_read(g.exec, p->io.logits, got, (size_t)(rows * g.V) * 4, &e));
        rows = pack(&g, got, expected);
        double d = relative(got, expected, rows * g.V);
        print_message("%-14s logits %.2g\n", models[m], d);
        assert_true(d <= 1e-5); /* the project's bar; f32 against f32 gives about 5e-7 */
        mem_free(idx);
        mem_free(got);
        mem_free(expected);
        close_golden(&g);
    }
}

/* By the name in the class with the head, whatever the checkpoint calls it. */
static const float *wanted_gradient(const struct golden *g, const char *name)
{
    char full[2 * PARAM_NAME];
    snprintf(full, sizeof full, "grad.%s", name);
    if (st_find(g->ref, full)) return tensor(g, full);
    snprintf(full, sizeof full, "grad.%s%s", g->model->arch->prefix, name);
    return tensor(g, full);
}

static void gradients_of_all_weights_equal_those_of_transformers(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        struct golden g;
        struct err e;
        float loss;
        double worst = 0;
        open_golden(&g, models[m], true, &e);
        OK(refbatch_fill(&g.batch, g.ref, &e));
        const struct graph_key k = {.kind = GRAPH_TRAIN, .B = g.B, .T = g.T};
        struct graph *p = graphs_bind(&g.graphs, &k, &e);
        if (!p) fail_msg("%s", e.msg);
        OK(graph_feed(g.exec, p, &g.batch, 1.0f / (float)g.batch.trained, &e));
        OK(exec_run(g.exec, PHASE_STEP, 0, &e));
        OK(exec_read(g.exec, p->io.loss, &loss, sizeof loss, &e));
        assert_float_equal(loss, *(const float *)tensor(&g, "loss"), 1e-5);
        double all = 0;
        for (int i = 0; i < g.model->ntensors; i++) {
            const struct param *w = g.model->params.items[i];
            all += square(wanted_gradient(&g, w->name), NULL, w->count);
        }
        for (int i = 0; i < g.model->ntensors; i++) {
            const struct param *w = g.model->params.items[i];
            const float *want = wanted_gradient(&g, w->name);
            /* A bias of the keys moves all scores of a query alike, so its gradient is 0 but for
             * rounding, on both sides: nothing is held to less than a thousandth of the whole. */
            double size = fmax(square(want, NULL, w->count), 1e-6 * all);
            double d = sqrt(square(w->grad, want, w->count) / size);
            if (d > worst) worst = d;
            if (d > 1e-4) fail_msg("%s: gradient of %s is off by %g", models[m], w->name, d);
        }
        print_message("%-14s gradients %.2g\n", models[m], worst);
        close_golden(&g);
    }
}

/* All gradients one after the other; mem_free. */
static float *train_once(const char *name, enum recompute policy, int threads, int64_t *count)
{
    struct golden g;
    struct err e;
    open_golden(&g, name, true, &e);
    OK(refbatch_fill(&g.batch, g.ref, &e));
    exec_free(g.exec);
    assert_non_null(g.exec = g.graphs.exec = exec_new_cpu(threads, &e));
    g.exec->poison = true;
    g.graphs.recompute = policy;
    const struct graph_key k = {.kind = GRAPH_TRAIN, .B = g.B, .T = g.T};
    struct graph *p = graphs_bind(&g.graphs, &k, &e);
    if (!p) fail_msg("%s", e.msg);
    OK(graph_feed(g.exec, p, &g.batch, 1.0f / (float)g.batch.trained, &e));
    OK(exec_run(g.exec, PHASE_STEP, 0, &e));
    *count = params_count(&g.model->params, PARAM_TRAINABLE);
    float *all = mem_array(*count, sizeof *all, &e), *to = all;
    assert_non_null(all);
    for (int i = 0; i < g.model->ntensors; i++) {
        const struct param *w = g.model->params.items[i];
        memcpy(to, w->grad, (size_t)w->count * sizeof *to);
        to += w->count;
    }
    close_golden(&g);
    return all;
}

static void recomputing_and_threads_change_no_bit(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        int64_t n, same;
        float *want = train_once(models[m], RECOMPUTE_NONE, 1, &n);
        for (enum recompute policy = RECOMPUTE_NONE; policy < RECOMPUTE_COUNT; policy++) {
            float *got = train_once(models[m], policy, 3, &same);
            assert_int_equal(same, n);
            if (memcmp(got, want, (size_t)n * sizeof *got) != 0)
                fail_msg("%s, %s: other gradients", models[m], recompute_names[policy]);
            mem_free(got);
        }
        mem_free(want);
    }
}

/* ---- the same pass in double ---- */

static void set_ints(struct ref_run *r, int tensor, const int32_t *from, int32_t plus)
{
    if (tensor < 0) return;
    for (int64_t i = 0; i < r->v[tensor].count; i++) r->v[tensor].d[i] = from ? from[i] + plus : 0;
}

static void set_inputs(const struct golden *g, const struct graph *p, struct ref_run *r)
{
    const struct batch *b = &g->batch;
    const struct model_io *io = &p->io;
    set_ints(r, io->ids, b->ids, 0);
    set_ints(r, io->pos, b->pos, 0);
    set_ints(r, io->range, b->range, 0);
    set_ints(r, io->target, b->target, 0);
    set_ints(r, io->place, b->pos, (int32_t)g->model->first_place);
    set_ints(r, io->types, NULL, 0);
    set_ints(r, io->window, b->range, 0);
    for (int64_t n = 0; io->window >= 0 && n < b->B * b->T; n++) {
        double *lo = &r->v[io->window].d[2 * n];
        lo[0] = fmax(lo[0], lo[1] - (double)g->model->window);
    }
    r->v[io->weight].d[0] = 1.0f / (float)b->trained;
}

/* The loss with w moved by h along its own gradient, which has this norm. */
static double moved_loss(const struct graph *p, struct ref_run *r, const struct param *w,
                         double norm, double h)
{
    for (int i = 0; i < p->tape->ntensors; i++) {
        const struct tensor *x = &p->tape->tensors[i];
        if (!x->param) continue;
        for (int64_t k = 0; k < x->count; k++) {
            r->v[i].d[k] = ((const float *)x->param->data)[k];
            if (x->param == w) r->v[i].d[k] += h * w->grad[k] / norm;
        }
    }
    ref_run_all(r);
    return r->v[p->io.loss].d[0];
}

/* Along the gradient of each weight the loss rises by the gradient's norm. The bound is that of
 * f32 sums of some hundred terms; the difference quotient itself is good to about 1e-9. */
static void gradients_are_the_slopes_of_the_loss_in_double(void **state)
{
    (void)state;
    const double h = 1e-5;
    for (int m = 0; m < MODELS; m++) {
        struct golden g;
        struct err e;
        struct ref_run r;
        double worst = 0, all = 0;
        open_golden(&g, models[m], true, &e);
        OK(refbatch_fill(&g.batch, g.ref, &e));
        const struct graph_key train = {.kind = GRAPH_TRAIN, .B = g.B, .T = g.T};
        const struct graph_key loss = {.kind = GRAPH_LOSS, .B = g.B, .T = g.T};
        struct graph *p = graphs_bind(&g.graphs, &train, &e);
        if (!p) fail_msg("%s", e.msg);
        OK(graph_feed(g.exec, p, &g.batch, 1.0f / (float)g.batch.trained, &e));
        OK(exec_run(g.exec, PHASE_STEP, 0, &e));
        if (!(p = graphs_bind(&g.graphs, &loss, &e))) fail_msg("%s", e.msg);
        OK(ref_run_init(&r, p->tape, &e));
        set_inputs(&g, p, &r);
        for (int i = 0; i < g.model->ntensors; i++)
            all += square(g.model->params.items[i]->grad, NULL, g.model->params.items[i]->count);
        for (int i = 0; i < g.model->ntensors; i++) {
            const struct param *w = g.model->params.items[i];
            double norm = sqrt(square(w->grad, NULL, w->count));
            if (norm < 1e-3 * sqrt(all)) continue; /* rounding, or next to it */
            double slope = moved_loss(p, &r, w, norm, h) - moved_loss(p, &r, w, norm, -h);
            slope /= 2 * h;
            double d = fabs(slope / norm - 1);
            if (d > worst) worst = d;
            if (!(d <= 1e-5)) fail_msg("%s: along %s slope %.9g, norm %.9g", models[m], w->name,
                                       slope, norm);
        }
        print_message("%-14s slopes %.2g\n", models[m], worst);
        ref_run_clear(&r);
        close_golden(&g);
    }
}

/* ---- generation ---- */

/* Writes ids [1,n] at position `at` into a bound graph with a cache and reads the last logits. */
static void push(struct golden *g, struct model_cache *c, const int32_t *ids, int32_t n,
                 int32_t at, float *out)
{
    struct err e = ERR_INIT;
    const struct graph_key k = {.kind = GRAPH_LOGITS, .B = 1, .T = n, .rows = 1, .cache = c};
    struct graph *p = graphs_bind(&g->graphs, &k, &e);
    int32_t pos[64], range[128] = {0}, last = n - 1;
    if (!p) fail_msg("%s", e.msg);
    for (int32_t t = 0; t < n; t++) {
        pos[t] = at + t;
        range[2 * t + 1] = at + t + 1;
    }
    OK(graph_feed_tokens(g->exec, p, ids, pos, range, &e));
    OK(exec_write(g->exec, p->io.idx, &last, 4, &e));
    OK(exec_run(g->exec, PHASE_STEP, 0, &e));
    OK(exec_read(g->exec, p->io.logits, out, (size_t)g->V * 4, &e));
}

static void decoding_with_a_cache_equals_one_long_pass(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        struct golden g;
        struct err e;
        struct model_cache c;
        float got[64];
        open_golden(&g, models[m], false, &e);
        const int32_t *ids = tensor(&g, "ids"), n = g.lengths[0];
        const float *want = tensor(&g, "logits");
        if (g.classifier) {
            close_golden(&g);
            continue;
        }
        OK(model_cache_init(&c, g.model, 1, 40, &e));
        push(&g, &c, ids, 5, 0, got);
        assert_true(relative(got, want + 4 * g.V, g.V) < 1e-5);
        for (int32_t t = 5; t < n; t++) {
            push(&g, &c, ids + t, 1, t, got);
            assert_true(relative(got, want + t * g.V, g.V) < 1e-5);
        }
        graphs_forget(&g.graphs, &c);
        model_cache_clear(&c);
        close_golden(&g);
    }
}

/* ---- folders that are refused ---- */

static char *folder(void)
{
    static char dir[64];
    struct err e = ERR_INIT;
    struct buf b;
    char to[FS_PATH_MAX];
    snprintf(dir, sizeof dir, "/tmp/graft-model-XXXXXX");
    assert_non_null(mkdtemp(dir));
    buf_init(&b, 1 << 20);
    OK(fs_read_file(GOLDEN "llama/config.json", &b, &e));
    snprintf(to, sizeof to, "%s/config.json", dir);
    OK(fs_write_file(to, b.data, b.len, &e));
    buf_clear(&b);
    return dir;
}

/* How write_variant spoils the golden weights. */
enum spoil { MISSING, EXTRA, MISSHAPEN, INTEGER, LEFTOVER };

static void write_variant(const char *dir, enum spoil how)
{
    struct err e = ERR_INIT;
    struct st *s = st_open(GOLDEN "llama/model.safetensors", &e);
    char path[FS_PATH_MAX];
    const char *victim = "model.layers.1.mlp.up_proj.weight";
    const float zeros[8] = {0};
    assert_non_null(s);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    struct st_writer *w = st_writer_new(path, &e);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < st_count(s); i++) {
            const struct st_tensor *t = st_at(s, i);
            bool it = str_eq(t->name, victim);
            int64_t flat[2] = {t->count / 8, 8};
            if (it && how == MISSING) continue;
            bool other = it && how == MISSHAPEN;
            if (pass == 0)
                OK(st_writer_add(w, t->name, it && how == INTEGER ? DT_I32 : t->dtype,
                                 other ? 2 : t->rank, other ? flat : t->shape, &e));
            else
                OK(st_writer_put(w, t->data, (size_t)t->bytes, &e));
        }
        if (how != EXTRA && how != LEFTOVER) continue;
        const char *name = how == EXTRA ? "model.layers.2.input_layernorm.weight"
                                        : "model.layers.0.self_attn.rotary_emb.inv_freq";
        if (pass == 0) OK(st_writer_add(w, name, DT_F32, 1, &(int64_t){2}, &e));
        else OK(st_writer_put(w, zeros, 8, &e));
    }
    OK(st_writer_publish(w, NULL, &e));
    st_close(s);
}

static void a_wrong_tensor_is_refused_by_name_and_shapes(void **state)
{
    (void)state;
    static const char *const said[][3] = {
        [MISSING] = {"model.layers.1.mlp.up_proj.weight", "missing", ""},
        [EXTRA] = {"model.layers.2.input_layernorm.weight", "not in a llama", ""},
        [MISSHAPEN] = {"model.layers.1.mlp.up_proj.weight", "[48, 8]", "[24, 16]"},
        [INTEGER] = {"model.layers.1.mlp.up_proj.weight", "I32", "BF16"},
    };
    const struct model_options o = {0};
    for (int how = MISSING; how <= INTEGER; how++) {
        struct err e = ERR_INIT;
        const char *dir = folder();
        write_variant(dir, (enum spoil)how);
        assert_null(model_open(dir, &o, &e));
        for (int k = 0; k < 3; k++)
            if (!strstr(e.msg, said[how][k])) fail_msg("'%s' lacks '%s'", e.msg, said[how][k]);
        fs_rmtree(dir, &e);
    }
}

static void tables_of_older_checkpoints_are_left_out(void **state)
{
    (void)state;
    const struct model_options o = {0};
    struct err e = ERR_INIT;
    const char *dir = folder();
    write_variant(dir, LEFTOVER);
    struct model *m = model_open(dir, &o, &e);
    if (!m) fail_msg("%s", e.msg);
    for (int i = 0; i < m->ntensors; i++)
        assert_null(strstr(m->params.items[i]->name, "inv_freq"));
    model_free(m);
    fs_rmtree(dir, &e);
}

static void random_weights_need_only_the_config(void **state)
{
    (void)state;
    struct model *m[3];
    const char *dir = folder();
    struct err e = ERR_INIT;
    for (int k = 0; k < 3; k++) {
        const struct model_options o = {.random = true, .seed = k == 2 ? 8 : 7};
        if (!(m[k] = model_open(dir, &o, &e))) fail_msg("%s", e.msg);
        OK(model_alloc(m[k], &e));
    }
    double square = 0, count = 0;
    for (int i = 0; i < m[0]->ntensors; i++) {
        const struct param *p = m[0]->params.items[i];
        const float *v = p->data;
        size_t bytes = (size_t)p->count * 4;
        assert_memory_equal(v, m[1]->params.items[i]->data, bytes);
        if (p->rank == 1) {
            for (int64_t k = 0; k < p->count; k++) assert_float_equal(v[k], 1, 0);
            continue;
        }
        assert_true(memcmp(v, m[2]->params.items[i]->data, bytes) != 0);
        for (int64_t k = 0; k < p->count; k++) square += (double)v[k] * v[k];
        count += (double)p->count;
    }
    /* initializer_range is 0.25; about 4500 numbers: 4 standard errors are 4.3 %. */
    assert_true(fabs(sqrt(square / count) / 0.25 - 1) < 0.043);
    for (int k = 0; k < 3; k++) model_free(m[k]);
    fs_rmtree(dir, &e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_those_of_transformers),
        cmocka_unit_test(gradients_of_all_weights_equal_those_of_transformers),
        cmocka_unit_test(recomputing_and_threads_change_no_bit),
        cmocka_unit_test(gradients_are_the_slopes_of_the_loss_in_double),
        cmocka_unit_test(decoding_with_a_cache_equals_one_long_pass),
        cmocka_unit_test(a_wrong_tensor_is_refused_by_name_and_shapes),
        cmocka_unit_test(tables_of_older_checkpoints_are_left_out),
        cmocka_unit_test(random_weights_need_only_the_config),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
