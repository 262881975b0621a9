// The emulation itself: what is wrong in a kernel shows, what is right does not depend on orders.
#include "emu.h"

#include "engine/cuda/kernel.cuh"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
}

enum { N = 256, SEEDS = 8 };

template <typename T> static T *device(size_t n)
{
    void *p = nullptr;
    assert_int_equal(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    return (T *)p;
}

template <typename T> static void fetch(T *to, const T *from, size_t n)
{
    assert_int_equal(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyDeviceToHost, nullptr),
                     cudaSuccess);
}

template <typename... P, typename... A>
static cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, A... args)
{
    return cu_launch_raw(nullptr, kernel, grid, block, 0, P(args)...);
}

// Runs f in a child. Whether the child ended as it should.
static bool survives(void (*f)())
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); // of the test library
        signal(SIGABRT, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout)) _exit(2);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// ---- races ----

// Rotates the values of a block through shared memory.
template <bool SYNC> static void rotate(const float *x, float *y)
{
    CU_ARRAY(float, s, [N]);
    s[threadIdx.x] = x[threadIdx.x];
    if (SYNC) __syncthreads();
    y[threadIdx.x] = s[(threadIdx.x + 1) % N];
}

// The last block to write wins.
static void overwrite(int *y)
{
    *y = (int)blockIdx.x;
}

template <bool SYNC> static void rotate_warp(const float *x, float *y)
{
    CU_ARRAY(float, s, [32]);
    s[threadIdx.x] = x[threadIdx.x];
    if (SYNC) __syncwarp();
    y[threadIdx.x] = s[(threadIdx.x + 1) % 32];
}

// Two kernels of the same shape: how often the result differs from that in order.
static int differing(void (*kernel)(const float *, float *), unsigned threads)
{
    float first[N], y[N], x[N], *dx = device<float>(N), *dy = device<float>(N);
    int n = 0;
    for (int i = 0; i < N; i++) x[i] = (float)i;
    cudaMemcpyAsync(dx, x, sizeof x, cudaMemcpyHostToDevice, nullptr);
    for (uint64_t seed = 0; seed <= SEEDS; seed++) {
        emu_seed(seed);
        assert_int_equal(launch(kernel, 1, threads, dx, dy), cudaSuccess);
        fetch(y, dy, threads);
        if (seed == 0) memcpy(first, y, sizeof y);
        n += memcmp(first, y, threads * sizeof *y) != 0;
    }
    emu_seed(0);
    cudaFree(dx);
    cudaFree(dy);
    return n;
}

static void a_missing_barrier_changes_the_result(void **)
{
    assert_int_equal(differing(rotate<true>, N), 0);
    assert_true(differing(rotate<false>, N) > SEEDS / 2);
}

static void a_missing_barrier_of_a_warp_changes_the_result(void **)
{
    assert_int_equal(differing(rotate_warp<true>, 32), 0);
    assert_true(differing(rotate_warp<false>, 32) > SEEDS / 2);
}

static void blocks_that_write_the_same_place_show(void **)
{
    int *y = device<int>(1), last = 0, different = 0;
    for (uint64_t seed = 0; seed <= SEEDS; seed++) {
        emu_seed(seed);
        launch(overwrite, 50, 1, y);
        fetch(&last, y, 1);
        if (seed == 0) assert_int_equal(last, 49);
        different += last != 49;
    }
    emu_seed(0);
    assert_true(different > SEEDS / 2);
    cudaFree(y);
}

// ---- barriers and warps ----

static void half_at_the_barrier()
{
    if (threadIdx.x < 16) __syncthreads();
}

static void at_two_barriers()
{
    if (threadIdx.x < 16) __syncthreads();
    else
        __syncthreads();
}

static void half_of_a_warp()
{
    if (threadIdx.x < 16) (void)__shfl_xor_sync(0xffffffffu, 1, 1);
}

static void barriers_that_not_all_reach_end_the_program(void **)
{
    assert_true(survives([] { launch(rotate<true>, 1, N, device<float>(N), device<float>(N)); }));
    assert_false(survives([] { launch(half_at_the_barrier, 1, 32); }));
    assert_false(survives([] { launch(at_two_barriers, 1, 32); }));
    assert_false(survives([] { launch(half_of_a_warp, 1, 32); }));
}

static void exchange(unsigned *y)
{
    unsigned lane = threadIdx.x % 32, v = 100 + threadIdx.x, half = lane < 16 ? 0xffffu : 0xffff0000u;
    unsigned *o = y + threadIdx.x * 5;
    for (int i = 0; i < 3; i++) o[i] = __shfl_xor_sync(0xffffffffu, v, 1 << i);
    o[3] = __shfl_down_sync(half, v, 4);
    o[4] = __ballot_sync(0xffffffffu, lane % 3 == 0);
}

