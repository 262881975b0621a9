/* lockfile.h: JOB/lock: who runs a job now. A worker holds flock on it for its whole life; the
 * text names process, its start time (a pid alone may have been given to another) and attempt. */
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

/* Takes the lock and writes our name; waits at most 5 s for an older holder to go. A descriptor
 * that keeps the lock while open; -1 with E_CONFLICT if it is held. */
int lockfile_take(const char *job_dir, int attempt, struct err *e);
/* Looks. A folder without the file is fine: nobody. */
int lockfile_look(const char *job_dir, struct lockfile *l, struct err *e);
/* Start time of a living process, or -1. */
int64_t lockfile_process_start(pid_t pid);

#endif
