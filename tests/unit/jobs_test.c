/* Jobs as the API shows them, without any worker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "service/files.h"
#include "service/jobreq.h"
#include "service/jobs.h"
#include "service/queue.h"
#include "service/store.h"
#include "tests/lib/kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct world {
    struct kit kit;
    json_t *file;
};

static int begin(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    kit_begin(&w->kit);
    kit_open(&w->kit);
    kit_model(&w->kit);
    w->file = kit_upload(&w->kit, "t.jsonl", "fine-tune", "{\"text\": \"x\"}\n");
    *state = w;
    return 0;
}

static int end(void **state)
{
    struct world *w = *state;
    json_decref(w->file);
    kit_end(&w->kit);
    free(w);
    return 0;
}

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

/* JSON text in which $ stands for the id of the uploaded file. */
static int create(struct world *w, const char *text, json_t **job, struct err *e)
{
    char body[2048];
    size_t n = 0;
    json_t *report = NULL;
    for (const char *p = text; *p; p++) {
        if (*p == '$')
            n += (size_t)snprintf(body + n, sizeof body - n, "%s", kit_id(w->file));
        else
            body[n++] = *p;
    }
    body[n] = 0;
    json_t *v = json_loads(body, 0, NULL);
    if (!v) fail_msg("%s", body);
    int rc = jobs_create(w->kit.service, v, NULL, job, &report, e);
    json_decref(report);
    json_decref(v);
    return rc;
}

static int folders(struct world *w)
{
    struct err e;
    char dir[FS_PATH_MAX], **names;
    int n;
    fs_join(dir, w->kit.config.data_dir, "jobs", &e);
    assert_int_equal(fs_list(dir, &names, &n, &e), 0);
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return n;
}

static void a_new_job_is_described_and_its_folder_is_complete(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX], path[FS_PATH_MAX];
    json_t *job = NULL;
    assert_int_equal(create(w, "{\"model\": \"default/base\", \"training_file\": \"$\", "
                               "\"suffix\": \"My Test!\", \"seed\": 42, "
                               "\"metadata\": {\"k\": \"v\"}, \"method\": {\"type\": "
                               "\"supervised\", \"supervised\": {\"hyperparameters\": "
                               "{\"steps\": 5}}}}", &job, &e), 0);
    assert_string_equal(text_of(job, "object"), "fine_tuning.job");
    assert_string_equal(text_of(job, "status"), "validating_files");
    assert_string_equal(text_of(job, "model"), "default/base");
    assert_string_equal(text_of(job, "training_file"), kit_id(w->file));
    assert_int_equal(json_integer_value(json_object_get(job, "seed")), 42);
    static const char *const nulls[] = {"fine_tuned_model", "finished_at", "error",
                                        "validation_file", "trained_tokens", "estimated_finish"};
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        assert_true(json_is_null(json_object_get(job, nulls[i])));
    json_t *method = json_object_get(job, "method");
    assert_string_equal(text_of(method, "type"), "supervised");
    json_t *settings = json_object_get(json_object_get(method, "supervised"), "hyperparameters");
    assert_int_equal(json_integer_value(json_object_get(settings, "steps")), 5);
    assert_int_equal(json_integer_value(json_object_get(settings, "checkpoint_every")), 3);
    assert_true(json_equal(settings, json_object_get(job, "hyperparameters")));
    const char *result = text_of(json_object_get(job, "graft"), "result_id");
    assert_int_equal(strncmp(result, "default/base-lora-My-Test-", 26), 0);
    assert_int_equal(service_job_dir(w->kit.service, kit_id(job), dir, &e), 0);
    fs_join(path, dir, "job.json", &e);
    json_t *spec = jx_load_file(path, 1 << 20, &e);
    assert_non_null(spec);
    assert_string_equal(text_of(spec, "method"), "lora");
    assert_string_equal(text_of(spec, "result_id"), result);
    assert_true(json_equal(settings, json_object_get(spec, "settings")));
    assert_true(json_is_null(json_object_get(spec, "validation_file")));
    assert_int_equal(fs_size(text_of(spec, "training_file"), &e), 14);
    assert_true(fs_is_dir(text_of(json_object_get(spec, "model"), "path")));
    json_decref(spec);
    json_decref(job);
}

