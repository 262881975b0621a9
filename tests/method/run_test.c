/* engine/job: whole jobs. The bytes of result/ follow from the job alone, whatever the threads,
 * pauses, kills and damaged checkpoints; and every way a job can end says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "tests/lib/jobdir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every feature that could remember something it should not: dropout, accumulation, epochs that
 * end in a smaller step, validation, samples, frequent checkpoints. 19 rows: 4 steps an epoch. */
#define SETTINGS \
    "\"r\": 4, \"lora_dropout\": 0.1, \"max_steps\": 14, \"batch_size\": 3," \
    " \"gradient_accumulation_steps\": 2, \"learning_rate\": 0.01, \"validation_split\": 0.15," \
    " \"eval_steps\": 5, \"checkpoint_steps\": 3, \"samples\": [\"A red cat: colour?\", \"x\"]," \
    " \"sample_max_tokens\": 8"

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

struct fixture {
    char root[64];
    char straight[FS_PATH_MAX]; /* result/ of a run without any incident, one thread */
};

static int begin(void **state)
{
    struct err e = ERR_INIT;
    struct fixture *f = calloc(1, sizeof *f);
    jobdir_root(f->root);
    const char *dir = jobdir_make(f->root, "straight", "lora", SETTINGS, 1);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    *state = f;
    return fs_join(f->straight, dir, "result", &e);
}

static int end(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    int rc = fs_rmtree(f->root, &e);
    free(f);
    return rc;
}

static void expect_same(const struct fixture *f, const char *dir)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    OK(fs_join(path, dir, "result", &e));
    jobdir_same(f->straight, path);
}

static void threads_do_not_change_a_byte(void **state)
{
    struct fixture *f = *state;
    for (int threads = 1; threads <= 3; threads++) {
        const char *dir = jobdir_make(f->root, threads == 1 ? "again" : threads == 2 ? "t2" : "t3",
                                      "lora", SETTINGS, threads);
        jobdir_run(dir, 1, NULL, EXIT_DONE);
        expect_same(f, dir);
    }
}

static void another_seed_changes_the_weights(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    char job[FS_PATH_MAX], a[FS_PATH_MAX], b[FS_PATH_MAX];
    struct buf x, y;
    buf_init(&x, 1 << 20);
    buf_init(&y, 1 << 20);
    const char *dir = jobdir_make(f->root, "seed", "lora", SETTINGS, 2);
    OK(fs_join(job, dir, "job.json", &e));
    json_t *o = jx_load_file(job, 1 << 20, &e);
    json_object_set_new(o, "seed", json_integer(12));
    char *text = jx_dump(o, &e);
    OK(fs_write_file(job, text, strlen(text), &e));
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    OK(fs_join(a, dir, "result/adapter/adapter_model.safetensors", &e));
    OK(fs_join(b, f->straight, "adapter/adapter_model.safetensors", &e));
    OK(fs_read_file(a, &x, &e));
    OK(fs_read_file(b, &y, &e));
    assert_int_equal(x.len, y.len);
    assert_true(memcmp(x.data, y.data, x.len) != 0);
    buf_clear(&x);
    buf_clear(&y);
    mem_free(text);
    json_decref(o);
}

static void kills_at_any_instant_do_not_change_a_byte(void **state)
{
    struct fixture *f = *state;
    static const char *const crashes[] = {
        "job.step_done:1", "job.step_done:2", "job.step_done:5", "job.step_done:14",
        "job.checkpoint_begun:1", "job.checkpoint_filled:2", "job.checkpoint_written:1",
        "job.checkpoint_written:4", "job.adapter_written", "job.before_result",
        "job.result_published",
    };
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++) {
        char name[32];
        snprintf(name, sizeof name, "kill-%zu", i);
        const char *dir = jobdir_make(f->root, name, "lora", SETTINGS, 2);
        jobdir_crash(dir, 1, crashes[i]);
        jobdir_run(dir, 2, NULL, EXIT_DONE);
        expect_same(f, dir);
    }
}

