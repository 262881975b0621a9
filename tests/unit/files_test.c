/* File objects. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "service/files.h"
#include "service/jobs.h"
#include "tests/lib/kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int begin(void **state)
{
    struct kit *k = calloc(1, sizeof *k);
    kit_begin(k);
    kit_open(k);
    *state = k;
    return 0;
}

static int end(void **state)
{
    kit_end(*state);
    free(*state);
    return 0;
}

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static int stored_blobs(struct kit *k)
{
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX], sub[FS_PATH_MAX], **outer, **inner;
    int n, m, total = 0;
    fs_join(dir, k->config.data_dir, "blobs", &e);
    assert_int_equal(fs_list(dir, &outer, &n, &e), 0);
    for (int i = 0; i < n; i++) {
        fs_join(sub, dir, outer[i], &e);
        assert_int_equal(fs_list(sub, &inner, &m, &e), 0);
        total += m;
        for (int j = 0; j < m; j++) mem_free(inner[j]);
        mem_free(inner);
        mem_free(outer[i]);
    }
    mem_free(outer);
    return total;
}

static void a_file_is_described_as_openai_does_and_read_back(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct blob_info info;
    char name[256], text[32] = "";
    int fd;
    json_t *o = kit_upload(k, "d\xc3\xa4ta.jsonl", "fine-tune", "{\"a\": 1}\n");
    assert_string_equal(text_of(o, "object"), "file");
    assert_string_equal(text_of(o, "filename"), "d\xc3\xa4ta.jsonl");
    assert_string_equal(text_of(o, "purpose"), "fine-tune");
    assert_string_equal(text_of(o, "status"), "processed");
    assert_int_equal(json_integer_value(json_object_get(o, "bytes")), 9);
    assert_true(json_integer_value(json_object_get(o, "created_at")) > 1700000000);
    assert_null(json_object_get(o, "expires_at"));
    kit_reopen(k);
    json_t *again = files_get(k->service, kit_id(o), &e);
    assert_true(json_equal(o, again));
    json_decref(again);
    assert_int_equal(files_read(k->service, kit_id(o), &fd, &info, name, &e), 0);
    assert_int_equal(fs_read(fd, text, 20, &e), 9);
    assert_string_equal(text, "{\"a\": 1}\n");
    assert_int_equal(info.bytes, 9);
    fs_close(fd);
    json_decref(o);
    assert_null(files_get(k->service, "file-none", &e));
    assert_int_equal(e.code, E_NOTFOUND);
}

static void bad_uploads_name_the_fault_and_leave_nothing(void **state)
{
    struct kit *k = *state;
    static const struct {
        const char *name, *purpose, *text, *param, *message;
        enum errc code;
    } rows[] = {
        {"", "batch", "x", "file", "1 to 255 bytes", E_ARG},
        {"a\nb", "batch", "x", "file", "control character", E_ARG},
        {"\xff", "batch", "x", "file", "UTF-8", E_ARG},
        {"f", "", "x", "purpose", "must be one of", E_ARG},
        {"f", NULL, "x", "purpose", "must be one of", E_ARG},
        {"f", "batch", "", "file", "empty", E_FORMAT},
        {"f", "fine-tune", "{}\n{]\n", "file", "line 2: ", E_FORMAT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        json_t *o = kit_try_upload(k, rows[i].name, rows[i].purpose, rows[i].text, NULL, &e);
        assert_null(o);
        assert_int_equal(e.code, rows[i].code);
        assert_string_equal(e.param, rows[i].param);
        if (!strstr(e.msg, rows[i].message)) fail_msg("%s", e.msg);
    }
    assert_int_equal(stored_blobs(k), 0);
}

static void pages_join_to_the_whole_list(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    char ids[5][64];
    for (int i = 0; i < 5; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        json_t *o = kit_upload(k, "f", i == 2 ? "vision" : "batch", text);
        snprintf(ids[i], 64, "%s", kit_id(o));
        json_decref(o);
    }
    for (int up = 0; up < 2; up++) {
        struct page p = {.limit = 2, .ascending = up};
        char after[64] = "";
        int seen = 0;
        for (bool more = true; more;) {
            p.after = *after ? after : NULL;
            json_t *list = files_list(k->service, &p, NULL, &e), *data;
            assert_non_null(list);
            data = json_object_get(list, "data");
            for (size_t i = 0; i < json_array_size(data); i++, seen++)
                assert_string_equal(kit_id(json_array_get(data, i)), ids[up ? seen : 4 - seen]);
            more = json_is_true(json_object_get(list, "has_more"));
            assert_string_equal(text_of(list, "first_id"), kit_id(json_array_get(data, 0)));
            snprintf(after, sizeof after, "%s", text_of(list, "last_id"));
            json_decref(list);
        }
        assert_int_equal(seen, 5);
    }
    struct page p = {.limit = 10};
    json_t *list = files_list(k->service, &p, "vision", &e);
    assert_int_equal(json_array_size(json_object_get(list, "data")), 1);
    json_decref(list);
    list = files_list(k->service, &p, "evals", &e);
    assert_true(json_is_null(json_object_get(list, "first_id")));
    json_decref(list);
    p.after = "file-unknown";
    assert_null(files_list(k->service, &p, NULL, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    assert_string_equal(e.param, "after");
}

static void a_file_in_use_stays(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    kit_model(k);
    json_t *file = kit_upload(k, "t.jsonl", "fine-tune", "{}\n");
    json_t *job = kit_try_job(k, kit_id(file), "{}", NULL, &e);
    assert_non_null(job);
    assert_int_equal(files_delete(k->service, kit_id(file), &e), -1);
    assert_int_equal(e.code, E_CONFLICT);
    json_decref(jobs_cancel(k->service, kit_id(job), &e));
    assert_int_equal(files_delete(k->service, kit_id(file), &e), 0);
    assert_int_equal(files_delete(k->service, kit_id(file), &e), -1);
    assert_int_equal(e.code, E_NOTFOUND);
    assert_int_equal(stored_blobs(k), 0);
    json_decref(job);
    json_decref(file);
}

static void files_expire_when_their_time_has_come(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct files_new n = {.filename = "f", .purpose = "batch", .expires_after_s = 3600};
    json_t *file = NULL, *report = NULL;
    struct blob_writer *w = blob_writer_new(k->service->blobs, 100, &e);
    blob_writer_put(w, "x", 1, &e);
    assert_int_equal(files_create(k->service, w, &n, NULL, &file, &report, &e), 0);
    assert_int_equal(json_integer_value(json_object_get(file, "expires_at")) -
                         json_integer_value(json_object_get(file, "created_at")),
                     3600);
    assert_int_equal(files_expire(k->service, &e), 0);
    json_t *o = files_get(k->service, kit_id(file), &e);
    assert_non_null(o);
    json_decref(o);
    store_run(k->service->store, &e, "UPDATE files SET expires_at = 1", "");
    assert_int_equal(files_expire(k->service, &e), 0);
    assert_null(files_get(k->service, kit_id(file), &e));
    assert_int_equal(stored_blobs(k), 0);
    json_decref(file);
}

static void a_repeated_upload_is_answered_from_memory(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct idem one = {.key = "key-1", .request_sha256 = "a"}, other = one;
    json_t *first = kit_try_upload(k, "f", "batch", "x", &one, &e);
    kit_reopen(k);
    json_t *second = kit_try_upload(k, "f", "batch", "x", &one, &e);
    assert_true(json_equal(first, second));
    snprintf(other.request_sha256, sizeof other.request_sha256, "b");
    assert_null(kit_try_upload(k, "f", "batch", "y", &other, &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_string_equal(e.param, "Idempotency-Key");
    struct page p = {.limit = 10};
    json_t *list = files_list(k->service, &p, NULL, &e);
    assert_int_equal(json_array_size(json_object_get(list, "data")), 1);
    assert_int_equal(stored_blobs(k), 1);
    /* A day later the key is free again. */
    store_run(k->service->store, &e,
              "UPDATE idempotency SET created_at = created_at - 86400001", "");
    json_t *third = kit_try_upload(k, "f", "batch", "y", &other, &e);
    assert_non_null(third);
    json_decref(first);
    json_decref(second);
    json_decref(third);
    json_decref(list);
}

