/* The state machine: single rules by name, and every interleaving of two attempts up to a length,
 * each executed against the real SQL, with the invariants of reliability 1.4 checked after each
 * step against a model that knows nothing of queue.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "service/queue.h"
#include "service/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEASE_MS = 60000, HOUR_MS = 3600000 };

static int64_t now_ms;

static int64_t test_clock(void)
{
    return now_ms;
}

static struct queue open_queue(void)
{
    struct err e = ERR_INIT;
    struct queue q;
    struct store *s = store_open(":memory:", &e);
    assert_non_null(s);
    assert_int_equal(queue_init(&q, s, &e), 0);
    q.now_ms = test_clock;
    now_ms = 1000000;
    return q;
}

static int create(struct queue *q, const char *id, struct err *e)
{
    char result[64];
    json_t *empty = json_object();
    snprintf(result, sizeof result, "default/%s", id);
    struct queue_job j = {.id = id, .model = "default/base", .training_file = "file-1",
                          .method = "lora", .result_id = result, .settings = empty,
                          .method_echo = empty, .seed = 1};
    int rc = queue_create(q, &j, e);
    json_decref(empty);
    return rc;
}

static void ready(struct queue *q, const char *id)
{
    struct err e = ERR_INIT;
    assert_int_equal(create(q, id, &e), 0);
    assert_int_equal(queue_admit(q, id, NULL, &e), 0);
}

static int claim(struct queue *q)
{
    struct err e = ERR_INIT;
    char id[QUEUE_ID_MAX];
    int attempt = 0;
    int rc = queue_claim(q, id, &attempt, &e);
    assert_true(rc >= 0);
    return rc ? attempt : 0;
}

static void column(struct queue *q, const char *id, const char *sql, char out[64])
{
    struct err e = ERR_INIT;
    struct store_rows *r;
    assert_int_equal(store_one(q->store, &r, &e, sql, "t", id), 1);
    str_copy(out, 64, store_text(r, 0) ? store_text(r, 0) : "NULL");
    store_rows_end(r);
}

static void assert_state(struct queue *q, const char *id, const char *want)
{
    char state[64];
    column(q, id, "SELECT state FROM jobs WHERE id = ?", state);
    assert_string_equal(state, want);
}

static const char *finish(struct queue *q, int attempt, struct queue_outcome o)
{
    struct err e = ERR_INIT;
    const char *state = "refused";
    if (o.exited && o.code == EXIT_DONE) o.fine_tuned_model = "default/j";
    if (queue_finish(q, "j", attempt, &o, &state, &e)) assert_int_equal(e.code, E_CONFLICT);
    return state;
}

static const char *exits(struct queue *q, int attempt, int code)
{
    return finish(q, attempt, (struct queue_outcome){.exited = true, .code = code});
}

static const char *dies(struct queue *q, int attempt, int signal)
{
    return finish(q, attempt, (struct queue_outcome){.signal = signal});
}

/* --- single rules --------------------------------------------------------------------------- */

static void a_stale_attempt_can_neither_beat_nor_finish(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct queue q = open_queue();
    struct queue_beat b = {.step = 1};
    enum queue_want want;
    ready(&q, "j");
    assert_int_equal(claim(&q), 1);
    assert_string_equal(finish(&q, 1, (struct queue_outcome){.infrastructure = true}), "retrying");
    assert_string_equal(exits(&q, 1, EXIT_DONE), "refused");
    assert_int_equal(claim(&q), 0); /* the backoff has not passed */
    now_ms += HOUR_MS;
    assert_int_equal(claim(&q), 2);
    assert_string_equal(exits(&q, 1, EXIT_DONE), "refused");
    assert_int_equal(queue_beat(&q, "j", 1, &b, &want, &e), -1);
    assert_int_equal(e.code, E_CONFLICT);
    assert_int_equal(queue_beat(&q, "j", 2, &b, &want, &e), 0);
    assert_string_equal(exits(&q, 2, EXIT_DONE), "succeeded");
    assert_string_equal(exits(&q, 2, EXIT_DONE), "refused");
    store_close(q.store);
}

