/* Speed of the CPU kernels on one shape each, beside OpenBLAS on the same product (attention: two
 * OpenBLAS products per head around a softmax) or memcpy of the same bytes.
 * usage: bench_kernels [THREADS [NAME]]   both sides use THREADS (default: all) threads
 *
 * graft and its peer take turns and the best turn of each counts, because others may be using the
 * machine; for the same reason one thread is timed by its CPU seconds, several by the wall clock.
 * Caches are warm with what the previous turn left.
 */
#include "engine/base/clock.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/cpu/cpu.h"
#include "engine/op/mathx.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_MS = 400, LEAST_TURNS = 5, MOST_TURNS = 200 };

struct input {
    enum dtype dtype;
    int rank;
    int64_t shape[4];
    bool positive; /* values in [0,1), else N(0,1) */
};

struct bench {
    const char *name;
    int op;
    int nin;
    struct input in[NODE_IN];
    unsigned unwanted;   /* outputs */
    int n, m, k, layout; /* of the peer's product; layout 0: NT, 1: NN, 2: TN; n = 0: no product */
    double work;         /* FLOPs; 0: the bytes of cost() count, in GB/s */
    union {
        struct attrs_alpha alpha;
        struct attrs_attn attn;
        struct attrs_norm norm;
        struct attrs_dropout dropout;
        struct attrs_rope rope;
        struct attrs_adamw adamw;
        struct attrs_rows rows;
    } attrs;
};

#define F(r, ...) {DT_F32, r, {__VA_ARGS__}, false}
#define P(r, ...) {DT_F32, r, {__VA_ARGS__}, true}
#define H(r, ...) {DT_BF16, r, {__VA_ARGS__}, false}
#define IDX(r, ...) {DT_I32, r, {__VA_ARGS__}, false}
#define NT(name, n, m, k) \
    {name, OP_LINEAR, 2, {F(2, n, k), F(2, m, k)}, 0, n, m, k, 0, 2.0 * n * m * k, {{1}}}
#define NN(name, n, m, k) \
    {name, OP_LINEAR_DX, 2, {F(2, n, k), F(2, k, m)}, 0, n, m, k, 1, 2.0 * n * m * k, {{1}}}
#define TN(name, n, m, k) \
    {name, OP_LINEAR_DW, 2, {F(2, k, n), F(2, k, m)}, 0, n, m, k, 2, 2.0 * n * m * k, {{1}}}
/* Causal: half the square counts. */
#define ATT(name, b, t, h, g, d) \
    {name, OP_ATTN, 4, {F(4, b, t, h, d), F(4, b, t, g, d), F(4, b, t, g, d), IDX(3, b, t, 2)}, 0, \
     t, d, h * b, 3, 2.0 * b * t * t * h * d, {.attn = {0.125f}}}
#define ATB(name, b, t, h, g, d) \
    {name, OP_ATTN_BWD, 7, {F(4, b, t, h, d), F(4, b, t, h, d), F(4, b, t, g, d), \
     F(4, b, t, g, d), IDX(3, b, t, 2), F(4, b, t, h, d), P(3, b, t, h)}, 0, 0, 0, 0, 0, \
     5.0 * b * t * t * h * d, {.attn = {0.125f}}}

