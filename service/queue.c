#include "service/queue.h"

#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "service/events.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { BACKOFF_MAX_MS = 15 * 60 * 1000 };

/* What the state machine looks at. Loaded and written back within one transaction. */
struct row {
    int64_t seq, max_attempts, attempt, crashes, losses, step;
    int64_t crash_step, crash_signal; /* of the last crash; -1: none */
    int64_t run_at;
    char state[16], want[8], boot_id[40];
};

/* What a row becomes besides its state. */
struct change {
    const char *to, *level, *message;
    const struct queue_outcome *outcome; /* for succeeded */
    const struct err *error;             /* for failed */
};

int queue_init(struct queue *q, struct store *store, struct err *e)
{
    struct buf b;
    buf_init(&b, sizeof q->boot_id - 1);
    *q = (struct queue){.store = store, .lease_ms = 60000, .retry_ms = 10000, .max_attempts = 3,
                        .now_ms = clock_boot_ms};
    if (fs_read_file("/proc/sys/kernel/random/boot_id", &b, e)) {
        buf_clear(&b);
        return -1;
    }
    str_copy(q->boot_id, sizeof q->boot_id, buf_str(&b));
    q->boot_id[strcspn(q->boot_id, "\n")] = 0;
    buf_clear(&b);
    return 0;
}

static bool is(const struct row *r, const char *state)
{
    return strcmp(r->state, state) == 0;
}

static bool wants(const struct row *r, const char *want)
{
    return strcmp(r->want, want) == 0;
}

static bool final(const char *state)
{
    return str_eq(state, "succeeded") || str_eq(state, "failed") || str_eq(state, "cancelled");
}

static int load(struct queue *q, const char *id, struct row *row, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(q->store, &r, e,
                       "SELECT seq, max_attempts, attempt, crashes, losses, step, "
                       "coalesce(crash_step, -1), coalesce(crash_signal, -1), run_at, state, want, "
                       "boot_id FROM jobs WHERE id = ?",
                       "t", id);
    if (rc < 0) return -1;
    if (rc == 0) return err_set(e, E_NOTFOUND, "there is no job '%.80s'", id);
    const char *state = store_text(r, 9), *want = store_text(r, 10), *boot = store_text(r, 11);
    *row = (struct row){.seq = store_int(r, 0), .max_attempts = store_int(r, 1),
                        .attempt = store_int(r, 2), .crashes = store_int(r, 3),
                        .losses = store_int(r, 4), .step = store_int(r, 5),
                        .crash_step = store_int(r, 6), .crash_signal = store_int(r, 7),
                        .run_at = store_int(r, 8)};
    bool ok = state && want && boot;
    if (ok) {
        str_copy(row->boot_id, sizeof row->boot_id, boot);
        str_copy(row->state, sizeof row->state, state);
        str_copy(row->want, sizeof row->want, want);
    }
    store_rows_end(r);
    return ok ? 0 : err_set(e, E_NOMEM, "out of memory while reading a job");
}

static int say(struct queue *q, int64_t seq, const struct change *c, struct err *e)
{
    struct events_new n = {.level = c->level, .type = "message", .message = c->message,
                           .state = c->to};
    return events_append(q->store, seq, &n, e);
}

static int error_json(const struct err *why, json_t **out, struct err *e)
{
    *out = jx_pack(e, "{s:s, s:s, s:s?}", "code", err_name(why->code), "message", why->msg,
                   "param", *why->param ? why->param : NULL);
    return *out ? 0 : -1;
}

/* The one place where a row changes its state (claiming aside). The WHERE repeats what was loaded:
 * the fence holds in the database, not only in this code. */