static void a_job_that_dies_again_and_again_still_ends_the_same(void **state)
{
    struct fixture *f = *state;
    static const char *const crashes[] = {
        "job.step_done:4", "job.checkpoint_filled:1", "job.step_done:3", "job.checkpoint_written:2",
        "job.step_done:2", "job.before_result"};
    int attempt = 1;
    const char *dir = jobdir_make(f->root, "often", "lora", SETTINGS, 2);
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
        jobdir_crash(dir, attempt++, crashes[i]);
    jobdir_run(dir, attempt, NULL, EXIT_DONE);
    expect_same(f, dir);
}

/* Asks for `want` when asked for the n-th time. */
struct asker {
    enum engine_want want;
    int n, asked, messages;
    char last[512];
};

static enum engine_want on_want(void *ctx)
{
    struct asker *a = ctx;
    return ++a->asked == a->n ? a->want : WANT_NONE;
}

static void on_event(void *ctx, const char *level, const char *type, const char *message,
                     json_t *data)
{
    struct asker *a = ctx;
    (void)level;
    (void)type;
    (void)data;
    a->messages++;
    snprintf(a->last, sizeof a->last, "%s", message);
}

static void pauses_do_not_change_a_byte(void **state)
{
    struct fixture *f = *state;
    const char *dir = jobdir_make(f->root, "pause", "lora", SETTINGS, 2);
    int attempt = 1;
    static const struct {
        enum engine_want want;
        int n;
        enum engine_exit code;
    } stops[] = {{WANT_PAUSE, 1, EXIT_PAUSED}, {WANT_PAUSE, 3, EXIT_PAUSED},
                 {WANT_PREEMPT, 2, EXIT_PREEMPTED}, {WANT_PAUSE, 1, EXIT_PAUSED}};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        struct asker a = {.want = stops[i].want, .n = stops[i].n};
        const struct engine_hooks hooks = {.ctx = &a, .want = on_want};
        jobdir_run(dir, attempt++, &hooks, stops[i].code);
    }
    jobdir_run(dir, attempt, NULL, EXIT_DONE);
    expect_same(f, dir);
}

static void cancelling_leaves_no_result(void **state)
{
    struct fixture *f = *state;
    struct asker a = {.want = WANT_CANCEL, .n = 4};
    const struct engine_hooks hooks = {.ctx = &a, .want = on_want, .event = on_event};
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    const char *dir = jobdir_make(f->root, "cancel", "lora", SETTINGS, 2);
    jobdir_run(dir, 1, &hooks, EXIT_CANCELLED);
    assert_string_equal(a.last, "cancelled at step 3");
    OK(fs_join(path, dir, "result", &e));
    assert_false(fs_exists(path));
}

/* attempts/<n>/checkpoints as a list "step-3 step-6". */
static void checkpoints(const char *dir, int attempt, char out[256])
{
    char path[FS_PATH_MAX], sub[64], **names;
    struct err e = ERR_INIT;
    int n;
    snprintf(sub, sizeof sub, "attempts/%d/checkpoints", attempt);
    OK(fs_join(path, dir, sub, &e));
    out[0] = 0;
    if (!fs_is_dir(path)) return;
    OK(fs_list(path, &names, &n, &e));
    for (int i = 0; i < n; i++) {
        snprintf(out + strlen(out), 256 - strlen(out), "%s%s", i ? " " : "", names[i]);
        mem_free(names[i]);
    }
    mem_free(names);
}

static void two_checkpoints_are_kept_over_all_attempts(void **state)
{
    struct fixture *f = *state;
    char list[256];
    const char *dir = jobdir_make(f->root, "keep", "lora", SETTINGS, 2);
    jobdir_crash(dir, 1, "job.step_done:8");
    checkpoints(dir, 1, list);
    assert_string_equal(list, "step-3 step-6");
    jobdir_crash(dir, 2, "job.checkpoint_filled:2"); /* published step 9, left 12 unfinished */
    checkpoints(dir, 1, list);
    assert_string_equal(list, "step-6");
    checkpoints(dir, 2, list);
    assert_string_equal(list, "step-12.tmp step-9");
    jobdir_run(dir, 3, NULL, EXIT_DONE);
    checkpoints(dir, 2, list);
    assert_string_equal(list, "step-9");
    checkpoints(dir, 3, list);
    assert_string_equal(list, "step-12");
    expect_same(f, dir);
}