static const struct bench benches[] = {
    NT("linear_2048x768x768", 2048, 768, 768),
    NT("linear_2048x3072x768", 2048, 3072, 768),
    NT("linear_2048x768x3072", 2048, 768, 3072),
    NT("linear_256x256x256", 256, 256, 256),
    NT("linear_2048x16x768", 2048, 16, 768),
    NT("linear_2048x768x16", 2048, 768, 16),
    NT("linear_2048x8x768", 2048, 8, 768),
    NT("linear_1x3072x768", 1, 3072, 768),
    NT("linear_8x3072x768", 8, 3072, 768),
    NT("linear_32x3072x768", 32, 3072, 768),
    {"linear_bf16_2048x768x768", OP_LINEAR, 2, {F(2, 2048, 768), H(2, 768, 768)}, 0, 2048, 768, 768,
     0, 2.0 * 2048 * 768 * 768, {{1}}},
    {"linear_bf16_1x3072x768", OP_LINEAR, 2, {F(2, 1, 768), H(2, 3072, 768)}, 0, 1, 3072, 768,
     0, 2.0 * 3072 * 768, {{1}}},
    NN("linear_dx_2048x768x768", 2048, 768, 768),
    NN("linear_dx_2048x768x3072", 2048, 768, 3072),
    NN("linear_dx_2048x16x768", 2048, 16, 768),
    NN("linear_dx_2048x768x16", 2048, 768, 16),
    TN("linear_dw_768x768x2048", 768, 768, 2048),
    TN("linear_dw_16x768x2048", 16, 768, 2048),
    TN("linear_dw_768x16x2048", 768, 16, 2048),
    ATT("attn_8x256x12x64", 8, 256, 12, 12, 64),
    ATT("attn_2x1024x12x64", 2, 1024, 12, 12, 64),
    ATT("attn_2x1024x12/4x64", 2, 1024, 12, 4, 64),
    ATB("attn_bwd_8x256x12x64", 8, 256, 12, 12, 64),
    ATB("attn_bwd_2x1024x12x64", 2, 1024, 12, 12, 64),
    {"linear_ce_1024x8000x512", OP_LINEAR_CE, 4, {F(2, 1024, 512), F(2, 8000, 512), IDX(1, 1024),
     P(1, 1)}, 4, 1024, 8000, 512, 0, 4.0 * 1024 * 8000 * 512, {{1}}},
    {"linear_ce_dw_1024x8000x512", OP_LINEAR_CE, 4, {F(2, 1024, 512), F(2, 8000, 512), IDX(1, 1024),
     P(1, 1)}, 0, 1024, 8000, 512, 0, 6.0 * 1024 * 8000 * 512, {{1}}},
    {"rmsnorm", OP_RMSNORM, 2, {F(2, 2048, 768), F(1, 768)}, 0, 0, 0, 0, 0, 0, {.norm = {1e-5f}}},
    {"rmsnorm_dx", OP_RMSNORM_DX, 4, {F(2, 2048, 768), F(2, 2048, 768), F(1, 768), P(1, 2048)}, 0,
     0, 0, 0, 0, 0, {{0}}},
    {"rmsnorm_dw", OP_RMSNORM_DW, 3, {F(2, 2048, 768), F(2, 2048, 768), P(1, 2048)}, 0,
     0, 0, 0, 0, 0, {{0}}},
    {"rope", OP_ROPE, 3, {F(3, 2048, 12, 64), IDX(1, 2048), P(1, 32)}, 0, 0, 0, 0, 0, 0,
     {.rope = {1}}},
    {"swiglu", OP_SWIGLU, 2, {F(2, 2048, 2048), F(2, 2048, 2048)}, 0, 0, 0, 0, 0, 0, {{0}}},
    {"swiglu_bwd", OP_SWIGLU_BWD, 3, {F(2, 2048, 2048), F(2, 2048, 2048), F(2, 2048, 2048)}, 0,
     0, 0, 0, 0, 0, {{0}}},
    {"add", OP_ADD, 2, {F(2, 2048, 768), F(2, 2048, 768)}, 0, 0, 0, 0, 0, 0, {{0}}},
    {"dropout", OP_DROPOUT, 1, {F(2, 2048, 768)}, 0, 0, 0, 0, 0, 0, {.dropout = {0.1f, 3}}},
    {"embed", OP_EMBED, 2, {IDX(1, 2048), F(2, 2048, 768)}, 0, 0, 0, 0, 0, 0, {{0}}},
    {"embed_dw", OP_EMBED_DW, 2, {IDX(1, 2048), F(2, 2048, 768)}, 0, 0, 0, 0, 0, 0,
     {.rows = {4000}}},
    {"adamw", OP_ADAMW, 5, {F(1, 4000000), F(1, 4000000), F(1, 4000000), P(1, 4000000), P(1, 8)},
     0, 0, 0, 0, 0, 0, {.adamw = {0.9f, 0.999f, 1e-8f, 0}}},
    {"sumsq", OP_SUMSQ, 2, {F(1, 4000000), P(1, 1)}, 0, 0, 0, 0, 0, 0, {{0}}},
};

