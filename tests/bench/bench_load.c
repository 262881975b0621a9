/* How soon a job computes: from the start of a process to the end of its first training step, for
 * a model of 500 MB in bf16 whose file is in the page cache; and how long the plan of a step takes.
 * usage: bench_load [NAME]             NAME: load, plan, or a part of it
 *        bench_load serve DIR          one process: a line when ready to step, another after it
 *
 * The step is LoRA of rank 16 on one row of 16 tokens, so that nearly all of its time is the first
 * pass over the weights. The model is written to /tmp first.
 */
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/op/mathx.h"
#include "tests/bench/child.h"
#include "tests/bench/report.h"
#include "tests/bench/trial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 2, LOADS = 9, PLANS = 25, PIECE = 1 << 20, LINE = 64 };

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\","
    " \"hidden_act\": \"silu\", \"hidden_size\": 896, \"intermediate_size\": 2560,"
    " \"num_hidden_layers\": 24, \"num_attention_heads\": 14, \"num_key_value_heads\": 2,"
    " \"vocab_size\": 49152, \"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-5,"
    " \"initializer_range\": 0.02, \"rope_theta\": 100000.0, \"bos_token_id\": 1,"
    " \"eos_token_id\": 2, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}";

struct weights {
    const struct model *model;
    uint16_t *piece; /* normal values, repeated */
};

static int fill(void *ctx, int i, struct st_writer *w, struct err *e)
{
    const struct weights *c = ctx;
    for (int64_t left = c->model->params.items[i]->count; left > 0; left -= PIECE)
        if (st_writer_put(w, c->piece, (size_t)(left < PIECE ? left : PIECE) * 2, e)) return -1;
    return 0;
}

/* Writes the model's tensors in bf16 into dir. */
static double write_model(const struct model *m, const char *dir)
{
    struct err e = ERR_INIT;
    struct weights c = {m, mem_array(PIECE, sizeof *c.piece, &e)};
    float *normal = mem_array(PIECE, sizeof *normal, &e);
    struct st_entry *v = mem_array(m->ntensors, sizeof *v, &e);
    char path[FS_PATH_MAX];
    double bytes = 0;
    if (!c.piece || !normal || !v || fs_join(path, dir, "config.json", &e) ||
        fs_write_file(path, config, strlen(config), &e))
        report_die(&e);
    rng_fill_normal(normal, PIECE, 0.02f, 1, RNG_USER, 0);
    for (int i = 0; i < PIECE; i++) c.piece[i] = mx_to_bf16(normal[i]);
    for (int i = 0; i < m->ntensors; i++) {
        const struct param *p = m->params.items[i];
        v[i] = (struct st_entry){.name = p->name, .dtype = DT_BF16, .rank = p->rank};
        memcpy(v[i].shape, p->shape, (size_t)p->rank * sizeof *p->shape);
        bytes += 2.0 * (double)p->count;
    }
    const struct st_model out = {.dir = dir, .v = v, .n = m->ntensors, .fill = fill, .ctx = &c};
    if (st_write_model(&out, &e)) report_die(&e);
    mem_free(v);
    mem_free(normal);
    mem_free(c.piece);
    return bytes;
}

static int serve(const char *dir)
{
    const struct trial_options o = {.dir = dir, .method = "lora", .B = 1, .T = 16};
    struct err e = ERR_INIT;
    struct exec *x = exec_new_cpu(THREADS, &e);
    struct trial t;
    if (!x) report_die(&e);
    trial_start(&t, &o, x);
    trial_pass(&t);
    printf("ready\n");
    fflush(stdout);
    trial_step(&t);
    printf("stepped\n");
    fflush(stdout);
    trial_end(&t);
    exec_free(x);
    return 0;
}

static void load(const struct trial *t, const char *self)
{
    struct err e = ERR_INIT;
    double ready[LOADS], stepped[LOADS];
    char dir[] = "/tmp/graft-bench-XXXXXX", line[LINE];
    if (!mkdtemp(dir)) exit(1);
    double bytes = write_model(t->model, dir);
    for (int i = -1; i < LOADS; i++) {
        const char *argv[] = {self, "serve", dir, NULL};
        struct child c;
        double start = report_now();
        if (!child_start(&c, argv) || !child_line(&c, line, sizeof line)) exit(1);
        double at = report_now() - start;
        if (!child_line(&c, line, sizeof line)) exit(1);
        if (i >= 0) ready[i] = at;
        if (i >= 0) stepped[i] = report_now() - start;
        child_end(&c);
    }
    fs_rmtree(dir, &e);
    report_values("load_to_first_step_done", report_quantile(stepped, LOADS, 0.5), 0, "s");
    printf("#   %.0f MB; ready to step after %.3f s; p10 %.3f s, p90 %.3f s of %d processes\n",
           bytes * 1e-6, report_quantile(ready, LOADS, 0.5), report_quantile(stepped, LOADS, 0.1),
           report_quantile(stepped, LOADS, 0.9), LOADS);
}

static void plan(struct trial *t)
{
    const struct graph_key key = {.kind = GRAPH_TRAIN, .B = 4, .T = 512};
    struct err e = ERR_INIT;
    double seconds[PLANS];
    for (int i = 0; i < PLANS; i++) {
        struct graph g;
        double start = report_now();
        if (graph_make(&t->graphs, &key, THREADS, &g, &e)) report_die(&e);
        seconds[i] = (report_now() - start) * 1e3;
        graph_clear(&g);
    }
    report_values("plan_24_layers", report_quantile(seconds, PLANS, 0.5), 0, "ms");
    printf("#   record, gradients, placement of a LoRA step; p10 %.1f ms, p90 %.1f ms of %d\n",
           report_quantile(seconds, PLANS, 0.1), report_quantile(seconds, PLANS, 0.9), PLANS);
}

int main(int argc, char **argv)
{
    static const struct trial_options o = {.config = config, .method = "lora", .B = 1, .T = 16};
    const char *name = argc > 1 ? argv[1] : "";
    struct trial t;
    if (argc == 3 && !strcmp(name, "serve")) return serve(argv[2]);
    bool loading = strstr("load_to_first_step", name), planning = strstr("plan_24_layers", name);
    if (!loading && !planning) return 0;
    report_machine(THREADS);
    trial_start(&t, &o, NULL);
    if (planning) plan(&t);
    if (loading) load(&t, argv[0]);
    trial_end(&t);
    return 0;
}
