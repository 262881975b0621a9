/* lt.cuh: the few functions and numbers of cuBLASLt that lt.cu uses, declared here because the
 * library is found at run time and its header need not be installed. Where it is, the numbers are
 * compared with it (lt_check.cu).
 */
#ifndef GRAFT_LT_CUH
#define GRAFT_LT_CUH

#include "engine/cuda/kernel.cuh"

enum lt_numbers {
    LT_R_32F = 0,
    LT_R_16BF = 14,
    LT_COMPUTE_32F = 68,
    LT_OP_N = 0,
    LT_OP_T = 1,
    LT_DESC_TRANSA = 3,
    LT_DESC_TRANSB = 4,
    LT_DESC_EPILOGUE = 7,
    LT_DESC_BIAS_POINTER = 8,
    LT_EPILOGUE_BIAS = 4,
    LT_PREF_WORKSPACE = 1,
    LT_PREF_ALIGN_A = 5,
    LT_PREF_ALIGN_B = 6,
    LT_PREF_ALIGN_C = 7,
    LT_PREF_ALIGN_D = 8
};

struct lt_algo { uint64_t data[8]; };
struct lt_result {
    struct lt_algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

/* X(name without the library's prefix, arguments): all return 0 if done. The library's handles,
 * descriptors, layouts and preferences are opaque. */
#define LT_FUNCTIONS(X)                                                                           \
    X(Create, (void **handle))                                                                    \
    X(Destroy, (void *handle))                                                                    \
    X(MatmulDescCreate, (void **desc, int compute, int scale))                                    \
    X(MatmulDescDestroy, (void *desc))                                                            \
    X(MatmulDescSetAttribute, (void *desc, int, const void *, size_t))                            \
    X(MatrixLayoutCreate, (void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld))    \
    X(MatrixLayoutDestroy, (void *layout))                                                        \
    X(MatmulPreferenceCreate, (void **pref))                                                      \
    X(MatmulPreferenceDestroy, (void *pref))                                                      \
    X(MatmulPreferenceSetAttribute, (void *pref, int, const void *, size_t))                      \
    X(MatmulAlgoGetHeuristic, (void *handle, void *desc, void *a, void *b, void *c, void *d,      \
                               void *pref, int asked, struct lt_result *, int *got))              \
    X(Matmul, (void *handle, void *desc, const void *alpha, const void *a, void *layout_a,        \
               const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,    \
               void *d, void *layout_d, const struct lt_algo *, void *workspace, size_t,          \
               cudaStream_t))

struct lt_library {
#define X(name, args) int(*name) args;
    LT_FUNCTIONS(X)
#undef X
};

/* A product up to its addresses. */
struct lt_key {
    int64_t m, n, k, lda, ldb, ldc;
    int ta, tc, at, bt, bias, beta;
    int align[4]; /* of A, B, C, D in bytes, at most 256 */
};

struct lt_plan {
    struct lt_key key;
    uint64_t hash, used; /* used 0: a free place */
    void *desc;
    void *a, *b, *c;   /* of the library's A and B (which are B and A here), C and D */
    struct lt_algo algo;
    bool none;           /* the library has no algorithm for it */
};

enum {
    LT_PLANS = 512,             /* shapes kept; the longest unused makes room */
    LT_WORKSPACE = 32 << 20     /* what NVIDIA recommends for Hopper */
};

struct lt_state {
    struct lt_library f;
    void *handle;    /* NULL: not found */
    void *workspace;  /* on the device */
    uint64_t clock;
    struct lt_plan plans[LT_PLANS];
};

#endif
