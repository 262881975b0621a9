/* The device behind exec.h: memory, copies, captured phases. */
#include "engine/cuda/gemm.cuh"

extern "C" {
#include "engine/cuda/cuda.h"
}

#include <stdio.h>

#ifndef __FILE_NAME__
#define __FILE_NAME__ "dev.cu"
#endif

enum { WARM_RUNS = 2, LEAST_MAJOR = 8 };

cudaStream_t cu_stream(const struct exec *x)
{
    return state_of(x)->stream;
}

const struct cu_scalars *cu_scalars(const struct exec *x)
{
    return state_of(x)->scalars;
}

int32_t *cu_fault(const struct exec *x)
{
    return state_of(x)->fault;
}

void cu_note(struct exec *x, const char *what, cudaError_t rc)
{
    struct cu_state *s = state_of(x);
    if (rc == cudaSuccess || s->failed != cudaSuccess) return;
    s->failed = rc;
    snprintf(s->failed_at, sizeof s->failed_at, "%s", what);
}

int state_check(struct exec *x, struct err *e)
{
    const struct cu_state *s = state_of(x);
    if (s->failed == cudaSuccess) return 0;
    return err_set(e, E_DEVICE, "the GPU failed in %s: %s%s", s->failed_at,
                   cudaGetErrorString(s->failed),
                   x->trace ? "" : " (GRAFT_CUDA_TRACE=1 names the operation)");
}

static int done(struct exec *x, const char *what, cudaError_t rc, struct err *e)
{
    cu_note(x, what, rc);
    return state_check(x, e);
}

/* ---- memory and copies ---- */

static int dev_alloc(struct exec *x, size_t bytes, void **p, struct err *e)
{
    const double mib = 1024.0 * 1024.0;
    size_t left = 0, total = 0;
    void *got = NULL;
    cudaError_t rc = cudaMalloc(&got, bytes ? bytes : 1);
    if (rc != cudaErrorMemoryAllocation) {
        if (done(x, "cudaMalloc", rc, e)) return -1;
        *p = got;
        return 0;
    }
    cudaGetLastError(); /* running out is no fault of the device */
    cudaMemGetInfo(&left, &total);
    return err_set(e, E_DEVMEM, "%.1f MiB of GPU memory are needed, %.1f of %.1f MiB are free",
                   (double)bytes / mib, (double)left / mib, (double)total / mib);
}

static void dev_free(struct exec *x, void *p)
{
    if (!p) return;
    cu_note(x, "cudaStreamSynchronize", cudaStreamSynchronize(state_of(x)->stream));
    cu_note(x, "cudaFree", cudaFree(p));
}

static void dev_memory(struct exec *x, int64_t *free_bytes, int64_t *total)
{
    size_t left = 0, all = 0;
    cu_note(x, "cudaMemGetInfo", cudaMemGetInfo(&left, &all));
    *free_bytes = (int64_t)left;
    *total = (int64_t)all;
}

static int dev_sync(struct exec *x, struct err *e)
{
    return done(x, "the last operations", cudaStreamSynchronize(state_of(x)->stream), e);
}

static int next_half(struct exec *x, struct err *e)
{
    struct cu_state *s = state_of(x);
    if (done(x, "cudaEventRecord", cudaEventRecord(s->gone[s->now], s->stream), e)) return -1;
    s->now ^= 1;
    s->used = 0;
    return done(x, "the last operations", cudaEventSynchronize(s->gone[s->now]), e);
}

static int dev_write(struct exec *x, void *to, const void *from, size_t bytes, struct err *e)
{
    struct cu_state *s = state_of(x);
    while (bytes > 0) {
        if (s->used == STATE_HALF && next_half(x, e)) return -1;
        size_t n = (size_t)min64((int64_t)bytes, (int64_t)(STATE_HALF - s->used));
        unsigned char *at = s->half[s->now] + s->used;
        memcpy(at, from, n);
        if (done(x, "a copy to the GPU",
                 cudaMemcpyAsync(to, at, n, cudaMemcpyHostToDevice, s->stream), e))
            return -1;
        s->used = (s->used + n + 63) & ~(size_t)63;
        to = (char *)to + n;
        from = (const char *)from + n;
        bytes -= n;
    }
    return 0;
}

/* Results of steps that met a bad index are not given out. */
static int report_fault(struct exec *x, struct err *e)
{
    struct cu_state *s = state_of(x);
    cu_note(x, "cudaMemsetAsync", cudaMemsetAsync(s->fault, 0, sizeof *s->fault, s->stream));
    return err_set(e, E_RANGE, "an index, a target or an attention range in the data is out of "
                   "bounds");
}