static void flip_a_byte(const char *path, size_t at)
{
    struct err e = ERR_INIT;
    struct buf b;
    buf_init(&b, 1 << 24);
    OK(fs_read_file(path, &b, &e));
    assert_true(at < b.len);
    b.data[at] ^= 1;
    OK(fs_write_file(path, b.data, b.len, &e));
    buf_clear(&b);
}

static void a_damaged_checkpoint_is_noticed_and_left_out(void **state)
{
    struct fixture *f = *state;
    static const char *const victims[] = {"state.safetensors", "state.json", "metrics.csv",
                                          "manifest.json"};
    for (size_t i = 0; i < sizeof victims / sizeof *victims; i++) {
        char name[32], path[FS_PATH_MAX];
        snprintf(name, sizeof name, "damage-%zu", i);
        const char *dir = jobdir_make(f->root, name, "lora", SETTINGS, 2);
        jobdir_crash(dir, 1, "job.step_done:8");
        snprintf(path, sizeof path, "%s/attempts/1/checkpoints/step-6/%s", dir, victims[i]);
        flip_a_byte(path, 30);
        jobdir_run(dir, 2, NULL, EXIT_DONE);
        snprintf(path, sizeof path, "%s/attempts/2/events.jsonl", dir);
        struct buf b;
        struct err e = ERR_INIT;
        buf_init(&b, 1 << 20);
        OK(fs_read_file(path, &b, &e));
        assert_non_null(strstr(buf_str(&b), "The checkpoint at step 6 is damaged"));
        assert_non_null(strstr(buf_str(&b), "Going on from the checkpoint at step 3"));
        buf_clear(&b);
        expect_same(f, dir);
    }
}

static void a_checkpoint_of_another_job_is_refused(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    const char *dir = jobdir_make(f->root, "other", "lora", SETTINGS, 2);
    jobdir_crash(dir, 1, "job.step_done:5");
    dir = jobdir_make(f->root, "other", "lora", SETTINGS ", \"weight_decay\": 0.5", 2);
    assert_int_equal(engine_run(dir, 2, NULL, &e), EXIT_TRANSIENT);
    assert_int_equal(e.code, E_CORRUPT);
    assert_non_null(strstr(e.msg, "other settings"));
}

static void a_finished_job_stays_finished(void **state)
{
    struct fixture *f = *state;
    struct asker a = {0};
    const struct engine_hooks hooks = {.ctx = &a, .want = on_want};
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    const char *dir = jobdir_make(f->root, "straight", "lora", SETTINGS, 1);
    jobdir_run(dir, 2, &hooks, EXIT_DONE);
    assert_int_equal(a.asked, 0); /* no step was made */
    snprintf(path, sizeof path, "%s/attempts/2/exit.json", dir);
    json_t *o = jx_load_file(path, 1 << 16, &e);
    assert_int_equal(json_integer_value(json_object_get(o, "code")), EXIT_DONE);
    assert_int_equal(json_integer_value(json_object_get(o, "step")), 14);
    json_decref(o);
}

static void a_half_written_result_is_made_again(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    const char *dir = jobdir_make(f->root, "half", "lora", SETTINGS, 2);
    jobdir_crash(dir, 1, "job.before_result");
    snprintf(path, sizeof path, "%s/result.tmp/stray", dir);
    OK(fs_write_file(path, "x", 1, &e));
    jobdir_run(dir, 2, NULL, EXIT_DONE);
    expect_same(f, dir);
    snprintf(path, sizeof path, "%s/result/adapter/adapter_model.safetensors", dir);
    OK(fs_write_file(path, "cut", 3, &e));
    jobdir_run(dir, 3, NULL, EXIT_DONE);
    expect_same(f, dir);
}

/* Fails if any file below dir contains text. */
static void expect_nowhere(const char *dir, const char *text)
{
    struct err e = ERR_INIT;
    char **names, path[FS_PATH_MAX];
    int n;
    OK(fs_list(dir, &names, &n, &e));
    for (int i = 0; i < n; i++) {
        struct buf b;
        buf_init(&b, 1 << 24);
        OK(fs_join(path, dir, names[i], &e));
        if (fs_is_dir(path)) expect_nowhere(path, text);
        else OK(fs_read_file(path, &b, &e));
        if (b.len && memmem(b.data, b.len, text, strlen(text)))
            fail_msg("%s contains %s", path, text);
        buf_clear(&b);
        mem_free(names[i]);
    }
    mem_free(names);
}