static int move(struct queue *q, const struct row *row, const struct change *c, struct err *e)
{
    const struct queue_outcome *o = c->outcome;
    json_t *error = NULL;
    if (c->error && error_json(c->error, &error, e)) return -1;
    int n = store_run(q->store, e,
                      "UPDATE jobs SET state = ?, want = 'none', lease_until = NULL, "
                      "crashes = ?, losses = ?, crash_step = nullif(?, -1), "
                      "crash_signal = nullif(?, -1), run_at = ?, boot_id = ?, finished_at = "
                      "CASE WHEN ? THEN ? END, error = ?, fine_tuned_model = ?, "
                      "result_files = ?, trained_tokens = CASE WHEN ? THEN ? END "
                      "WHERE seq = ? AND state = ? AND attempt = ?",
                      "tiiiiitiijtjiiiti", c->to, row->crashes, row->losses, row->crash_step,
                      row->crash_signal, row->run_at, q->boot_id, (int64_t)final(c->to),
                      clock_unix_ms(), error, o ? o->fine_tuned_model : NULL,
                      o ? o->result_files : NULL, (int64_t)(o != NULL),
                      o ? o->trained_tokens : (int64_t)0, row->seq, row->state, row->attempt);
    json_decref(error);
    if (n < 0) return -1;
    if (n != 1) return err_set(e, E_CONFLICT, "the job changed meanwhile");
    return say(q, row->seq, c, e);
}

/* Ends a transaction by the outcome of its body. */
static int end(struct queue *q, int rc, struct err *e)
{
    if (rc == 0) return store_commit(q->store, e);
    store_rollback(q->store);
    return -1;
}

/* --- creation ------------------------------------------------------------------------------- */

int queue_create(struct queue *q, const struct queue_job *j, struct err *e)
{
    struct row row;
    if (store_begin(q->store, e)) return -1;
    int n = store_run(q->store, e,
                      "INSERT INTO jobs (id, created_at, model, training_file, validation_file, "
                      "method, settings, method_echo, seed, suffix, metadata, integrations, "
                      "priority, max_attempts, result_id, state, step) "
                      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'validating', -1)",
                      "tittttjjitjjiit", j->id, clock_unix_ms(), j->model, j->training_file,
                      j->validation_file, j->method, j->settings, j->method_echo, j->seed,
                      j->suffix, j->metadata, j->integrations, j->priority, q->max_attempts,
                      j->result_id);
    struct change c = {.to = "validating", .level = "info", .message = "Job created"};
    int rc = n < 0 || load(q, j->id, &row, e) || say(q, row.seq, &c, e) ? -1 : 0;
    if (rc == 0 && CRASHPOINT("queue.create")) rc = err_set(e, E_IO, "injected failure");
    return end(q, rc, e);
}

int queue_admit(struct queue *q, const char *id, const struct err *refused, struct err *e)
{
    struct row row;
    struct change ok = {.to = "queued", .level = "info", .message = "Files validated, job queued"};
    struct change bad = {.to = "failed", .level = "error", .error = refused};
    if (refused) bad.message = refused->msg;
    if (store_begin(q->store, e)) return -1;
    int rc = load(q, id, &row, e);
    if (rc == 0 && !is(&row, "validating"))
        rc = err_set(e, E_CONFLICT, "job %s is not being validated", id);
    if (rc == 0) rc = move(q, &row, refused ? &bad : &ok, e);
    if (rc == 0 && CRASHPOINT("queue.admit")) rc = err_set(e, E_IO, "injected failure");
    return end(q, rc, e);
}

/* --- attempts ------------------------------------------------------------------------------- */

static int claimed(struct queue *q, char id[QUEUE_ID_MAX], int *attempt, int64_t *seq,
                   struct err *e)
{
    struct store_rows *r;
    int64_t now = q->now_ms();
    int rc = store_one(q->store, &r, e,
                       "UPDATE jobs SET state = 'running', attempt = attempt + 1, run_at = 0, "
                       "lease_until = ?, boot_id = ?, started_at = ?, step = -1, phase = NULL, "
                       "progress = NULL, events_offset = 0 "
                       "WHERE seq = (SELECT seq FROM jobs WHERE state IN ('queued', 'retrying') "
                       "AND (run_at <= ? OR boot_id <> ?) ORDER BY priority DESC, run_at, seq "
                       "LIMIT 1) RETURNING id, attempt, seq",
                       "itiit", now + q->lease_ms, q->boot_id, clock_unix_ms(), now, q->boot_id);
    if (rc < 1) return rc;
    const char *text = store_text(r, 0);
    if (text && str_copy(id, QUEUE_ID_MAX, text)) {
        *attempt = (int)store_int(r, 1);
        *seq = store_int(r, 2);
    } else {
        rc = err_set(e, E_NOMEM, "out of memory while claiming a job");
    }
    store_rows_end(r);
    return rc;
}

