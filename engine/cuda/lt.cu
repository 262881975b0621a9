/* Products by cuBLASLt. It counts columns first, so its A is B here, its m is n, and so on: a
 * row-major matrix is its transpose as the library sees it. */
#include "engine/cuda/gemm.cuh"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef __FILE_NAME__
#define __FILE_NAME__ "lt.cu"
#endif

/* found: whether there is a library; one that lacks a function is none of ours. */
static int load(struct lt_library *f, bool *found, struct err *e)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    void *lib = NULL;
    for (int i = 0; i < 2 && !lib; i++) lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    *found = lib != NULL;
    if (!lib) return 0;
#define X(name, args)                                    \
    f->name = (int(*) args)dlsym(lib, "cublasLt" #name); \
    if (!f->name) return err_set(e, E_DEVICE, "the cuBLASLt found here lacks cublasLt%s", #name);
    LT_FUNCTIONS(X)
#undef X
    return 0;
}

int lt_open(struct exec *x, struct err *e)
{
    struct lt_state *l = &state_of(x)->lt;
    const char *use = getenv("GRAFT_CUDA_LT");
    bool found;
    cudaError_t rc;
    if (use && strcmp(use, "0") == 0) return 0;
    if (load(&l->f, &found, e)) return -1;
    if (!found && use && strcmp(use, "1") == 0)
        return err_set(e, E_DEVICE, "GRAFT_CUDA_LT is 1, but there is no libcublasLt.so.13 or .12");
    if (!found) return 0;
    if (l->f.Create(&l->handle)) {
        l->handle = NULL;
        return err_set(e, E_DEVICE, "cuBLASLt cannot be started on this GPU");
    }
    rc = cudaMalloc(&l->workspace, LT_WORKSPACE);
    if (rc == cudaSuccess) return 0;
    return err_set(e, E_DEVMEM, "the workspace of cuBLASLt: %s", cudaGetErrorString(rc));
}

static void clear(struct lt_state *l, struct lt_plan *p)
{
    if (p->desc) l->f.MatmulDescDestroy(p->desc);
    if (p->a) l->f.MatrixLayoutDestroy(p->a);
    if (p->b) l->f.MatrixLayoutDestroy(p->b);
    if (p->c) l->f.MatrixLayoutDestroy(p->c);
    memset(p, 0, sizeof *p);
}

void lt_close(struct exec *x)
{
    struct lt_state *l = &state_of(x)->lt;
    if (!l->handle) return;
    for (int i = 0; i < LT_PLANS; i++) clear(l, &l->plans[i]);
    l->f.Destroy(l->handle);
    cudaFree(l->workspace);
    memset(l, 0, sizeof *l);
}

/* ---- plans ---- */

static int alignment(const void *p)
{
    int n = 256;
    while (n > 1 && (uintptr_t)p % (uintptr_t)n) n /= 2;
    return n;
}

static struct lt_key key_of(const struct cu_gemm *g)
{
    struct lt_key k;
    const void *c = g->add ? g->add : g->c;
    memset(&k, 0, sizeof k); /* padding counts in the hash */
    k.m = g->m, k.n = g->n, k.k = g->k;
    k.lda = g->lda, k.ldb = g->ldb, k.ldc = g->ldc;
    k.ta = g->t == DT_F32 ? LT_R_32F : LT_R_16BF;
    k.tc = g->tc == DT_F32 ? LT_R_32F : LT_R_16BF;
    k.at = g->at, k.bt = g->bt;
    k.bias = g->bias != NULL;
    k.beta = g->accum || g->add;
    k.align[0] = alignment(g->b);
    k.align[1] = alignment(g->a);
    k.align[2] = alignment(c);
    k.align[3] = alignment(g->c);
    return k;
}

static uint64_t hash_of(const struct lt_key *k)
{
    const unsigned char *p = (const unsigned char *)k;
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < sizeof *k; i++) h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}