static void a_result_names_no_place_and_no_job(void **state)
{
    struct fixture *f = *state;
    expect_nowhere(f->straight, f->root);
    expect_nowhere(f->straight, "tests/method");
    expect_nowhere(f->straight, "ftjob-test");
    expect_nowhere(f->straight, "threads");
}

static void metrics_of_later_attempts_replace_those_of_earlier_ones(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    double loss[2][15] = {{0}};
    const char *dir = jobdir_make(f->root, "metrics", "lora", SETTINGS, 2);
    jobdir_crash(dir, 1, "job.step_done:8");
    jobdir_run(dir, 2, NULL, EXIT_DONE);
    for (int attempt = 1; attempt <= 2; attempt++) {
        struct buf b;
        buf_init(&b, 1 << 20);
        snprintf(path, sizeof path, "%s/attempts/%d/metrics.jsonl", dir, attempt);
        OK(fs_read_file(path, &b, &e));
        for (const char *l = buf_str(&b), *nl; (nl = strchr(l, '\n')); l = nl + 1) {
            json_t *o = jx_parse(l, (size_t)(nl - l), &e);
            if (json_object_get(o, "loss"))
                loss[attempt - 1][json_integer_value(json_object_get(o, "step"))] =
                    json_real_value(json_object_get(o, "loss"));
            json_decref(o);
        }
        buf_clear(&b);
    }
    for (int step = 1; step <= 14; step++) {
        assert_true((loss[0][step] > 0) == (step <= 8));
        assert_true((loss[1][step] > 0) == (step > 6)); /* the checkpoint */
        if (step == 7 || step == 8) assert_true(loss[0][step] == loss[1][step]);
    }
}

static void a_loss_that_explodes_ends_the_job(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    const char *dir = jobdir_make(f->root, "nan", "full",
                                  "\"learning_rate\": 10, \"weight_decay\": 10,"
                                  " \"max_steps\": 60, \"max_grad_norm\": 0,"
                                  " \"warmup_ratio\": 0, \"adam_epsilon\": 1e-8", 2);
    assert_int_equal(engine_run(dir, 1, NULL, &e), EXIT_NUMERIC);
    assert_int_equal(e.code, E_NUMERIC);
    print_message("%s\n", e.msg);
    assert_true(str_starts(e.msg, "step ")); /* and the operation that began it */
    assert_non_null(strstr(e.msg, "(a lower learning rate may help): "));
    assert_null(strstr(e.msg, "the loss is"));
    OK(fs_join(path, dir, "result", &e));
    assert_false(fs_exists(path));
}

static void a_failing_file_call_ends_as_a_retry(void **state)
{
    struct fixture *f = *state;
    /* Each call of a wide sample fails once; the attempt after it always succeeds. */
    int64_t calls;
    const char *dir = jobdir_make(f->root, "files", "lora", SETTINGS, 1);
    fault_arm(FAULT_FILE, INT64_MAX, false);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    calls = fault_count(FAULT_FILE);
    fault_arm(FAULT_FILE, 0, false);
    assert_true(calls > 100);
    for (int64_t n = 3; n < calls; n += calls / 12) {
        struct err e = ERR_INIT;
        char name[32];
        snprintf(name, sizeof name, "files-%lld", (long long)n);
        dir = jobdir_make(f->root, name, "lora", SETTINGS, 1);
        fault_arm(FAULT_FILE, n, false);
        enum engine_exit code = engine_run(dir, 1, NULL, &e);
        fault_arm(FAULT_FILE, 0, false);
        if (code != EXIT_DONE && code != EXIT_TRANSIENT)
            fail_msg("file call %lld: exit %d: %s", (long long)n, code, e.msg);
        if (code != EXIT_DONE) assert_true(e.msg[0]);
        jobdir_run(dir, 2, NULL, EXIT_DONE);
        expect_same(f, dir);
    }
}

