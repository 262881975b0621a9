/* report.h: what every benchmark says in the same way: the machine, and one line per result.
 *
 * Both sides of a comparison take turns in one run (A B A B ...), each round gives one ratio, and
 * a result is the median of the rounds with the 10th and 90th percentile beside it: others may be
 * using the machine, and what disturbs a round disturbs both of its turns about alike.
 */
#ifndef GRAFT_REPORT_H
#define GRAFT_REPORT_H

#include "engine/core/exec.h"

enum { ROUNDS_MAX = 256 };

/* Seconds of both sides, round by round. */
struct rounds {
    double graft[ROUNDS_MAX], peer[ROUNDS_MAX];
    int n;
    bool alone; /* there is no peer */
};

/* "# ..." lines: processor, cores, load, level, commit (BENCH_COMMIT in the environment). */
void report_machine(int threads);

/* The q-quantile of n values. */
double report_quantile(const double *v, int n, double q);

/* `work` per second of both sides and the speed of graft relative to the peer. work in `unit`,
 * without "/s"; scale is what one printed unit is worth (1e9 for GFLOP). */
void report_rounds(const char *name, const struct rounds *r, double work, double scale,
                   const char *unit);

/* One value of each side; peer 0: there is none. */
void report_values(const char *name, double graft, double peer, const char *unit);

/* Multiply-adds of the widest vectors on all threads of the pool, in FLOP/s: the best of many
 * tries of a few milliseconds. */
double report_peak(struct exec *x);

double report_now(void); /* seconds, monotonic */
void report_die(const struct err *e);

#endif