static int describe(struct lt_state *l, struct lt_plan *p)
{
    const struct lt_key *k = &p->key;
    const int32_t first = k->bt ? LT_OP_T : LT_OP_N, second = k->at ? LT_OP_T : LT_OP_N;
    const uint32_t epilogue = LT_EPILOGUE_BIAS;
    const struct lt_library *f = &l->f;
    return f->MatmulDescCreate(&p->desc, LT_COMPUTE_32F, LT_R_32F) ||
           f->MatmulDescSetAttribute(p->desc, LT_DESC_TRANSA, &first, sizeof first) ||
           f->MatmulDescSetAttribute(p->desc, LT_DESC_TRANSB, &second, sizeof second) ||
           (k->bias &&
            f->MatmulDescSetAttribute(p->desc, LT_DESC_EPILOGUE, &epilogue, sizeof epilogue)) ||
           f->MatrixLayoutCreate(&p->a, k->ta, k->bt ? k->k : k->n, k->bt ? k->n : k->k, k->ldb) ||
           f->MatrixLayoutCreate(&p->b, k->ta, k->at ? k->m : k->k, k->at ? k->k : k->m, k->lda) ||
           f->MatrixLayoutCreate(&p->c, k->tc, k->n, k->m, k->ldc);
}

static int choose(struct lt_state *l, struct lt_plan *p)
{
    static const int names[4] = {LT_PREF_ALIGN_A, LT_PREF_ALIGN_B, LT_PREF_ALIGN_C,
                                 LT_PREF_ALIGN_D};
    const uint64_t workspace = LT_WORKSPACE;
    struct lt_result r;
    void *pref = NULL;
    int got = 0;
    memset(&r, 0, sizeof r);
    if (l->f.MatmulPreferenceCreate(&pref)) return -1;
    int rc = l->f.MatmulPreferenceSetAttribute(pref, LT_PREF_WORKSPACE, &workspace,
                                               sizeof workspace);
    for (int i = 0; i < 4 && !rc; i++) {
        const uint32_t bytes = (uint32_t)p->key.align[i];
        rc = l->f.MatmulPreferenceSetAttribute(pref, names[i], &bytes, sizeof bytes);
    }
    /* A refusal here means that there is no algorithm: the product is done without the library. */
    if (!rc && l->f.MatmulAlgoGetHeuristic(l->handle, p->desc, p->a, p->b, p->c, p->c, pref, 1,
                                           &r, &got))
        got = 0;
    p->none = got < 1 || r.state != 0;
    p->algo = r.algo;
    l->f.MatmulPreferenceDestroy(pref);
    return rc ? -1 : 0;
}

/* The plan of a product, made the first time. NULL: the library failed. */
static struct lt_plan *find(struct lt_state *l, const struct cu_gemm *g)
{
    struct lt_key k = key_of(g);
    uint64_t hash = hash_of(&k);
    struct lt_plan *p = &l->plans[0];
    for (int i = 0; i < LT_PLANS; i++) {
        struct lt_plan *q = &l->plans[i];
        if (q->used && q->hash == hash && memcmp(&q->key, &k, sizeof k) == 0) {
            q->used = ++l->clock;
            return q;
        }
        if (q->used < p->used) p = q;
    }
    clear(l, p);
    p->key = k;
    p->hash = hash;
    if (describe(l, p) || choose(l, p)) {
        clear(l, p);
        return NULL;
    }
    p->used = ++l->clock;
    return p;
}

int lt_gemm(struct exec *x, const struct cu_gemm *g, struct err *e)
{
    struct lt_state *l = &state_of(x)->lt;
    const float beta = g->accum || g->add ? 1.0f : 0.0f;
    const void *c = g->add ? g->add : g->c;
    if (!l->handle || (g->accum && g->add)) return 1;
    struct lt_plan *p = find(l, g);
    if (!p) return err_set(e, E_DEVICE, "cuBLASLt refuses to describe a product");
    if (p->none) return 1;
    int rc = 0;
    if (g->bias)
        rc = l->f.MatmulDescSetAttribute(p->desc, LT_DESC_BIAS_POINTER, &g->bias, sizeof g->bias);
    if (!rc)
        rc = l->f.Matmul(l->handle, p->desc, &g->alpha, g->b, p->a, g->a, p->b, &beta, c, p->c,
                         g->c, p->c, &p->algo, l->workspace, LT_WORKSPACE, cu_stream(x));
    if (!rc) return 0;
    return err_set(e, E_DEVICE, "cuBLASLt failed with status %d on a product of %lld x %lld x %lld",
                   rc, (long long)g->m, (long long)g->n, (long long)g->k);
}
