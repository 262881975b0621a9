/* sched.h: learning-rate schedules as pure functions of the step.
 *
 * The formulas are those of transformers' get_{constant,linear,cosine}_schedule_with_warmup, so
 * that loss curves can be compared: the first step has number 0 and, with a warm-up, rate 0.
 */
#ifndef GRAFT_SCHED_H
#define GRAFT_SCHED_H

#include <stdbool.h>
#include <stdint.h>

enum sched { SCHED_CONSTANT, SCHED_LINEAR, SCHED_COSINE, SCHED_COUNT };

const char *sched_name(enum sched kind); /* "constant", "linear", "cosine" */
bool sched_parse(const char *name, enum sched *out);

/* What the peak learning rate is multiplied by at optimiser step `step` of `total`, the first
 * `warmup` of which rise linearly. In [0,1]. */
double sched_factor(enum sched kind, int64_t step, int64_t total, int64_t warmup);

#endif
