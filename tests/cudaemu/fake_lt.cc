// libcublasLt.so.13 for the emulation: the functions that engine/cuda/lt.cuh declares, column by
// column as NVIDIA documents them, so that the real loader, descriptors and epilogues run.
#include "emu.h"

#include <vector>

struct desc { int transa, transb, epilogue; const void *bias; };
struct layout { int type; int64_t rows, cols, ld; };

enum { R_32F = 0, R_16BF = 14, EPILOGUE_BIAS = 4 };

static float get(const void *p, int type, int64_t i)
{
    return type == R_32F ? ((const float *)p)[i] : mx_from_bf16(((const uint16_t *)p)[i]);
}

static void set(void *p, int type, int64_t i, float v)
{
    if (type == R_32F) ((float *)p)[i] = v;
    else ((uint16_t *)p)[i] = mx_to_bf16(v);
}

#pragma GCC visibility push(default)
extern "C" {

int cublasLtCreate(void **h) { *h = new int; return 0; }
int cublasLtDestroy(void *h) { delete (int *)h; return 0; }

int cublasLtMatmulDescCreate(void **d, int compute, int scale)
{
    if (compute != 68 || scale != R_32F) return 7;
    *d = new desc();
    return 0;
}

int cublasLtMatmulDescDestroy(void *d) { delete (desc *)d; return 0; }

int cublasLtMatmulDescSetAttribute(void *d, int what, const void *v, size_t bytes)
{
    desc *p = (desc *)d;
    switch (what) {
    case 3: memcpy(&p->transa, v, bytes); return bytes != 4;
    case 4: memcpy(&p->transb, v, bytes); return bytes != 4;
    case 7: memcpy(&p->epilogue, v, bytes); return bytes != 4;
    case 8: memcpy(&p->bias, v, bytes); return bytes != 8;
    }
    return 7;
}

int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    if (ld < (int64_t)rows) return 7;
    *l = new layout{type, (int64_t)rows, (int64_t)cols, ld};
    return 0;
}

int cublasLtMatrixLayoutDestroy(void *l) { delete (layout *)l; return 0; }

int cublasLtMatmulPreferenceCreate(void **p) { *p = new uint64_t[8](); return 0; }
int cublasLtMatmulPreferenceDestroy(void *p) { delete[](uint64_t *)p; return 0; }

int cublasLtMatmulPreferenceSetAttribute(void *p, int what, const void *v, size_t bytes)
{
    uint32_t alignment = 256;
    (void)p;
    if (what == 1) return bytes != 8;
    if (what < 5 || what > 8 || bytes != 4) return 7;
    memcpy(&alignment, v, 4);
    return alignment < 1 || alignment > 256;
}

struct algo { uint64_t data[8]; };
struct result { struct algo algo; size_t workspace; int state; float waves; int reserved[4]; };

// Like the real one it has no algorithm for everything: here, for a single row.
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *d, void *,
                                   int asked, struct result *r, int *got)
{
    *got = ((layout *)d)->cols == 1 ? 0 : asked;
    r->state = 0;
    r->algo.data[0] = 0x6c74;
    return *got ? 0 : 15;
}

struct call {
    desc e;
    layout a, b, c;
    float alpha, beta;
    const void *pa, *pb, *pc;
    void *pd;
};

static void multiply(const call &g)
{
    int64_t m = g.c.rows, n = g.c.cols, k = g.e.transa ? g.a.rows : g.a.cols;
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum = fmaf(get(g.pa, g.a.type, g.e.transa ? i * g.a.ld + p : p * g.a.ld + i),
                           get(g.pb, g.b.type, g.e.transb ? p * g.b.ld + j : j * g.b.ld + p), sum);
            int64_t at = j * g.c.ld + i;
            float y = g.alpha * sum;
            if (g.beta != 0) y += g.beta * get(g.pc, g.c.type, at);
            if (g.e.epilogue == EPILOGUE_BIAS) y += get(g.e.bias, g.c.type, i);
            set(g.pd, g.c.type, at, y);
        }
}

int cublasLtMatmul(void *, void *d, const void *alpha, const void *a, void *la, const void *b,
                   void *lb, const void *beta, const void *c, void *lc, void *out, void *ld,
                   const struct algo *use, void *workspace, size_t bytes, cudaStream_t stream)
{
    call g = {*(desc *)d, *(layout *)la, *(layout *)lb, *(layout *)ld, 0, 0, a, b, c, out};
    int64_t k = g.e.transa ? g.a.rows : g.a.cols, kb = g.e.transb ? g.b.cols : g.b.rows;
    memcpy(&g.alpha, alpha, 4);
    memcpy(&g.beta, beta, 4);
    if (lc != ld || k != kb || use->data[0] != 0x6c74 || !workspace || bytes != 32u << 20) return 7;
    if ((g.e.transa ? g.a.cols : g.a.rows) != g.c.rows) return 7;
    if ((g.e.transb ? g.b.rows : g.b.cols) != g.c.cols) return 7;
    emu_issue(stream, [=] { multiply(g); });
    return 0;
}
}
