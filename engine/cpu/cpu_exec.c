#include "engine/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

enum { AVX512, AVX2, BASELINE, LEVELS }; /* best first */

static const struct cpu_level levels[LEVELS] = {
    [AVX512] = {"avx512", cpu_table_avx512, {.name = "cpu", .table = cpu_table_avx512}},
    [AVX2] = {"avx2", cpu_table_avx2, {.name = "cpu", .table = cpu_table_avx2}},
    [BASELINE] = {"baseline", cpu_table, {.name = "cpu", .table = cpu_table}},
};

static bool can_run(int level)
{
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == AVX2) return avx2;
    if (level == AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return true;
}

const struct cpu_level *cpu_level(int i)
{
    for (int k = 0; k < LEVELS; k++)
        if (can_run(k) && i-- == 0) return &levels[k];
    return NULL;
}

const struct cpu_level *cpu_level_pick(struct err *e)
{
    const char *want = getenv("GRAFT_CPU");
    if (!want || !*want) return cpu_level(0);
    for (int i = 0; cpu_level(i); i++)
        if (!strcmp(want, cpu_level(i)->name)) return cpu_level(i);
    err_set(e, E_UNSUPPORTED, "GRAFT_CPU is \"%s\", which is not a level of this machine", want);
    return NULL;
}

struct exec *exec_new_cpu(int threads, struct err *e)
{
    const struct cpu_level *level = cpu_level_pick(e);
    if (!level) return NULL;
    return exec_new(&level->device, threads ? threads : pool_default_threads(), e);
}
