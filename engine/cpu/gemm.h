/* gemm.h: products of row-major matrices on the calling thread. Private to engine/cpu.
 *
 * Kernels cut their result into tiles, run the tiles as pool tasks, and call gemm_run for each.
 * Own micro-kernel at every instruction-set level (README.md says why not OpenBLAS).
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

/* ---- the parts, for kernels that keep packed blocks or products of few rows ---- */

#ifdef __AVX512F__
enum { GEMM_MR = 12, GEMM_NR = 2 * 16 };
#else
enum { GEMM_MR = 6, GEMM_NR = 2 * 8 };
#endif

/* A block b[k,m] is packed as panels of GEMM_NR columns, each row after row, padded with zero
 * columns. Floats from panel to panel; for L1's sake not a multiple of 4 KiB. */
static inline int64_t gemm_panel(int64_t k)
{
    return k * GEMM_NR + 16;
}

static inline int64_t gemm_panels(int64_t k, int64_t m) /* floats of all */
{
    return gemm_panel(k) * tiles(m, GEMM_NR);
}

void gemm_pack(const struct gemm_mat *b, int64_t k, int64_t m, float *to) LEVEL_NAME("gemm_pack");

/* Rows of a times panels of b. */
struct gemm_strip {
    int64_t kc, cols;
    const float *a;
    int64_t a_row, a_k;     /* element (i,k) of a is a[i * a_row + k * a_k] */
    const float *b;
    int64_t b_k, b_panel;   /* from row to row of a panel, and from panel to panel */
    float alpha;
    const float *bias, *add;
    int64_t ldadd;
    float *c;
    int64_t ldc;
    bool swapped;           /* c, add and bias belong to the transposed product */
};

/* n rows, any number. */
void gemm_strips(struct gemm_strip t, int64_t n) LEVEL_NAME("gemm_strips");

#endif
