#include "engine/base/pool.h"

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Rounds of the empty wait loop that take about 50 us on a 3 GHz core. */
enum { SPIN = 4000 };

struct pool {
    int threads, started;
    pthread_t *ids;
    pool_task_fn fn;
    void *ctx;
    int64_t n;
    _Atomic int64_t next;
    _Atomic uint32_t epoch; /* bumped for each run; futex word of the workers */
    _Atomic uint32_t busy;  /* workers still inside the current run; futex word of the caller */
    _Atomic bool stop;
};

struct seat {
    struct pool *pool;
    int index;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Returns when *word is no longer `seen`. */
static uint32_t wait_change(_Atomic uint32_t *word, uint32_t seen)
{
    for (int i = 0; i < SPIN; i++) {
        uint32_t now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen) return now;
        __builtin_ia32_pause();
    }
    for (;;) {
        uint32_t now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen) return now;
        futex_wait(word, seen);
    }
}

static void drain(struct pool *p, int thread)
{
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (i >= p->n) return;
        p->fn(p->ctx, i, thread);
    }
}

static void *work(void *arg)
{
    struct seat seat = *(struct seat *)arg;
    struct pool *p = seat.pool;
    mem_free(arg);
    for (uint32_t seen = 0;;) {
        seen = wait_change(&p->epoch, seen);
        if (atomic_load(&p->stop)) return NULL;
        drain(p, seat.index);
        if (atomic_fetch_sub_explicit(&p->busy, 1, memory_order_acq_rel) == 1)
            futex_wake(&p->busy, 1);
    }
}

struct pool *pool_new(int threads, struct err *e)
{
    if (threads < 1 || threads > 1024) {
        err_set(e, E_RANGE, "threads is %d; it must be between 1 and 1024", threads);
        return NULL;
    }
    struct pool *p = mem_zalloc(sizeof *p, e);
    if (!p) return NULL;
    p->threads = threads;
    p->ids = mem_array(threads, sizeof *p->ids, e);
    if (!p->ids) goto fail;
    while (p->started < threads - 1) {
        struct seat *seat = mem_alloc(sizeof *seat, e);
        if (!seat) goto fail;
        *seat = (struct seat){p, p->started + 1};
        int rc = fault_hit(FAULT_THREAD) ? EAGAIN
                                         : pthread_create(&p->ids[p->started], NULL, work, seat);
        if (rc) {
            mem_free(seat);
            errno = rc;
            err_sys(e, "cannot start a thread");
            goto fail;
        }
        p->started++;
    }
    return p;
fail:
    pool_free(p);
    return NULL;
}

void pool_free(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->epoch, 1);
    futex_wake(&p->epoch, p->threads);
    for (int i = 0; i < p->started; i++) pthread_join(p->ids[i], NULL);
    mem_free(p->ids);
    mem_free(p);
}

int pool_threads(const struct pool *p)
{
    return p->threads;
}

void pool_run(struct pool *p, int64_t n, pool_task_fn fn, void *ctx)
{
    if (p->threads == 1 || n <= 1) {
        for (int64_t i = 0; i < n; i++) fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, (uint32_t)p->started, memory_order_relaxed);
    atomic_fetch_add_explicit(&p->epoch, 1, memory_order_release);
    futex_wake(&p->epoch, p->threads);
    drain(p, 0);
    for (uint32_t left; (left = atomic_load_explicit(&p->busy, memory_order_acquire));)
        wait_change(&p->busy, left);
}

/* Quota of cgroup v2 in whole CPUs, rounded up; 0 if there is none. */
static int cgroup_cpus(void)
{
    struct err ignored;
    struct buf b;
    long quota = 0, period = 0;
    buf_init(&b, 64);
    if (fs_read_file("/sys/fs/cgroup/cpu.max", &b, &ignored) == 0) {
        char *end;
        quota = strtol(buf_str(&b), &end, 10); /* "max" parses as 0 */
        period = strtol(end, NULL, 10);
    }
    buf_clear(&b);
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int pool_default_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    int quota = cgroup_cpus();
    if (quota && quota < n) n = quota;
    return n < 1 ? 1 : n;
}