static void a_failing_allocation_never_breaks_the_process(void **state)
{
    struct fixture *f = *state;
    size_t live = mem_live();
    const char *dir = jobdir_make(f->root, "mem", "lora", SETTINGS, 1);
    fault_arm(FAULT_MEM, INT64_MAX, false);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    int64_t calls = fault_count(FAULT_MEM);
    fault_arm(FAULT_MEM, 0, false);
    for (int64_t n = 1; n < calls; n += 1 + calls / 40) {
        struct err e = ERR_INIT;
        dir = jobdir_make(f->root, "mem-n", "lora", SETTINGS, 1);
        fault_arm(FAULT_MEM, n, false);
        enum engine_exit code = engine_run(dir, 1, NULL, &e);
        fault_arm(FAULT_MEM, 0, false);
        if (code == EXIT_DONE ? e.code != E_OK : e.code == E_OK)
            fail_msg("allocation %lld: exit %d, code %d", (long long)n, code, e.code);
        assert_int_equal(mem_live(), live);
        OK(fs_rmtree(dir, &e));
    }
}

static void a_wrong_job_is_refused_by_field(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *key, *value, *param;
    } rows[] = {
        {"version", "2", "version"}, {"seed", "-1", "seed"}, {"seed", "2147483648", "seed"},
        {"method", "\"snow\"", "method"}, {"settings", "{\"r\": 0}", "hyperparameters.r"},
        {"settings", "{\"max_length\": 65}", "hyperparameters.max_length"},
        {"settings", "{\"max_length\": 1}", "hyperparameters.max_length"},
        {"training_file", "\"/nonexistent.jsonl\"", "training_file"},
        {"validation_file", "\"/nonexistent.jsonl\"", "validation_file"},
        {"training_file", "null", "training_file"}, {"extra", "1", "extra"},
        {"model", "{\"id\": \"a/b\", \"path\": \"tests/method/golden/model\", \"init\": \"best\"}",
         "model.init"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        char path[FS_PATH_MAX];
        const char *dir = jobdir_make(f->root, "wrong", "lora", "", 1);
        OK(fs_join(path, dir, "job.json", &e));
        json_t *o = jx_load_file(path, 1 << 20, &e);
        json_object_set_new(o, rows[i].key,
                            json_loads(rows[i].value, JSON_DECODE_ANY, NULL));
        char *text = jx_dump(o, &e);
        OK(fs_write_file(path, text, strlen(text), &e));
        enum engine_exit code = engine_run(dir, 1, NULL, &e);
        if (code != EXIT_USER || !str_eq(e.param, rows[i].param))
            fail_msg("%s = %s: exit %d, '%s' (%s)", rows[i].key, rows[i].value, code, e.msg,
                     e.param);
        mem_free(text);
        json_decref(o);
        OK(fs_rmtree(dir, &e));
    }
}

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_do_not_change_a_byte),
        cmocka_unit_test(another_seed_changes_the_weights),
        cmocka_unit_test(kills_at_any_instant_do_not_change_a_byte),
        cmocka_unit_test(a_job_that_dies_again_and_again_still_ends_the_same),
        cmocka_unit_test(pauses_do_not_change_a_byte),
        cmocka_unit_test(cancelling_leaves_no_result),
        cmocka_unit_test(two_checkpoints_are_kept_over_all_attempts),
        cmocka_unit_test(a_damaged_checkpoint_is_noticed_and_left_out),
        cmocka_unit_test(a_checkpoint_of_another_job_is_refused),
        cmocka_unit_test(a_finished_job_stays_finished),
        cmocka_unit_test(a_half_written_result_is_made_again),
        cmocka_unit_test(a_result_names_no_place_and_no_job),
        cmocka_unit_test(metrics_of_later_attempts_replace_those_of_earlier_ones),
        cmocka_unit_test(a_loss_that_explodes_ends_the_job),
        cmocka_unit_test(a_failing_file_call_ends_as_a_retry),
        cmocka_unit_test(a_failing_allocation_never_breaks_the_process),
        cmocka_unit_test(a_wrong_job_is_refused_by_field),
    };
    return cmocka_run_group_tests_name("run", tests, begin, end);
}
