/* schedule.h: how many steps a job has, which rows each takes, and its learning rate.
 *
 * Pure functions of the settings: nothing to store in a checkpoint but the step.
 */
#ifndef GRAFT_SCHEDULE_H
#define GRAFT_SCHEDULE_H

#include "engine/opt/sched.h"

#include <jansson.h>
#include <stdint.h>

struct schedule {
    int64_t rows, batch, accumulate;
    int64_t steps_per_epoch;   /* the last step of an epoch takes the rows that are left */
    int64_t total;             /* optimiser steps */
    int64_t eval_every, checkpoint_every; /* steps, >= 1 */
    int64_t warmup;
    enum sched kind;
    double peak;               /* learning rate */
    uint64_t seed;
};

void schedule_init(struct schedule *s, const json_t *settings, int64_t rows, uint64_t seed);
/* Learning rate of step (0-based). */
double schedule_lr(const struct schedule *s, int64_t step);
/* The rows of a step in order; returns how many. rows[] has room for batch * accumulate. */
int64_t schedule_rows(const struct schedule *s, int64_t step, int64_t *rows);
double schedule_epoch(const struct schedule *s, int64_t steps_done);

#endif