int queue_claim(struct queue *q, char id[QUEUE_ID_MAX], int *attempt, struct err *e)
{
    char got[QUEUE_ID_MAX], message[64];
    int n = 0;
    int64_t seq = 0;
    if (store_begin(q->store, e)) return -1;
    int rc = claimed(q, got, &n, &seq, e);
    if (rc == 1) {
        snprintf(message, sizeof message, n == 1 ? "Job started" : "Job started, attempt %d", n);
        struct change c = {.to = "running", .level = "info", .message = message};
        if (say(q, seq, &c, e)) rc = -1;
    }
    if (rc == 1 && CRASHPOINT("queue.claim")) rc = err_set(e, E_IO, "injected failure");
    if (end(q, rc < 0 ? -1 : 0, e)) return -1;
    if (rc == 1) {
        memcpy(id, got, sizeof got);
        *attempt = n;
    }
    return rc;
}

/* Q5: words of any attempt but the running one do not count. */
static int fence(const struct row *row, int attempt, struct err *e)
{
    if (is(row, "running") && row->attempt == attempt) return 0;
    return err_set(e, E_CONFLICT, "attempt %d is stale: the job is %s in attempt %lld", attempt,
                   row->state, (long long)row->attempt);
}

static enum queue_want want_of(const struct row *row)
{
    return wants(row, "cancel")  ? QUEUE_WANT_CANCEL
           : wants(row, "pause") ? QUEUE_WANT_PAUSE
                                 : QUEUE_WANT_NONE;
}

int queue_wanted(struct queue *q, const char *id, int attempt, enum queue_want *want,
                 struct err *e)
{
    struct row row;
    if (load(q, id, &row, e) || fence(&row, attempt, e)) return -1;
    *want = want_of(&row);
    return 0;
}

int queue_beat(struct queue *q, const char *id, int attempt, const struct queue_beat *b,
               enum queue_want *want, struct err *e)
{
    struct row row;
    if (store_begin(q->store, e)) return -1;
    int rc = load(q, id, &row, e);
    if (rc == 0) rc = fence(&row, attempt, e);
    if (rc == 0) {
        int n = store_run(q->store, e,
                          "UPDATE jobs SET lease_until = ?, boot_id = ?, step = max(step, ?), "
                          "phase = coalesce(?, phase), progress = coalesce(?, progress) "
                          "WHERE seq = ? AND state = 'running' AND attempt = ?",
                          "ititjii", q->now_ms() + q->lease_ms, q->boot_id, b->step, b->phase,
                          b->progress, row.seq, row.attempt);
        rc = n == 1 ? 0 : n < 0 ? -1 : err_set(e, E_CONFLICT, "the job changed meanwhile");
    }
    if (rc == 0 && CRASHPOINT("queue.beat")) rc = err_set(e, E_IO, "injected failure");
    if (end(q, rc, e)) return -1;
    *want = want_of(&row);
    return 0;
}

/* min(15 min, first * 4^k) +-20 %, so that jobs that failed together do not return together. */
static int64_t backoff(const struct queue *q, const struct row *row, int64_t k)
{
    int64_t ms = q->retry_ms;
    while (k-- > 0 && ms < BACKOFF_MAX_MS) ms *= 4;
    if (ms > BACKOFF_MAX_MS) ms = BACKOFF_MAX_MS;
    float u = rng_uniform((uint64_t)row->seq, RNG_USER, (uint32_t)row->attempt, 0);
    return ms * 4 / 5 + (int64_t)((float)ms * 0.4f * u);
}

/* The same failure at the same place again: a third try would only waste the machine. SIGKILL and
 * SIGTERM come from outside (kernel, operator) and say nothing about the step. */
static bool poison(const struct row *row, int64_t signature)
{
    return signature != SIGKILL && signature != SIGTERM && row->crash_signal == signature &&
           row->crash_step == row->step;
}

static void retry(const struct queue *q, struct row *row, struct change *c, int64_t wait_ms)
{
    row->run_at = wait_ms ? q->now_ms() + wait_ms : 0;
    c->to = "retrying";
    c->level = "warn";
}