static void bad_requests_name_the_field_and_leave_nothing(void **state)
{
    struct world *w = *state;
#define BASE "{\"model\": \"default/base\", \"training_file\": \"$\""
    static const struct { const char *body, *param; enum errc code; } rows[] = {
        {"[]", "", E_ARG},
        {"{}", "model", E_ARG},
        {"{\"model\": 5}", "model", E_ARG},
        {"{\"model\": \"default/base\"}", "training_file", E_ARG},
        {"{\"model\": \"no/such\", \"training_file\": \"$\"}", "model", E_NOTFOUND},
        {"{\"model\": \"default/base\", \"training_file\": \"file-x\"}", "training_file",
         E_NOTFOUND},
        {BASE ", \"validation_file\": \"file-x\"}", "validation_file", E_NOTFOUND},
        {BASE ", \"sufix\": \"x\"}", "sufix", E_ARG},
        {BASE ", \"suffix\": \"\"}", "suffix", E_RANGE},
        {BASE ", \"suffix\": \"0123456789012345678901234567890123456789012345678901234567890123x"
              "\"}", "suffix", E_RANGE},
        {BASE ", \"seed\": -1}", "seed", E_RANGE},
        {BASE ", \"seed\": 2147483648}", "seed", E_RANGE},
        {BASE ", \"seed\": 1.5}", "seed", E_ARG},
        {BASE ", \"seed\": \"1\"}", "seed", E_ARG},
        {BASE ", \"metadata\": 5}", "metadata", E_ARG},
        {BASE ", \"metadata\": {\"a\": 1}}", "metadata.a", E_ARG},
        {BASE ", \"integrations\": [{\"type\": \"wandb\"}]}", "integrations", E_UNSUPPORTED},
        {BASE ", \"method\": \"lora\"}", "method", E_ARG},
        {BASE ", \"method\": {}}", "method.type", E_ARG},
        {BASE ", \"method\": {\"type\": \"magic\"}}", "method.type", E_ARG},
        {BASE ", \"method\": {\"type\": \"lora\", \"dpo\": {}}}", "method.dpo", E_ARG},
        {BASE ", \"method\": {\"type\": \"lora\", \"lora\": 5}}", "method.lora", E_ARG},
        {BASE ", \"method\": {\"type\": \"lora\", \"lora\": {\"steps\": 5}}}", "method.lora.steps",
         E_ARG},
        {BASE ", \"method\": {\"type\": \"lora\", \"lora\": {\"hyperparameters\": "
              "{\"stepz\": 5}}}}",
         "method.lora.hyperparameters.stepz", E_ARG},
        {BASE ", \"method\": {\"type\": \"lora\", \"lora\": {\"hyperparameters\": {\"steps\": "
              "100001}}}}", "method.lora.hyperparameters.steps", E_RANGE},
        {BASE ", \"hyperparameters\": {\"stepz\": 5}}", "hyperparameters.stepz", E_ARG},
        {BASE ", \"hyperparameters\": {\"steps\": 5}, \"method\": {\"type\": \"lora\", \"lora\": "
              "{\"hyperparameters\": {\"steps\": 5}}}}", "hyperparameters", E_ARG},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        json_t *job = NULL;
        assert_int_equal(create(w, rows[i].body, &job, &e), -1);
        if (e.code != rows[i].code || strcmp(e.param, rows[i].param) != 0)
            fail_msg("row %zu: %d '%s': %s", i, e.code, e.param, e.msg);
    }
    assert_int_equal(folders(w), 0);
}

