/* lane.h: a few threads beside the event loops for calls that may take long.
 *
 * Tasks run in the order put in. The queue is bounded: lane_put fails with E_QUOTA when it is
 * full. A task is owned by its caller until its function has returned. Thread-safe.
 */
#ifndef GRAFT_LANE_H
#define GRAFT_LANE_H

#include "engine/base/err.h"

struct lane;
struct lane_task {
    void (*run)(void *ctx);
    void *ctx;
    struct lane_task *next; /* the lane's */
};

struct lane *lane_new(int threads, int queue_max, struct err *e);
int lane_put(struct lane *l, struct lane_task *t, struct err *e);
/* Runs what is queued, then joins the threads. NULL is fine. */
void lane_free(struct lane *l);

#endif
