/* run.h: one attempt of a job, and what its phases share.
 *
 * Order: run_open (load, attach, tokenise) -> ckpt_resume -> train_run -> export_run -> run_close.
 * `state` is all that changes while training besides the parameters and their moments: those
 * together are a checkpoint.
 */
#ifndef GRAFT_RUN_H
#define GRAFT_RUN_H

#include "engine/base/buf.h"
#include "engine/base/fs.h"
#include "engine/engine.h"
#include "engine/job/job.h"
#include "engine/job/journal.h"
#include "engine/job/schedule.h"
#include "engine/job/session.h"

struct run_state {
    int64_t step;             /* optimiser steps done */
    int64_t tokens, trained;  /* context tokens and trained tokens so far */
    double train_loss;        /* of the last step */
    double valid_loss, valid_accuracy;   /* newest; NaN: none */
    double before_loss, before_accuracy; /* before the first step */
    struct buf csv;           /* metrics.csv so far */
    json_t *samples;          /* [{"prompt", "before", "after"?}] */
    bool begun;               /* the untrained model has been measured */
};

struct run {
    struct job job;
    char dir[FS_PATH_MAX];
    int attempt;
    struct journal journal;
    struct session session;
    enum chat_template chat; /* of samples: CHAT_NONE unless the rows are messages */
    struct dataset *train, *valid; /* valid may be NULL */
    int64_t max_length;
    struct schedule schedule;
    struct run_state state;
    struct engine_progress told; /* the newest report */
    int64_t peak_bytes;      /* as estimated */
};

/* Everything before the first step but the exec's work. plan_only: no journal, no storage for
 * parameters, no exec. */
int run_load(struct run *r, bool plan_only, struct err *e);
void run_close(struct run *r); /* zeroed is fine */

void run_progress(struct run *r, const char *phase); /* the last report in another phase */
int run_samples(struct run *r, const char *key, struct err *e); /* "before" or "after" */

/* evaluate.c: mean loss and accuracy per trained token of the validation rows into state, the
 * metrics and metrics.csv. No validation rows: does nothing. */
int evaluate_run(struct run *r, struct err *e);

/* train.c: steps until the end or until somebody wants otherwise. EXIT_DONE: trained to the end;
 * a failure is any other code with *e set. */
enum engine_exit train_run(struct run *r, struct err *e);

/* ckpt.c */
int ckpt_write(struct run *r, struct err *e);
/* Loads the newest complete checkpoint of any attempt; 0 with state.step 0 if there is none. */
int ckpt_resume(struct run *r, struct err *e);
/* Removes what a crash left unfinished. */
int ckpt_sweep(const char *job_dir, struct err *e);

/* export.c: result/, checked against the trained model before it is published. Frees the session's
 * exec: the step buffer must not stand beside a second model. */
int export_run(struct run *r, struct err *e);
enum { EXPORT_PROBE = 64 }; /* tokens on which a result is compared with the trained model */

enum engine_exit run_exit_code(const struct err *e);

#endif
