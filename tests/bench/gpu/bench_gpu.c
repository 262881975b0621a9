/* LoRA on a GPU in bf16 beside PyTorch: speed of a training step, memory, and what each kernel
 * reaches.
 * usage: bench_gpu [NAME [ROUNDS]]   NAME: llama1b (default), or toy, which an emulation can run
 *
 * A step is forward, backward, clipping to norm 1 and AdamW on random tokens without padding.
 * graft and PyTorch (peer_gpu.py, run by PYTHON) take turns on one GPU, step by step; WARM rounds
 * are not counted. Both count the device memory that they have allocated, without the driver's
 * own. The speed of products is compared with the largest that this GPU does (peak()).
 */
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/cuda/cuda.h"
#include "engine/op/op.h"
#include "tests/bench/child.h"
#include "tests/bench/report.h"
#include "tests/bench/trial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARM = 4, ROUNDS = 20, LINE = 256, LISTED = 24 };

struct job {
    const char *name;
    struct trial_options graft;
    int64_t side;  /* of the product that gives the peak */
    int repeats;   /* of each kernel */
};

#define LLAMA "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\"," \
    " \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-5, \"initializer_range\": 0.02," \
    " \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"," \
    " \"bos_token_id\": 1, \"eos_token_id\": 2,"

static const struct job jobs[] = {
    {.name = "llama1b", .side = 8192, .repeats = 20,
     .graft = {.method = "lora", .settings = "{\"r\": 16}", .B = 8, .T = 1024, .config = LLAMA
               " \"hidden_size\": 2048, \"intermediate_size\": 8192,"
               " \"num_hidden_layers\": 16, \"num_attention_heads\": 32,"
               " \"num_key_value_heads\": 8, \"head_dim\": 64, \"vocab_size\": 128256,"
               " \"max_position_embeddings\": 131072, \"rope_theta\": 500000.0,"
               " \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 32.0,"
               " \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
               " \"original_max_position_embeddings\": 8192}}"}},
    {.name = "toy", .side = 64, .repeats = 1,
     .graft = {.method = "lora", .settings = "{\"r\": 16}", .B = 2, .T = 48, .config = LLAMA
               " \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2,"
               " \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
               " \"vocab_size\": 300, \"max_position_embeddings\": 128,"
               " \"rope_theta\": 10000.0}"}},
};

static void sync(struct exec *x)
{
    struct err e = ERR_INIT;
    if (x->device->ops && x->device->ops->sync(x, &e)) report_die(&e);
}

/* ---- the largest product ---- */

static struct tensor square(int64_t n)
{
    return (struct tensor){.dtype = DT_BF16, .rank = 2, .shape = {n, n}, .count = n * n,
                           .view_of = -1, .producer = -1};
}

/* Numbers of either sign: zeros would cost less power, and so go faster. */
static void fill(struct exec *x, void *to, int64_t count)
{
    enum { N = 1 << 16 };
    static uint16_t bits[N];
    struct err e = ERR_INIT;
    for (uint32_t i = 0; i < N; i++) {
        uint32_t r = rng_u32(1, RNG_USER, 0, i);
        bits[i] = (uint16_t)(0x3f00u | (r & 0x80ffu));
    }
    for (int64_t i = 0; i < count; i += N) {
        size_t n = (size_t)(count - i < N ? count - i : N);
        if (exec_put(x, (uint16_t *)to + i, bits, n * sizeof *bits, &e)) report_die(&e);
    }
}

