/* emu.h: CUDA on one host thread, as far as engine/cuda uses it.
 *
 * Included before anything else when g++ compiles a .cu file (mk/cuda.mk). A kernel's blocks run
 * one after the other; the threads of a block are fibres that run until they wait (barrier,
 * shuffle, end). Blocks and runnable threads are picked at random from emu_seed(), so a result
 * that depends on the order differs between seeds. Also caught, by ending the program with a
 * message: barriers and warp operations that not all threads reach; launches that a GPU refuses;
 * reads of asynchronous copies before they were waited for (they give NaN); shared memory used
 * before it is written (NaN) or past its end, device memory outside of an allocation
 * (AddressSanitizer); device memory touched by the host (it is mapped only while a kernel or a
 * copy runs). Launches on a capturing stream are recorded with their arguments and replayed.
 *
 * It proves indices, logic and order; not speed, and not the memory model between blocks.
 */
#ifndef GRAFT_EMU_H
#define GRAFT_EMU_H

#include "engine/op/mathx.h"

#include <functional>

/* ---- the language ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __shared__ static
#define CU_KERNEL static
#define CU_FN static inline __attribute__((unused))
#define CU_UNROLL
#define CU_UNROLL4
#define CU_ARRAY(type, name, dims)                                             \
    static char name##_site;                                                   \
    type(&name) dims = *(type(*) dims)emu_shared(&name##_site, sizeof(type dims))
#define CU_SHARED(type, name) type *name = (type *)emu_dynamic()

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint3 { unsigned x, y, z; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

struct emu_now {
    struct uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern struct emu_now emu_now;
#define threadIdx (emu_now.thread)
#define blockIdx (emu_now.block)
#define blockDim (emu_now.block_dim)
#define gridDim (emu_now.grid_dim)
#define warpSize 32

/* ---- inside kernels (emu.cc) ---- */

enum { EMU_LANE_BYTES = 64 };
typedef unsigned char emu_lanes[32][EMU_LANE_BYTES];

void *emu_shared(const void *site, size_t bytes);
void *emu_dynamic(void);
void emu_barrier(const char *file, int line);
/* Waits until every lane in mask has called from the same line; returns what each has brought. */
const emu_lanes *emu_gather(unsigned mask, const void *mine, size_t bytes, int line);
unsigned emu_lane(void);
void emu_async_copy(void *to, const void *from, bool valid);
void emu_async_commit(void);
void emu_async_wait(int pending);

#define __syncthreads() emu_barrier(__FILE__, __LINE__)
#define __syncwarp(...) ((void)emu_gather(0xffffffffu, "", 1, __LINE__))
#define __threadfence() ((void)0)

template <typename T> static inline T emu_shuffle(unsigned mask, T v, unsigned from, int line)
{
    T r;
    static_assert(sizeof v <= EMU_LANE_BYTES, "");
    const emu_lanes *all = emu_gather(mask, &v, sizeof v, line);
    memcpy(&r, (*all)[from & 31], sizeof r);
    return r;
}

static inline unsigned emu_ballot(unsigned mask, bool set, int line)
{
    unsigned bits = 0;
    unsigned char one = set;
    const emu_lanes *all = emu_gather(mask, &one, 1, line);
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && (*all)[i][0]) bits |= 1u << i;
    return bits;
}

/* A source lane past the warp's end gives the own value, as on the device. */
#define __shfl_sync(mask, v, lane) emu_shuffle(mask, v, (unsigned)(lane), __LINE__)
#define __shfl_xor_sync(mask, v, bits) \
    emu_shuffle(mask, v, emu_lane() ^ (unsigned)(bits), __LINE__)
#define __shfl_down_sync(mask, v, by)                                                     \
    emu_shuffle(mask, v, emu_lane() + (by) < 32 ? emu_lane() + (unsigned)(by) : emu_lane(), \
                __LINE__)
#define __shfl_up_sync(mask, v, by)                                                         \
    emu_shuffle(mask, v, emu_lane() >= (unsigned)(by) ? emu_lane() - (unsigned)(by) : emu_lane(), \
                __LINE__)
#define __ballot_sync(mask, p) emu_ballot(mask, p, __LINE__)
#define __any_sync(mask, p) (emu_ballot(mask, p, __LINE__) != 0)
#define __all_sync(mask, p) (emu_ballot(mask, !(p), __LINE__) == 0)

template <typename T> static inline T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <typename T> static inline T atomicMin(T *p, T v)
{
    T old = *p;
    if (v < old) *p = v;
    return old;
}
template <typename T> static inline T atomicMax(T *p, T v)
{
    T old = *p;
    if (v > old) *p = v;
    return old;
}
template <typename T> static inline T atomicOr(T *p, T v) { T old = *p; *p = old | v; return old; }
template <typename T> static inline T atomicExch(T *p, T v) { T old = *p; *p = v; return old; }
template <typename T> static inline T atomicCAS(T *p, T expected, T v)
{
    T old = *p;
    if (old == expected) *p = v;
    return old;
}

template <typename T> static inline T __ldg(const T *p) { return *p; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }

/* ---- twins of ptx.cuh (emu.cc) ---- */

static inline uint16_t cu_to_bf16(float v) { return mx_to_bf16(v); }
static inline float cu_from_f16(uint16_t v) { return mx_from_f16(v); }
void cu_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void cu_ldmatrix4(uint32_t r[4], const void *row);
void cu_ldmatrix4_t(uint32_t r[4], const void *row);
static inline void cu_cp_async16(void *shared, const void *from, bool valid)
{
    emu_async_copy(shared, from, valid);
}
static inline void cu_cp_async_commit(void) { emu_async_commit(); }
template <int N> static inline void cu_cp_async_wait(void) { emu_async_wait(N); }

/* ---- launches and the runtime (rt.cc) ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorIllegalAddress = 700
};
typedef struct emu_stream *cudaStream_t;
typedef struct emu_event *cudaEvent_t;
typedef struct emu_graph *cudaGraph_t;
typedef struct emu_graph_exec *cudaGraphExec_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
struct cudaDeviceProp { char name[256]; int major, minor; size_t totalGlobalMem; };

/* Random order of blocks and threads; 0: in order. */
extern "C" __attribute__((visibility("default"))) void emu_seed(uint64_t seed);
/* Work of the device: now, or when the capture of the stream is replayed. */
__attribute__((visibility("default"))) void emu_issue(cudaStream_t s,
                                                      const std::function<void()> &work);
cudaError_t emu_launch(cudaStream_t stream, const void *kernel, dim3 grid, dim3 block,
                       size_t shared, const std::function<void()> &body);

template <typename... P>
static inline cudaError_t cu_launch_raw(cudaStream_t stream, void (*kernel)(P...), dim3 grid,
                                        dim3 block, size_t shared, P... args)
{
    return emu_launch(stream, (const void *)kernel, grid, block, shared, [=] { kernel(args...); });
}

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int n);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int n);
const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x);

/* rt.cc to emu.cc: runs one grid now. */
void emu_run(dim3 grid, dim3 block, size_t shared, const std::function<void()> &body);

#endif
