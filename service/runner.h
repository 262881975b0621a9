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
#include "service/wire.h"

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
    int pidfd;        /* -1: none */
    int status;       /* as waitpid gave it; -1: not known (an adopted process tells nobody) */
    struct wire wire; /* the channel, once the worker listens */
    bool child;       /* ours to reap; an adopted one is not */
    bool began;       /* a worker has had this attempt: set by start and adopt */
};

struct runner_news {
    json_t *progress; /* what it answered last since the last poll: it is alive; else NULL */
    bool ended;       /* the process is gone, and then: */
    bool exited;      /* it left a code (by exit.json or by wait); else `signal`, 0 if unknown */
    int code, signal;
    json_t *report;   /* exit.json, or NULL */
};

void runner_worker_init(struct runner_worker *w);
void runner_news_clear(struct runner_news *n);
/* What exit.json says of this attempt, for a process that is gone: fills exited, code, report. */
int runner_read_exit(const struct runner_worker *w, struct runner_news *n, struct err *e);

struct runner {
    const char *name;
    /* Starts attempt w->attempt in w->job_dir after making sure that no older attempt lives. */
    int (*start)(const struct config *c, struct runner_worker *w, struct err *e);
    /* Finds a living worker of exactly this attempt: 1 adopted, 0 there is none (one of another
     * attempt has been killed), -1. */
    int (*adopt)(const struct config *c, struct runner_worker *w, struct err *e);
    int (*poll)(struct runner_worker *w, enum queue_want want, struct runner_news *n,
                struct err *e);
    /* Kills it and waits until it is dead, or gives up with E_TIMEOUT. */
    int (*stop)(struct runner_worker *w, struct err *e);
    void (*release)(struct runner_worker *w); /* closes descriptors; the process is left alone */
};

extern const struct runner runner_local; /* fork and exec on this machine */

#endif
