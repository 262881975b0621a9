/* kernel.cuh: what all CUDA kernels share. Private to engine/cuda.
 *
 * C++17 without STL, exceptions or classes; templates over element types only. Each file is
 * compiled by nvcc into libgraft_cuda.so, and by g++ with CUDA_EMU defined and
 * tests/cudaemu/emu.h included first, which runs the same source on the host. So whatever is not
 * C++ of both compilers stands in ptx.cuh and has a twin in emu.h.
 *
 * Invariants of all kernels:
 *  - grid, block and the order of every reduction follow from shapes alone; no float atomics: the
 *    same bytes in every run.
 *  - any shape: ragged, empty, more than 2^31 elements (64-bit indices).
 *  - a kernel reads no step scalar from its arguments (cu_scalars), because launches are captured
 *    once and replayed.
 *  - files that call mathx.h are compiled without contraction (mk/cuda.mk): F_EXACT operations
 *    give the bits of the CPU.
 *  - launches are not checked one by one: cu_launch keeps the first failure, exec.h reports it.
 */
#ifndef GRAFT_KERNEL_CUH
#define GRAFT_KERNEL_CUH

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define _Alignas alignas
extern "C" {
#include "engine/op/op.h"
}
#undef _Alignas
#include "engine/op/mathx.h"

/* CU_KERNEL void k(...)            a kernel; may follow `template <...>`
 * CU_FN float f(...)               a function for kernels
 * CU_SHARED(type, name);           the dynamic shared memory of the launch, as type *name
 * CU_ARRAY(type, name, [A][B]);    a static shared array: type name[A][B]. It holds garbage at the
 *                                  start of each block. (`__shared__ type name[A][B];` works too,
 *                                  but then the emulation cannot tell garbage from old values.)
 * CU_LAUNCH(x, kernel, grid, block, shared_bytes, ...);   on the stream of exec x; a grid with a
 *                                  zero is no launch. (kernel<T>) in parentheses.
 * CU_UNROLL            before a loop whose copies index an array of registers; CU_UNROLL4: four
 *                      at a time, where more only make the compiler slow
 * cu_mma_bf16, cu_ldmatrix4, cu_ldmatrix4_t, cu_cp_async16, ...: see ptx.cuh. */
#ifndef CUDA_EMU
#include "engine/cuda/ptx.cuh"
#endif

#define CU_LAUNCH(x, kernel, grid, block, shared, ...) \
    cu_launch(x, #kernel, kernel, grid, block, shared, __VA_ARGS__)

/* What changes from step to step, in device memory. */
struct cu_scalars {
    uint64_t seed;
    uint32_t rng_step;
};

extern "C" {
cudaStream_t cu_stream(const struct exec *x);
const struct cu_scalars *cu_scalars(const struct exec *x); /* a device address */
/* A device word that a kernel sets to 1 when it meets an index from the data that is out of bounds
 * (and leaves the row out). exec.h reports it when the phase has ended. */
int32_t *cu_fault(const struct exec *x);
/* Keeps the first failure of exec x; `what` names the call. */
void cu_note(struct exec *x, const char *what, cudaError_t rc);

#define OP(ID, name, attrs, least, most, outs, inplace, flags) \
    int cuda_##name(const struct step *s, struct exec *x, struct err *e) __attribute__((weak));
#include "engine/op/ops.def"
#undef OP
}

template <typename... P, typename... A>
static inline void cu_launch(struct exec *x, const char *name, void (*kernel)(P...), dim3 grid,
                             dim3 block, size_t shared, A... args)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    cu_note(x, name, cu_launch_raw(cu_stream(x), kernel, grid, block, shared, P(args)...));
}

/* ---- element types ----
 * In memory float, bf16 or f16; in registers float. */

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

CU_FN float cu_float(float v) { return v; }
CU_FN float cu_float(struct bf16 v) { return mx_from_bf16(v.bits); }
CU_FN float cu_float(struct f16 v) { return cu_from_f16(v.bits); }

CU_FN void cu_set(float *p, float v) { *p = v; }
CU_FN void cu_set(struct bf16 *p, float v) { p->bits = cu_to_bf16(v); }

/* Nearest, ties to even. */
template <typename T> CU_FN T cu_to(float v)
{
    T r;
    cu_set(&r, v);
    return r;
}

/* Four at once. p is aligned to four elements. */
CU_FN void cu_load4(const float *p, float v[4])
{
    float4 q = *(const float4 *)p;
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
}

CU_FN void cu_load4(const struct bf16 *p, float v[4])
{
    uint2 q = *(const uint2 *)p;
    v[0] = mx_float(q.x << 16), v[1] = mx_float(q.x & 0xffff0000u);
    v[2] = mx_float(q.y << 16), v[3] = mx_float(q.y & 0xffff0000u);
}

