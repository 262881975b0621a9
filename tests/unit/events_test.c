/* Events: numbering, paging, and the worker's file as rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "service/events.h"
#include "service/jobs.h"
#include "service/queue.h"
#include "service/store.h"
#include "tests/lib/kit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct world {
    struct kit kit;
    char id[64], dir[FS_PATH_MAX];
    int fd; /* attempts/1/events.jsonl */
};

/* A job whose first attempt runs, in name only. */
static int begin(void **state)
{
    struct err e = ERR_INIT;
    struct world *w = calloc(1, sizeof *w);
    char path[FS_PATH_MAX];
    int attempt;
    kit_begin(&w->kit);
    kit_open(&w->kit);
    kit_model(&w->kit);
    kit_job(&w->kit, "{}", w->id);
    jobs_validate(w->kit.service, w->id, &e);
    if (queue_claim(w->kit.service->queue, w->id, &attempt, &e) != 1) return -1;
    service_job_dir(w->kit.service, w->id, w->dir, &e);
    fs_join(path, w->dir, "attempts/1", &e);
    fs_mkdirs(path, &e);
    fs_join(path, w->dir, "attempts/1/events.jsonl", &e);
    w->fd = fs_open(path, O_WRONLY | O_CREAT | O_APPEND, 0600, &e);
    *state = w;
    return w->fd < 0;
}

static int end(void **state)
{
    struct world *w = *state;
    fs_close(w->fd);
    kit_end(&w->kit);
    free(w);
    return 0;
}

static void write_text(struct world *w, const char *text)
{
    struct err e = ERR_INIT;
    assert_int_equal(fs_write_all(w->fd, text, strlen(text), &e), 0);
}

static int tail(struct world *w)
{
    struct err e = ERR_INIT;
    int rc = events_tail(w->kit.service->store, w->dir, w->id, 1, &e);
    if (rc < 0) fail_msg("%s", e.msg);
    return rc;
}

static json_t *all(struct world *w)
{
    struct err e = ERR_INIT;
    bool final = true;
    json_t *list = events_since(w->kit.service, w->id, 3, 10000, &final, &e);
    assert_non_null(list);
    assert_false(final);
    return list;
}

static void lines_become_rows_once_and_only_when_whole(void **state)
{
    struct world *w = *state;
    write_text(w, "{\"message\":\"one\",\"level\":\"warn\",\"created_at\":1700000000000}\n{\"mess");
    tail(w);
    tail(w);
    kit_reopen(&w->kit);
    tail(w);
    json_t *list = all(w);
    assert_int_equal(json_array_size(list), 1);
    json_t *o = json_array_get(list, 0);
    assert_string_equal(json_string_value(json_object_get(o, "message")), "one");
    assert_string_equal(json_string_value(json_object_get(o, "level")), "warn");
    assert_int_equal(json_integer_value(json_object_get(o, "created_at")), 1700000000);
    json_decref(list);
    write_text(w, "age\":\"two\",\"type\":\"metrics\",\"data\":{\"step\":1}}\n");
    tail(w);
    list = all(w);
    assert_int_equal(json_array_size(list), 2);
    o = json_array_get(list, 1);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "data"), "step")), 1);
    json_decref(list);
}

static void what_is_no_event_is_skipped(void **state)
{
    struct world *w = *state;
    write_text(w, "garbage\n\n[]\n{}\n{\"message\":5}\n{\"message\":\"a\",\"level\":\"loud\"}\n"
                  "{\"message\":\"\xff\"}\n{\"message\":\"good\"}\n");
    char *big = malloc(300001);
    memset(big, 'x', 300000);
    big[300000] = 0;
    write_text(w, big); /* longer than one read: dropped piece by piece */
    write_text(w, "\n{\"message\":\"");
    big[10000] = 0; /* a message that is too long is cut */
    write_text(w, big);
    write_text(w, "\"}\n");
    free(big);
    while (tail(w)) {}
    tail(w);
    json_t *list = all(w);
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "message")),
                        "good");
    assert_int_equal(
        strlen(json_string_value(json_object_get(json_array_get(list, 1), "message"))), 4096);
    json_decref(list);
}

static void a_stale_attempt_adds_nothing(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    const char *to;
    struct queue_outcome o = {.infrastructure = true};
    write_text(w, "{\"message\":\"late\"}\n");
    assert_int_equal(queue_finish(w->kit.service->queue, w->id, 1, &o, &to, &e), 0);
    assert_int_equal(events_tail(w->kit.service->store, w->dir, w->id, 1, &e), -1);
    assert_int_equal(e.code, E_CONFLICT);
}

static void pages_go_both_ways(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    for (int i = 0; i < 50; i++) write_text(w, "{\"message\":\"m\"}\n");
    tail(w);
    for (int up = 0; up < 2; up++) {
        struct page p = {.limit = 7, .ascending = up};
        char after[128] = "";
        int64_t expect = up ? 1 : 53, seen = 0;
        for (bool more = true; more;) {
            p.after = *after ? after : NULL;
            json_t *list = events_list(w->kit.service, w->id, &p, &e), *o;
            size_t i;
            assert_non_null(list);
            json_array_foreach(json_object_get(list, "data"), i, o) {
                assert_int_equal(json_integer_value(json_object_get(o, "n")), expect);
                expect += up ? 1 : -1;
                seen++;
                snprintf(after, sizeof after, "%s", kit_id(o));
            }
            more = json_is_true(json_object_get(list, "has_more"));
            json_decref(list);
        }
        assert_int_equal(seen, 53);
    }
    static const char *const unknown[] = {"x", "ftevent-x-1", "ftevent--1", ""};
    for (int i = 0; i < 4; i++) {
        struct page p = {.limit = 7, .after = unknown[i]};
        assert_null(events_list(w->kit.service, w->id, &p, &e));
        assert_int_equal(e.code, E_NOTFOUND);
    }
}

/* Every call fails once: after a repetition each line is a row exactly once. */
static void a_failing_tail_is_repeated_without_loss_or_double(void **state)
{
    struct world *w = *state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_SQL, FAULT_MEM};
    struct err e = ERR_INIT;
    size_t rows = 0;
    for (int c = 0; c < 3; c++) {
        for (int n = 1;; n++) {
            write_text(w, "{\"message\":\"a\"}\n{\"message\":\"b\"}\n");
            rows += 2;
            fault_arm(classes[c], n, false);
            events_tail(w->kit.service->store, w->dir, w->id, 1, &e);
            int64_t calls = fault_count(classes[c]);
            fault_arm(classes[c], 0, false);
            tail(w);
            json_t *list = all(w);
            assert_int_equal(json_array_size(list), rows);
            json_decref(list);
            if (calls < n) break;
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        TEST(lines_become_rows_once_and_only_when_whole),
        TEST(what_is_no_event_is_skipped),
        TEST(a_stale_attempt_adds_nothing),
        TEST(pages_go_both_ways),
        TEST(a_failing_tail_is_repeated_without_loss_or_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
