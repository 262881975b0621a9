/* The kernels of one instruction-set level as a table. */
#include "engine/cpu/cpu.h"
#include "engine/cpu/kernel.h"

#ifdef CPU_LEVEL
#define TABLE_XNAME(level) cpu_table_##level
#define TABLE_NAME(level) TABLE_XNAME(level)
const op_run_fn TABLE_NAME(CPU_LEVEL)[OP_COUNT] = {
#else
const op_run_fn cpu_table[OP_COUNT] = {
#endif
#define OP(ID, name, attrs, least, most, outs, inplace, flags) [OP_##ID] = cpu_##name,
#include "engine/op/ops.def"
#undef OP
};
