/* gemm.h: products of row-major matrices on the calling thread. Private to engine/cpu.
 *
 * Kernels cut their result into tiles, run the tiles as pool tasks, and call gemm_run for each.
 * Own micro-kernel where the CPU has FMA, OpenBLAS elsewhere (gemm.c says why).
 * The bits of a result depend on the struct alone.
 */
#ifndef GRAFT_GEMM_H
#define GRAFT_GEMM_H

#include "engine/cpu/kernel.h"

enum { GEMM_SCRATCH = 1 << 18 }; /* floats: 1 MiB */

struct gemm_mat {
    const void *p;
    enum dtype dtype; /* a: DT_F32; b: DT_F32, DT_BF16 or DT_F16 */
    int64_t ld;       /* elements from row to row as stored */
    bool t;           /* use the transpose of what is stored */
};

/* c[n,m] = alpha a[n,k] b[k,m] + bias[m] + add[n,m]. Any of n, m, k may be 0. */
struct gemm {
    int64_t n, m, k;
    float alpha;
    struct gemm_mat a, b;
    const float *bias;  /* or NULL */
    const float *add;   /* or NULL; may be c itself: c += */
    int64_t ldadd;
    float *c;
    int64_t ldc;
    float *scratch;     /* GEMM_SCRATCH floats of the calling thread */
};

void gemm_run(const struct gemm *g) LEVEL_NAME("gemm_run");

#endif
