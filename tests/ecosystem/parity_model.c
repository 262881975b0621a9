/* What graft computes with a model folder alone (no tokenizer), as safetensors for Python.
 *
 * parity_model pass MODEL REF OUT          the batch of REF (tests/lib/refbatch.h) -> logits of all
 *     positions (a classifier: rows), loss (mean over labels), grad.<tensor> of every weight
 * parity_model generate MODEL IDS N TEMPERATURE TOP_P OUT    ids i32 [n] -> ids i32 [<= N]
 */
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/job/generate.h"
#include "tests/lib/refbatch.h"

#include <stdio.h>
#include <stdlib.h>

static int open_model(struct session *s, const char *dir, bool trained, struct err *e)
{
    const struct model_options o = {0};
    struct adaptation a = {.method = &method_full};
    *s = (struct session){0};
    if (!(s->model = model_open(dir, &o, e))) return -1;
    a.model = s->model;
    if ((trained && method_full.attach(&a, e)) || model_alloc(s->model, e) ||
        !(s->exec = exec_new_cpu(2, e)))
        return -1;
    graphs_init(&s->graphs, s->model, s->exec);
    return 0;
}

struct tensor_out {
    char name[PARAM_NAME + 8];
    int rank;
    int64_t shape[TENSOR_RANK];
    const void *data;
};

static int write_all(const char *path, const struct tensor_out *t, int n, enum dtype dtype,
                     struct err *e)
{
    struct st_writer *w = st_writer_new(path, e);
    if (!w) return -1;
    for (int i = 0; i < n; i++)
        if (st_writer_add(w, t[i].name, dtype, t[i].rank, t[i].shape, e)) return -1;
    for (int i = 0; i < n; i++) {
        int64_t count = 1;
        for (int k = 0; k < t[i].rank; k++) count *= t[i].shape[k];
        if (st_writer_put(w, t[i].data, (size_t)count * dtype_size(dtype), e)) return -1;
    }
    return st_writer_publish(w, NULL, e);
}

static float *all_logits(struct session *s, const struct batch *b, int64_t shape[2], struct err *e)
{
    bool text = s->model->arch->task == &task_causal_lm;
    int64_t rows = text ? b->B * b->T : b->B;
    struct graph_key k = {.kind = GRAPH_LOGITS, .B = b->B, .T = b->T, .rows = rows};
    struct graph *g = graphs_bind(&s->graphs, &k, e);
    int32_t *idx = mem_array(rows, sizeof *idx, e);
    if (!g || !idx) return NULL;
    for (int64_t i = 0; i < rows; i++) idx[i] = (int32_t)i;
    const struct tensor *t = &g->tape->tensors[g->io.logits];
    shape[0] = rows;
    shape[1] = t->count / rows;
    float *out = mem_array(t->count, sizeof *out, e);
    if (!out || graph_feed_tokens(s->exec, g, b->ids, b->pos, b->range, e) ||
        (text && exec_write(s->exec, g->io.idx, idx, (size_t)rows * sizeof *idx, e)) ||
        exec_run(s->exec, PHASE_STEP, 0, e) ||
        exec_read(s->exec, g->io.logits, out, (size_t)t->count * sizeof *out, e))
        return NULL;
    mem_free(idx);
    return out;
}

static int pass(char **a, struct err *e)
{
    struct session s;
    struct batch b = {0};
    struct st *ref = st_open(a[1], e);
    float loss;
    int n = 2;
    if (!ref || refbatch_fill(&b, ref, e) || open_model(&s, a[0], true, e)) return -1;
    struct tensor_out *t = mem_array(s.model->ntensors + 2, sizeof *t, e);
    if (!t) return -1;
    t[0] = (struct tensor_out){.name = "logits", .rank = 2};
    t[1] = (struct tensor_out){.name = "loss", .rank = 1, .shape = {1}, .data = &loss};
    float *logits = all_logits(&s, &b, t[0].shape, e);
    const struct graph_key k = {.kind = GRAPH_TRAIN, .B = b.B, .T = b.T};
    struct graph *g = logits ? graphs_bind(&s.graphs, &k, e) : NULL;
    if (!g || graph_feed(s.exec, g, &b, 1.0f / (float)b.trained, e) ||
        exec_run(s.exec, PHASE_STEP, 0, e) ||
        exec_read(s.exec, g->io.loss, &loss, sizeof loss, e))
        return -1;
    t[0].data = logits;
    for (int i = 0; i < s.model->ntensors; i++, n++) {
        const struct param *p = s.model->params.items[i];
        t[n] = (struct tensor_out){.rank = p->rank, .data = p->grad};
        snprintf(t[n].name, sizeof t[n].name, "grad.%s", p->name);
        for (int k2 = 0; k2 < p->rank; k2++) t[n].shape[k2] = p->shape[k2];
    }
    if (write_all(a[2], t, n, DT_F32, e)) return -1;
    mem_free(logits);
    mem_free(t);
    batch_clear(&b);
    session_close(&s);
    st_close(ref);
    return 0;
}

static int generate(char **a, struct err *e)
{
    const struct generate_options o = {.max_tokens = strtol(a[2], NULL, 10),
                                       .temperature = strtod(a[3], NULL),
                                       .top_p = strtod(a[4], NULL), .seed = 5};
    struct session s;
    struct ids prompt = {0}, out = {0};
    struct st *in = st_open(a[1], e);
    const struct st_tensor *ids = in ? st_find(in, "ids") : NULL;
    if (!ids || ids_append(&prompt, ids->data, ids->count, e) || open_model(&s, a[0], false, e) ||
        generate_ids(&s, &prompt, &o, &out, e))
        return -1;
    const struct tensor_out t = {.name = "ids", .rank = 1, .shape = {out.n}, .data = out.v};
    if (write_all(a[5], &t, 1, DT_I32, e)) return -1;
    ids_clear(&prompt);
    ids_clear(&out);
    session_close(&s);
    st_close(in);
    return 0;
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    int rc = 2;
    if (argc == 5 && str_eq(argv[1], "pass")) rc = pass(argv + 2, &e);
    else if (argc == 8 && str_eq(argv[1], "generate")) rc = generate(argv + 2, &e);
    if (rc) fprintf(stderr, "parity_model: %s\n", e.msg);
    return rc ? 1 : 0;
}