CU_FN void cu_load4(const struct f16 *p, float v[4])
{
    uint2 q = *(const uint2 *)p;
    v[0] = cu_from_f16((uint16_t)q.x), v[1] = cu_from_f16((uint16_t)(q.x >> 16));
    v[2] = cu_from_f16((uint16_t)q.y), v[3] = cu_from_f16((uint16_t)(q.y >> 16));
}

CU_FN void cu_store4(float *p, const float v[4])
{
    *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
}

CU_FN uint32_t cu_pack_bf16(float lo, float hi)
{
    return cu_to_bf16(lo) | (uint32_t)cu_to_bf16(hi) << 16;
}

CU_FN void cu_store4(struct bf16 *p, const float v[4])
{
    *(uint2 *)p = make_uint2(cu_pack_bf16(v[0], v[1]), cu_pack_bf16(v[2], v[3]));
}

/* The body once per element type, with T naming it. `any` inputs: CU_ANY; compute tensors
 * (f32 or bf16): CU_COMPUTE. Braces around the body. */
#define CU_COMPUTE(type, T, ...)                             \
    do {                                                     \
        if ((type) == DT_BF16) { typedef struct bf16 T; __VA_ARGS__; } \
        else { typedef float T; __VA_ARGS__; }               \
    } while (0)
#define CU_ANY(type, T, ...)                                 \
    do {                                                     \
        if ((type) == DT_BF16) { typedef struct bf16 T; __VA_ARGS__; } \
        else if ((type) == DT_F16) { typedef struct f16 T; __VA_ARGS__; } \
        else { typedef float T; __VA_ARGS__; }               \
    } while (0)

/* ---- reductions ----
 * In a fixed order: butterflies over 32 lanes, then the warps in order. All threads get the
 * result and all must call. block: blockDim.x, a multiple of 32, at most 1024. */

CU_FN float cu_warp_sum(float v)
{
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}

CU_FN float cu_warp_max(float v)
{
    for (int i = 16; i > 0; i >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, i));
    return v;
}

CU_FN float cu_block_sum(float v)
{
    CU_ARRAY(float, part, [32]);
    unsigned warps = blockDim.x / 32;
    float sum = 0;
    v = cu_warp_sum(v);
    __syncthreads(); /* the last call's readers are done */
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    for (unsigned i = 0; i < warps; i++) sum += part[i];
    return sum;
}

CU_FN float cu_block_max(float v)
{
    CU_ARRAY(float, part, [32]);
    unsigned warps = blockDim.x / 32;
    v = cu_warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    for (unsigned i = 0; i < warps; i++) v = fmaxf(v, part[i]);
    return v;
}

/* ---- shapes ---- */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }
static inline int64_t width(const struct tensor *t) { return t->shape[t->rank - 1]; }
static inline int64_t rows(const struct tensor *t) { return width(t) ? t->count / width(t) : 0; }
static inline bool accumulates(const struct step *s, int out) { return s->accum >> out & 1; }

/* Element-wise kernels: CU_THREADS threads per block, a block takes CU_PIECE elements; with more
 * pieces than blocks a block goes round (CU_EACH). */
enum { CU_THREADS = 256, CU_PIECE = 1024, CU_BLOCKS = 1 << 20 };

static inline unsigned cu_blocks(int64_t n, int64_t piece)
{
    return (unsigned)min64(tiles(n, piece), CU_BLOCKS);
}

/* for (i over this thread's share of [0,n)), neighbours in neighbouring threads. */
#define CU_EACH(i, n)                                                             \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);     \
         i += (int64_t)gridDim.x * blockDim.x)

/* ---- products ---- */

/* C[m,n] = alpha op(A) op(B) (+ C) (+ bias) (+ add), row-major. op(A) is [m,k]: stored as [m,k],
 * or with at as [k,m]; op(B) is [k,n]: stored as [k,n], or with bt as [n,k]. lda, ldb, ldc:
 * elements from row to row of what is stored. Sums in f32. Goes to cuBLASLt where that was found
 * and knows how, else to the kernels of gemm.cu. k = 0 gives bias + add. */
struct cu_gemm {
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    enum dtype t;              /* of A and B: f32, or bf16 on tensor cores */
    enum dtype tc;             /* of C: t, or f32 */
    bool at, bt;
    int64_t lda, ldb, ldc;     /* 0: dense */
    float alpha;
    bool accum;                /* C += */
    const void *bias;          /* [n] of type tc, or NULL */
    const void *add;           /* [m,n] of type tc with row stride ldc, may be C itself; or NULL */
};

extern "C" int cu_gemm(struct exec *x, const struct cu_gemm *g, struct err *e);

#endif
