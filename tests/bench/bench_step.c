/* Speed of whole training steps of a random Llama (the widths of GPT-2 small, four layers): LoRA
 * on all linear layers, and full fine-tuning. The peer is the FMA peak of the same threads,
 * measured here, so the ratio is the share of the machine that does useful work.
 * usage: bench_step [THREADS [METHOD [DTYPE]]]   DTYPE of the frozen weights: float32, bfloat16
 *
 * Useful FLOPs are those of the operations' cost(), attention counted as causal (half). After the
 * result comes where the time goes, by operation. One thread is timed by its CPU seconds.
 */
#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/cpu/cpu.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"
#include "engine/method/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { B = 8, T = 256, STEPS = 6 };

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\","
    " \"hidden_act\": \"silu\","
    " \"hidden_size\": 768, \"intermediate_size\": 2048, \"num_hidden_layers\": 4,"
    " \"num_attention_heads\": 12, \"num_key_value_heads\": 12, \"vocab_size\": 8000,"
    " \"max_position_embeddings\": 1024, \"rms_norm_eps\": 1e-5, \"initializer_range\": 0.02,"
    " \"rope_theta\": 10000.0, \"bos_token_id\": 1, \"eos_token_id\": 2,"
    " \"tie_word_embeddings\": false, \"torch_dtype\": \"%s\"}";

struct share {
    double seconds, flops;
    int calls;
};

static void die(const struct err *e)
{
    fprintf(stderr, "%s\n", e->msg);
    exit(1);
}