static int64_t now_ns(const struct exec *x)
{
    struct timespec t;
    if (pool_threads(x->pool) > 1) return clock_mono_ns();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const struct err *e)
{
    fprintf(stderr, "%s\n", e->msg);
    exit(1);
}

static void *fill(const struct bench *b, const struct input *in, int64_t count, int index)
{
    struct err e = ERR_INIT;
    float *p = mem_aligned((size_t)count * 4 + 64, 64, &e);
    if (!p) die(&e);
    if (in->positive) rng_fill_uniform(p, count, 0, 1, 1, RNG_USER, (uint32_t)index);
    else rng_fill_normal(p, count, 1, 1, RNG_USER, (uint32_t)index);
    for (int64_t i = 0; i < count; i++) {
        if (in->dtype == DT_BF16) ((uint16_t *)p)[i] = mx_to_bf16(p[i]);
        if (in->dtype != DT_I32) continue;
        bool range = b->op == OP_ATTN || b->op == OP_ATTN_BWD;
        /* Causal ranges; else any index. */
        ((int32_t *)p)[i] = (int32_t)(!range ? i * 7919 % 2048
                                             : i % 2 ? i / 2 % in->shape[1] + 1 : 0);
    }
    return p;
}

/* Attention as two products per head. */
static void peer_attn(const struct bench *b, const struct step *s, float *p)
{
    int T = b->n, D = b->m, heads = (int)s->tin[0]->shape[2], G = (int)s->tin[1]->shape[2];
    for (int i = 0; i < b->k; i++) {
        int64_t bt = (int64_t)(i / heads) * T, h = i % heads, g = h / (heads / G);
        const float *q = (const float *)s->in[0] + (bt * heads + h) * D;
        const float *k = (const float *)s->in[1] + (bt * G + g) * D;
        const float *v = (const float *)s->in[2] + (bt * G + g) * D;
        float *o = (float *)s->out[0] + (bt * heads + h) * D;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, T, T, D, 0.125f, q, heads * D, k,
                    G * D, 0, p, T);
        for (int t = 0; t < T; t++) {
            float *row = p + (int64_t)t * T, sum = 0;
            for (int j = 0; j <= t; j++) row[j] = mx_exp(row[j]);
            for (int j = 0; j <= t; j++) sum += row[j];
            for (int j = 0; j < T; j++) row[j] = j <= t ? row[j] / sum : 0;
        }
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, T, D, T, 1, p, T, v, G * D, 0, o,
                    heads * D);
    }
}

static void peer_run(const struct bench *b, const struct step *s, float *tmp, int64_t bytes)
{
    static const CBLAS_TRANSPOSE ta[] = {CblasNoTrans, CblasNoTrans, CblasTrans};
    static const CBLAS_TRANSPOSE tb[] = {CblasTrans, CblasNoTrans, CblasNoTrans};
    if (b->layout == 3) {
        peer_attn(b, s, tmp);
    } else if (b->n) {
        int lda = b->layout == 2 ? b->n : b->k, ldb = b->layout == 0 ? b->k : b->m;
        cblas_sgemm(CblasRowMajor, ta[b->layout], tb[b->layout], b->n, b->m, b->k, 1, s->in[0],
                    lda, s->in[1], ldb, 0, tmp, b->m);
    } else {
        memcpy(tmp, (char *)tmp + bytes / 2, (size_t)bytes / 2);
    }
}

static double peer_work(const struct bench *b, double work)
{
    return b->n && b->layout != 3 ? 2.0 * b->n * b->m * b->k : work;
}