static void the_budget_of_crashes_ends_and_losses_count_apart(void **state)
{
    (void)state;
    struct queue q = open_queue();
    ready(&q, "j");
    int attempt = 0;
    for (int i = 0; i < QUEUE_LOSSES_MAX; i++) {
        now_ms += HOUR_MS;
        attempt = claim(&q);
        assert_int_equal(attempt, i + 1);
        assert_string_equal(exits(&q, attempt, EXIT_PREEMPTED), "retrying");
    }
    for (int i = 0; i < 3; i++) {
        now_ms += HOUR_MS;
        attempt = claim(&q);
        assert_string_equal(exits(&q, attempt, EXIT_TRANSIENT), i < 2 ? "retrying" : "failed");
    }
    store_close(q.store);
}

static void the_same_crash_at_the_same_step_is_poison(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    static const struct { int64_t step1, step2; int sig1, sig2; const char *end; } rows[] = {
        {5, 5, 11, 11, "failed"},  {5, 6, 11, 11, "retrying"},
        {5, 5, 11, 8, "retrying"}, {5, 5, 9, 9, "retrying"}, /* 9 comes from outside */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct queue q = open_queue();
        struct queue_beat one = {.step = rows[i].step1}, two = {.step = rows[i].step2};
        enum queue_want want;
        ready(&q, "j");
        assert_int_equal(claim(&q), 1);
        assert_int_equal(queue_beat(&q, "j", 1, &one, &want, &e), 0);
        assert_string_equal(dies(&q, 1, rows[i].sig1), "retrying");
        now_ms += HOUR_MS;
        assert_int_equal(claim(&q), 2);
        assert_int_equal(queue_beat(&q, "j", 2, &two, &want, &e), 0);
        assert_string_equal(dies(&q, 2, rows[i].sig2), rows[i].end);
        store_close(q.store);
    }
}

static void the_exit_contract_decides(void **state)
{
    (void)state;
    static const struct { int code; const char *plain, *pausing, *cancelling; } rows[] = {
        {EXIT_DONE, "succeeded", "succeeded", "cancelled"},
        {EXIT_USER, "failed", "failed", "cancelled"},
        {EXIT_NUMERIC, "failed", "failed", "cancelled"},
        {EXIT_DEVMEM, "failed", "failed", "cancelled"},
        {EXIT_TRANSIENT, "retrying", "paused", "cancelled"},
        {EXIT_CANCELLED, "retrying", "paused", "cancelled"},
        {EXIT_PAUSED, "retrying", "paused", "cancelled"},
        {EXIT_PREEMPTED, "retrying", "paused", "cancelled"},
        {99, "retrying", "paused", "cancelled"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int want = 0; want < 3; want++) {
            struct err e = ERR_INIT;
            struct queue q = open_queue();
            ready(&q, "j");
            assert_int_equal(claim(&q), 1);
            if (want == 1) assert_int_equal(queue_pause(&q, "j", &e), 0);
            if (want == 2) assert_int_equal(queue_cancel(&q, "j", &e), 0);
            assert_string_equal(exits(&q, 1, rows[i].code),
                                want == 0   ? rows[i].plain
                                : want == 1 ? rows[i].pausing
                                            : rows[i].cancelling);
            store_close(q.store);
        }
    }
}

static void waiting_jobs_obey_at_once(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct queue q = open_queue();
    ready(&q, "j");
    assert_int_equal(queue_resume(&q, "j", &e), -1);
    assert_int_equal(e.code, E_CONFLICT);
    assert_int_equal(queue_pause(&q, "j", &e), 0);
    assert_int_equal(queue_pause(&q, "j", &e), 0); /* a repeated request */
    assert_state(&q, "j", "paused");
    assert_int_equal(claim(&q), 0);
    assert_int_equal(queue_resume(&q, "j", &e), 0);
    assert_int_equal(claim(&q), 1);
    assert_int_equal(queue_pause(&q, "j", &e), 0);
    assert_int_equal(queue_resume(&q, "j", &e), 0); /* withdrawn before the worker saw it */
    assert_string_equal(exits(&q, 1, EXIT_PAUSED), "retrying"); /* or after */
    assert_int_equal(claim(&q), 2); /* without waiting */
    assert_int_equal(queue_cancel(&q, "j", &e), 0);
    assert_int_equal(queue_pause(&q, "j", &e), -1);
    assert_state(&q, "j", "running");
    assert_string_equal(dies(&q, 2, 9), "cancelled");
    assert_int_equal(queue_cancel(&q, "j", &e), 0);
    assert_int_equal(queue_resume(&q, "j", &e), -1);
    assert_int_equal(queue_cancel(&q, "nobody", &e), -1);
    assert_int_equal(e.code, E_NOTFOUND);
    store_close(q.store);
}