static double now(const struct exec *x)
{
    struct timespec t;
    if (pool_threads(x->pool) > 1) return (double)clock_mono_ns() * 1e-9;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- the FMA peak ---- */

#define ROUND(i) "vfmadd213ps %12,%12,%" #i "\n"
#define CHAINS(name, isa, bytes, reg)                                                              \
    typedef float name##_lanes __attribute__((vector_size(bytes)));                               \
    __attribute__((target(isa))) static float name(int64_t n)                                     \
    {                                                                                              \
        name##_lanes x = {0.5f}, a = x, b = x, c = x, d = x, f = x, g = x, h = x, i = x, j = x,   \
                     l = x, m = x, o = x;                                                          \
        for (int64_t k = 0; k < n; k++)                                                            \
            __asm__ volatile(ROUND(0) ROUND(1) ROUND(2) ROUND(3) ROUND(4) ROUND(5) ROUND(6)        \
                             ROUND(7) ROUND(8) ROUND(9) ROUND(10) ROUND(11)                        \
                             : reg(a), reg(b), reg(c), reg(d), reg(f), reg(g), reg(h), reg(i),    \
                               reg(j), reg(l), reg(m), reg(o)                                      \
                             : "v"(x));                                                            \
        name##_lanes sum = a + b + c + d + f + g + h + i + j + l + m + o;                          \
        return sum[0];                                                                             \
    }
#define INOUT(v) "+v"(v)
CHAINS(chains256, "avx2,fma", 32, INOUT)
CHAINS(chains512, "avx512f", 64, INOUT)

enum { ROUNDS = 100000, CHAIN_COUNT = 12 };

struct peak_ctx {
    float (*fn)(int64_t);
    float sink[1024];
};

static void peak_task(void *ctx, int64_t task, int thread)
{
    (void)thread;
    struct peak_ctx *c = ctx;
    c->sink[task] = c->fn(ROUNDS);
}

/* GFLOP/s of multiply-adds of the widest vectors on all threads, the best of many tries. */
static double peak(struct exec *x)
{
    bool wide = __builtin_cpu_supports("avx512f");
    struct peak_ctx c = {.fn = wide ? chains512 : chains256};
    int n = pool_threads(x->pool);
    double best = 0, flops = (double)n * ROUNDS * CHAIN_COUNT * (wide ? 32 : 16);
    for (int i = 0; i < 200; i++) {
        double t = now(x);
        pool_run(x->pool, n, peak_task, &c);
        t = now(x) - t;
        if (flops / t * 1e-9 > best) best = flops / t * 1e-9;
    }
    return best;
}

/* ---- a step ---- */

static double useful(const struct exec *x, int i, int *op)
{
    const struct node *n = &x->plan->tape->nodes[x->plan->steps[i].node];
    struct op_cost c = {0};
    *op = n->op;
    op_table[n->op].cost(x->steps[i].attrs, x->steps[i].tin, x->steps[i].tout, 1, &c);
    return n->op == OP_ATTN || n->op == OP_ATTN_BWD ? 0.5 * (double)c.flops : (double)c.flops;
}

static double run(struct exec *x, struct share *by_op, struct err *e)
{
    double start = now(x);
    for (int i = 0; i < x->plan->nsteps; i++) {
        int op;
        double flops = useful(x, i, &op), t = now(x);
        const struct node *n = &x->plan->tape->nodes[x->plan->steps[i].node];
        x->steps[i].accum = n->accum;
        if (x->device->table[op](&x->steps[i], x, e)) die(e);
        by_op[op].seconds += now(x) - t;
        by_op[op].flops += flops;
        by_op[op].calls++;
    }
    return now(x) - start;
}

static void feed(struct exec *x, const struct graph *g, struct err *e)
{
    static int32_t ids[B * T], target[B * T], pos[B * T], range[B * T * 2];
    for (int i = 0; i < B * T; i++) {
        ids[i] = i * 7919 % 8000;
        target[i] = (i + 1) * 7919 % 8000;
        pos[i] = i % T;
        range[2 * i + 1] = i % T + 1;
    }
    struct batch b = {.B = B, .T = T, .ids = ids, .target = target, .pos = pos, .range = range};
    if (graph_feed(x, g, &b, 1.0f / (B * T), e)) die(e);
}

static void report(const char *name, const struct exec *x, const struct share *best, double seconds,
                   double top)
{
    double flops = 0;
    for (int i = 0; i < OP_COUNT; i++) flops += best[i].flops;
    double rate = flops / seconds * 1e-9;
    printf("bench %s graft=%.1f peer=%.1f ratio=%.3f unit=GFLOP/s\n", name, rate, top, rate / top);
    printf("# %d tokens in %.3f s = %.0f tokens/s on %d threads; 6 tokens of 4 layers are about 2 "
           "of GPT-2 small\n", B * T, seconds, B * T / seconds, pool_threads(x->pool));
    for (int i = 0; i < OP_COUNT; i++)
        if (best[i].calls)
            printf("#   %-12s %4d calls %6.2f ms %5.1f %% %7.1f GFLOP/s\n", op_table[i].name,
                   best[i].calls, best[i].seconds * 1e3, 100 * best[i].seconds / seconds,
                   best[i].flops / best[i].seconds * 1e-9);
    fflush(stdout);
}

static void measure(struct exec *x, const char *method, const char *dtype, double top)
{
    static const struct graph_key train = {.kind = GRAPH_TRAIN, .B = B, .T = T};
    const struct model_options mo = {.random = true, .seed = 1};
    struct err e = ERR_INIT;
    char dir[] = "/tmp/graft-bench-XXXXXX", path[FS_PATH_MAX], text[1024], name[80];
    struct share best[OP_COUNT];
    double least = 1e30;
    if (!mkdtemp(dir)) exit(1);
    snprintf(text, sizeof text, config, dtype);
    if (fs_join(path, dir, "config.json", &e) || fs_write_file(path, text, strlen(text), &e))
        die(&e);
    struct model *m = model_open(dir, &mo, &e);
    const struct method *how = method_find(method, &e);
    if (!m || !how) die(&e);
    json_t *schema = settings_schema(how->properties, &e);
    json_t *settings = settings_fill(schema, NULL, &e);
    struct adaptation a = {.method = how, .model = m, .settings = settings, .seed = 1};
    struct graph g;
    struct graphs gs;
    graphs_init(&gs, m, x);
    if (!settings || method_begin(&a, &e)) die(&e);
    if (graph_make(&gs, &train, pool_threads(x->pool), &g, &e) || exec_bind(x, g.plan, &e)) die(&e);
    for (int i = 0; i < STEPS; i++) {
        struct share by_op[OP_COUNT] = {{0}};
        double now_top = peak(x); /* again: others may have been busy before */
        if (now_top > top) top = now_top;
        feed(x, &g, &e);
        double t = run(x, by_op, &e);
        if (t >= least) continue;
        least = t;
        memcpy(best, by_op, sizeof best);
    }
    snprintf(name, sizeof name, "step_%s_%s_t%d", method, dtype, pool_threads(x->pool));
    report(name, x, best, least, top);
    graph_clear(&g);
    graphs_clear(&gs);
    method_end(&a);
    model_free(m);
    json_decref(settings);
    json_decref(schema);
    fs_rmtree(dir, &e);
}

int main(int argc, char **argv)
{
    static const char *const methods[] = {"lora", "full"};
    struct err e = ERR_INIT;
    struct exec *x = exec_new_cpu(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0, &e);
    if (!x) die(&e);
    double top = peak(x);
    printf("# level %s, %d threads, FMA peak %.1f GFLOP/s\n", cpu_level_pick(&e)->name,
           pool_threads(x->pool), top);
    for (int i = 0; i < 2; i++)
        if (argc < 3 || !strcmp(argv[2], methods[i]))
            measure(x, methods[i], argc > 3 ? argv[3] : "float32", top);
    exec_free(x);
    return 0;
}