/* Every fallible call fails once: an upload that was answered is there with its bytes, one that
 * failed has left no row, and after a restart no bytes either. */
static void failing_calls_keep_every_acknowledged_file(void **state)
{
    struct kit *k = *state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_SQL, FAULT_MEM};
    struct err e = ERR_INIT;
    for (int c = 0; c < 3; c++) {
        for (int n = 1;; n += classes[c] == FAULT_MEM && n > 30 && !getenv("TORTURE") ? 7 : 1) {
            fault_arm(classes[c], n, false);
            json_t *o = kit_try_upload(k, "f.jsonl", "fine-tune", "{\"x\": 1}\n", NULL, &e);
            int64_t calls = fault_count(classes[c]);
            fault_arm(classes[c], 0, false);
            struct page p = {.limit = 10};
            json_t *list = files_list(k->service, &p, NULL, &e);
            assert_int_equal(json_array_size(json_object_get(list, "data")), o != NULL);
            json_decref(list);
            if (o) {
                int fd;
                char name[256];
                struct blob_info info;
                assert_int_equal(files_read(k->service, kit_id(o), &fd, &info, name, &e), 0);
                fs_close(fd);
                assert_int_equal(files_delete(k->service, kit_id(o), &e), 0);
            }
            json_decref(o);
            assert_int_equal(store_check(k->service->store, &e), 0);
            if (stored_blobs(k)) { /* the removal failed as well: the next start does it */
                kit_reopen(k);
                assert_int_equal(stored_blobs(k), 0);
            }
            if (calls < n) break;
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        TEST(a_file_is_described_as_openai_does_and_read_back),
        TEST(bad_uploads_name_the_fault_and_leave_nothing),
        TEST(pages_join_to_the_whole_list),
        TEST(a_file_in_use_stays),
        TEST(files_expire_when_their_time_has_come),
        TEST(a_repeated_upload_is_answered_from_memory),
        TEST(failing_calls_keep_every_acknowledged_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
