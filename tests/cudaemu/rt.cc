// The runtime: device memory, streams, captures. All work happens at once, in order.
#include "emu.h"

#include <map>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

#if defined __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { GAP = 256 }; // between allocations, and their alignment
static const size_t MEMORY = (size_t)16 << 30;

struct emu_stream {
    bool capturing;
    std::vector<std::function<void()>> work;
};
struct emu_event { char unused; };
struct emu_graph { std::vector<std::function<void()>> work; };
struct emu_graph_exec { std::vector<std::function<void()>> work; };

static struct {
    char *base;
    std::map<size_t, size_t> taken; // offset -> bytes
    size_t used;
    int open; // > 0: kernels and copies may touch device memory
    cudaError_t last;
    size_t limit; // 0: MEMORY
} rt;

static cudaError_t report(cudaError_t e)
{
    if (e) rt.last = e;
    return e;
}

static void open_memory(bool on)
{
    rt.open += on ? 1 : -1;
    if (rt.base && rt.open == (on ? 1 : 0))
        mprotect(rt.base, MEMORY, on ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static bool on_device(const void *p)
{
    return rt.base && (const char *)p >= rt.base && (const char *)p < rt.base + MEMORY;
}

// Runs now, or later if the stream captures.
void emu_issue(cudaStream_t s, const std::function<void()> &work)
{
    if (s && s->capturing) {
        s->work.push_back(work);
        return;
    }
    open_memory(true);
    work();
    open_memory(false);
}

cudaError_t emu_launch(cudaStream_t stream, const void *kernel, dim3 grid, dim3 block,
                       size_t shared, const std::function<void()> &body)
{
    (void)kernel;
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64 || grid.x > 0x7fffffffu ||
        grid.y > 65535 || grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        shared > 99 * 1024)
        return report(cudaErrorInvalidConfiguration);
    emu_issue(stream, [=] { emu_run(grid, block, shared, body); });
    return cudaSuccess;
}

// GRAFT_EMU_GPUS=0: a machine without one.
cudaError_t cudaGetDeviceCount(int *n)
{
    const char *s = getenv("GRAFT_EMU_GPUS");
    *n = s && *s == '0' ? 0 : 1;
    return *n ? cudaSuccess : report(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int n)
{
    return n == 0 ? cudaSuccess : report(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int n)
{
    (void)n;
    memset(p, 0, sizeof *p);
    memcpy(p->name, "emulation", sizeof "emulation");
    p->major = 8;
    p->totalGlobalMem = MEMORY;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    }
    return "unknown error";
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = rt.last;
    rt.last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return rt.last;
}

// GRAFT_EMU_MEMORY: bytes of the device, for tests of what happens when they run out.
static size_t memory_limit()
{
    const char *s = getenv("GRAFT_EMU_MEMORY");
    return s ? (size_t)strtoull(s, nullptr, 10) : MEMORY;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    size_t at = GAP, need = (bytes + GAP - 1) / GAP * GAP + GAP;
    if (!rt.base) {
        rt.base = (char *)mmap(nullptr, MEMORY, rt.open ? PROT_READ | PROT_WRITE : PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (rt.base == MAP_FAILED) abort();
    }
    for (const auto &t : rt.taken) {
        if (t.first >= at + need) break;
        at = t.first + (t.second + GAP - 1) / GAP * GAP + GAP;
    }
    if (at + need > MEMORY || rt.used + bytes > memory_limit())
        return report(cudaErrorMemoryAllocation);
    rt.taken[at] = bytes;
    rt.used += bytes;
    *p = rt.base + at;
    open_memory(true);
    ASAN_POISON_MEMORY_REGION(rt.base + at - GAP, need + GAP);
    ASAN_UNPOISON_MEMORY_REGION(rt.base + at, bytes);
    memset(*p, 0xff, bytes); // NaN
    open_memory(false);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    auto t = rt.taken.find((size_t)((char *)p - rt.base));
    if (!on_device(p) || t == rt.taken.end()) return report(cudaErrorInvalidValue);
    ASAN_POISON_MEMORY_REGION(p, t->second);
    rt.used -= t->second;
    rt.taken.erase(t);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *p ? cudaSuccess : report(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = memory_limit();
    *free_bytes = *total - rt.used;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s)
{
    bool out = kind == cudaMemcpyDeviceToHost, in = kind == cudaMemcpyHostToDevice;
    if (on_device(to) == out || on_device(from) == in) return report(cudaErrorInvalidValue);
    emu_issue(s, [=] { memcpy(to, from, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    if (!on_device(p)) return report(cudaErrorInvalidValue);
    emu_issue(s, [=] { memset(p, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    (void)flags;
    *s = new emu_stream();
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    delete s;
    return cudaSuccess;
}

// Waiting for a stream that captures is an error on the device as well.
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    return s && s->capturing ? report(cudaErrorInvalidValue) : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    *e = new emu_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    (void)e;
    return s && s->capturing ? report(cudaErrorInvalidValue) : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    (void)e;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    (void)mode;
    if (s->capturing) return report(cudaErrorInvalidValue);
    s->capturing = true;
    s->work.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    if (!s->capturing) return report(cudaErrorInvalidValue);
    s->capturing = false;
    *g = new emu_graph{s->work};
    s->work.clear();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags)
{
    (void)flags;
    *x = new emu_graph_exec{g->work};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    for (const auto &w : x->work) emu_issue(s, w);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    delete x;
    return cudaSuccess;
}