/* FLOP/s of a square product in bf16, the best of some. */
static double peak(struct exec *x, const struct job *job)
{
    enum { TRIES = 5 };
    const struct attrs_linear attrs = {.alpha = 1};
    const struct tensor t = square(job->side);
    const double n = (double)job->side, flops = 2 * n * n * n * job->repeats;
    struct step s = {.attrs = &attrs, .tin = {&t, &t}, .tout = {&t}};
    struct err e = ERR_INIT;
    void *p[3] = {NULL};
    double best = 0;
    for (int i = 0; i < 3; i++)
        if (exec_alloc(x, (size_t)t.count * sizeof(uint16_t), &p[i], &e)) report_die(&e);
    fill(x, p[0], t.count);
    fill(x, p[1], t.count);
    s.in[0] = p[0];
    s.in[1] = p[1];
    s.out[0] = p[2];
    if (exec_call(x, OP_LINEAR, &s, &e)) report_die(&e);
    for (int i = 0; i < TRIES; i++) {
        double start = report_now();
        for (int k = 0; k < job->repeats; k++)
            if (x->device->table[OP_LINEAR](&s, x, &e)) report_die(&e);
        sync(x);
        double rate = flops / (report_now() - start);
        if (rate > best) best = rate;
    }
    for (int i = 0; i < 3; i++) exec_release(x, p[i]);
    return best;
}

/* ---- kernel by kernel ---- */

struct kernel {
    char what[LINE];
    double seconds, flops, bytes;
    int calls;
};

struct kernels {
    struct kernel *items;
    int n;
};

