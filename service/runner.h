/* runner.h: how attempts are started and watched; one vtable per place where workers run.
 *
 * A worker belongs to (job, attempt). All calls come from the supervisor's thread and none blocks
 * for long: poll() drains what the worker said since the last call and passes on what is wanted.
 */
#ifndef GRAFT_RUNNER_H
#define GRAFT_RUNNER_H

#include "engine/base/err.h"
#include "engine/base/fs.h"
#include "service/queue.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct config;

struct runner_worker {
    char job_id[QUEUE_ID_MAX];
    char job_dir[FS_PATH_MAX];
    int attempt;
    pid_t pid;
    int pidfd, channel;  /* -1: none */
    bool child;          /* ours to reap; an adopted one is not */
    char line[8192];     /* an unfinished line of the channel */
    size_t line_len;
    int64_t started_ms;
};

struct runner_news {
    bool heard;         /* the worker answered: it is alive and has this attempt */
    json_t *progress;   /* its newest report, or NULL; the caller releases it */
    bool ended;         /* the process is gone; */
    bool exited;        /* it left an exit code (by exit.json or by wait) */
    int code, signal;
    json_t *exit_report; /* exit.json, or NULL; the caller releases it */
};

struct runner {
    const char *name;
    /* Starts attempt w->attempt in w->job_dir after making sure that no older attempt lives. */
    int (*start)(const struct config *c, struct runner_worker *w, struct err *e);
    /* Finds a living worker of exactly this attempt: 1 adopted, 0 there is none (any older one
     * has been killed), -1. */
    int (*adopt)(const struct config *c, struct runner_worker *w, struct err *e);
    int (*poll)(struct runner_worker *w, enum queue_want want, struct runner_news *n,
                struct err *e);
    /* Kills it and waits until it is dead, or gives up with E_TIMEOUT. */
    int (*stop)(struct runner_worker *w, struct err *e);
    void (*release)(struct runner_worker *w); /* closes descriptors; the process is left alone */
};

extern const struct runner runner_local; /* fork and exec on this machine */

#endif