static int dev_read(struct exec *x, void *to, const void *from, size_t bytes, struct err *e)
{
    struct cu_state *s = state_of(x);
    const char *what = "a copy from the GPU";
    while (bytes > 0) {
        if (s->used == STATE_HALF && next_half(x, e)) return -1;
        size_t n = (size_t)min64((int64_t)bytes, (int64_t)(STATE_HALF - s->used));
        unsigned char *at = s->half[s->now] + s->used;
        if (done(x, what, cudaMemcpyAsync(at, from, n, cudaMemcpyDeviceToHost, s->stream), e) ||
            done(x, what, cudaMemcpyAsync(s->fault_seen, s->fault, sizeof *s->fault,
                                          cudaMemcpyDeviceToHost, s->stream), e) ||
            dev_sync(x, e))
            return -1;
        if (*s->fault_seen) return report_fault(x, e);
        memcpy(to, at, n);
        s->used = 0; /* nothing travels any more */
        to = (char *)to + n;
        from = (const char *)from + n;
        bytes -= n;
    }
    return 0;
}

/* ---- phases ---- */

static int send_scalars(struct exec *x, struct err *e)
{
    struct cu_state *s = state_of(x);
    struct cu_scalars now = {};
    now.seed = x->seed;
    now.rng_step = x->rng_step;
    if (s->sent_once && now.seed == s->sent.seed && now.rng_step == s->sent.rng_step) return 0;
    if (dev_write(x, s->scalars, &now, sizeof now, e)) return -1;
    s->sent = now;
    s->sent_once = true;
    return 0;
}

static void drop_graph(struct exec *x, struct state_graph *g)
{
    if (g->exec) cu_note(x, "cudaGraphExecDestroy", cudaGraphExecDestroy(g->exec));
    memset(g, 0, sizeof *g);
}

/* The entry of a key; the one that was longest unused makes room. */
static struct state_graph *find_graph(struct exec *x, uint64_t key)
{
    struct cu_state *s = state_of(x);
    struct state_graph *oldest = &s->graphs[0];
    for (int i = 0; i < STATE_GRAPHS; i++) {
        if (s->graphs[i].key == key) return &s->graphs[i];
        if (s->graphs[i].used < oldest->used) oldest = &s->graphs[i];
    }
    drop_graph(x, oldest);
    oldest->key = key;
    return oldest;
}

static int dev_begin(struct exec *x, uint64_t key, bool *replayed, struct err *e)
{
    struct cu_state *s = state_of(x);
    s->capturing = NULL;
    if (state_check(x, e) || send_scalars(x, e)) return -1;
    if (!key) return 0;
    struct state_graph *g = find_graph(x, key);
    g->used = ++s->clock;
    if (g->exec) {
        *replayed = true;
        return done(x, "cudaGraphLaunch", cudaGraphLaunch(g->exec, s->stream), e);
    }
    /* The first runs load kernels and choose algorithms, which a capture may not do. */
    if (g->runs++ < WARM_RUNS) return 0;
    s->capturing = g;
    return done(x, "cudaStreamBeginCapture",
                cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal), e);
}

static int end_capture(struct exec *x, bool failed, struct err *e)
{
    struct cu_state *s = state_of(x);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    struct state_graph *g = s->capturing;
    s->capturing = NULL;
    cu_note(x, "cudaStreamEndCapture", cudaStreamEndCapture(s->stream, &graph));
    if (!failed && s->failed == cudaSuccess)
        cu_note(x, "cudaGraphInstantiate", cudaGraphInstantiate(&exec, graph, 0));
    if (graph) cu_note(x, "cudaGraphDestroy", cudaGraphDestroy(graph));
    if (state_check(x, e)) return -1;
    if (failed) return 0;
    g->exec = exec;
    return done(x, "cudaGraphLaunch", cudaGraphLaunch(exec, s->stream), e);
}

static int dev_end(struct exec *x, bool failed, struct err *e)
{
    if (state_of(x)->capturing) return end_capture(x, failed, e);
    return done(x, "a launch", cudaGetLastError(), e);
}

/* ---- debugging ---- */

CU_KERNEL void fill_kernel(uint16_t *p, int64_t n)
{
    CU_EACH(i, n) p[i] = 0x7fa0; /* both halves of a signalling NaN */
}

static int dev_fill(struct exec *x, void *p, size_t bytes, struct err *e)
{
    int64_t n = (int64_t)(bytes / 2);
    CU_LAUNCH(x, fill_kernel, cu_blocks(n, CU_PIECE), CU_THREADS, 0, (uint16_t *)p, n);
    return state_check(x, e);
}

template <typename T>
CU_KERNEL void inspect_kernel(const T *p, int64_t n, bool neginf, unsigned long long *first)
{
    CU_EACH(i, n)
    {
        float v = cu_float(p[i]);
        if (!isfinite(v) && !(neginf && v == -INFINITY)) atomicMin(first, (unsigned long long)i);
    }
}

