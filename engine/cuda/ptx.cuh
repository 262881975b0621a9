/* ptx.cuh: the part of kernel.cuh that only nvcc understands. tests/cudaemu/emu.h is its twin: a
 * name added here is added there. */
#ifndef GRAFT_PTX_CUH
#define GRAFT_PTX_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define CU_KERNEL static __global__
#define CU_FN static __device__ __forceinline__
#define CU_UNROLL _Pragma("unroll")
#define CU_UNROLL4 _Pragma("unroll 4")
#define CU_ARRAY(type, name, dims) __shared__ __align__(16) type name dims
#define CU_SHARED(type, name)                                    \
    extern __shared__ __align__(128) unsigned char cu_dynamic[]; \
    type *name = (type *)cu_dynamic

/* More dynamic shared memory than this must be asked for. */
enum { CU_SHARED_FREE = 48 * 1024 };

template <typename... P>
static inline cudaError_t cu_launch_raw(cudaStream_t stream, void (*kernel)(P...), dim3 grid,
                                        dim3 block, size_t shared, P... args)
{
    cudaLaunchConfig_t c = {};
    cudaError_t rc = cudaSuccess;
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = shared;
    c.stream = stream;
    if (shared > CU_SHARED_FREE)
        rc = cudaFuncSetAttribute((const void *)kernel,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return rc ? rc : cudaLaunchKernelEx(&c, kernel, args...);
}

/* ---- 16-bit floats ---- */

CU_FN uint16_t cu_to_bf16(float v)
{
    uint16_t r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

CU_FN float cu_from_f16(uint16_t v)
{
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}

/* ---- tensor cores ----
 * d[4] += A[16,16] B[16,8] for a warp, bf16 in, f32 sums. Lane l = 4 g + q holds, as pairs (low
 * half first) of neighbours:
 *   a[0] = A[g][2q..]    a[1] = A[g+8][2q..]    a[2] = A[g][2q+8..]    a[3] = A[g+8][2q+8..]
 *   b[0] = B[2q..][g]    b[1] = B[2q+8..][g]
 *   d[0..1] = D[g][2q..]                        d[2..3] = D[g+8][2q..] */
CU_FN void cu_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 matrices of 16-bit elements out of shared memory: lane l names the 16 bytes of row
 * l % 8 of matrix l / 8; r[i] of lane 4 g + q becomes elements 2q, 2q+1 of row g of matrix i, and
 * with _t elements (2q, g) and (2q+1, g). row: aligned to 16. */
CU_FN void cu_ldmatrix4(uint32_t r[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

CU_FN void cu_ldmatrix4_t(uint32_t r[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

/* ---- copies in the background ----
 * 16 bytes from global to shared memory (both aligned to 16); with valid false, zeros, and `from`
 * is not read but must still be a global address. The bytes may be read after
 * cu_cp_async_commit(), cu_cp_async_wait<N>() (all but the last N commits of this thread are
 * done) and __syncthreads(). */
CU_FN void cu_cp_async16(void *shared, const void *from, bool valid)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared), bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(at), "l"(from), "r"(bytes) : "memory");
}

CU_FN void cu_cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> CU_FN void cu_cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

#endif
