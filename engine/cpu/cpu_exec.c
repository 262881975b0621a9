#include "engine/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

/* Best first. */
static const struct cpu_level levels[] = {
    {"avx2", cpu_table_avx2},
    {"baseline", cpu_table},
};

enum { LEVELS = sizeof levels / sizeof *levels };

static bool can_run(const struct cpu_level *l)
{
    if (!strcmp(l->name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return true;
}

const struct cpu_level *cpu_level(int i)
{
    for (int k = 0; k < LEVELS; k++)
        if (can_run(&levels[k]) && i-- == 0) return &levels[k];
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
    return exec_new("cpu", level->table, threads ? threads : pool_default_threads(), e);
}