static void measure(const struct bench *b, struct exec *x)
{
    struct err e = ERR_INIT;
    struct tensor in[NODE_IN], out[NODE_OUT] = {{.rank = 0}};
    const struct tensor *pin[NODE_IN] = {NULL}, *pout[NODE_OUT] = {NULL};
    struct step s = {.attrs = &b->attrs};
    struct op_cost cost = {0};
    for (int i = 0; i < b->nin; i++) {
        in[i] = (struct tensor){.dtype = b->in[i].dtype, .rank = b->in[i].rank, .count = 1};
        for (int k = 0; k < in[i].rank; k++) in[i].count *= in[i].shape[k] = b->in[i].shape[k];
        pin[i] = s.tin[i] = &in[i];
        s.in[i] = fill(b, &b->in[i], in[i].count, i);
    }
    if (op_table[b->op].shape(&b->attrs, pin, out, &e)) die(&e);
    for (int j = 0; j < op_table[b->op].nout; j++) {
        out[j].count = 1;
        for (int k = 0; k < out[j].rank; k++) out[j].count *= out[j].shape[k];
        bool state = j == 0 && op_table[b->op].flags & F_STATE;
        if (b->unwanted >> j & 1) continue;
        pout[j] = s.tout[j] = &out[j];
        s.out[j] = state ? (void *)s.in[op_table[b->op].inplace]
                         : mem_aligned((size_t)out[j].count * 4 + 64, 64, &e);
    }
    op_table[b->op].cost(&b->attrs, pin, pout, pool_threads(x->pool), &cost);
    s.ws_bytes = cost.ws_bytes;
    s.ws = mem_aligned((size_t)cost.ws_bytes + 256, 256, &e);
    double work = b->work > 0 ? b->work : (double)cost.bytes, graft = 1e30, peer = 1e30;
    int64_t tmp_bytes = b->layout == 3 ? 4 * (int64_t)b->n * b->n
                        : b->n ? 4 * (int64_t)b->n * b->m : cost.bytes;
    float *tmp = mem_aligned((size_t)tmp_bytes + 64, 64, &e);
    if (!tmp || !s.ws) die(&e);
    memset(tmp, 0, (size_t)tmp_bytes);
    int64_t start = clock_mono_ns();
    for (int turn = 0; turn < MOST_TURNS; turn++) {
        if (turn >= LEAST_TURNS && clock_mono_ns() - start > MOST_MS * 1000000LL) break;
        int64_t t0 = now_ns(x);
        if (x->table[b->op](&s, x, &e)) die(&e);
        int64_t t1 = now_ns(x);
        if (b->n || b->work == 0) peer_run(b, &s, tmp, tmp_bytes);
        int64_t t2 = now_ns(x);
        if ((double)(t1 - t0) < graft) graft = (double)(t1 - t0);
        if ((double)(t2 - t1) < peer) peer = (double)(t2 - t1);
    }
    double mine = work / graft, other = peer_work(b, work) / peer;
    if (!b->n && b->work > 0) other = 0;
    printf("bench %s graft=%.1f peer=%.1f ratio=%.2f unit=%s\n", b->name, mine, other,
           other > 0 ? mine / other : 0, b->work > 0 ? "GFLOP/s" : "GB/s");
    fflush(stdout);
    mem_free(tmp);
    mem_free(s.ws);
    for (int j = 0; j < op_table[b->op].nout; j++)
        if (s.out[j] && !(j == 0 && op_table[b->op].flags & F_STATE)) mem_free(s.out[j]);
    for (int i = 0; i < b->nin; i++) mem_free((void *)s.in[i]);
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0;
    struct exec *x = exec_new_cpu(threads, &e);
    if (!x) die(&e);
    openblas_set_num_threads(pool_threads(x->pool));
    printf("# level %s, %d threads, peer OpenBLAS %s\n", cpu_level_pick(&e)->name,
           pool_threads(x->pool), openblas_get_corename());
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        if (argc < 3 || strstr(benches[i].name, argv[2])) measure(&benches[i], x);
    exec_free(x);
    return 0;
}