static void leases_expire_by_the_boot_clock_or_another_boot(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct queue q = open_queue();
    struct queue_beat b = {.step = 0};
    enum queue_want want;
    char id[QUEUE_ID_MAX];
    int attempt;
    int64_t cursor = 0;
    ready(&q, "j");
    claim(&q);
    assert_int_equal(queue_next(&q, QUEUE_EXPIRED, &cursor, id, &attempt, &e), 0);
    now_ms += LEASE_MS + 1;
    assert_int_equal(queue_next(&q, QUEUE_EXPIRED, &cursor, id, &attempt, &e), 1);
    assert_int_equal(attempt, 1);
    assert_int_equal(queue_beat(&q, "j", 1, &b, &want, &e), 0); /* it was alive after all */
    cursor = 0;
    assert_int_equal(queue_next(&q, QUEUE_EXPIRED, &cursor, id, &attempt, &e), 0);
    str_copy(q.boot_id, sizeof q.boot_id, "another boot");
    now_ms = 5; /* its clock starts anew */
    assert_int_equal(queue_next(&q, QUEUE_EXPIRED, &cursor, id, &attempt, &e), 1);
    /* A worker that a reboot ended without a word is no crash of the job. */
    assert_string_equal(finish(&q, 1, (struct queue_outcome){0}), "retrying");
    column(&q, "j", "SELECT losses || '/' || crashes FROM jobs WHERE id = ?", id);
    assert_string_equal(id, "1/0");
    store_close(q.store);
}

static void waits_grow_fourfold_with_jitter(void **state)
{
    (void)state;
    struct queue q = open_queue();
    char text[64];
    int64_t want = q.retry_ms;
    q.max_attempts = 10;
    ready(&q, "j");
    for (int i = 0; i < 6; i++) {
        int attempt = claim(&q);
        assert_int_equal(attempt, i + 1);
        assert_string_equal(exits(&q, attempt, EXIT_TRANSIENT), "retrying");
        column(&q, "j", "SELECT run_at FROM jobs WHERE id = ?", text);
        int64_t wait = strtoll(text, NULL, 10) - now_ms;
        int64_t base = want < 900000 ? want : 900000;
        assert_in_range(wait, base * 8 / 10, base * 12 / 10);
        want *= 4;
        now_ms += wait - 1;
        assert_int_equal(claim(&q), 0);
        now_ms += 1;
    }
    store_close(q.store);
}

static void older_and_more_urgent_jobs_come_first(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct queue q = open_queue();
    char id[QUEUE_ID_MAX];
    int attempt;
    static const char *const order[] = {"c", "a", "b"};
    ready(&q, "a");
    ready(&q, "b");
    ready(&q, "c");
    assert_int_equal(store_run(q.store, &e, "UPDATE jobs SET priority = 5 WHERE id = 'c'", ""), 1);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(queue_claim(&q, id, &attempt, &e), 1);
        assert_string_equal(id, order[i]);
    }
    store_close(q.store);
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Reading the history would take tens of milliseconds; a claim takes some tens of microseconds. */
static void a_long_history_does_not_slow_claims(void **state)
{
    (void)state;
    enum { N = 51 };
    struct err e = ERR_INIT;
    struct queue q = open_queue();
    int64_t took[N];
    assert_true(store_run(q.store, &e,
                          "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE "
                          "i < 100000) INSERT INTO jobs (id, created_at, model, training_file, "
                          "method, settings, method_echo, seed, priority, max_attempts, result_id, "
                          "state, finished_at) SELECT 'old-' || i, i, 'm', 'f', 'lora', '{}', "
                          "'{}', 1, 0, 3, 'default/old-' || i, 'cancelled', i FROM c",
                          "") > 0);
    for (int i = 0; i < N; i++) {
        char id[16];
        snprintf(id, sizeof id, "new-%d", i);
        ready(&q, id);
        int64_t start = clock_mono_ns();
        assert_int_equal(claim(&q), 1);
        took[i] = clock_mono_ns() - start;
    }
    qsort(took, N, sizeof *took, by_size);
    assert_in_range(took[N / 2], 0, 5000000);
    store_close(q.store);
}

