/* lockfile.h: JOB/lock: who runs a job now. The text names process, its start time (a pid alone may
 * have been given to another) and attempt.
 *
 * A worker holds flock on it for its whole life, from before its birth: the runner takes the lock and
 * the child inherits the descriptor. So there is no moment in which a worker exists and a new server,
 * finding the lock free, could take its job for lost. */
#ifndef GRAFT_LOCKFILE_H
#define GRAFT_LOCKFILE_H

#include "engine/base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct lockfile {
    bool held;      /* some process has the lock */
    int attempt;    /* 0: no worker ever wrote its name */
    pid_t pid;
    int64_t start;  /* of the process, in clock ticks since boot */
};

/* Takes the lock, waiting at most wait_ms for a holder to go. A descriptor that keeps it while it or
 * a copy of it (also in a child) is open; -1 with E_CONFLICT if it is held. */
int lockfile_reserve(const char *job_dir, int wait_ms, struct err *e);
/* Writes this process's name into a lock that it holds. */
int lockfile_sign(int fd, int attempt, struct err *e);
/* Both, with a wait of 5 s: for whoever runs a job without a runner. */
int lockfile_take(const char *job_dir, int attempt, struct err *e);
/* Looks. A folder without the file is fine: nobody. */
int lockfile_look(const char *job_dir, struct lockfile *l, struct err *e);
/* Start time of a living process, or -1. */
int64_t lockfile_process_start(pid_t pid);

#endif
