/* queue.h: the state machine of a job. The only file that writes jobs.state.
 *
 *   create -> validating -> queued -> running -> succeeded | failed | cancelled | paused
 *                             ^          |
 *                          retrying <----+   resume: paused -> queued
 *
 * Invariants (schema.sql repeats the first four as CHECKs and triggers):
 *   Q1 finished_at is set iff the state is final; a final row never changes again.
 *   Q2 lease_until is set iff running; want is not none only while running.
 *   Q3 fine_tuned_model is set only in succeeded.
 *   Q4 only the transitions of the table in queue.c happen, each with one event in its transaction.
 *   Q5 fence: whatever comes from a worker names its attempt and counts only while the row is
 *      running that attempt. E_CONFLICT means: stale, stop the worker.
 *   Q6 a row leaves `running` only after its worker is dead (supervisor.c kills first).
 *   Q7 once want=cancel is committed, the job ends cancelled, whatever its worker reports.
 * Times are of the boot clock with the boot id beside them: a lease of another boot has expired, a
 * waiting time of another boot is over.
 */
#ifndef GRAFT_QUEUE_H
#define GRAFT_QUEUE_H

#include "engine/base/err.h"
#include "service/store.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum { QUEUE_ID_MAX = 64, QUEUE_LOSSES_MAX = 20 };
enum queue_want { QUEUE_WANT_NONE, QUEUE_WANT_PAUSE, QUEUE_WANT_CANCEL };

struct queue {
    struct store *store;
    int64_t lease_ms, retry_ms;
    int64_t max_attempts;        /* given to new jobs */
    char boot_id[40];
    int64_t (*now_ms)(void);     /* clock_boot_ms; tests replace it */
};

int queue_init(struct queue *q, struct store *store, struct err *e);

/* A new row in `validating`. Texts are borrowed; JSON may be NULL where the API allows null. */
struct queue_job {
    const char *id, *model, *training_file, *validation_file, *method, *suffix, *result_id;
    const json_t *settings, *method_echo, *metadata, *integrations;
    int64_t seed, priority;
};
int queue_create(struct queue *q, const struct queue_job *j, struct err *e);
/* validating -> queued, or -> failed when refused is not NULL. */
int queue_admit(struct queue *q, const char *id, const struct err *refused, struct err *e);

/* 1: *id and *attempt are running now and belong to the caller; 0: nothing is ready. */
int queue_claim(struct queue *q, char id[QUEUE_ID_MAX], int *attempt, struct err *e);

struct queue_beat {
    const char *phase;      /* or NULL */
    int64_t step;
    const json_t *progress; /* shown to clients as it is; or NULL */
};
/* Renews the lease (also one that has run out, as long as nobody took the job away). */
int queue_beat(struct queue *q, const char *id, int attempt, const struct queue_beat *b,
               enum queue_want *want, struct err *e);

/* What is wanted of the running attempt, without renewing anything. */
int queue_wanted(struct queue *q, const char *id, int attempt, enum queue_want *want,
                 struct err *e);

struct queue_outcome {
    bool exited;          /* false: killed by `signal`, or vanished without a word (signal 0) */
    int code;             /* the exit contract of engine.h */
    int signal;
    bool infrastructure;  /* lost through no fault of the job: silence, never started; a worker of
                             another boot that left no word counts as this by itself */
    int64_t trained_tokens;
    const char *fine_tuned_model; /* both needed for success */
    const json_t *result_files;
    const struct err *error;      /* why, for everything but success; or NULL */
};
/* What the attempt came to, in one transaction; the caller may have opened it to add rows of its
 * own. *state (a literal) is what the job became: rows of a result belong to "succeeded" only. */
int queue_finish(struct queue *q, const char *id, int attempt, const struct queue_outcome *o,
                 const char **state, struct err *e);

/* Walks rows of one kind in order of creation: *cursor starts at 0. 1, 0 at the end, -1. For
 * EXPIRED (running, lease run out) the caller kills the worker if it can reach one and then calls
 * queue_finish with an infrastructure loss. */
enum queue_kind { QUEUE_VALIDATING, QUEUE_RUNNING, QUEUE_EXPIRED };
int queue_next(struct queue *q, enum queue_kind kind, int64_t *cursor, char id[QUEUE_ID_MAX],
               int *attempt, struct err *e);

/* E_NOTFOUND; E_CONFLICT if the state does not allow it. Asking again for what is already so (or
 * already wanted) succeeds: clients repeat requests whose reply was lost. */
int queue_cancel(struct queue *q, const char *id, struct err *e);
int queue_pause(struct queue *q, const char *id, struct err *e);
int queue_resume(struct queue *q, const char *id, struct err *e);

/* "validating" -> "validating_files", running and want=pause -> "pausing", retrying -> "queued". */
const char *queue_public_status(const char *state, const char *want);

#endif
