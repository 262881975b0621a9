#include "service/supervisor.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "service/config.h"
#include "service/events.h"
#include "service/files.h"
#include "service/jobs.h"
#include "service/log.h"
#include "service/results.h"
#include "service/store.h"
#include "service/worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { EXPIRE_EVERY_MS = 60000 };

/* A running row and its worker. Only the supervisor's thread touches slots. */
struct slot {
    struct slot *next;
    struct runner_worker w;
    enum queue_want want;   /* as last read from the row */
    int64_t beaten_ms;      /* when the lease was last renewed */
    json_t *progress;       /* as last written to the row */
    bool ended;             /* the process is gone; `end` says how, the row does not know yet */
    bool lost;              /* through no fault of the job */
    struct runner_news end;
    struct err why;         /* E_OK: take it from exit.json */
};

struct supervisor {
    struct service *service;
    const struct runner *runner;
    struct slot *slots;
    int count;
    int64_t expired_ms;
    bool recovered;
    pthread_t thread;
    pthread_mutex_t lock; /* guards the two below */
    pthread_cond_t cond;
    bool woken, stopping;
};

/* --- slots ---------------------------------------------------------------------------------- */

static struct slot *new_slot(struct supervisor *v, const char *id, int attempt, struct err *e)
{
    struct slot *s = mem_zalloc(sizeof *s, e);
    if (!s) return NULL;
    runner_worker_init(&s->w);
    s->w.attempt = attempt;
    s->beaten_ms = clock_boot_ms();
    if (!str_copy(s->w.job_id, sizeof s->w.job_id, id) ||
        service_job_dir(v->service, id, s->w.job_dir, e)) {
        mem_free(s);
        return NULL;
    }
    s->next = v->slots;
    v->slots = s;
    v->count++;
    return s;
}

static void drop_slot(struct supervisor *v, struct slot *s)
{
    struct slot **p = &v->slots;
    while (*p != s) p = &(*p)->next;
    *p = s->next;
    v->count--;
    v->runner->release(&s->w);
    runner_news_clear(&s->end);
    json_decref(s->progress);
    mem_free(s);
}

static struct slot *find_slot(struct supervisor *v, const char *id)
{
    for (struct slot *s = v->slots; s; s = s->next)
        if (str_eq(s->w.job_id, id)) return s;
    return NULL;
}

static void complain(const struct slot *s, const char *what, const struct err *e)
{
    log_err(LOG_WARN, NULL, what, e,
            LOG_FIELDS(LOG_S("job", s->w.job_id), LOG_N("attempt", s->w.attempt)));
}

/* --- the end of an attempt ------------------------------------------------------------------ */

static void error_of(const struct slot *s, struct err *why)
{
    *why = s->why;
    const char *name = NULL, *message = NULL, *param = NULL;
    struct err ignored;
    if (why->code || !s->end.report) return;
    jx_opt_str(s->end.report, "error", &name, &ignored);
    jx_opt_str(s->end.report, "message", &message, &ignored);
    jx_opt_str(s->end.report, "param", &param, &ignored);
    if (!message) return;
    enum errc code = E_BUG;
    for (int c = E_OK + 1; c < E_COUNT; c++)
        if (str_eq(name, err_name((enum errc)c))) code = (enum errc)c;
    err_set(why, code, "%s", message);
    if (param) err_param(why, "%s", param);
}

static int finish(struct supervisor *v, struct slot *s, struct queue_outcome *o,
                  struct results *r, const char **state, struct err *e)
{
    struct store *store = v->service->store;
    if (store_begin(store, e)) return -1;
    int rc = queue_finish(v->service->queue, s->w.job_id, s->w.attempt, o, state, e);
    if (rc == 0 && r && str_eq(*state, "succeeded")) rc = results_register(v->service, r, e);
    if (rc) {
        store_rollback(store);
        return -1;
    }
    return store_commit(store, e);
}

