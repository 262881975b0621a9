/* Speed of the CPU kernels on one shape each, beside OpenBLAS on the same product (attention: two
 * OpenBLAS products per head around a softmax, backward five) or memcpy of the same bytes.
 * usage: bench_kernels [NAME [THREADS]]   NAME: part of a name; both sides use THREADS threads (2)
 *
 * graft and its peer take turns. One thread is timed by its CPU seconds, several by the wall clock.
 * Each turn finds in the caches what the other one's left there.
 */
#include "engine/base/clock.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/cpu/cpu.h"
#include "engine/op/mathx.h"
#include "tests/bench/report.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { THREADS = 2, MOST_MS = 500, WARM = 3, LEAST_TURNS = 11 };

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
        struct attrs_alpha alpha; /* first: {1} is this, and the start of attrs_linear */
        struct attrs_linear linear;
        struct attrs_act act;
        struct attrs_slice slice;
        struct attrs_patches patches;
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
#define NONE {DT_F32, 0, {0}, false}
#define IDX(r, ...) {DT_I32, r, {__VA_ARGS__}, false}
#define NT(name, n, m, k) \
    {name, OP_LINEAR, 2, {F(2, n, k), F(2, m, k)}, 0, n, m, k, 0, 2.0 * n * m * k, {{1}}}
/* c += a b, as the second factor of an adapter is applied. */
#define ADD(name, n, m, k) \
    {name, OP_LINEAR, 4, {F(2, n, k), F(2, m, k), NONE, F(2, n, m)}, 0, n, m, k, 0, \
     2.0 * n * m * k, {{1}}}
#define NN(name, n, m, k) \
    {name, OP_LINEAR_DX, 2, {F(2, n, k), F(2, k, m)}, 0, n, m, k, 1, 2.0 * n * m * k, {{1}}}
#define TN(name, n, m, k) \
    {name, OP_LINEAR_DW, 2, {F(2, k, n), F(2, k, m)}, 0, n, m, k, 2, 2.0 * n * m * k, {{1}}}
#define ACT_BENCH(name, what) \
    {"act_" name, OP_ACT, 1, {F(2, 2048, 3072)}, 0, 0, 0, 0, 0, 0, {.act = {what}}}, \
    {"act_bwd_" name, OP_ACT_BWD, 2, {F(2, 2048, 3072), F(2, 2048, 3072)}, 0, 0, 0, 0, 0, 0, \
     {.act = {what}}}
/* Causal: half the square counts. */
#define ATT(name, b, t, h, g, d) \
    {name, OP_ATTN, 4, {F(4, b, t, h, d), F(4, b, t, g, d), F(4, b, t, g, d), IDX(3, b, t, 2)}, 0, \
     0, 0, 0, 0, 2.0 * b * t * t * h * d, {.attn = {0.125f}}}
#define ATB(name, b, t, h, g, d) \
    {name, OP_ATTN_BWD, 7, {F(4, b, t, h, d), F(4, b, t, h, d), F(4, b, t, g, d), \
     F(4, b, t, g, d), IDX(3, b, t, 2), F(4, b, t, h, d), P(3, b, t, h)}, 8, 0, 0, 0, 0, \
     5.0 * b * t * t * h * d, {.attn = {0.125f}}}