static int slowest_first(const void *a, const void *b)
{
    const struct kernel *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

static void describe(const struct step *s, const char *op, char out[LINE])
{
    int at = snprintf(out, LINE, "%s", op);
    for (int i = 0; i < 2 && s->tin[i] && at < LINE - 80; i++) {
        const struct tensor *t = s->tin[i];
        for (int d = 0; d < t->rank; d++)
            at += snprintf(out + at, (size_t)(LINE - at), "%s%lld", d ? "x" : " ",
                           (long long)t->shape[d]);
    }
}

static struct kernel *find(struct kernels *k, const char *what)
{
    for (int i = 0; i < k->n; i++)
        if (!strcmp(k->items[i].what, what)) return &k->items[i];
    struct kernel *new = &k->items[k->n++];
    *new = (struct kernel){.calls = 0};
    memcpy(new->what, what, strlen(what) + 1);
    return new;
}

/* Times every step of the bound plan by itself. Useful FLOPs: attention is causal, that is half. */
static void time_steps(struct exec *x, int repeats, struct kernels *k)
{
    struct err e = ERR_INIT;
    for (int i = 0; i < x->plan->nsteps; i++) {
        const struct node *n = &x->plan->tape->nodes[x->plan->steps[i].node];
        struct step *s = &x->steps[i];
        struct op_cost c = {0};
        char what[LINE];
        s->accum = n->accum;
        op_table[n->op].cost(s->attrs, s->tin, s->tout, 1, &c);
        describe(s, op_table[n->op].name, what);
        sync(x);
        double start = report_now();
        for (int j = 0; j < repeats; j++)
            if (x->device->table[n->op](s, x, &e)) report_die(&e);
        sync(x);
        struct kernel *to = find(k, what);
        bool attention = n->op == OP_ATTN || n->op == OP_ATTN_BWD;
        to->seconds += (report_now() - start) / repeats;
        to->flops += (double)c.flops * (attention ? 0.5 : 1);
        to->bytes += (double)c.bytes;
        to->calls++;
    }
}

/* Of the forward and backward pass and of the update; returns the useful FLOPs of both. */
static double list(struct trial *t, const struct job *job, double step_seconds)
{
    const struct graph_key update = {.kind = GRAPH_UPDATE};
    struct err e = ERR_INIT;
    struct exec *x = t->exec;
    struct kernels k = {.n = 0};
    struct graph *g = trial_pass(t);
    int most = g->plan->nsteps;
    double flops = 0, seconds = 0;
    if (!(g = graphs_bind(&t->graphs, &update, &e))) report_die(&e);
    k.items = mem_array(most + g->plan->nsteps, sizeof *k.items, &e);
    if (!k.items) report_die(&e);
    time_steps(x, 1, &k); /* its states change: once */
    trial_pass(t);
    time_steps(x, job->repeats, &k);
    qsort(k.items, (size_t)k.n, sizeof *k.items, slowest_first);
    for (int i = 0; i < k.n; i++) {
        flops += k.items[i].flops;
        seconds += k.items[i].seconds;
    }
    printf("# the steps one by one take %.3f ms, a whole step %.3f ms\n", seconds * 1e3,
           step_seconds * 1e3);
    for (int i = 0; i < k.n && i < LISTED; i++)
        printf("#   %-44s %4d calls %9.3f ms %5.1f %% %8.1f TFLOP/s %8.1f GB/s\n",
               k.items[i].what, k.items[i].calls, k.items[i].seconds * 1e3,
               100 * k.items[i].seconds / seconds,
               k.items[i].flops / k.items[i].seconds * 1e-12,
               k.items[i].bytes / k.items[i].seconds * 1e-9);
    mem_free(k.items);
    return flops;
}

/* ---- the comparison ---- */

static double ask(struct child *c, const char *question)
{
    char line[LINE];
    if (child_ask(c, question, line, sizeof line)) return strtod(line, NULL);
    fprintf(stderr, "the peer ended before it answered \"%s\"\n", question);
    exit(1);
}

static bool start_peer(struct child *c, const char *job)
{
    const char *python = getenv("PYTHON"), *option = getenv("PEER");
    const char *argv[] = {python ? python : "python3", "tests/bench/gpu/peer_gpu.py", job, option,
                          NULL};
    char line[LINE];
    if (child_start(c, argv)) {
        while (child_line(c, line, sizeof line)) {
            if (strncmp(line, "ready", 5)) continue;
            printf("# peer:%s\n", line + 5);
            return true;
        }
        child_end(c);
    }
    printf("# peer missing: %s cannot run %s on this GPU\n", argv[0], argv[1]);
    return false;
}

static double one_step(struct trial *t)
{
    double start = report_now(), loss = trial_step(t);
    sync(t->exec);
    if (!(loss > 0)) {
        fprintf(stderr, "the loss is %g\n", loss);
        exit(1);
    }
    return report_now() - start;
}

static void compare(const struct job *job, struct exec *x, int rounds)
{
    const double mib = 1024.0 * 1024.0;
    struct rounds r = {.n = rounds};
    struct child peer;
    struct trial t;
    char name[80];
    double top = peak(x, job);
    trial_start(&t, &job->graft, x);
    t.graphs.compute = DT_BF16;
    r.alone = !start_peer(&peer, job->name);
    for (int i = -WARM; i < rounds; i++) {
        double a = one_step(&t), b = r.alone ? 0 : ask(&peer, "step");
        if (i < 0) continue;
        r.graft[i] = a;
        r.peer[i] = b;
    }
    double bytes = (double)(x->buffer_bytes + exec_mirror_bytes(x));
    double step = report_quantile(r.graft, rounds, 0.5);
    snprintf(name, sizeof name, "%s_lora_gpu", job->name);
    report_rounds(name, &r, (double)(t.B * t.T), 1, "tokens");
    snprintf(name, sizeof name, "%s_lora_gpu_memory", job->name);
    report_values(name, bytes / mib, r.alone ? 0 : ask(&peer, "memory"), "MiB");
    if (!r.alone) child_end(&peer);
    double flops = list(&t, job, step);
    snprintf(name, sizeof name, "%s_lora_gpu_share_of_peak", job->name);
    report_values(name, flops / step * 1e-12, top * 1e-12, "TFLOP/s");
    trial_end(&t);
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    int rounds = argc > 2 ? (int)strtol(argv[2], NULL, 10) : ROUNDS;
    if (rounds < 1 || rounds > ROUNDS_MAX) return 2;
    struct exec *x = exec_new_cuda(0, &e);
    if (!x) report_die(&e);
    report_machine(pool_threads(x->pool));
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        if (!strcmp(jobs[i].name, argc > 1 ? argv[1] : jobs[0].name)) compare(&jobs[i], x, rounds);
    exec_free(x);
    return 0;
}