static int finish_done(struct supervisor *v, struct slot *s, struct queue_outcome *o,
                       const char **state, struct err *e)
{
    struct results r;
    struct err bad = ERR_INIT;
    json_t *files = NULL;
    int rc = -1;
    if (results_load(v->service, s->w.job_id, &r, &bad)) {
        if (bad.code != E_CORRUPT) {
            *e = bad;
            return -1;
        }
        struct queue_outcome lost = *o; /* it said done and left no result: try once more */
        lost.code = EXIT_TRANSIENT;
        lost.error = &bad;
        return finish(v, s, &lost, NULL, state, e);
    }
    o->fine_tuned_model = results_model(&r);
    if ((files = results_files(&r, e))) {
        o->result_files = files;
        rc = finish(v, s, o, &r, state, e);
    }
    json_decref(files);
    results_clear(&r);
    return rc;
}

/* Everything the attempt left goes into the row. 0: the slot is done with. */
static int conclude(struct supervisor *v, struct slot *s, struct err *e)
{
    struct err why = ERR_INIT;
    const char *state = "";
    int rc;
    do
        rc = events_tail(v->service->store, s->w.job_dir, s->w.job_id, s->w.attempt, e);
    while (rc == 1);
    if (rc) return -1;
    error_of(s, &why);
    bool lost = s->lost || (!s->end.exited && !s->w.began) ||
                (s->end.exited && s->end.code == WORKER_NOT_MINE);
    struct queue_outcome o = {
        .exited = s->end.exited && !lost,
        .code = s->end.code,
        .signal = s->end.signal,
        .infrastructure = lost,
        .trained_tokens = json_integer_value(json_object_get(s->end.report, "tokens")),
        .error = why.code ? &why : NULL,
    };
    if (o.exited && o.code == EXIT_DONE)
        rc = finish_done(v, s, &o, &state, e);
    else
        rc = finish(v, s, &o, NULL, &state, e);
    if (rc) return -1;
    (void)CRASHPOINT("supervisor.finished");
    log_event(LOG_INFO, NULL, "attempt ended",
              LOG_FIELDS(LOG_S("job", s->w.job_id), LOG_N("attempt", s->w.attempt),
                         LOG_S("state", state), LOG_N("code", s->end.exited ? s->end.code : -1),
                         LOG_N("signal", s->end.signal)));
    return 0;
}

/* The row belongs to another attempt by now: this worker must not go on. */
static void discard(struct supervisor *v, struct slot *s)
{
    struct err e = ERR_INIT;
    log_event(LOG_WARN, NULL, "stopping a stale worker",
              LOG_FIELDS(LOG_S("job", s->w.job_id), LOG_N("attempt", s->w.attempt)));
    if (!s->ended && v->runner->stop(&s->w, &e)) complain(s, "a stale worker lives on", &e);
    drop_slot(v, s);
}

static void try_conclude(struct supervisor *v, struct slot *s)
{
    struct err e = ERR_INIT;
    if (conclude(v, s, &e) == 0)
        drop_slot(v, s);
    else if (e.code == E_CONFLICT || e.code == E_NOTFOUND)
        discard(v, s);
    else
        complain(s, "the end of an attempt could not be recorded yet", &e);
}

/* --- watching ------------------------------------------------------------------------------- */

/* Heartbeat and events in one transaction. */
static int record(struct supervisor *v, struct slot *s, const json_t *progress, struct err *e)
{
    struct service *sv = v->service;
    struct queue_beat b = {.step = -1, .progress = progress};
    int rc = 0;
    int64_t now = clock_boot_ms(), step = -1;
    bool due = progress && (!json_equal(progress, s->progress) ||
                            now - s->beaten_ms > sv->queue->lease_ms / 6);
    if (store_begin(sv->store, e)) return -1;
    if (due) {
        b.phase = json_string_value(json_object_get(progress, "phase"));
        if (!jx_int64(progress, "step", 0, INT64_MAX, &step, e)) b.step = step;
        err_clear(e);
        rc = queue_beat(sv->queue, s->w.job_id, s->w.attempt, &b, &s->want, e);
    } else {
        rc = queue_wanted(sv->queue, s->w.job_id, s->w.attempt, &s->want, e);
    }
    if (rc == 0 && events_tail(sv->store, s->w.job_dir, s->w.job_id, s->w.attempt, e) < 0) rc = -1;
    if (rc) {
        store_rollback(sv->store);
        return -1;
    }
    if (store_commit(sv->store, e)) return -1;
    if (due) {
        s->beaten_ms = now;
        json_decref(s->progress);
        s->progress = json_incref((json_t *)(uintptr_t)progress);
    }
    return 0;
}