static void give_up(struct change *c, struct err *why, const char *reason)
{
    char last[sizeof why->msg];
    str_copy(last, sizeof last, why->msg);
    snprintf(why->msg, sizeof why->msg, "%.120s: %.340s", reason, last);
    c->to = "failed";
    c->level = "error";
    c->message = why->msg;
    c->error = why;
}

static void after_loss(const struct queue *q, struct row *row, struct change *c, struct err *why)
{
    if (++row->losses > QUEUE_LOSSES_MAX)
        give_up(c, why, "the machine lost the job too often");
    else
        retry(q, row, c, backoff(q, row, row->losses - 1));
}

static void after_crash(const struct queue *q, struct row *row, struct change *c,
                        const struct queue_outcome *o, struct err *why)
{
    bool transient = o->exited && o->code == EXIT_TRANSIENT;
    int64_t signature = o->exited ? 1000 + o->code : o->signal;
    bool again = !transient && poison(row, signature);
    row->crashes++;
    row->crash_step = transient ? -1 : row->step;
    row->crash_signal = transient ? -1 : signature;
    if (again)
        give_up(c, why, "crashed twice in the same way at the same step");
    else if (row->crashes >= row->max_attempts)
        give_up(c, why, "no attempt is left");
    else
        retry(q, row, c, backoff(q, row, row->crashes - 1));
}

/* The table of outcomes: fills c->to and counts. Cancel first (Q7), then what the worker says. */
static void decide(const struct queue *q, struct row *row, const struct queue_outcome *o,
                   struct change *c, struct err *why)
{
    bool pausing = wants(row, "pause");
    bool rebooted = !o->exited && o->signal == 0 && strcmp(row->boot_id, q->boot_id) != 0;
    c->level = "info";
    c->message = why->msg;
    if (wants(row, "cancel")) {
        c->to = "cancelled";
        c->message = "Job cancelled";
    } else if (o->exited && o->code == EXIT_DONE) {
        c->to = "succeeded";
        c->message = "The job has successfully completed";
        c->outcome = o;
    } else if (o->exited && (o->code == EXIT_USER || o->code == EXIT_NUMERIC ||
                             o->code == EXIT_DEVMEM)) {
        c->to = "failed";
        c->level = "error";
        c->error = why;
    } else if (pausing) {
        /* Also after a crash: the newest checkpoint is there, and running on was not asked for. */
        c->to = "paused";
        c->message = "Job paused";
    } else if (o->exited && o->code == EXIT_PAUSED) {
        retry(q, row, c, 0); /* resumed before the worker had stopped */
        c->level = "info";
        c->message = "Job resumed";
    } else if (o->infrastructure || rebooted || (o->exited && o->code == EXIT_PREEMPTED)) {
        after_loss(q, row, c, why);
    } else {
        after_crash(q, row, c, o, why);
    }
}

static void explain(const struct queue_outcome *o, struct err *why)
{
    if (o->error)
        *why = *o->error;
    else if (o->infrastructure)
        err_set(why, E_IO, "the worker was lost");
    else if (o->exited && o->code == EXIT_PREEMPTED)
        err_set(why, E_CANCELLED, "the worker was asked to make room");
    else if (o->exited)
        err_set(why, E_BUG, "the worker ended with code %d", o->code);
    else
        err_set(why, E_BUG, "the worker was killed by signal %d", o->signal);
}

int queue_finish(struct queue *q, const char *id, int attempt, const struct queue_outcome *o,
                 const char **state, struct err *e)
{
    struct row row;
    struct change c = {0};
    struct err why = ERR_INIT;
    if (store_begin(q->store, e)) return -1;
    int rc = load(q, id, &row, e);
    if (rc == 0) rc = fence(&row, attempt, e);
    if (rc == 0) {
        struct row next = row;
        explain(o, &why);
        decide(q, &next, o, &c, &why);
        rc = move(q, &next, &c, e);
    }
    if (rc == 0 && CRASHPOINT("queue.finish")) rc = err_set(e, E_IO, "injected failure");
    if (end(q, rc, e)) return -1;
    *state = c.to;
    return 0;
}