static int dev_inspect(struct exec *x, const void *p, const struct tensor *t, bool neginf,
                       int64_t *at, struct err *e)
{
    struct cu_state *s = state_of(x);
    const unsigned long long none = ~0ull;
    unsigned long long first = 0;
    if (dev_write(x, s->flag, &none, sizeof none, e)) return -1;
    CU_COMPUTE(t->dtype, T,
               CU_LAUNCH(x, inspect_kernel<T>, cu_blocks(t->count, CU_PIECE), CU_THREADS, 0,
                         (const T *)p, t->count, neginf, s->flag));
    if (dev_read(x, &first, s->flag, sizeof first, e)) return -1;
    *at = first == none ? -1 : (int64_t)first;
    return 0;
}

/* ---- open and close ---- */

static void dev_close(struct exec *x)
{
    struct cu_state *s = state_of(x);
    if (!s) return;
    if (s->stream) cu_note(x, "cudaStreamSynchronize", cudaStreamSynchronize(s->stream));
    for (int i = 0; i < STATE_GRAPHS; i++) drop_graph(x, &s->graphs[i]);
    for (int i = 0; i < 2; i++) {
        if (s->half[i]) cudaFreeHost(s->half[i]);
        if (s->gone[i]) cudaEventDestroy(s->gone[i]);
    }
    lt_close(x);
    cudaFree(s->scalars);
    cudaFree(s->flag);
    cudaFree(s->fault);
    if (s->fault_seen) cudaFreeHost(s->fault_seen);
    if (s->stream) cudaStreamDestroy(s->stream);
    memset(s, 0, sizeof *s);
}

static int find_device(struct cu_state *s, struct err *e)
{
    struct cudaDeviceProp p;
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaSuccess && n == 0) rc = cudaErrorNoDevice;
    if (rc == cudaSuccess) rc = cudaSetDevice(0);
    if (rc == cudaSuccess) rc = cudaGetDeviceProperties(&p, 0);
    if (rc != cudaSuccess)
        return err_set(e, E_DEVICE, "no NVIDIA GPU can be used: %s", cudaGetErrorString(rc));
    if (p.major < LEAST_MAJOR)
        return err_set(e, E_DEVICE, "the GPU %s has compute capability %d.%d; at least %d.0 is "
                       "needed", p.name, p.major, p.minor, LEAST_MAJOR);
    snprintf(s->name, sizeof s->name, "%s", p.name);
    return 0;
}

static int dev_open(struct exec *x, struct err *e)
{
    struct cu_state *s = state_of(x);
    void *p = NULL;
    if (find_device(s, e)) return -1;
    if (done(x, "cudaStreamCreate",
             cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), e))
        goto fail;
    for (int i = 0; i < 2; i++) {
        if (done(x, "cudaMallocHost", cudaMallocHost(&p, STATE_HALF), e)) goto fail;
        s->half[i] = (unsigned char *)p;
        if (done(x, "cudaEventCreate",
                 cudaEventCreateWithFlags(&s->gone[i], cudaEventDisableTiming), e))
            goto fail;
    }
    if (dev_alloc(x, sizeof *s->scalars, &p, e)) goto fail;
    s->scalars = (struct cu_scalars *)p;
    if (dev_alloc(x, sizeof *s->flag, &p, e)) goto fail;
    s->flag = (unsigned long long *)p;
    if (dev_alloc(x, sizeof *s->fault, &p, e)) goto fail;
    s->fault = (int32_t *)p;
    if (done(x, "cudaMemsetAsync", cudaMemsetAsync(p, 0, sizeof *s->fault, s->stream), e) ||
        done(x, "cudaMallocHost", cudaMallocHost(&p, sizeof *s->fault_seen), e))
        goto fail;
    s->fault_seen = (int32_t *)p;
    if (!lt_open(x, e)) return 0;
fail:
    dev_close(x);
    return -1;
}

static const struct device_ops dev_ops = {
    dev_alloc, dev_free, dev_write, dev_read,    dev_sync,  dev_memory,
    dev_begin, dev_end,  dev_fill,  dev_inspect, dev_close,
};

static const op_run_fn dev_table[OP_COUNT] = {
#define OP(ID, name, attrs, least, most, outs, inplace, flags) cuda_##name,
#include "engine/op/ops.def"
#undef OP
};

extern "C" __attribute__((visibility("default"))) const struct cuda_library graft_cuda = {
    GRAFT_VERSION, sizeof(struct exec), sizeof(struct step), sizeof(struct tensor), OP_COUNT,
    sizeof(struct cu_state), {"cuda", dev_table, &dev_ops, cuda_ws, 1u << DT_BF16}, dev_open,
};