static const struct bench benches[] = {
    NT("linear_2048x768x768", 2048, 768, 768),
    NT("linear_2048x3072x768", 2048, 3072, 768),
    NT("linear_2048x768x3072", 2048, 768, 3072),
    NT("linear_2048x576x576", 2048, 576, 576),
    NT("linear_2048x1536x576", 2048, 1536, 576),
    NT("linear_2048x576x1536", 2048, 576, 1536),
    NT("linear_2048x192x576", 2048, 192, 576),
    NT("linear_256x256x256", 256, 256, 256),
    NT("linear_2048x16x768", 2048, 16, 768),
    NT("linear_2048x768x16", 2048, 768, 16),
    ADD("linear_add_2048x768x16", 2048, 768, 16),
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
    NN("linear_dx_2048x576x576", 2048, 576, 576),
    NN("linear_dx_2048x1536x576", 2048, 1536, 576),
    NN("linear_dx_2048x576x1536", 2048, 576, 1536),
    NN("linear_dx_2048x576x192", 2048, 576, 192),
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
    ATT("attn_4x512x9/3x64", 4, 512, 9, 3, 64),
    ATB("attn_bwd_4x512x9/3x64", 4, 512, 9, 3, 64),
    {"linear_ce_1024x8000x512", OP_LINEAR_CE, 4, {F(2, 1024, 512), F(2, 8000, 512), IDX(1, 1024),
     P(1, 1)}, 4, 1024, 8000, 512, 0, 4.0 * 1024 * 8000 * 512, {{1}}},
    {"linear_ce_dw_1024x8000x512", OP_LINEAR_CE, 4, {F(2, 1024, 512), F(2, 8000, 512), IDX(1, 1024),
     P(1, 1)}, 0, 1024, 8000, 512, 0, 6.0 * 1024 * 8000 * 512, {{1}}},
    {"linear_ce_512x49152x576", OP_LINEAR_CE, 4, {F(2, 512, 576), F(2, 49152, 576), IDX(1, 512),
     P(1, 1)}, 4, 512, 49152, 576, 0, 4.0 * 512 * 49152 * 576, {{1}}},
    {"rmsnorm", OP_RMSNORM, 2, {F(2, 2048, 768), F(1, 768)}, 0, 0, 0, 0, 0, 0, {.norm = {1e-5f}}},
    {"rmsnorm_dx", OP_RMSNORM_DX, 4, {F(2, 2048, 768), F(2, 2048, 768), F(1, 768), P(1, 2048)}, 0,
     0, 0, 0, 0, 0, {{0}}},
    {"rmsnorm_dw", OP_RMSNORM_DW, 3, {F(2, 2048, 768), F(2, 2048, 768), P(1, 2048)}, 0,
     0, 0, 0, 0, 0, {{0}}},
    {"layernorm", OP_LAYERNORM, 3, {F(2, 2048, 768), F(1, 768), F(1, 768)}, 0, 0, 0, 0, 0, 0,
     {.norm = {1e-5f}}},
    {"layernorm_dx", OP_LAYERNORM_DX, 5, {F(2, 2048, 768), F(2, 2048, 768), F(1, 768), P(1, 2048),
     P(1, 2048)}, 0, 0, 0, 0, 0, 0, {{0}}},
    {"layernorm_dw", OP_LAYERNORM_DW, 4, {F(2, 2048, 768), F(2, 2048, 768), P(1, 2048), P(1, 2048)},
     0, 0, 0, 0, 0, 0, {{0}}},
    {"colsum", OP_COLSUM, 1, {F(2, 2048, 768)}, 0, 0, 0, 0, 0, 0, {{0}}},
    ACT_BENCH("gelu", ACT_GELU),
    ACT_BENCH("gelu_tanh", ACT_GELU_TANH),
    ACT_BENCH("quick_gelu", ACT_QUICK_GELU),
    ACT_BENCH("relu", ACT_RELU),
    ACT_BENCH("silu", ACT_SILU),
    ACT_BENCH("tanh", ACT_TANH),
    {"slice", OP_SLICE, 1, {F(2, 2048, 2304)}, 0, 0, 0, 0, 0, 0, {.slice = {768, 768}}},
    {"slice_dx", OP_SLICE_DX, 1, {F(2, 2048, 768)}, 0, 0, 0, 0, 0, 0, {.slice = {768, 2304}}},
    {"patches", OP_PATCHES, 1, {F(4, 16, 3, 224, 224)}, 0, 0, 0, 0, 0, 0, {.patches = {16}}},
    {"prefix", OP_PREFIX, 2, {F(2, 1, 768), F(3, 16, 196, 768)}, 0, 0, 0, 0, 0, 0, {{0}}},
    {"prefix_dx", OP_PREFIX_DX, 1, {F(3, 16, 197, 768)}, 0, 0, 0, 0, 0, 0, {.rows = {1}}},
    {"prefix_dw", OP_PREFIX_DW, 1, {F(3, 16, 197, 768)}, 0, 0, 0, 0, 0, 0, {.rows = {1}}},
    {"ce", OP_CE, 3, {F(2, 2048, 1000), IDX(1, 2048), P(1, 1)}, 0, 0, 0, 0, 0, 0, {{0}}},
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
     0, 0, 0, 0, 0, 0, {.adamw = {0.1f, 0.999f, 1e-3f, 1e-8f, 0}}},
    {"sumsq", OP_SUMSQ, 2, {F(1, 4000000), P(1, 1)}, 0, 0, 0, 0, 0, 0, {{0}}},
};

