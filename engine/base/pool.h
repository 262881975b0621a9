/* pool.h: a fixed set of threads that run numbered tasks.
 *
 * pool_run() returns when every task in [0,n) has run once. Which thread runs a task is not
 * fixed; results must therefore depend on the task number only (determinism: the split of work
 * into tasks follows the shape, never the number of threads). Workers spin for about 50 us and
 * then sleep on a futex. One pool_run at a time; not re-entrant.
 */
#ifndef GRAFT_POOL_H
#define GRAFT_POOL_H

#include "engine/base/err.h"

#include <stdint.h>

struct pool;

/* task: number in [0,n); thread: index in [0,pool_threads()), for per-thread scratch. */
typedef void (*pool_task_fn)(void *ctx, int64_t task, int thread);

/* threads >= 1 counts the caller, so 1 starts no thread. */
struct pool *pool_new(int threads, struct err *e);
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);
void pool_run(struct pool *p, int64_t n, pool_task_fn fn, void *ctx);

/* min(cores this process may use, cgroup CPU quota rounded up), at least 1. */
int pool_default_threads(void);

#endif