static void lanes_see_each_other_in_any_order(void **)
{
    static unsigned y[64][5];
    unsigned *d = device<unsigned>(64 * 5);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        assert_int_equal(launch(exchange, 1, 64, d), cudaSuccess);
        fetch(&y[0][0], d, 64 * 5);
        for (unsigned t = 0; t < 64; t++) {
            unsigned lane = t % 32;
            for (unsigned i = 0; i < 3; i++) assert_int_equal(y[t][i], 100 + (t ^ 1u << i));
            if (lane % 16 < 12) assert_int_equal(y[t][3], 100 + t + 4);
            assert_int_equal(y[t][4], 0x49249249u);
        }
    }
    emu_seed(0);
    cudaFree(d);
}

// ---- memory ----

static void read_shared(float *y)
{
    CU_ARRAY(float, s, [32]);
    CU_SHARED(float, d);
    y[0] = s[threadIdx.x];
    y[1] = d[0];
}

template <bool WAIT> static void copy_behind(const float *x, float *y)
{
    CU_ARRAY(float, s, [4]);
    cu_cp_async16(s, x, true);
    cu_cp_async_commit();
    if (WAIT) cu_cp_async_wait<0>();
    y[0] = s[3];
    cu_cp_async_wait<0>();
}

static void what_was_not_written_is_nan(void **)
{
    float y[2], *d = device<float>(2), *x = device<float>(4);
    const float values[4] = {1, 2, 3, 4};
    assert_int_equal(cu_launch_raw(nullptr, read_shared, 1, 1, 64, d), cudaSuccess);
    fetch(y, d, 2);
    assert_true(isnan(y[0]) && isnan(y[1]));
    cudaMemcpyAsync(x, values, sizeof values, cudaMemcpyHostToDevice, nullptr);
    launch(copy_behind<true>, 1, 1, x, d);
    fetch(y, d, 1);
    assert_true(y[0] == 4);
    launch(copy_behind<false>, 1, 1, x, d);
    fetch(y, d, 1);
    assert_true(isnan(y[0]));
    cudaFree(d);
    cudaFree(x);
}

static void the_host_cannot_touch_device_memory(void **)
{
    static float *d;
    d = device<float>(4);
    assert_true(survives([] { launch(overwrite, 1, 1, (int *)d); }));
    assert_false(survives([] { d[0] = 1; }));
    assert_false(survives([] { printf("%g", d[0]); }));
    cudaFree(d);
}

[[maybe_unused]] static void past_the_end(float *y, int at)
{
    CU_ARRAY(float, s, [8]);
    for (int i = 0; i < at; i++) s[i] = 1;
    y[at] = s[at - 1];
}

static void strays_end_the_program(void **)
{
#ifdef __SANITIZE_ADDRESS__
    static float *d;
    d = device<float>(8);
    assert_true(survives([] { launch(past_the_end, 1, 1, d, 7); }));
    assert_false(survives([] { launch(past_the_end, 1, 1, d, 8); }));  // of device memory
    assert_false(survives([] { launch(past_the_end, 1, 1, device<float>(64), 9); })); // of shared
    cudaFree(d);
#else
    skip();
#endif
}

// ---- launches ----

static void nothing(void)
{
}

static void launches_that_a_gpu_refuses_are_refused(void **)
{
    assert_int_equal(launch(nothing, 1, 1024), cudaSuccess);
    assert_int_equal(launch(nothing, 1, 1025), cudaErrorInvalidConfiguration);
    assert_int_equal(launch(nothing, dim3(1, 65536), 1), cudaErrorInvalidConfiguration);
    assert_int_equal(cu_launch_raw(nullptr, nothing, 1, 1, 100 * 1024),
                     cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

static void add_one(float *y, float by)
{
    y[0] += by;
}

static void a_capture_runs_when_replayed(void **)
{
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t x;
    float y = 1, *d = device<float>(1), by = 2;
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaMemcpyAsync(d, &y, sizeof y, cudaMemcpyHostToDevice, s);
    cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    cu_launch_raw(s, add_one, 1, 1, 0, d, by);
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorInvalidValue);
    by = 100; // arguments count as they were
    cudaStreamEndCapture(s, &g);
    fetch(&y, d, 1);
    assert_true(y == 1);
    cudaGraphInstantiate(&x, g, 0);
    cudaGraphDestroy(g);
    for (int i = 0; i < 3; i++) cudaGraphLaunch(x, s);
    fetch(&y, d, 1);
    assert_true(y == 7);
    cudaGraphExecDestroy(x);
    cudaStreamDestroy(s);
    cudaFree(d);
    cudaGetLastError();
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_barrier_changes_the_result),
        cmocka_unit_test(a_missing_barrier_of_a_warp_changes_the_result),
        cmocka_unit_test(blocks_that_write_the_same_place_show),
        cmocka_unit_test(barriers_that_not_all_reach_end_the_program),
        cmocka_unit_test(lanes_see_each_other_in_any_order),
        cmocka_unit_test(what_was_not_written_is_nan),
        cmocka_unit_test(the_host_cannot_touch_device_memory),
        cmocka_unit_test(strays_end_the_program),
        cmocka_unit_test(launches_that_a_gpu_refuses_are_refused),
        cmocka_unit_test(a_capture_runs_when_replayed),
    };
    return cmocka_run_group_tests_name("emulation", tests, nullptr, nullptr);
}
