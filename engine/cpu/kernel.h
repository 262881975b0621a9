/* kernel.h: what all CPU kernels share. Private to engine/cpu.
 *
 * Every k_*.c, gemm.c and cpu_table.c is compiled once per instruction-set level (mk/cpu.mk):
 * plain, and with CPU_LEVEL naming a higher one. LEVEL_NAME gives the functions of a higher level
 * their own link names, so that the sources need not mention levels and both copies live in one
 * binary; cpu_exec.c chooses the table at start.
 *
 * Invariant of all kernels: work is cut into tasks by shape alone, a task writes what no other
 * task of its run touches, and partial sums are combined in task order. So results do not depend
 * on the number of threads.
 */
#ifndef GRAFT_KERNEL_H
#define GRAFT_KERNEL_H

#include "engine/base/pool.h"
#include "engine/core/exec.h"
#include "engine/op/mathx.h"
#include "engine/op/op.h"

#ifdef CPU_LEVEL
#define LEVEL_STR(x) #x
#define LEVEL_XSTR(x) LEVEL_STR(x)
#define LEVEL_NAME(name) __asm__(name "_" LEVEL_XSTR(CPU_LEVEL))
#else
#define LEVEL_NAME(name)
#endif

#define OP(ID, name, attrs, least, most, outs, inplace, flags) \
    int cpu_##name(const struct step *s, struct exec *x, struct err *e) LEVEL_NAME("cpu_" #name);
#include "engine/op/ops.def"
#undef OP

static inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t tiles(int64_t n, int64_t tile)
{
    return (n + tile - 1) / tile;
}

/* Last dimension of a tensor, and how many rows of it there are. */
static inline int64_t width(const struct tensor *t)
{
    return t->shape[t->rank - 1];
}

static inline int64_t rows(const struct tensor *t)
{
    return width(t) ? t->count / width(t) : 0;
}

static inline bool accumulates(const struct step *s, int out)
{
    return s->accum >> out & 1;
}

/* n elements of a tensor in any of the `any` dtypes, from element `at`, as floats: the tensor's
 * own memory if it is f32, else converted into tmp. */
const float *cpu_floats(const void *data, enum dtype type, int64_t at, int64_t n, float *tmp)
    LEVEL_NAME("cpu_floats");

/* Before an element-wise loop whose output may be one of its inputs: element i depends on elements
 * i only, so the compiler need not fall back to scalar code where they coincide. */
#ifdef __clang__
#define ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define ELEMENTWISE _Pragma("GCC ivdep")
#endif

/* Elements of one task of an element-wise kernel: 64 KiB per array, a fraction of L2. */
enum { ELEMENTS = 16384 };

#endif