static void the_database_itself_refuses_what_the_machine_forbids(void **state)
{
    (void)state;
    static const char *const forbidden[] = {
        "UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = ?", /* final */
        "UPDATE jobs SET trained_tokens = 5 WHERE id = ?",
        "UPDATE jobs SET state = 'succeeded', finished_at = 1, fine_tuned_model = 'm' "
        "WHERE id = ?2 AND ?1 <> ''",                                        /* queued>succeeded */
        "UPDATE jobs SET lease_until = 1 WHERE id = ?2 AND ?1 <> ''",        /* not running */
        "UPDATE jobs SET want = 'cancel' WHERE id = ?2 AND ?1 <> ''",
        "UPDATE jobs SET finished_at = 1 WHERE id = ?2 AND ?1 <> ''",
        "UPDATE jobs SET fine_tuned_model = 'm' WHERE id = ?2 AND ?1 <> ''",
        "UPDATE jobs SET attempt = -1 WHERE id = ?2 AND ?1 <> ''",
        "DELETE FROM events WHERE ?1 <> ''",
        "UPDATE events SET message = 'x' WHERE ?1 <> ''",
        "INSERT INTO events (job, n, created_at, level, type, message) "
        "SELECT seq, 99, 1, 'info', 'message', 'x' FROM jobs WHERE id = ?1",
    };
    struct err e = ERR_INIT;
    struct queue q = open_queue();
    ready(&q, "j");
    assert_int_equal(queue_cancel(&q, "j", &e), 0);
    ready(&q, "other");
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        bool two = strstr(forbidden[i], "?2") != NULL;
        assert_int_equal(store_run(q.store, &e, forbidden[i], two ? "tt" : "t", "j", "other"), -1);
        assert_int_equal(e.code, E_CONFLICT);
    }
    store_close(q.store);
}

/* --- every interleaving --------------------------------------------------------------------- */

enum op {
    OP_CLAIM, OP_BEAT_1, OP_FINISH_1, OP_CRASH_1, OP_BEAT_2, OP_FINISH_2, OP_CRASH_2, OP_RESCUE,
    OP_CANCEL, OP_PAUSE, OP_RESUME, OP_RESTART, OPS
};
static const char *const op_names[OPS] = {"claim", "beat1", "finish1", "crash1", "beat2",
                                          "finish2", "crash2", "rescue", "cancel", "pause",
                                          "resume", "restart"};

/* What must be true, kept beside the database by rules written down here once more. */
struct model {
    int attempts;         /* claims so far */
    int owner;            /* the attempt that may speak; 0: none */
    bool cancelled;       /* a cancel was answered with success before the job ended */
    enum queue_want told[3]; /* what each worker heard last */
    int published;        /* attempts that made the job succeed */
    char final[16];       /* the state it ended in, "" before */
    int64_t now;
    int boot;
};

struct search {
    struct queue q;
    enum op path[16];
    int depth;
    bool prune;
    int64_t steps;
};

static void broken(const struct search *s, const char *what)
{
    char text[256] = "";
    for (int i = 0, n = 0; i < s->depth; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, " %s", op_names[s->path[i]]);
    fail_msg("%s after:%s", what, text);
}

