/* What graft computes, as safetensors, for comparison with PyTorch.
 *
 * parity_dump logits MODEL ADAPTER|- IDS.safetensors OUT   ids i32 [n] -> logits f32 [n,V]
 * parity_dump gradients JOB_DIR SCALE OUT                  gradients of the job's first step, not
 *     clipped, with every lora_B set to uniform(-SCALE, SCALE): stream 99, step = index of the site
 */
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "engine/job/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B_STREAM = 99 };

static int logits(char **a, struct err *e)
{
    const struct session_options o = {.dir = a[0], .threads = 2};
    struct session s;
    struct st *in = st_open(a[2], e);
    const struct st_tensor *ids = in ? st_find(in, "ids") : NULL;
    if (!ids || session_open(&s, &o, e)) return -1;
    if (session_ready(&s, str_eq(a[1], "-") ? NULL : a[1], e)) return -1;
    float *out = session_logits(&s, ids->data, ids->count, e);
    int64_t shape[2] = {ids->count, s.model->cfg.vocab_size};
    struct st_writer *w = out ? st_writer_new(a[3], e) : NULL;
    if (!w || st_writer_add(w, "logits", DT_F32, 2, shape, e) ||
        st_writer_put(w, out, (size_t)(shape[0] * shape[1]) * sizeof *out, e))
        return -1;
    mem_free(out);
    session_close(&s);
    st_close(in);
    return st_writer_publish(w, NULL, e);
}

static int first_step(struct run *r, struct err *e)
{
    int64_t window = r->schedule.batch * r->schedule.accumulate, trained = 0;
    int64_t *rows = mem_array(window, sizeof *rows, e);
    struct batch b = {0};
    if (!rows) return -1;
    int64_t n = schedule_rows(&r->schedule, 0, rows);
    for (int64_t i = 0; i < n; i++) {
        struct example x = dataset_get(r->train, rows[i]);
        for (int64_t k = 1; k < x.n; k++) trained += x.trained[k];
    }
    for (int64_t from = 0, micro = 0; from < n; from += r->schedule.batch, micro++) {
        int64_t k = n - from < r->schedule.batch ? n - from : r->schedule.batch;
        if (batch_fill(&b, r->train, rows + from, k, e)) return -1;
        const struct graph_key key = {.kind = GRAPH_TRAIN, .B = b.B, .T = b.T};
        struct graph *g = graphs_bind(&r->session.graphs, &key, e);
        if (!g || graph_feed(r->session.exec, g, &b, (float)(1.0 / (double)trained), e) ||
            exec_run(r->session.exec, PHASE_STEP, (int)micro, e))
            return -1;
    }
    batch_clear(&b);
    mem_free(rows);
    return 0;
}

static int gradients(char **a, struct err *e)
{
    struct run *r = mem_zalloc(sizeof *r, e);
    float scale = strtof(a[1], NULL);
    uint32_t site = 0;
    if (!r) return -1;
    r->attempt = 1;
    str_copy(r->dir, sizeof r->dir, a[0]);
    if (job_load(&r->job, a[0], e) || run_load(r, false, e)) return -1;
    const struct params *ps = &r->session.model->params;
    for (int i = 0; i < ps->n; i++)
        if (str_ends(ps->items[i]->name, "lora_B.weight"))
            rng_fill_uniform(ps->items[i]->data, ps->items[i]->count, -scale, scale, r->job.seed,
                             B_STREAM, site++);
    struct st_writer *w = first_step(r, e) ? NULL : st_writer_new(a[2], e);
    if (!w) return -1;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < ps->n; i++) {
            const struct param *p = ps->items[i];
            if (p->kind != PARAM_TRAINABLE) continue;
            if (pass ? st_writer_put(w, p->grad, (size_t)p->count * sizeof(float), e)
                     : st_writer_add(w, p->name, DT_F32, p->rank, p->shape, e))
                return -1;
        }
    run_close(r);
    mem_free(r);
    return st_writer_publish(w, NULL, e);
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    int rc = 2;
    if (argc == 6 && str_eq(argv[1], "logits")) rc = logits(argv + 2, &e);
    else if (argc == 5 && str_eq(argv[1], "gradients")) rc = gradients(argv + 2, &e);
    if (rc) fprintf(stderr, "parity_dump: %s\n", e.msg);
    return rc ? 1 : 0;
}