static int64_t now_ns(const struct exec *x)
{
    struct timespec t;
    if (pool_threads(x->pool) > 1) return clock_mono_ns();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *fill(const struct bench *b, const struct input *in, int64_t count, int index)
{
    struct err e = ERR_INIT;
    float *p = mem_aligned((size_t)count * 4 + 64, 64, &e);
    if (!p) report_die(&e);
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

/* Attention with OpenBLAS: whole [T,T] matrices of one head after another. */
struct head {
    int T, D, ldq, ldk;
    const float *q, *k, *v, *dy, *lse;
    float *o, *dq, *dk, *dv;
};

struct mat {
    const float *p;
    int ld;
    bool t;
};

/* c[n,m] = alpha a b, n, m, k = dim. */
static void product(const int dim[3], float alpha, struct mat a, struct mat b, float *c, int ldc)
{
    cblas_sgemm(CblasRowMajor, a.t ? CblasTrans : CblasNoTrans, b.t ? CblasTrans : CblasNoTrans,
                dim[0], dim[1], dim[2], alpha, a.p, a.ld, b.p, b.ld, 0, c, ldc);
}

#define FAST __attribute__((target("avx2,fma"), optimize("O3")))

FAST static void softmax(float *p, int T)
{
    for (int t = 0; t < T; t++) {
        float *row = p + (int64_t)t * T, lane[16] = {0}, sum = 0;
        for (int j = 0; j < T; j++) row[j] = j <= t ? row[j] : -INFINITY;
        for (int j = 0; j < T; j++) row[j] = mx_exp(row[j]);
        for (int j = 0; j < T; j += 16)
            for (int i = 0; i < 16; i++) lane[i] += row[j + i];
        for (int i = 0; i < 16; i++) sum += lane[i];
        for (int j = 0; j < T; j++) row[j] /= sum;
    }
}

FAST static void softmax_bwd(float *p, float *ds, const struct head *h)
{
    for (int t = 0; t < h->T; t++) {
        float *row = p + (int64_t)t * h->T, *d = ds + (int64_t)t * h->T, delta = 0;
        float lse = h->lse[t * (h->ldq / h->D)];
        for (int i = 0; i < h->D; i++) delta += h->o[t * h->ldq + i] * h->dy[t * h->ldq + i];
        for (int j = 0; j < h->T; j++) row[j] = j <= t ? row[j] - lse : -INFINITY;
        for (int j = 0; j < h->T; j++) row[j] = mx_exp(row[j]);
        for (int j = 0; j < h->T; j++) d[j] = row[j] * (d[j] - delta) * 0.125f;
    }
}

static void peer_head(const struct head *h, float *p, float *ds)
{
    int T = h->T, scores[3] = {T, T, h->D}, rows[3] = {T, h->D, T};
    struct mat q = {h->q, h->ldq, false}, k = {h->k, h->ldk, false}, kt = {h->k, h->ldk, true};
    struct mat v = {h->v, h->ldk, false}, vt = {h->v, h->ldk, true}, dy = {h->dy, h->ldq, false};
    product(scores, 0.125f, q, kt, p, T);
    if (!h->dy) {
        softmax(p, T);
        product(rows, 1, (struct mat){p, T, false}, v, h->o, h->ldq);
        return;
    }
    product(scores, 1, dy, vt, ds, T);
    softmax_bwd(p, ds, h);
    product(rows, 1, (struct mat){p, T, true}, dy, h->dv, h->ldk);
    product(rows, 1, (struct mat){ds, T, true}, q, h->dk, h->ldk);
    product(rows, 1, (struct mat){ds, T, false}, k, h->dq, h->ldq);
}

static void peer_attn(const struct step *s, float *tmp, bool back)
{
    const int64_t *shape = s->tin[back]->shape;
    int B = (int)shape[0], T = (int)shape[1], H = (int)shape[2], D = (int)shape[3];
    int G = (int)s->tin[back + 1]->shape[2];
    for (int i = 0; i < B * H; i++) {
        int64_t row = (int64_t)(i / H) * T, q = (row * H + i % H) * D;
        int64_t k = (row * G + i % H / (H / G)) * D;
        struct head h = {T, D, H * D, G * D, (const float *)s->in[back] + q,
                         (const float *)s->in[back + 1] + k, (const float *)s->in[back + 2] + k,
                         .o = (float *)s->out[0] + q};
        if (back) {
            h.dy = (const float *)s->in[0] + q;
            h.o = (float *)s->in[5] + q;
            h.lse = (const float *)s->in[6] + row * H + i % H;
            h.dq = (float *)s->out[0] + q;
            h.dk = (float *)s->out[1] + k;
            h.dv = (float *)s->out[2] + k;
        }
        peer_head(&h, tmp, tmp + (int64_t)T * T);
    }
}

static void peer_run(const struct bench *b, const struct step *s, float *tmp, int64_t bytes)
{
    static const CBLAS_TRANSPOSE ta[] = {CblasNoTrans, CblasNoTrans, CblasTrans};
    static const CBLAS_TRANSPOSE tb[] = {CblasTrans, CblasNoTrans, CblasNoTrans};
    if (b->op == OP_ATTN || b->op == OP_ATTN_BWD) {
        peer_attn(s, tmp, b->op == OP_ATTN_BWD);
    } else if (b->n) {
        int lda = b->layout == 2 ? b->n : b->k, ldb = b->layout == 0 ? b->k : b->m;
        cblas_sgemm(CblasRowMajor, ta[b->layout], tb[b->layout], b->n, b->m, b->k, 1, s->in[0],
                    lda, s->in[1], ldb, s->in[3] ? 1 : 0, tmp, b->m);
    } else {
        memcpy(tmp, (char *)tmp + bytes / 2, (size_t)bytes / 2);
    }
}

/* State, and what a planner would let a product be added to. */
static bool in_place(const struct bench *b, int out)
{
    return out == 0 && (op_table[b->op].flags & F_STATE || (b->op == OP_LINEAR && b->nin == 4));
}

static void measure(const struct bench *b, struct exec *x)
{
    struct err e = ERR_INIT;
    struct tensor in[NODE_IN], out[NODE_OUT] = {{.rank = 0}};
    const struct tensor *pin[NODE_IN] = {NULL}, *pout[NODE_OUT] = {NULL};
    struct step s = {.attrs = &b->attrs};
    struct op_cost cost = {0};
    for (int i = 0; i < b->nin; i++) {
        if (!b->in[i].rank) continue;
        in[i] = (struct tensor){.dtype = b->in[i].dtype, .rank = b->in[i].rank, .count = 1};
        for (int k = 0; k < in[i].rank; k++) in[i].count *= in[i].shape[k] = b->in[i].shape[k];
        pin[i] = s.tin[i] = &in[i];
        s.in[i] = fill(b, &b->in[i], in[i].count, i);
    }
    if (op_table[b->op].shape(&b->attrs, pin, out, &e)) report_die(&e);
    for (int j = 0; j < op_table[b->op].nout; j++) {
        out[j].count = 1;
        for (int k = 0; k < out[j].rank; k++) out[j].count *= out[j].shape[k];
        if (b->unwanted >> j & 1) continue;
        pout[j] = s.tout[j] = &out[j];
        s.out[j] = in_place(b, j) ? (void *)s.in[op_table[b->op].inplace]
                                  : mem_aligned((size_t)out[j].count * 4 + 64, 64, &e);
    }
    op_table[b->op].cost(&b->attrs, pin, pout, pool_threads(x->pool), &cost);
    s.ws_bytes = cost.ws_bytes;
    s.ws = mem_aligned((size_t)cost.ws_bytes + 256, 256, &e);
    double work = b->work > 0 ? b->work : (double)cost.bytes;
    double of_peer = b->n ? 2.0 * b->n * b->m * b->k : work;
    int64_t T = in[0].shape[1], tmp_bytes = b->n ? 4 * (int64_t)b->n * b->m : cost.bytes;
    if (b->op == OP_ATTN || b->op == OP_ATTN_BWD) tmp_bytes = 8 * T * T;
    float *tmp = mem_aligned((size_t)tmp_bytes + 64, 64, &e);
    struct rounds r = {.n = 0};
    if (!tmp || !s.ws) report_die(&e);
    memset(tmp, 0, (size_t)tmp_bytes);
    int64_t start = clock_mono_ns();
    for (int i = -WARM; i < ROUNDS_MAX; i++) {
        if (i >= LEAST_TURNS && clock_mono_ns() - start > MOST_MS * 1000000LL) break;
        int64_t t0 = now_ns(x);
        if (x->device->table[b->op](&s, x, &e)) report_die(&e);
        int64_t t1 = now_ns(x);
        peer_run(b, &s, tmp, tmp_bytes);
        int64_t t2 = now_ns(x);
        if (i < 0) continue;
        r.graft[i] = (double)(t1 - t0) * 1e-9;
        r.peer[i] = (double)(t2 - t1) * 1e-9 * work / of_peer; /* as if for the same work */
        r.n = i + 1;
    }
    report_rounds(b->name, &r, work, 1e9, b->work > 0 ? "GFLOP" : "GB");
    mem_free(tmp);
    mem_free(s.ws);
    for (int j = 0; j < op_table[b->op].nout; j++)
        if (s.out[j] && !in_place(b, j)) mem_free(s.out[j]);
    for (int i = 0; i < b->nin; i++) mem_free((void *)s.in[i]);
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    int threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : THREADS;
    struct exec *x = exec_new_cpu(threads, &e);
    if (!x) report_die(&e);
    openblas_set_num_threads(threads);
    report_machine(threads);
    printf("# peer of products: OpenBLAS %s\n", openblas_get_corename());
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        if (argc < 2 || strstr(benches[i].name, argv[1])) measure(&benches[i], x);
    exec_free(x);
    return 0;
}
