/* What graft computes with a Vision Transformer, as safetensors, for comparison with PyTorch.
 * BATCH has image f32 [B,I,Y,X] and labels i32 [B]; its tensors named like parameters replace them.
 *
 * vit_dump logits MODEL BATCH OUT            logits [B,classes]
 * vit_dump gradients MODEL BATCH OUT         loss [1] (mean) and grad.<weight> of all weights
 * vit_dump lora MODEL BATCH OUT TARGETS DIR  the same of LoRA (r = 4, alpha = 8) on the modules in
 *     the JSON list TARGETS and of the head; after.<weight> after one step of AdamW (lr 0.01, decay
 *     0.01 on matrices); the adapter goes into the folder DIR
 */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dump {
    struct model *model;
    struct exec *exec;
    struct graphs graphs;
    struct adaptation adapt;
    struct st *batch;
    struct st_writer *out;
    int64_t B;
};

static void die(const struct err *e)
{
    fprintf(stderr, "vit_dump: %s\n", e->msg);
    exit(1);
}

static void begin(struct dump *d, char **a, struct err *e)
{
    const struct model_options o = {.seed = 1};
    if (!(d->model = model_open(a[0], &o, e)) || !(d->batch = st_open(a[1], e)) ||
        !(d->exec = exec_new_cpu(2, e)) || !(d->out = st_writer_new(a[2], e)))
        die(e);
    d->B = st_find(d->batch, "image")->shape[0];
    d->adapt.model = d->model;
    graphs_init(&d->graphs, d->model, d->exec);
    d->graphs.optimiser = (struct graph_optimiser){0.9f, 0.999f, 1e-8f, 0};
}

/* Values that the batch brings. */
static void replace(struct dump *d)
{
    for (int i = 0; i < d->model->params.n; i++) {
        const struct param *p = d->model->params.items[i];
        const struct st_tensor *t = st_find(d->batch, p->name);
        if (t && t->count == p->count) memcpy(p->data, t->data, (size_t)t->bytes);
    }
}

static struct graph *run(struct dump *d, enum graph_kind kind, struct err *e)
{
    const struct graph_key k = {.kind = kind, .B = d->B,
                                .rows = kind == GRAPH_LOGITS ? d->B : 0};
    struct graph *g = graphs_bind(&d->graphs, &k, e);
    if (!g || graph_feed_images(d->exec, g, st_find(d->batch, "image")->data,
                                st_find(d->batch, "labels")->data, 1.0f / (float)d->B, e) ||
        exec_run(d->exec, PHASE_STEP, 0, e))
        die(e);
    return g;
}

static int logits(struct dump *d, struct err *e)
{
    int64_t shape[2] = {d->B, d->model->classes};
    size_t bytes = (size_t)(shape[0] * shape[1]) * sizeof(float);
    float *v = mem_alloc(bytes, e);
    if (!v || model_alloc(d->model, e)) return -1;
    replace(d);
    const struct graph *g = run(d, GRAPH_LOGITS, e);
    int rc = exec_read(d->exec, g->io.logits, v, bytes, e) ||
             st_writer_add(d->out, "logits", DT_F32, 2, shape, e) ||
             st_writer_put(d->out, v, bytes, e);
    mem_free(v);
    return rc ? -1 : 0;
}

static int update(struct dump *d, struct err *e)
{
    const struct graph_key k = {.kind = GRAPH_UPDATE};
    float zero = 0, hyper[8] = {0.01f, 0.01f, 1 - 0.9f, 1 - 0.999f};
    struct graph *g = graphs_bind(&d->graphs, &k, e);
    if (!g || exec_write(d->exec, g->hyper[0], hyper, sizeof hyper, e)) return -1;
    hyper[1] = 0;
    if (exec_write(d->exec, g->hyper[1], hyper, sizeof hyper, e) ||
        exec_write(d->exec, g->sumsq, &zero, sizeof zero, e))
        return -1;
    return exec_run(d->exec, PHASE_UPDATE, 0, e);
}

/* Declares (pass 0) or writes one array of every trained parameter. */
static int each(struct dump *d, const char *what, bool after, int pass, struct err *e)
{
    char name[PARAM_NAME + 16];
    for (int i = 0; i < d->model->params.n; i++) {
        const struct param *p = d->model->params.items[i];
        if (p->kind != PARAM_TRAINABLE) continue;
        snprintf(name, sizeof name, "%s.%s", what, p->name);
        if (pass ? st_writer_put(d->out, after ? p->data : p->grad, (size_t)p->count * 4, e)
                 : st_writer_add(d->out, name, DT_F32, p->rank, p->shape, e))
            return -1;
    }
    return 0;
}

static int gradients(struct dump *d, bool step, struct err *e)
{
    static const int64_t one = 1;
    float loss;
    replace(d);
    const struct graph *g = run(d, GRAPH_TRAIN, e);
    if (exec_read(d->exec, g->io.loss, &loss, sizeof loss, e) ||
        st_writer_add(d->out, "loss", DT_F32, 1, &one, e) || each(d, "grad", false, 0, e) ||
        (step && each(d, "after", true, 0, e)) ||
        st_writer_put(d->out, &loss, sizeof loss, e) || each(d, "grad", false, 1, e))
        return -1;
    return step && (update(d, e) || each(d, "after", true, 1, e)) ? -1 : 0;
}

static int lora(struct dump *d, const char *targets, const char *dir, struct err *e)
{
    json_t *list = jx_parse(targets, strlen(targets), e);
    if (!list) return -1;
    json_t *s = jx_pack(e, "{s:i, s:i, s:i, s:s, s:O}", "r", 4, "lora_alpha", 8, "lora_dropout",
                        0, "init_lora_weights", "kaiming", "target_modules", list);
    if (!s) return -1;
    d->adapt.method = &method_lora;
    d->adapt.settings = s;
    if (method_lora.attach(&d->adapt, e)) return -1;
    for (int i = 0; i < d->model->ntensors; i++) {
        struct param *p = d->model->params.items[i];
        if (!str_starts(p->name, "classifier.") && !str_starts(p->name, "head.")) continue;
        p->kind = PARAM_TRAINABLE;
        p->group = p->rank < 2;
    }
    if (model_alloc(d->model, e) || method_lora.init(&d->adapt, e) || gradients(d, true, e))
        return -1;
    int rc = method_lora.save(&d->adapt, dir, "base", e);
    json_decref(s);
    json_decref(list);
    return rc;
}

static int full(struct dump *d, struct err *e)
{
    d->adapt.method = &method_full;
    return method_full.attach(&d->adapt, e) || model_alloc(d->model, e) || gradients(d, false, e);
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    struct dump d = {0};
    int rc = -1;
    if (argc < 5) return 2;
    begin(&d, argv + 2, &e);
    if (str_eq(argv[1], "logits")) rc = logits(&d, &e);
    else if (str_eq(argv[1], "gradients")) rc = full(&d, &e);
    else if (str_eq(argv[1], "lora") && argc == 7) rc = lora(&d, argv[5], argv[6], &e);
    if (rc || st_writer_publish(d.out, NULL, &e)) die(&e);
    exec_free(d.exec);
    graphs_clear(&d.graphs);
    method_end(&d.adapt);
    model_free(d.model);
    st_close(d.batch);
    return 0;
}
