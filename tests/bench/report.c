#include "tests/bench/report.h"

#include "engine/base/clock.h"
#include "engine/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double report_now(void)
{
    return (double)clock_mono_ns() * 1e-9;
}

void report_die(const struct err *e)
{
    fprintf(stderr, "%s\n", e->msg);
    exit(1);
}

/* The first line of a file that starts with key, after its colon. */
static void first_value(const char *path, const char *key, char *out, size_t size)
{
    char line[256];
    FILE *f = fopen(path, "r");
    snprintf(out, size, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        const char *colon = strchr(line, ':');
        const char *from = *key && colon ? colon + 1 : line;
        snprintf(out, size, "%.*s", (int)strcspn(from, "\n"), from);
        break;
    }
    if (f) fclose(f);
}

void report_machine(int threads)
{
    struct err e = ERR_INIT;
    const char *commit = getenv("BENCH_COMMIT");
    char cpu[128], mhz[64], load[128], now[32];
    first_value("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    first_value("/proc/cpuinfo", "cpu MHz", mhz, sizeof mhz);
    first_value("/proc/loadavg", "", load, sizeof load);
    clock_iso8601(clock_unix_ms(), now);
    const struct cpu_level *level = cpu_level_pick(&e);
    if (!level) report_die(&e);
    printf("#%s, %d cores usable,%s MHz; %d threads, level %s; load %s; commit %s; %s\n", cpu,
           pool_default_threads(), mhz, threads, level->name, load, commit ? commit : "unknown",
           now);
    fflush(stdout);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double report_quantile(const double *v, int n, double q)
{
    double sorted[ROUNDS_MAX], at = q * (n - 1);
    memcpy(sorted, v, (size_t)n * sizeof *v);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    int lo = (int)at, hi = lo + 1 < n ? lo + 1 : lo;
    return sorted[lo] + (at - lo) * (sorted[hi] - sorted[lo]);
}

void report_values(const char *name, double graft, double peer, const char *unit)
{
    if (peer > 0)
        printf("bench %s graft=%.4g peer=%.4g ratio=%.3f unit=%s\n", name, graft, peer,
               graft / peer, unit);
    else printf("bench %s graft=%.4g peer=- ratio=- unit=%s\n", name, graft, unit);
    fflush(stdout);
}

void report_rounds(const char *name, const struct rounds *r, double work, double scale,
                   const char *unit)
{
    double ratio[ROUNDS_MAX], per = work / scale;
    for (int i = 0; i < r->n; i++) ratio[i] = r->alone ? 0 : r->peer[i] / r->graft[i];
    double graft = per / report_quantile(r->graft, r->n, 0.5);
    if (r->alone) {
        printf("bench %s graft=%.4g peer=- ratio=- unit=%s/s\n", name, graft, unit);
        printf("#   graft p10 %.4g p90 %.4g over %d rounds; no peer\n",
               per / report_quantile(r->graft, r->n, 0.9),
               per / report_quantile(r->graft, r->n, 0.1), r->n);
    } else {
        printf("bench %s graft=%.4g peer=%.4g ratio=%.3f unit=%s/s\n", name, graft,
               per / report_quantile(r->peer, r->n, 0.5), report_quantile(ratio, r->n, 0.5), unit);
        printf("#   ratio p10 %.3f p90 %.3f; graft p10 %.4g p90 %.4g, peer p10 %.4g p90 %.4g "
               "over %d rounds\n",
               report_quantile(ratio, r->n, 0.1), report_quantile(ratio, r->n, 0.9),
               per / report_quantile(r->graft, r->n, 0.9),
               per / report_quantile(r->graft, r->n, 0.1),
               per / report_quantile(r->peer, r->n, 0.9),
               per / report_quantile(r->peer, r->n, 0.1), r->n);
    }
    fflush(stdout);
}

/* ---- the FMA peak ---- */

#define ROUND(i) "vfmadd213ps %12,%12,%" #i "\n"
#define CHAINS(name, isa, bytes, reg)                                                              \
    typedef float name##_lanes __attribute__((vector_size(bytes)));                               \
    __attribute__((target(isa))) static float name(int64_t n)                                     \
    {                                                                                              \
        name##_lanes x = {0.5f}, a = x, b = x, c = x, d = x, f = x, g = x, h = x, i = x, j = x,   \
                     l = x, m = x, o = x;                                                          \
        for (int64_t k = 0; k < n; k++)                                                            \
            __asm__ volatile(ROUND(0) ROUND(1) ROUND(2) ROUND(3) ROUND(4) ROUND(5) ROUND(6)        \
                             ROUND(7) ROUND(8) ROUND(9) ROUND(10) ROUND(11)                        \
                             : reg(a), reg(b), reg(c), reg(d), reg(f), reg(g), reg(h), reg(i),    \
                               reg(j), reg(l), reg(m), reg(o)                                      \
                             : "v"(x));                                                            \
        name##_lanes sum = a + b + c + d + f + g + h + i + j + l + m + o;                          \
        return sum[0];                                                                             \
    }
#define INOUT(v) "+v"(v)
CHAINS(chains256, "avx2,fma", 32, INOUT)
CHAINS(chains512, "avx512f", 64, INOUT)

enum { CHAIN_ROUNDS = 100000, CHAIN_COUNT = 12, TRIES = 200 };

struct peak_ctx {
    float (*fn)(int64_t);
    float sink[PLAN_THREADS];
};

static void peak_task(void *ctx, int64_t task, int thread)
{
    (void)thread;
    struct peak_ctx *c = ctx;
    c->sink[task] = c->fn(CHAIN_ROUNDS);
}

double report_peak(struct exec *x)
{
    bool wide = __builtin_cpu_supports("avx512f");
    struct peak_ctx c = {.fn = wide ? chains512 : chains256};
    int n = pool_threads(x->pool);
    double best = 0, flops = (double)n * CHAIN_ROUNDS * CHAIN_COUNT * (wide ? 32 : 16);
    for (int i = 0; i < TRIES; i++) {
        double t = report_now();
        pool_run(x->pool, n, peak_task, &c);
        t = report_now() - t;
        if (flops / t > best) best = flops / t;
    }
    return best;
}
