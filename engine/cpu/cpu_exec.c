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

int cpu_level_pick(struct cpu_level *out, struct err *e)
{
    const char *want = getenv("GRAFT_CPU");
    for (int i = 0; i < LEVELS; i++) {
        if (want && *want && strcmp(want, levels[i].name) != 0) continue;
        if (!can_run(&levels[i])) {
            if (want && *want)
                return err_set(e, E_UNSUPPORTED, "GRAFT_CPU is %s, which this CPU lacks", want);
            continue;
        }
        *out = levels[i];
        return 0;
    }
    return err_set(e, E_ARG, "GRAFT_CPU is \"%s\"; it may be avx2 or baseline", want);
}

struct exec *exec_new_cpu(int threads, struct err *e)
{
    struct cpu_level level;
    if (cpu_level_pick(&level, e)) return NULL;
    return exec_new("cpu", level.table, threads ? threads : pool_default_threads(), e);
}