static void watch_one(struct supervisor *v, struct slot *s)
{
    struct err e = ERR_INIT;
    struct runner_news news = {0};
    enum queue_want told = s->want;
    if (v->runner->poll(&s->w, told, &news, &e)) {
        complain(s, "a worker could not be asked", &e);
        runner_news_clear(&news);
        return;
    }
    if (news.ended) {
        s->ended = true;
        s->end = news;
        try_conclude(v, s);
        return;
    }
    int rc = record(v, s, news.progress, &e);
    runner_news_clear(&news);
    if (rc && (e.code == E_CONFLICT || e.code == E_NOTFOUND))
        discard(v, s);
    else if (rc)
        complain(s, "a heartbeat could not be recorded", &e);
    else if (s->want != told)
        supervisor_wake(v); /* tell the worker now, not after the next pause */
}

static void watch(struct supervisor *v)
{
    for (struct slot *s = v->slots, *next; s; s = next) {
        next = s->next;
        if (s->ended)
            try_conclude(v, s);
        else
            watch_one(v, s);
    }
}

/* --- adopting, rescuing --------------------------------------------------------------------- */

/* A running row of which this process knows no worker. */
static void recover_one(struct supervisor *v, const char *id, int attempt)
{
    struct err e = ERR_INIT;
    struct slot *s = new_slot(v, id, attempt, &e);
    if (!s) {
        log_err(LOG_WARN, NULL, "a running job could not be looked at", &e, NULL);
        return;
    }
    int rc = v->runner->adopt(v->service->config, &s->w, &e);
    if (rc == 0) rc = runner_read_exit(&s->w, &s->end, &e);
    if (rc < 0) {
        complain(s, "a running job could not be looked at", &e);
        drop_slot(v, s);
        return;
    }
    s->ended = rc == 0;
    if (rc) (void)CRASHPOINT("supervisor.adopted");
    log_event(LOG_INFO, NULL, rc ? "adopted a living worker" : "found the remains of an attempt",
              LOG_FIELDS(LOG_S("job", id), LOG_N("attempt", attempt)));
    (void)CRASHPOINT("supervisor.recovered");
}

/* Its lease has run out: it has not answered for that long. Q6: first dead, then taken away. */
static void rescue(struct supervisor *v, struct slot *s)
{
    struct err e = ERR_INIT;
    if (s->ended) return;
    complain(s, "a worker was silent for too long", &e);
    if (v->runner->stop(&s->w, &e)) {
        complain(s, "a silent worker does not die", &e);
        return;
    }
    s->ended = true;
    /* It may have finished and then hung: its last word counts. */
    if (runner_read_exit(&s->w, &s->end, &e)) complain(s, "exit.json could not be read", &e);
    s->lost = !s->end.exited;
    (void)CRASHPOINT("supervisor.rescue");
}

static void recover(struct supervisor *v, enum queue_kind kind)
{
    char id[QUEUE_ID_MAX];
    int attempt, rc;
    int64_t cursor = 0;
    struct err e = ERR_INIT;
    while ((rc = queue_next(v->service->queue, kind, &cursor, id, &attempt, &e)) == 1) {
        struct slot *s = find_slot(v, id);
        if (!s)
            recover_one(v, id, attempt);
        else if (kind == QUEUE_EXPIRED)
            rescue(v, s);
    }
    if (rc < 0)
        log_err(LOG_WARN, NULL, "running jobs could not be listed", &e, NULL);
    else if (kind == QUEUE_RUNNING)
        v->recovered = true;
}

/* --- new work ------------------------------------------------------------------------------- */

static void admit(struct supervisor *v)
{
    char id[QUEUE_ID_MAX];
    int attempt, rc;
    int64_t cursor = 0;
    struct err e = ERR_INIT;
    while ((rc = queue_next(v->service->queue, QUEUE_VALIDATING, &cursor, id, &attempt, &e)) == 1) {
        if (jobs_validate(v->service, id, &e) && e.code != E_CONFLICT)
            log_err(LOG_WARN, NULL, "a job could not be validated yet", &e,
                    LOG_FIELDS(LOG_S("job", id)));
    }
    if (rc < 0) log_err(LOG_WARN, NULL, "new jobs could not be listed", &e, NULL);
}

