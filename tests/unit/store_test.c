/* The database connection: what it opens, what it refuses, transactions, failing calls. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "service/store.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], path[128];

static int begin(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/graft-store-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/db", dir);
    return 0;
}

static int end(void **state)
{
    struct err e;
    (void)state;
    return fs_rmtree(dir, &e);
}

static struct store *must_open(void)
{
    struct err e = ERR_INIT;
    struct store *s = store_open(path, &e);
    if (!s) fail_msg("%s", e.msg);
    return s;
}

static int put(struct store *s, const char *key, struct err *e)
{
    return store_run(s, e,
                     "INSERT INTO idempotency (key, request, reply, created_at) "
                     "VALUES (?, 'r', 'x', 1)",
                     "t", key);
}

static int64_t count(struct store *s)
{
    struct err e = ERR_INIT;
    struct store_rows *r;
    assert_int_equal(store_one(s, &r, &e, "SELECT count(*) FROM idempotency", ""), 1);
    int64_t n = store_int(r, 0);
    store_rows_end(r);
    return n;
}

static void pragma(struct store *s, const char *sql, const char *want)
{
    struct err e = ERR_INIT;
    struct store_rows *r;
    assert_int_equal(store_one(s, &r, &e, sql, ""), 1);
    assert_string_equal(store_text(r, 0), want);
    store_rows_end(r);
}

static void a_new_database_has_the_promised_settings(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    for (int i = 0; i < 2; i++) { /* made, and opened again */
        struct store *s = must_open();
        pragma(s, "PRAGMA journal_mode", "wal");
        pragma(s, "PRAGMA synchronous", "2");
        pragma(s, "PRAGMA foreign_keys", "1");
        pragma(s, "PRAGMA trusted_schema", "0");
        pragma(s, "PRAGMA user_version", "1");
        assert_int_equal(store_check(s, &e), 0);
        assert_int_equal(put(s, i ? "b" : "a", &e), 1);
        store_close(s);
    }
    struct store *s = must_open();
    assert_int_equal(count(s), 2);
    store_close(s);
}

static void other_files_are_refused(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct store *s = must_open();
    assert_int_equal(store_run(s, &e, "PRAGMA user_version = 99", ""), 0);
    store_close(s);
    assert_null(store_open(path, &e));
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "newer graft"));

    snprintf(path, sizeof path, "%s/foreign", dir);
    s = must_open();
    assert_int_equal(store_run(s, &e, "PRAGMA application_id = 7", ""), 0);
    store_close(s);
    assert_null(store_open(path, &e));
    assert_int_equal(e.code, E_ARG);

    snprintf(path, sizeof path, "%s/text", dir);
    static const char text[] = "this is not a database, but it is long enough";
    assert_int_equal(fs_write_file(path, text, sizeof text - 1, &e), 0);
    assert_null(store_open(path, &e));
    assert_int_equal(e.code, E_CORRUPT);
}

static void a_damaged_database_is_not_opened(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct store *s = must_open();
    char key[400];
    memset(key, 'k', sizeof key);
    for (int i = 0; i < 300; i++) {
        snprintf(key, 12, "%010d", i);
        key[10] = 'k';
        key[399] = 0;
        assert_int_equal(put(s, key, &e), 1);
    }
    store_close(s);
    int fd = fs_open(path, O_RDWR, 0, &e);
    char junk[3000];
    memset(junk, 0xa5, sizeof junk);
    assert_int_equal(pwrite(fd, junk, sizeof junk, fs_size(path, &e) / 2), sizeof junk);
    fs_close(fd);
    assert_null(store_open(path, &e));
    assert_int_equal(e.code, E_CORRUPT);
}

static void inner_transactions_roll_back_alone(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct store *s = must_open();
    assert_int_equal(store_begin(s, &e), 0);
    assert_int_equal(put(s, "outer", &e), 1);
    assert_int_equal(store_begin(s, &e), 0);
    assert_int_equal(put(s, "inner", &e), 1);
    store_rollback(s);
    assert_int_equal(store_begin(s, &e), 0);
    assert_int_equal(put(s, "kept", &e), 1);
    assert_int_equal(store_commit(s, &e), 0);
    assert_int_equal(count(s), 2);
    assert_int_equal(store_commit(s, &e), 0);
    assert_int_equal(count(s), 2);
    assert_int_equal(store_begin(s, &e), 0);
    assert_int_equal(store_begin(s, &e), 0);
    assert_int_equal(put(s, "lost", &e), 1);
    assert_int_equal(store_commit(s, &e), 0);
    store_rollback(s); /* an inner commit is only as durable as the outer one */
    assert_int_equal(count(s), 2);
    store_close(s);
}