static void data_of_another_purpose_is_checked_now(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    json_t *good = kit_upload(&w->kit, "a.jsonl", "user_data", "{}\n");
    json_t *bad = kit_upload(&w->kit, "b.jsonl", "user_data", "{}\nnot json\n");
    json_t *job = kit_try_job(&w->kit, kit_id(good), "{}", NULL, &e);
    assert_non_null(job);
    json_decref(job);
    assert_null(kit_try_job(&w->kit, kit_id(bad), "{}", NULL, &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_string_equal(e.param, "training_file");
    assert_non_null(strstr(e.msg, "line 2"));
    json_decref(good);
    json_decref(bad);
}

static void every_result_id_is_legal(void **state)
{
    (void)state;
    static const char pieces[] = "aZ09._-/ :\xc3\xa9g";
    for (uint32_t k = 0; k < 3000; k++) {
        struct err e = ERR_INIT;
        char model[81], suffix[65], id[MODELS_ID_MAX + 1], adapter[MODELS_ID_MAX + 16];
        uint32_t n = rng_u32(1, RNG_USER, k, 0) % 80, m = rng_u32(1, RNG_USER, k, 1) % 64;
        for (uint32_t i = 0; i < n; i++)
            model[i] = pieces[rng_u32(2, RNG_USER, k, i) % (sizeof pieces - 1)];
        for (uint32_t i = 0; i < m; i++)
            suffix[i] = pieces[rng_u32(3, RNG_USER, k, i) % (sizeof pieces - 1)];
        model[n] = suffix[m] = 0;
        if (jobreq_result_id(id, model, "break-for-make", k % 3 ? suffix : NULL, &e))
            fail_msg("'%s' '%s': %s", model, suffix, e.msg);
        snprintf(adapter, sizeof adapter, "%s-adapter", id);
        assert_true(models_id_ok(id));
        assert_true(models_id_ok(adapter));
    }
}

static json_t *list(struct world *w, const char *after, int64_t limit, const char *metadata)
{
    struct err e = ERR_INIT;
    struct page p = {.after = after, .limit = limit};
    json_t *filter = metadata ? json_loads(metadata, JSON_DECODE_ANY, NULL) : NULL;
    json_t *o = jobs_list(w->kit.service, &p, filter, &e);
    if (!o) fail_msg("%s", e.msg);
    json_decref(filter);
    return o;
}

static void lists_are_newest_first_and_filtered_by_metadata(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    char ids[4][64];
    static const char *const meta[] = {"{\"a\": \"1\"}", "{\"a\": \"1\", \"b\": \"2\"}", "null",
                                       "{\"a\": \"2\"}"};
    for (int i = 0; i < 4; i++) {
        char body[256];
        json_t *job = NULL;
        snprintf(body, sizeof body, BASE ", \"metadata\": %s}", meta[i]);
        assert_int_equal(create(w, body, &job, &e), 0);
        snprintf(ids[i], 64, "%s", kit_id(job));
        json_decref(job);
    }
    static const struct { const char *filter; int first, count; } rows[] = {
        {NULL, 3, 4}, {"{}", 3, 4}, {"{\"a\": \"1\"}", 1, 2},
        {"{\"a\": \"1\", \"b\": \"2\"}", 1, 1},
        {"{\"a\": \"3\"}", -1, 0}, {"{\"\\\"\": \"'\"}", -1, 0}, {"null", 2, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *o = list(w, NULL, 10, rows[i].filter), *data = json_object_get(o, "data");
        assert_int_equal(json_array_size(data), rows[i].count);
        if (rows[i].count)
            assert_string_equal(kit_id(json_array_get(data, 0)), ids[rows[i].first]);
        json_decref(o);
    }
    json_t *o = list(w, ids[3], 2, NULL);
    assert_true(json_is_true(json_object_get(o, "has_more")));
    assert_string_equal(text_of(o, "first_id"), ids[2]);
    json_decref(o);
    o = list(w, ids[2], 2, NULL);
    assert_true(json_is_false(json_object_get(o, "has_more")));
    assert_string_equal(text_of(o, "last_id"), ids[0]);
    json_decref(o);
    struct page p = {.after = "ftjob-x", .limit = 5};
    assert_null(jobs_list(w->kit.service, &p, NULL, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    assert_string_equal(e.param, "after");
}

static void a_repeated_request_makes_one_job(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    struct idem idem = {.key = "k", .request_sha256 = "a"};
    json_t *one = kit_try_job(&w->kit, kit_id(w->file), "{}", &idem, &e);
    json_decref(jobs_cancel(w->kit.service, kit_id(one), &e));
    assert_int_equal(files_delete(w->kit.service, kit_id(w->file), &e), 0);
    kit_reopen(&w->kit);
    json_t *two = kit_try_job(&w->kit, kit_id(w->file), "{}", &idem, &e);
    assert_true(json_equal(one, two)); /* the first reply, though the file is gone by now */
    assert_int_equal(folders(w), 1);
    idem.request_sha256[0] = 'b';
    assert_null(kit_try_job(&w->kit, kit_id(w->file), "{}", &idem, &e));
    assert_int_equal(e.code, E_FORMAT);
    json_decref(one);
    json_decref(two);
}

static void put(const char *dir, const char *name, const char *text)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX], parent[FS_PATH_MAX];
    fs_join(path, dir, name, &e);
    snprintf(parent, sizeof parent, "%s", path);
    *strrchr(parent, '/') = 0;
    assert_int_equal(fs_mkdirs(parent, &e), 0);
    assert_int_equal(fs_write_file(path, text, strlen(text), &e), 0);
}

static void later_attempts_replace_the_metrics_they_repeat(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX];
    json_t *job = kit_try_job(&w->kit, kit_id(w->file), "{}", NULL, &e);
    const char *id = kit_id(job);
    service_job_dir(w->kit.service, id, dir, &e);
    put(dir, "attempts/1/metrics.jsonl", "{\"step\":1,\"loss\":9}\n{\"step\":2,\"loss\":8}\n"
                                         "{\"step\":3,\"loss\":7}\n{\"step\":4,\"lo");
    put(dir, "attempts/2/metrics.jsonl", "{\"step\":3,\"loss\":6}\n{\"step\":3,\"valid_loss\":5}\n"
                                         "garbage\n{\"step\":4,\"loss\":null}\n");
    put(dir, "attempts/10/metrics.jsonl", "{\"step\":5,\"loss\":4}\n"); /* after 2, not before */
    put(dir, "attempts/1/checkpoints/step-2/manifest.json", "{}");
    put(dir, "attempts/1/checkpoints/step-4/state.bin", "no manifest: not complete");
    put(dir, "attempts/2/checkpoints/step-3/manifest.json", "{}");
    put(dir, "attempts/10/checkpoints/step-3/manifest.json", "{}");
    json_t *m = jobs_metrics(w->kit.service, id, 100, &e);
    assert_non_null(m);
    char *text = json_dumps(json_object_get(m, "series"), JSON_COMPACT | JSON_REAL_PRECISION(3));
    assert_string_equal(text, "{\"step\":[1,2,3,4,5],\"loss\":[9.0,8.0,6.0,null,4.0],"
                              "\"valid_loss\":[null,null,5.0,null,null]}");
    mem_free(text);
    json_decref(m);
    m = jobs_metrics(w->kit.service, id, 2, &e); /* thinned; the validated and the last step stay */
    text = json_dumps(json_object_get(json_object_get(m, "series"), "step"), JSON_COMPACT);
    assert_string_equal(text, "[1,3,4,5]");
    mem_free(text);
    json_decref(m);
    struct page p = {.limit = 1};
    json_t *c = jobs_checkpoints(w->kit.service, id, &p, &e), *first;
    first = json_array_get(json_object_get(c, "data"), 0);
    assert_int_equal(json_integer_value(json_object_get(first, "step_number")), 3);
    json_t *metrics = json_object_get(first, "metrics");
    assert_true(json_real_value(json_object_get(metrics, "train_loss")) == 6.0);
    assert_true(json_real_value(json_object_get(metrics, "valid_loss")) == 5.0);
    assert_true(json_is_true(json_object_get(c, "has_more")));
    p.after = text_of(c, "last_id");
    json_t *d = jobs_checkpoints(w->kit.service, id, &p, &e);
    first = json_array_get(json_object_get(d, "data"), 0);
    assert_int_equal(json_integer_value(json_object_get(first, "step_number")), 2);
    assert_true(json_is_false(json_object_get(d, "has_more")));
    json_decref(c);
    json_decref(d);
    p.after = "ftckpt-x-9";
    assert_null(jobs_checkpoints(w->kit.service, id, &p, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    assert_null(jobs_metrics(w->kit.service, "ftjob-none", 10, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    json_decref(job);
}

static void validation_admits_or_says_what_is_missing(void **state)
{
    struct world *w = *state;
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX], path[FS_PATH_MAX];
    for (int broken = 0; broken < 3; broken++) {
        json_t *job = kit_try_job(&w->kit, kit_id(w->file), "{}", NULL, &e);
        service_job_dir(w->kit.service, kit_id(job), dir, &e);
        fs_join(path, dir, broken == 1 ? "inputs/training.jsonl" : "job.json", &e);
        if (broken) assert_int_equal(fs_unlink(path, &e), 0);
        assert_int_equal(jobs_validate(w->kit.service, kit_id(job), &e), 0);
        json_t *now = jobs_get(w->kit.service, kit_id(job), &e);
        assert_string_equal(text_of(now, "status"), broken ? "failed" : "queued");
        if (broken == 1)
            assert_string_equal(text_of(json_object_get(now, "error"), "param"), "training_file");
        json_decref(now);
        json_decref(job);
    }
}

/* Every fallible call fails once: a job that was answered exists and can run, one that was refused
 * has neither row nor, after a restart, a folder. */
static void failing_calls_keep_every_acknowledged_job(void **state)
{
    struct world *w = *state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_SQL, FAULT_MEM};
    struct err e = ERR_INIT;
    int jobs = 0;
    for (int c = 0; c < 3; c++) {
        for (int n = 1;; n += classes[c] == FAULT_MEM && n > 30 && !getenv("TORTURE") ? 11 : 1) {
            fault_arm(classes[c], n, false);
            json_t *job = kit_try_job(&w->kit, kit_id(w->file), "{}", NULL, &e);
            int64_t calls = fault_count(classes[c]);
            fault_arm(classes[c], 0, false);
            jobs += job != NULL;
            json_t *o = list(w, NULL, 100, NULL);
            assert_int_equal(json_array_size(json_object_get(o, "data")), jobs);
            json_decref(o);
            if (job) {
                assert_int_equal(jobs_validate(w->kit.service, kit_id(job), &e), 0);
                o = jobs_get(w->kit.service, kit_id(job), &e);
                assert_string_equal(text_of(o, "status"), "queued");
                json_decref(o);
            }
            json_decref(job);
            assert_int_equal(store_check(w->kit.service->store, &e), 0);
            if (folders(w) != jobs) {
                kit_reopen(&w->kit);
                assert_int_equal(folders(w), jobs);
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
        TEST(a_new_job_is_described_and_its_folder_is_complete),
        TEST(bad_requests_name_the_field_and_leave_nothing),
        TEST(data_of_another_purpose_is_checked_now),
        cmocka_unit_test(every_result_id_is_legal),
        TEST(lists_are_newest_first_and_filtered_by_metadata),
        TEST(a_repeated_request_makes_one_job),
        TEST(later_attempts_replace_the_metrics_they_repeat),
        TEST(validation_admits_or_says_what_is_missing),
        TEST(failing_calls_keep_every_acknowledged_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
