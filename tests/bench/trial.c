#include "tests/bench/trial.h"

#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/method/settings.h"
#include "tests/bench/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void open_model(struct trial *t, const struct trial_options *o)
{
    const struct model_options mo = {.random = !o->dir, .seed = 1};
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    if (o->dir && !(t->model = model_open(o->dir, &mo, &e))) report_die(&e);
    if (o->dir) return;
    snprintf(t->dir, sizeof t->dir, "/tmp/graft-bench-XXXXXX");
    if (!mkdtemp(t->dir)) exit(1);
    if (fs_join(path, t->dir, "config.json", &e) ||
        fs_write_file(path, o->config, strlen(o->config), &e) ||
        !(t->model = model_open(t->dir, &mo, &e)))
        report_die(&e);
}

static void begin(struct trial *t, const struct trial_options *o)
{
    struct err e = ERR_INIT;
    const struct method *how = method_find(o->method, &e);
    json_t *given = o->settings ? json_loads(o->settings, 0, NULL) : NULL;
    if (!how || !(t->schema = settings_schema(how->properties, &e)) ||
        !(t->settings = settings_fill(t->schema, given, &e)))
        report_die(&e);
    json_decref(given);
    t->adapt = (struct adaptation){.method = how, .model = t->model, .settings = t->settings,
                                   .seed = 1};
    for (int i = 0; o->train && i < t->model->params.n; i++) {
        struct param *p = t->model->params.items[i];
        if (!strncmp(p->name, o->train, strlen(o->train))) p->kind = PARAM_TRAINABLE;
    }
    if (method_begin(&t->adapt, &e)) report_die(&e);
    graphs_init(&t->graphs, t->model, t->exec);
    t->graphs.optimiser = (struct graph_optimiser){0.9, 0.999, 1e-8, 1.0f};
}

/* Every token is predicted from all before it: no padding. */
static void make_text(struct trial *t)
{
    struct err e = ERR_INIT;
    int64_t n = t->B * t->T, V = t->model->cfg.vocab_size;
    t->ids = mem_array(n, sizeof *t->ids, &e);
    t->target = mem_array(n, sizeof *t->target, &e);
    t->pos = mem_array(n, sizeof *t->pos, &e);
    t->range = mem_array(2 * n, sizeof *t->range, &e);
    if (!t->ids || !t->target || !t->pos || !t->range) report_die(&e);
    for (int64_t i = 0; i < n; i++) {
        t->ids[i] = (int32_t)(i * 7919 % V);
        t->target[i] = (int32_t)((i + 1) * 7919 % V);
        t->pos[i] = (int32_t)(i % t->T);
        t->range[2 * i] = 0;
        t->range[2 * i + 1] = (int32_t)(i % t->T + 1);
    }
}

static void make_images(struct trial *t)
{
    struct err e = ERR_INIT;
    int64_t n = t->B * t->model->image[0] * t->model->image[1] * t->model->image[2];
    t->T = t->model->max_length;
    t->images = mem_array(n, sizeof *t->images, &e);
    t->target = mem_array(t->B, sizeof *t->target, &e);
    if (!t->images || !t->target) report_die(&e);
    rng_fill_normal(t->images, n, 1, 1, RNG_USER, 0);
    for (int64_t i = 0; i < t->B; i++) t->target[i] = (int32_t)(i * 7 % t->model->classes);
}

void trial_start(struct trial *t, const struct trial_options *o, struct exec *x)
{
    *t = (struct trial){.exec = x, .B = o->B, .T = o->T};
    open_model(t, o);
    begin(t, o);
    if (t->model->image[0]) make_images(t);
    else make_text(t);
}

void trial_end(struct trial *t)
{
    struct err e = ERR_INIT;
    graphs_clear(&t->graphs);
    method_end(&t->adapt);
    model_free(t->model);
    json_decref(t->settings);
    json_decref(t->schema);
    mem_free(t->ids);
    mem_free(t->target);
    mem_free(t->pos);
    mem_free(t->range);
    mem_free(t->images);
    if (*t->dir) fs_rmtree(t->dir, &e);
}

struct graph *trial_pass(struct trial *t)
{
    const struct graph_key key = {.kind = GRAPH_TRAIN, .B = t->B, .T = t->T};
    const struct batch b = {.B = t->B, .T = t->T, .ids = t->ids, .target = t->target,
                            .pos = t->pos, .range = t->range};
    struct err e = ERR_INIT;
    struct graph *g = graphs_bind(&t->graphs, &key, &e);
    float weight = 1.0f / (float)(t->images ? t->B : t->B * t->T);
    if (!g || (t->images ? graph_feed_images(t->exec, g, t->images, t->target, weight, &e)
                         : graph_feed(t->exec, g, &b, weight, &e)))
        report_die(&e);
    return g;
}

double trial_step(struct trial *t)
{
    const struct graph_key key = {.kind = GRAPH_UPDATE};
    struct err e = ERR_INIT;
    double n = (double)++t->steps;
    float loss, zero = 0;
    float hyper[8] = {1e-4f, 0.01f, (float)(1 - pow(0.9, n)), (float)(1 - pow(0.999, n))};
    struct graph *g = trial_pass(t);
    if (exec_run(t->exec, PHASE_STEP, 0, &e) ||
        exec_read(t->exec, g->io.loss, &loss, sizeof loss, &e))
        report_die(&e);
    if (!(g = graphs_bind(&t->graphs, &key, &e)) ||
        exec_write(t->exec, g->hyper[0], hyper, sizeof hyper, &e) ||
        exec_write(t->exec, g->hyper[1], hyper, sizeof hyper, &e) ||
        exec_write(t->exec, g->sumsq, &zero, sizeof zero, &e) ||
        exec_run(t->exec, PHASE_UPDATE, 0, &e))
        report_die(&e);
    return loss;
}
