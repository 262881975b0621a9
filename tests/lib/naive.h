/* naive.h: plain-loop f32 kernels for a handful of operations, so that the tape, the planner and
 * exec can be tested without a device's kernels. NULL for every other operation.
 */
#ifndef GRAFT_NAIVE_H
#define GRAFT_NAIVE_H

#include "engine/op/op.h"

extern const op_run_fn naive_table[OP_COUNT];

#endif