static void claim(struct supervisor *v)
{
    char id[QUEUE_ID_MAX];
    int attempt, rc;
    struct err e = ERR_INIT;
    while (v->count < v->service->config->jobs_max) {
        /* Memory first: a claimed row without a slot would wait for its lease to run out. */
        struct slot *s = new_slot(v, "claiming", 0, &e);
        if (!s) break;
        rc = queue_claim(v->service->queue, id, &attempt, &e);
        if (rc < 1) {
            drop_slot(v, s);
            if (rc < 0) log_err(LOG_WARN, NULL, "no job could be claimed", &e, NULL);
            break;
        }
        (void)CRASHPOINT("supervisor.claimed");
        str_copy(s->w.job_id, sizeof s->w.job_id, id);
        s->w.attempt = attempt;
        if (service_job_dir(v->service, id, s->w.job_dir, &e) ||
            v->runner->start(v->service->config, &s->w, &e)) {
            complain(s, "a worker could not be started", &e);
            s->ended = s->lost = true;
            s->why = e;
            try_conclude(v, s);
            break;
        }
        log_event(LOG_INFO, NULL, "attempt started",
                  LOG_FIELDS(LOG_S("job", id), LOG_N("attempt", attempt), LOG_N("pid", s->w.pid)));
        (void)CRASHPOINT("supervisor.started");
    }
}

static void expire_files(struct supervisor *v)
{
    struct err e = ERR_INIT;
    int64_t now = clock_boot_ms();
    if (v->expired_ms && now - v->expired_ms < EXPIRE_EVERY_MS) return;
    v->expired_ms = now;
    if (files_expire(v->service, &e))
        log_err(LOG_WARN, NULL, "expired files could not be deleted", &e, NULL);
}

/* --- the thread ----------------------------------------------------------------------------- */

/* False: time to stop. */
static bool pause_until_next(struct supervisor *v)
{
    struct timespec t;
    int64_t ms = v->service->config->poll_ms;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += (time_t)(ms / 1000);
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&v->lock);
    while (!v->woken && !v->stopping &&
           pthread_cond_timedwait(&v->cond, &v->lock, &t) != ETIMEDOUT) {}
    v->woken = false;
    bool go_on = !v->stopping;
    pthread_mutex_unlock(&v->lock);
    return go_on;
}

static void *run(void *arg)
{
    struct supervisor *v = arg;
    do {
        /* Nothing is claimed before every running row is accounted for. */
        if (!v->recovered) recover(v, QUEUE_RUNNING);
        admit(v);
        watch(v);
        recover(v, QUEUE_EXPIRED);
        if (v->recovered) claim(v);
        expire_files(v);
    } while (pause_until_next(v));
    while (v->slots) drop_slot(v, v->slots);
    return NULL;
}

struct supervisor *supervisor_start(struct service *s, const struct runner *runner,
                                    struct err *e)
{
    pthread_condattr_t attr;
    struct supervisor *v = mem_zalloc(sizeof *v, e);
    if (!v) return NULL;
    v->service = s;
    v->runner = runner;
    pthread_mutex_init(&v->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&v->cond, &attr);
    pthread_condattr_destroy(&attr);
    int rc = fault_hit(FAULT_THREAD) ? EAGAIN : pthread_create(&v->thread, NULL, run, v);
    (void)CRASHPOINT("supervisor.running");
    if (rc == 0) return v;
    errno = rc;
    err_sys(e, "cannot start the supervisor");
    pthread_mutex_destroy(&v->lock);
    pthread_cond_destroy(&v->cond);
    mem_free(v);
    return NULL;
}

void supervisor_wake(struct supervisor *v)
{
    if (!v) return;
    pthread_mutex_lock(&v->lock);
    v->woken = true;
    pthread_cond_signal(&v->cond);
    pthread_mutex_unlock(&v->lock);
}

void supervisor_stop(struct supervisor *v)
{
    if (!v) return;
    pthread_mutex_lock(&v->lock);
    v->stopping = true;
    pthread_cond_signal(&v->cond);
    pthread_mutex_unlock(&v->lock);
    pthread_join(v->thread, NULL);
    pthread_mutex_destroy(&v->lock);
    pthread_cond_destroy(&v->cond);
    mem_free(v);
}