#define HOLDS(s, condition) \
    do { \
        if (!(condition)) broken(s, #condition); \
    } while (0)

struct seen {
    char state[16], want[8];
    int64_t attempt, finished, leased, tuned, events, last, same, step, crashes, losses;
};

static struct seen look(struct search *s)
{
    struct err e = ERR_INIT;
    struct store_rows *r;
    struct seen v = {0};
    int rc = store_one(s->q.store, &r, &e,
                       "SELECT state, want, attempt, finished_at IS NOT NULL, lease_until IS NOT "
                       "NULL, fine_tuned_model IS NOT NULL, (SELECT count(*) FROM events), (SELECT "
                       "max(n) FROM events), (SELECT e.state = jobs.state FROM events e WHERE "
                       "e.state IS NOT NULL ORDER BY n DESC LIMIT 1), step, crashes, losses "
                       "FROM jobs",
                       "");
    HOLDS(s, rc == 1);
    str_copy(v.state, sizeof v.state, store_text(r, 0));
    str_copy(v.want, sizeof v.want, store_text(r, 1));
    v.attempt = store_int(r, 2);
    v.finished = store_int(r, 3);
    v.leased = store_int(r, 4);
    v.tuned = store_int(r, 5);
    v.events = store_int(r, 6);
    v.last = store_int(r, 7);
    v.same = store_int(r, 8);
    v.step = store_int(r, 9);
    v.crashes = store_int(r, 10);
    v.losses = store_int(r, 11);
    store_rows_end(r);
    return v;
}

static bool is_final(const char *state)
{
    return !strcmp(state, "succeeded") || !strcmp(state, "failed") || !strcmp(state, "cancelled");
}

/* I2-I5, I10 on the row as it is now. */
static void check(struct search *s, struct model *m, const struct seen *v)
{
    bool final = is_final(v->state);
    HOLDS(s, v->finished == final);
    HOLDS(s, v->leased == !strcmp(v->state, "running"));
    HOLDS(s, v->tuned == !strcmp(v->state, "succeeded"));
    HOLDS(s, !strcmp(v->want, "none") || !strcmp(v->state, "running"));
    HOLDS(s, v->events == v->last);
    HOLDS(s, v->same == 1);
    HOLDS(s, m->published <= 1);
    HOLDS(s, (m->published == 1) == !strcmp(v->state, "succeeded"));
    HOLDS(s, (m->owner != 0) == !strcmp(v->state, "running"));
    HOLDS(s, m->owner == 0 || m->owner == v->attempt);
    HOLDS(s, !*m->final || !strcmp(m->final, v->state));
    HOLDS(s, !m->cancelled || !strcmp(v->state, "cancelled") ||
                 (!strcmp(v->state, "running") && !strcmp(v->want, "cancel")));
    if (final) str_copy(m->final, sizeof m->final, v->state);
}

static void do_claim(struct search *s, struct model *m, const struct seen *before)
{
    struct err e = ERR_INIT;
    char id[QUEUE_ID_MAX];
    int attempt = 0;
    m->now += HOUR_MS; /* whatever the backoff was, it is over */
    now_ms = m->now;
    int rc = queue_claim(&s->q, id, &attempt, &e);
    bool waiting = !strcmp(before->state, "queued") || !strcmp(before->state, "retrying");
    HOLDS(s, rc == waiting); /* nothing is lost, nothing runs twice */
    if (rc != 1) return;
    HOLDS(s, attempt == m->attempts + 1);
    m->attempts = m->owner = attempt;
    m->told[attempt] = QUEUE_WANT_NONE;
}

static void do_beat(struct search *s, struct model *m, int attempt)
{
    struct err e = ERR_INIT;
    struct queue_beat b = {.step = 1};
    enum queue_want want;
    int rc = queue_beat(&s->q, "j", attempt, &b, &want, &e);
    HOLDS(s, (rc == 0) == (m->owner == attempt));
    HOLDS(s, rc == 0 || e.code == E_CONFLICT);
    if (rc == 0) m->told[attempt] = want;
}

static void do_finish(struct search *s, struct model *m, int attempt, bool crash)
{
    struct err e = ERR_INIT;
    const char *state = "";
    static const int codes[] = {EXIT_DONE, EXIT_PAUSED, EXIT_CANCELLED};
    struct queue_outcome o = {.exited = !crash, .code = codes[m->told[attempt]], .signal = 11,
                              .fine_tuned_model = "default/j"};
    int rc = queue_finish(&s->q, "j", attempt, &o, &state, &e);
    HOLDS(s, (rc == 0) == (m->owner == attempt));
    HOLDS(s, rc == 0 || e.code == E_CONFLICT);
    if (rc) return;
    m->owner = 0;
    m->published += !strcmp(state, "succeeded");
    HOLDS(s, !m->cancelled || !strcmp(state, "cancelled"));
}

/* The supervisor's part: whoever has lost the lease is taken to be dead. Its worker, in this test,
 * lives on and may speak later. */
static void do_rescue(struct search *s, struct model *m)
{
    struct err e = ERR_INIT;
    char id[QUEUE_ID_MAX];
    const char *state = "";
    int attempt, rc;
    int64_t cursor = 0;
    struct queue_outcome o = {.infrastructure = true};
    while ((rc = queue_next(&s->q, QUEUE_EXPIRED, &cursor, id, &attempt, &e)) == 1) {
        HOLDS(s, attempt == m->owner);
        HOLDS(s, queue_finish(&s->q, id, attempt, &o, &state, &e) == 0);
        HOLDS(s, strcmp(state, "succeeded") != 0);
        m->owner = 0;
    }
    HOLDS(s, rc == 0);
    HOLDS(s, m->owner == 0);
}

static void do_wish(struct search *s, struct model *m, enum op op, const struct seen *before)
{
    struct err e = ERR_INIT;
    int rc = op == OP_CANCEL  ? queue_cancel(&s->q, "j", &e)
             : op == OP_PAUSE ? queue_pause(&s->q, "j", &e)
                              : queue_resume(&s->q, "j", &e);
    HOLDS(s, rc == 0 || e.code == E_CONFLICT);
    bool ended = is_final(before->state);
    if (op == OP_CANCEL) HOLDS(s, (rc == 0) == (!ended || !strcmp(before->state, "cancelled")));
    if (op == OP_CANCEL && rc == 0) m->cancelled = true;
}

static void apply(struct search *s, struct model *m, enum op op, const struct seen *before)
{
    static const char *const boots[] = {"boot-a", "boot-b", "boot-c", "boot-d", "boot-e", "boot-f",
                                        "boot-g", "boot-h"};
    switch (op) {
    case OP_CLAIM: do_claim(s, m, before); break;
    case OP_BEAT_1: do_beat(s, m, 1); break;
    case OP_BEAT_2: do_beat(s, m, 2); break;
    case OP_FINISH_1: do_finish(s, m, 1, false); break;
    case OP_FINISH_2: do_finish(s, m, 2, false); break;
    case OP_CRASH_1: do_finish(s, m, 1, true); break;
    case OP_CRASH_2: do_finish(s, m, 2, true); break;
    case OP_RESCUE:
        m->now += LEASE_MS + 1;
        now_ms = m->now;
        do_rescue(s, m);
        break;
    case OP_RESTART: /* of machine and server: another boot, no lease of before counts */
        m->boot++;
        str_copy(s->q.boot_id, sizeof s->q.boot_id, boots[m->boot % 8]);
        do_rescue(s, m);
        break;
    case OP_CANCEL:
    case OP_PAUSE:
    case OP_RESUME: do_wish(s, m, op, before); break;
    case OPS: break;
    }
}

/* Whether `op` can make a difference: a third attempt is out of scope, a worker that was never
 * started cannot speak. */
static bool possible(const struct model *m, enum op op)
{
    switch (op) {
    case OP_CLAIM: return m->attempts < 2 || m->owner != 0;
    case OP_BEAT_1: case OP_FINISH_1: case OP_CRASH_1: return m->attempts >= 1;
    case OP_BEAT_2: case OP_FINISH_2: case OP_CRASH_2: return m->attempts >= 2;
    default: return true;
    }
}

static void explore(struct search *s, struct model m, int length)
{
    struct seen before = look(s);
    if (s->depth == length) return;
    for (int op = 0; op < OPS; op++) {
        struct err e = ERR_INIT;
        struct model next = m;
        char boot[40];
        if (!possible(&m, (enum op)op)) continue;
        memcpy(boot, s->q.boot_id, sizeof boot);
        assert_int_equal(store_begin(s->q.store, &e), 0);
        s->path[s->depth++] = (enum op)op;
        s->steps++;
        now_ms = next.now;
        apply(s, &next, (enum op)op, &before);
        struct seen after = look(s);
        check(s, &next, &after);
        /* What changed nothing leads nowhere new: its continuations are shorter sequences. */
        if (!s->prune || memcmp(&before, &after, sizeof after) != 0 ||
            memcmp(next.told, m.told, sizeof m.told) != 0)
            explore(s, next, length);
        s->depth--;
        store_rollback(s->q.store);
        memcpy(s->q.boot_id, boot, sizeof boot);
    }
}

static int64_t search(int length, bool prune)
{
    struct search s = {.q = open_queue(), .prune = prune};
    struct model m = {.now = now_ms};
    ready(&s.q, "j");
    str_copy(s.q.boot_id, sizeof s.q.boot_id, "boot-a");
    explore(&s, m, length);
    store_close(s.q.store);
    return s.steps;
}

/* Sequences of 8 that leave out steps without any effect; and, because that argument could be
 * wrong, all sequences of 4 without leaving out any. QUEUE_LENGTH=9 takes a few seconds more. */
static void every_interleaving_of_two_attempts_keeps_the_invariants(void **state)
{
    (void)state;
    int64_t length = 8;
    if (getenv("QUEUE_LENGTH")) assert_true(str_int64(getenv("QUEUE_LENGTH"), &length));
    assert_true(search((int)length, true) > 20000);
    assert_true(search(4, false) > 2000);
}

/* --- failing calls -------------------------------------------------------------------------- */

static int life(struct queue *q, struct err *e)
{
    char id[QUEUE_ID_MAX];
    int attempt;
    const char *state;
    enum queue_want want;
    struct queue_beat b = {.step = 1, .phase = "training"};
    struct queue_outcome o = {.exited = true, .fine_tuned_model = "default/j"};
    if (create(q, "j", e) || queue_admit(q, "j", NULL, e) || queue_claim(q, id, &attempt, e) != 1 ||
        queue_beat(q, "j", 1, &b, &want, e) || queue_pause(q, "j", e) ||
        queue_resume(q, "j", e) || queue_finish(q, "j", 1, &o, &state, e))
        return -1;
    return 0;
}

/* Each call that fails leaves the row as it was before it: whole transactions or nothing. */
static void a_failing_call_changes_nothing_and_leaks_nothing(void **state)
{
    (void)state;
    static const enum fault_class classes[] = {FAULT_SQL, FAULT_MEM};
    struct err e = ERR_INIT;
    struct queue warm = open_queue();
    assert_int_equal(life(&warm, &e), 0);
    store_close(warm.store);
    for (int c = 0; c < 2; c++) {
        int failed = 0;
        for (int n = 1;; n++) {
            size_t before = mem_live();
            struct queue q = open_queue();
            fault_arm(classes[c], n, false);
            int rc = life(&q, &e);
            int64_t calls = fault_count(classes[c]);
            fault_arm(classes[c], 0, false);
            struct store_rows *r;
            /* Events and state agree whatever happened, and the store is usable. */
            int found = store_one(q.store, &r, &e,
                                  "SELECT (SELECT e.state FROM events e WHERE e.state IS NOT NULL "
                                  "ORDER BY n DESC LIMIT 1) = state FROM jobs",
                                  "");
            assert_true(found >= 0);
            if (found) {
                assert_int_equal(store_int(r, 0), 1);
                store_rows_end(r);
            }
            assert_int_equal(store_check(q.store, &e), 0);
            store_close(q.store);
            assert_int_equal(mem_live(), before);
            failed += rc != 0;
            if (calls < n) break;
        }
        assert_true(failed > 10);
    }
}

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stale_attempt_can_neither_beat_nor_finish),
        cmocka_unit_test(the_budget_of_crashes_ends_and_losses_count_apart),
        cmocka_unit_test(the_same_crash_at_the_same_step_is_poison),
        cmocka_unit_test(the_exit_contract_decides),
        cmocka_unit_test(waiting_jobs_obey_at_once),
        cmocka_unit_test(leases_expire_by_the_boot_clock_or_another_boot),
        cmocka_unit_test(waits_grow_fourfold_with_jitter),
        cmocka_unit_test(older_and_more_urgent_jobs_come_first),
        cmocka_unit_test(a_long_history_does_not_slow_claims),
        cmocka_unit_test(the_database_itself_refuses_what_the_machine_forbids),
        cmocka_unit_test(every_interleaving_of_two_attempts_keeps_the_invariants),
        cmocka_unit_test(a_failing_call_changes_nothing_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
