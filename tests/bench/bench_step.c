/* Where the time of a training step goes, by operation, and which share of the FMA peak of the same
 * threads does useful work.
 * usage: bench_step [NAME [THREADS]]   NAME: a workload, or a part of its name; THREADS: 1 and 2
 *
 * The peak is measured between the steps, because others may be using the machine; the best step
 * counts against the best peak. One thread is timed by its CPU seconds.
 */
#include "engine/op/op.h"
#include "tests/bench/report.h"
#include "tests/bench/workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STEPS = 3 };

struct share {
    double seconds, flops;
    int calls;
};

static double now(const struct exec *x)
{
    struct timespec t;
    if (pool_threads(x->pool) > 1) return report_now();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double run(const struct workload *w, struct exec *x, struct share *by_op)
{
    struct err e = ERR_INIT;
    double start = now(x);
    for (int i = 0; i < x->plan->nsteps; i++) {
        const struct node *n = &x->plan->tape->nodes[x->plan->steps[i].node];
        struct share *s = &by_op[n->op];
        double t = now(x);
        x->steps[i].accum = n->accum;
        if (x->device->table[n->op](&x->steps[i], x, &e)) report_die(&e);
        s->seconds += now(x) - t;
        s->flops += workload_step_flops(w, x, i);
        s->calls++;
    }
    return now(x) - start;
}

static void measure(const struct workload *w, struct exec *x)
{
    struct share best[OP_COUNT];
    struct trial t;
    char name[80];
    double least = 1e30, top = 0;
    trial_start(&t, &w->graft, x);
    for (int i = 0; i < STEPS; i++) {
        struct share by_op[OP_COUNT] = {{0}};
        double peak = report_peak(x);
        if (peak > top) top = peak;
        trial_pass(&t);
        double seconds = run(w, x, by_op);
        if (seconds >= least) continue;
        least = seconds;
        memcpy(best, by_op, sizeof best);
    }
    snprintf(name, sizeof name, "step_%s_t%d", w->name, pool_threads(x->pool));
    report_values(name, workload_flops(w, x) / least * 1e-9, top * 1e-9, "GFLOP/s");
    printf("#   %.3f s = %.4g %s/s\n", least, w->per_step / least, w->unit);
    for (int i = 0; i < OP_COUNT; i++)
        if (best[i].calls)
            printf("#   %-12s %4d calls %8.2f ms %5.1f %% %7.1f GFLOP/s\n", op_table[i].name,
                   best[i].calls, best[i].seconds * 1e3, 100 * best[i].seconds / least,
                   best[i].flops / best[i].seconds * 1e-9);
    fflush(stdout);
    trial_end(&t);
}

int main(int argc, char **argv)
{
    int only = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    for (int threads = only ? only : 1; threads <= (only ? only : 2); threads++) {
        struct err e = ERR_INIT;
        struct exec *x = exec_new_cpu(threads, &e);
        if (!x) report_die(&e);
        report_machine(threads);
        for (int i = 0; i < workload_count; i++)
            if (argc < 2 || strstr(workload_list[i].name, argv[1])) measure(&workload_list[i], x);
        exec_free(x);
    }
    return 0;
}