int queue_next(struct queue *q, enum queue_kind kind, int64_t *cursor, char id[QUEUE_ID_MAX],
               int *attempt, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(q->store, &r, e,
                       "SELECT seq, id, attempt FROM jobs WHERE state NOT IN ('succeeded', "
                       "'failed', 'cancelled') AND state = ? AND seq > ? "
                       "AND (? OR lease_until < ? OR boot_id <> ?) ORDER BY seq LIMIT 1",
                       "tiiit", kind == QUEUE_VALIDATING ? "validating" : "running", *cursor,
                       (int64_t)(kind != QUEUE_EXPIRED), q->now_ms(), q->boot_id);
    if (rc < 1) return rc;
    const char *text = store_text(r, 1);
    if (text && str_copy(id, QUEUE_ID_MAX, text)) {
        *cursor = store_int(r, 0);
        *attempt = (int)store_int(r, 2);
    } else {
        rc = err_set(e, E_NOMEM, "out of memory while reading a job");
    }
    store_rows_end(r);
    return rc;
}

/* --- wishes --------------------------------------------------------------------------------- */

static int set_want(struct queue *q, const struct row *row, const char *want, const char *message,
                    struct err *e)
{
    int n = store_run(q->store, e,
                      "UPDATE jobs SET want = ? WHERE seq = ? AND state = 'running'", "ti", want,
                      row->seq);
    if (n < 0) return -1;
    struct change c = {.level = "info", .message = message};
    return say(q, row->seq, &c, e);
}

static int do_cancel(struct queue *q, const struct row *row, struct err *e)
{
    struct change c = {.to = "cancelled", .level = "info", .message = "Job cancelled"};
    if (is(row, "cancelled") || wants(row, "cancel")) return 0;
    if (final(row->state))
        return err_set(e, E_CONFLICT, "the job has already ended: %s", row->state);
    if (is(row, "running")) return set_want(q, row, "cancel", "Cancellation requested", e);
    return move(q, row, &c, e);
}

static int do_pause(struct queue *q, const struct row *row, struct err *e)
{
    struct change c = {.to = "paused", .level = "info", .message = "Job paused"};
    if (is(row, "paused") || wants(row, "pause")) return 0;
    if (wants(row, "cancel")) return err_set(e, E_CONFLICT, "the job is being cancelled");
    if (is(row, "running")) return set_want(q, row, "pause", "Pause requested", e);
    if (is(row, "queued") || is(row, "retrying")) return move(q, row, &c, e);
    return err_set(e, E_CONFLICT, "a job that is %s cannot be paused",
                   queue_public_status(row->state, row->want));
}

static int do_resume(struct queue *q, const struct row *row, struct err *e)
{
    struct change c = {.to = "queued", .level = "info", .message = "Job resumed"};
    if (is(row, "paused")) return move(q, row, &c, e);
    if (wants(row, "pause")) return set_want(q, row, "none", "Pause withdrawn", e);
    return err_set(e, E_CONFLICT, "the job is not paused but %s",
                   queue_public_status(row->state, row->want));
}

static int wish(struct queue *q, const char *id,
                int (*act)(struct queue *, const struct row *, struct err *), struct err *e)
{
    struct row row;
    if (store_begin(q->store, e)) return -1;
    int rc = load(q, id, &row, e);
    if (rc == 0) {
        row.run_at = 0;
        rc = act(q, &row, e);
    }
    if (rc == 0 && CRASHPOINT("queue.wish")) rc = err_set(e, E_IO, "injected failure");
    return end(q, rc, e);
}

int queue_cancel(struct queue *q, const char *id, struct err *e)
{
    return wish(q, id, do_cancel, e);
}

int queue_pause(struct queue *q, const char *id, struct err *e)
{
    return wish(q, id, do_pause, e);
}

int queue_resume(struct queue *q, const char *id, struct err *e)
{
    return wish(q, id, do_resume, e);
}

const char *queue_public_status(const char *state, const char *want)
{
    if (str_eq(state, "validating")) return "validating_files";
    if (str_eq(state, "retrying")) return "queued";
    if (str_eq(state, "running") && str_eq(want, "pause")) return "pausing";
    if (str_eq(state, "running")) return "running";
    static const char *const same[] = {"queued", "paused", "succeeded", "failed", "cancelled"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (str_eq(state, same[i])) return same[i];
    return "failed";
}
