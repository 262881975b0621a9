/* cpu.h: the CPU backend: which kernels this machine runs.
 *
 * One binary carries each kernel at several instruction-set levels. A level is chosen once per
 * exec; the same binary on the same machine always chooses the same. Levels may differ in the
 * last bits of sums. GRAFT_CPU=baseline|avx2|avx512 in the environment forces a level, for tests.
 */
#ifndef GRAFT_CPU_H
#define GRAFT_CPU_H

#include "engine/op/op.h"

/* cpu_table (op.h) needs nothing beyond x86-64. */
extern const op_run_fn cpu_table_avx2[OP_COUNT];   /* AVX2, FMA */
extern const op_run_fn cpu_table_avx512[OP_COUNT]; /* and AVX-512 F, BW, DQ, VL */

struct cpu_level {
    const char *name;
    const op_run_fn *table;
    struct device device;
};

/* The levels this machine can run, best first; NULL past the last. The last is "baseline". */
const struct cpu_level *cpu_level(int i);

/* The level that exec_new_cpu takes: the best, or the one that GRAFT_CPU names. */
const struct cpu_level *cpu_level_pick(struct err *e);

#endif