static void nothing_is_kept_of_a_transaction_that_sqlite_gave_up(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct store *s = must_open();
    assert_int_equal(store_begin(s, &e), 0);
    assert_int_equal(put(s, "a", &e), 1);
    /* What SQLite does by itself when the disk is full. */
    assert_true(store_run(s, &e, "ROLLBACK", "") >= 0);
    assert_int_equal(put(s, "b", &e), -1);
    assert_int_equal(store_commit(s, &e), -1);
    assert_int_equal(count(s), 0);
    assert_int_equal(put(s, "c", &e), 1);
    assert_int_equal(count(s), 1);
    store_close(s);
}

static void the_same_statement_may_run_inside_itself(void **state)
{
    (void)state;
    static const char sql[] = "SELECT key FROM idempotency ORDER BY key";
    struct err e = ERR_INIT;
    struct store *s = must_open();
    put(s, "a", &e);
    put(s, "b", &e);
    struct store_rows *outer = store_query(s, &e, sql, ""), *inner;
    assert_int_equal(store_next(outer, &e), 1);
    inner = store_query(s, &e, sql, "");
    assert_int_equal(store_next(inner, &e), 1);
    assert_int_equal(store_next(inner, &e), 1);
    assert_string_equal(store_text(inner, 0), "b");
    assert_string_equal(store_text(outer, 0), "a");
    store_rows_end(inner);
    assert_int_equal(store_next(outer, &e), 1);
    assert_string_equal(store_text(outer, 0), "b");
    store_rows_end(outer);
    store_close(s);
}

struct racer {
    struct store *s;
    int number, failures;
};

static void *race(void *arg)
{
    struct racer *r = arg;
    for (int i = 0; i < 100; i++) {
        struct err e = ERR_INIT;
        char key[32];
        snprintf(key, sizeof key, "%d-%d", r->number, i);
        if (store_begin(r->s, &e) || put(r->s, key, &e) != 1) r->failures++;
        if (i % 3 == 0)
            store_rollback(r->s);
        else if (store_commit(r->s, &e))
            r->failures++;
    }
    return NULL;
}

static void threads_take_turns(void **state)
{
    (void)state;
    enum { N = 4 };
    struct racer r[N];
    pthread_t t[N];
    struct store *s = must_open();
    for (int i = 0; i < N; i++) {
        r[i] = (struct racer){s, i, 0};
        pthread_create(&t[i], NULL, race, &r[i]);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(r[i].failures, 0);
    }
    assert_int_equal(count(s), N * 66);
    store_close(s);
}

/* Opening, a transaction, a reopening: whatever call fails, what was acknowledged is there. */
static void acknowledged_rows_survive_every_failing_call(void **state)
{
    (void)state;
    static const enum fault_class classes[] = {FAULT_SQL, FAULT_MEM};
    struct err e = ERR_INIT;
    store_close(must_open()); /* what SQLite keeps for the process is allocated by now */
    for (int c = 0; c < 2; c++) {
        for (int persistent = 0; persistent < 2; persistent++) {
            /* Opening makes thousands of small allocations: a sample of them, or TORTURE=all. */
            int stride = classes[c] == FAULT_MEM && !getenv("TORTURE") ? 53 : 1;
            for (int n = 1;; n += stride) {
                size_t live = mem_live();
                char name[64];
                bool acked = false, opened;
                snprintf(name, sizeof name, "%s/%d-%d-%d", dir, c, persistent, n);
                fault_arm(classes[c], n, persistent);
                struct store *s = store_open(name, &e);
                opened = s != NULL;
                if (s && !store_begin(s, &e)) {
                    if (put(s, "a", &e) == 1 && put(s, "b", &e) == 1)
                        acked = store_commit(s, &e) == 0;
                    else
                        store_rollback(s);
                }
                store_close(s);
                int64_t calls = fault_count(classes[c]);
                fault_arm(classes[c], 0, false);
                assert_int_equal(mem_live(), live);
                s = store_open(name, &e);
                if (!s) fail_msg("class %d call %d: %s", c, n, e.msg);
                assert_int_equal(count(s), acked ? 2 : 0);
                assert_int_equal(store_check(s, &e), 0);
                store_close(s);
                if (calls < n) {
                    assert_true(opened && acked && n > 10);
                    break;
                }
            }
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        TEST(a_new_database_has_the_promised_settings),
        TEST(other_files_are_refused),
        TEST(a_damaged_database_is_not_opened),
        TEST(inner_transactions_roll_back_alone),
        TEST(nothing_is_kept_of_a_transaction_that_sqlite_gave_up),
        TEST(the_same_statement_may_run_inside_itself),
        TEST(threads_take_turns),
        TEST(acknowledged_rows_survive_every_failing_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
