/* engine/job/estimate: what a plan says a job takes is what it takes, and what does not fit is
 * refused with settings that do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/job/estimate.h"
#include "engine/job/profile.h"
#include "tests/lib/jobdir.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

struct fixture {
    char root[64], cache[FS_PATH_MAX];
};

static int begin(void **state)
{
    static struct fixture f;
    struct err e = ERR_INIT;
    jobdir_root(f.root);
    unsetenv("GRAFT_MEMORY");
    *state = &f;
    return fs_join(f.cache, f.root, "cache", &e);
}

static int end(void **state)
{
    struct err e = ERR_INIT;
    return fs_rmtree(((struct fixture *)*state)->root, &e);
}

static int64_t get(const json_t *o, const char *key)
{
    assert_true(json_is_integer(json_object_get(o, key)));
    return json_integer_value(json_object_get(o, key));
}

static json_t *plan_of(const struct fixture *f, const char *dir)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    OK(fs_join(path, dir, "job.json", &e));
    json_t *job = jx_load_file(path, 1 << 20, &e), *p = job ? engine_plan(job, f->cache, &e) : NULL;
    if (!p) fail_msg("%s", e.msg);
    json_decref(job);
    return p;
}

static void put(const char *dir, const char *name, const char *text)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    OK(fs_mkdirs(dir, &e));
    OK(fs_join(path, dir, name, &e));
    OK(fs_write_file(path, text, strlen(text), &e));
}

/* ---- bytes that graft counts itself ---------------------------------------------------------- */

static struct run *load(const char *dir, enum engine_exit want, struct err *e)
{
    struct run *r = mem_zalloc(sizeof *r, e);
    r->attempt = 1;
    snprintf(r->dir, sizeof r->dir, "%s", dir);
    if (journal_open(&r->journal, dir, 1, NULL, e) || job_load(&r->job, dir, e))
        fail_msg("%s", e->msg);
    if (run_load(r, false, e)) assert_int_equal(run_exit_code(e), want);
    else assert_int_equal(want, EXIT_DONE);
    return r;
}

static void unload(struct run *r)
{
    journal_close(&r->journal);
    run_close(r);
    mem_free(r);
}

static void the_parts_are_what_is_allocated(void **state)
{
    const struct fixture *f = *state;
    static const char *const policies[] = {"none", "cheap", "block"};
    for (int i = 0; i < 6; i++) {
        struct err e = ERR_INIT;
        char settings[160];
        snprintf(settings, sizeof settings, "\"max_steps\": 7, \"batch_size\": 3, \"recompute\":"
                 " \"%s\", \"validation_split\": %s", policies[i % 3], i < 3 ? "0.3" : "0");
        const char *dir = jobdir_make(f->root, policies[i % 3], i < 3 ? "lora" : "full", settings,
                                      2);
        struct run *r = load(dir, EXIT_DONE, &e);
        struct estimate_fit fit;
        OK(estimate_fit(r, &fit, &e));
        const int64_t *part = fit.e.part;
        assert_true(fit.fits);
        assert_int_equal(fit.e.recompute, i % 3);
        /* Every array of a parameter ends on a multiple of 64 bytes, so that costs a little. */
        int64_t trained = part[PART_TRAINABLE] + part[PART_GRADIENTS] + part[PART_MOMENTS];
        int64_t slab = (int64_t)r->session.model->params.slab_bytes;
        assert_true(slab >= trained && slab <= trained + 4096 * r->session.model->params.n);
        assert_int_equal(train_run(r, &e), EXIT_DONE); /* seven steps of three: all 19 rows */
        assert_int_equal(r->session.exec->buffer_bytes,
                         part[PART_ACTIVATIONS] + part[PART_WORKSPACE]);
        unload(r);
        OK(fs_rmtree(dir, &e));
    }
}

/* The largest pass need not be one of training. */
static void validation_counts_too(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX], text[4096];
    snprintf(dir, sizeof dir, "%s/valid", f->root);
    put(dir, "short.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"cd\"}\n");
    put(dir, "long.jsonl", "{\"text\": \"a text that is many times longer than those\"}\n"
                           "{\"text\": \"and a second one, which is longer than those too\"}\n");
    snprintf(text, sizeof text,
             "{\"version\": 1, \"id\": \"ftjob-test\", \"seed\": 1, \"model\": {\"id\": \"t/m\","
             " \"path\": \"" JOBDIR_MODEL "\", \"init\": \"pretrained\"}, \"method\": \"lora\","
             " \"settings\": {\"max_steps\": 1, \"batch_size\": 2}, \"training_file\":"
             " \"%s/short.jsonl\", \"validation_file\": \"%s/long.jsonl\", \"result_id\":"
             " \"t/o\", \"threads\": 1}", dir, dir);
    put(dir, "job.json", text);
    struct run *r = load(dir, EXIT_DONE, &e);
    struct estimate_fit fit;
    OK(estimate_fit(r, &fit, &e));
    assert_int_equal(train_run(r, &e), EXIT_DONE);
    assert_true(r->session.exec->buffer_bytes <=
                fit.e.part[PART_ACTIVATIONS] + fit.e.part[PART_WORKSPACE]);
    unload(r);
}

static void a_plan_adds_up(void **state)
{
    const struct fixture *f = *state;
    const char *dir = jobdir_make(f->root, "sum", "lora", "\"max_steps\": 5", 1);
    json_t *p = plan_of(f, dir), *parts = json_object_get(p, "bytes"), *v;
    int64_t sum = 0;
    const char *key;
    json_object_foreach(parts, key, v) sum += json_integer_value(v);
    assert_int_equal(json_object_size(parts), PART_COUNT);
    assert_int_equal(sum, get(p, "peak_bytes"));
    assert_int_equal(get(p, "steps"), 5);
    assert_true(json_is_true(json_object_get(p, "fits")));
    assert_null(json_object_get(p, "advice"));
    assert_string_equal(json_string_value(json_object_get(p, "recompute")), "none");
    json_decref(p);
}

static void the_result_has_the_size_that_was_planned(void **state)
{
    const struct fixture *f = *state;
    static const char *const names[][2] = {
        {"adapter", "result/adapter/adapter_model.safetensors"},
        {"merged", "result/merged/model.safetensors"},
        {"checkpoint", "attempts/1/checkpoints/step-2/state.safetensors"}};
    const char *dir = jobdir_make(f->root, "size", "lora",
                                  "\"max_steps\": 3, \"checkpoint_steps\": 2", 1);
    json_t *p = plan_of(f, dir);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    for (size_t i = 0; i < 3; i++) {
        struct err e = ERR_INIT;
        char path[FS_PATH_MAX];
        OK(fs_join(path, dir, names[i][1], &e));
        int64_t bytes = fs_size(path, &e), said = get(json_object_get(p, "results"), names[i][0]);
        /* A safetensors file has a header of some 100 bytes per tensor. */
        assert_true(bytes >= said && bytes < said + 16384);
    }
    json_decref(p);
}

/* ---- bytes that the kernel counts ------------------------------------------------------------ */

/* A Llama of 26 million parameters, most of them in its vocabulary: large and quick. */
static void make_model(const char *dir)
{
    struct err e = ERR_INIT;
    struct buf b;
    put(dir, "config.json",
        "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\":"
        " 512, \"intermediate_size\": 1024, \"num_hidden_layers\": 2, \"num_attention_heads\": 8,"
        " \"num_key_value_heads\": 4, \"vocab_size\": 40000, \"max_position_embeddings\": 256,"
        " \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, \"tie_word_embeddings\": true,"
        " \"bos_token_id\": 1, \"eos_token_id\": 2, \"hidden_act\": \"silu\", \"dtype\":"
        " \"bfloat16\"}");
    buf_init(&b, 1 << 24);
    OK(fs_read_file(JOBDIR_MODEL "/tokenizer.json", &b, &e));
    put(dir, "tokenizer.json", buf_str(&b));
    buf_clear(&b);
}

static void make_job(const char *dir, const char *model, const char *init, const char *method)
{
    char text[4096];
    snprintf(text, sizeof text,
             "{\"version\": 1, \"id\": \"ftjob-test\", \"seed\": 1, \"model\": {\"id\": \"t/m\","
             " \"path\": \"%s\", \"init\": \"%s\"}, \"method\": \"%s\", \"settings\": {"
             "\"max_steps\": 2, \"batch_size\": 19}, \"training_file\": \"" JOBDIR_DATA "\","
             " \"validation_file\": null, \"result_id\": \"t/o\", \"threads\": 2}",
             model, init, method);
    put(dir, "job.json", text);
}

/* The largest resident memory of a child that runs the job. */
static int64_t measure(const char *dir)
{
    struct rusage u;
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct err e = ERR_INIT;
        int code = engine_run(dir, 1, NULL, &e);
        if (code) fprintf(stderr, "%s\n", e.msg);
        _exit(code);
    }
    assert_int_equal(wait4(pid, &status, 0, &u), pid);
    assert_int_equal(status, 0);
    return (int64_t)u.ru_maxrss * 1024;
}

/* The plan, made by a child too: its own process counts as part of the peak. */
static int64_t predict(const struct fixture *f, const char *dir)
{
    int fd[2], status;
    int64_t peak = 0;
    assert_int_equal(pipe(fd), 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        json_t *p = plan_of(f, dir);
        peak = get(p, "peak_bytes");
        _exit(write(fd[1], &peak, sizeof peak) != sizeof peak);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(read(fd[0], &peak, sizeof peak), sizeof peak);
    close(fd[0]);
    close(fd[1]);
    return peak;
}

static void check_peak(const struct fixture *f, const char *name, const char *dir)
{
    int64_t said = predict(f, dir), was = measure(dir);
    print_message("%s: planned %.1f MiB, was %.1f MiB (%+.2f %%)\n", name,
                  (double)said / 1048576, (double)was / 1048576,
                  100.0 * (double)(said - was) / (double)was);
    assert_true(fabs((double)(said - was)) <= 0.02 * (double)was);
}

static void the_peak_is_within_2_percent_of_the_measured_one(void **state)
{
    const struct fixture *f = *state;
    char model[FS_PATH_MAX], dir[FS_PATH_MAX], merged[FS_PATH_MAX];
    snprintf(model, sizeof model, "%s/model", f->root);
    make_model(model);
    snprintf(dir, sizeof dir, "%s/random", f->root);
    make_job(dir, model, "random", "lora");
    check_peak(f, "random weights, adapter", dir);
    snprintf(merged, sizeof merged, "%s/result/merged", dir); /* now 52 MB of mapped bf16 */
    snprintf(dir, sizeof dir, "%s/mapped", f->root);
    make_job(dir, merged, "pretrained", "lora");
    check_peak(f, "mapped weights, adapter", dir);
    snprintf(dir, sizeof dir, "%s/full", f->root);
    make_job(dir, merged, "pretrained", "full");
    check_peak(f, "mapped weights, all trained", dir);
}

/* ---- what does not fit ----------------------------------------------------------------------- */

static void allow(int64_t mib)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)mib);
    setenv("GRAFT_MEMORY", text, 1);
}

static int64_t peak_mib(const struct fixture *f, const char *dir)
{
    json_t *p = plan_of(f, dir);
    int64_t peak = get(p, "peak_bytes");
    json_decref(p);
    return (peak + (1 << 20) - 1) >> 20;
}

/* Rows of equal length, 512 of them: policies differ by many MiB. */
static void wide_job(const struct fixture *f, const char *name, const char *settings,
                     char dir[FS_PATH_MAX])
{
    struct buf rows;
    char text[4096];
    snprintf(dir, FS_PATH_MAX, "%s/%s", f->root, name);
    buf_init(&rows, 1 << 20);
    for (int i = 0; i < 512; i++)
        buf_printf(&rows, "{\"text\": \"%03d a quick brown fox jumps over dogs\"}\n", i);
    put(dir, "rows.jsonl", buf_str(&rows));
    buf_clear(&rows);
    snprintf(text, sizeof text,
             "{\"version\": 1, \"id\": \"ftjob-test\", \"seed\": 1, \"model\": {\"id\": \"t/m\","
             " \"path\": \"" JOBDIR_MODEL "\", \"init\": \"pretrained\"}, \"method\": \"lora\","
             " \"settings\": {%s}, \"training_file\": \"%s/rows.jsonl\", \"validation_file\":"
             " null, \"result_id\": \"t/o\", \"threads\": 1}", settings, dir);
    put(dir, "job.json", text);
}

static void the_first_policy_that_fits_is_taken(void **state)
{
    const struct fixture *f = *state;
    static const char *const policies[] = {"none", "cheap", "block"};
    char dir[FS_PATH_MAX], name[16], settings[160];
    int64_t peak[3];
    for (int i = 0; i < 3; i++) {
        snprintf(settings, sizeof settings, "\"batch_size\": 512, \"recompute\": \"%s\"",
                 policies[i]);
        wide_job(f, policies[i], settings, dir);
        peak[i] = peak_mib(f, dir);
    }
    print_message("none %lld, cheap %lld, block %lld MiB\n", (long long)peak[0],
                  (long long)peak[1], (long long)peak[2]);
    assert_true(peak[1] < peak[0] - 4 && peak[2] < peak[1] - 4);
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "auto-%d", i);
        wide_job(f, name, "\"batch_size\": 512", dir);
        allow(peak[i] + 3);
        json_t *p = plan_of(f, dir);
        assert_true(json_is_true(json_object_get(p, "fits")));
        assert_string_equal(json_string_value(json_object_get(p, "recompute")), policies[i]);
        json_decref(p);
    }
    unsetenv("GRAFT_MEMORY");
}

/* The number after `key` in text, or 0. */
static int64_t named(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoll(at + strlen(key), NULL, 10) : 0;
}

static void what_does_not_fit_is_refused_with_settings_that_do(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX], result[FS_PATH_MAX], settings[160], msg[sizeof e.msg];
    wide_job(f, "block", "\"batch_size\": 512, \"recompute\": \"block\"", dir);
    int64_t least = peak_mib(f, dir) - 4;
    allow(least);
    wide_job(f, "refused", "\"batch_size\": 512", dir);
    assert_int_equal(engine_run(dir, 1, NULL, &e), EXIT_DEVMEM);
    print_message("%s\n", e.msg);
    snprintf(msg, sizeof msg, "%s", e.msg);
    assert_true(strstr(msg, "the job needs ") && strstr(msg, " MiB more than there is"));
    snprintf(result, sizeof result, "%s/attempts/1/checkpoints", dir);
    assert_false(fs_exists(result));
    int64_t batch = named(msg, "batch_size="), length = named(msg, "max_length=");
    assert_int_equal(batch * named(msg, "gradient_accumulation_steps="), 512);
    assert_true(batch < 512 && batch >= 64 && length >= 8 && length % 8 == 0);
    /* What it advises runs; a little more would not. (The process itself is not always of the
     * same size to the last page.) */
    allow(least + 2);
    snprintf(settings, sizeof settings, "\"max_steps\": 1, \"batch_size\": %lld,"
             " \"gradient_accumulation_steps\": %lld", (long long)batch, 512 / (long long)batch);
    wide_job(f, "smaller", settings, dir);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    snprintf(settings, sizeof settings, "\"max_steps\": 1, \"batch_size\": 512, \"max_length\":"
             " %lld", (long long)length);
    wide_job(f, "shorter", settings, dir);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    allow(least - 2);
    snprintf(settings, sizeof settings, "\"max_steps\": 1, \"batch_size\": 512, \"max_length\":"
             " %lld", (long long)length + 8);
    wide_job(f, "longer", settings, dir);
    jobdir_run(dir, 1, NULL, EXIT_DEVMEM);
    unsetenv("GRAFT_MEMORY");
}

static void recompute_is_advised_where_it_would_do(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX];
    wide_job(f, "cheap", "\"batch_size\": 512, \"recompute\": \"cheap\"", dir);
    allow(peak_mib(f, dir) + 3);
    wide_job(f, "kept", "\"batch_size\": 512, \"recompute\": \"none\"", dir);
    assert_int_equal(engine_run(dir, 1, NULL, &e), EXIT_DEVMEM);
    assert_non_null(strstr(e.msg, "it would fit with recompute=block, or batch_size="));
    allow(1);
    wide_job(f, "hopeless", "\"batch_size\": 512", dir);
    assert_int_equal(engine_run(dir, 1, NULL, &e), EXIT_DEVMEM);
    assert_non_null(strstr(e.msg, "no batch_size or max_length would fit"));
    setenv("GRAFT_MEMORY", "1G", 1);
    assert_int_equal(engine_run(dir, 1, NULL, &e), EXIT_USER);
    unsetenv("GRAFT_MEMORY");
}

static void memory_that_others_hold_is_worth_a_retry(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct estimate_fit f = {.memory = {.total = 8 << 20, .free = 1 << 20, .used = 1 << 20},
                             .missing = 2 << 20, .advice = "batch_size=1"};
    f.e.peak = 4 << 20;
    assert_int_equal(estimate_refuse(&f, &e), -1);
    assert_int_equal(run_exit_code(&e), EXIT_TRANSIENT);
    assert_string_equal(e.msg, "the job needs 4 MiB of memory, 2 MiB more than is free now;"
                               " it would fit with batch_size=1");
    f.e.peak = 9 << 20;
    assert_int_equal(estimate_refuse(&f, &e), -1);
    assert_int_equal(run_exit_code(&e), EXIT_DEVMEM);
    f.fits = true;
    assert_int_equal(estimate_refuse(&f, &e), 0);
}

/* ---- failures -------------------------------------------------------------------------------- */

static void a_failing_call_never_breaks_a_plan(void **state)
{
    const struct fixture *f = *state;
    static const enum fault_class kinds[] = {FAULT_MEM, FAULT_FILE};
    const char *dir = jobdir_make(f->root, "faults", "lora", "\"recompute\": \"block\"", 1);
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    json_decref(plan_of(f, dir)); /* the device is measured */
    OK(fs_join(path, dir, "job.json", &e));
    json_t *job = jx_load_file(path, 1 << 20, &e);
    size_t live = mem_live();
    for (int k = 0; k < 2; k++) {
        fault_arm(kinds[k], INT64_MAX, false);
        json_decref(engine_plan(job, f->cache, &e));
        int64_t calls = fault_count(kinds[k]);
        assert_true(calls > 20);
        for (int64_t n = 1; n <= calls; n += 1 + (k == 0) * calls / 60) {
            err_clear(&e);
            fault_arm(kinds[k], n, false);
            json_t *p = engine_plan(job, f->cache, &e);
            fault_arm(kinds[k], 0, false);
            enum engine_exit code = run_exit_code(&e);
            if (!p && code != EXIT_TRANSIENT && (k == 0 || code != EXIT_USER))
                fail_msg("call %lld: %s", (long long)n, e.msg);
            if (p && !json_is_true(json_object_get(p, "fits"))) fail_msg("call %lld", (long long)n);
            json_decref(p);
            assert_int_equal(mem_live(), live);
        }
    }
    json_decref(job);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void a_device_is_measured_once(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    struct plan_rates a, b, c;
    char path[FS_PATH_MAX];
    OK(profile_get(f->cache, 1, &a, &e));
    OK(profile_get(f->cache, 1, &b, &e));
    assert_memory_equal(&a, &b, sizeof a); /* no two measurements agree to the last bit */
    assert_true(a.products > 1e8 && a.attention > 1e7 && a.bytes > 1e8);
    OK(profile_get(f->cache, 2, &c, &e));
    assert_true(c.products != a.products);
    OK(fs_join(path, f->cache, "profile.json", &e));
    json_t *all = jx_load_file(path, 1 << 20, &e);
    assert_int_equal(json_object_size(all), 2);
    json_decref(all);
    OK(fs_write_file(path, "{", 1, &e)); /* damaged: measured again */
    OK(profile_get(f->cache, 1, &b, &e));
    assert_true(a.products != b.products);
}

static void a_step_takes_the_time_of_its_work(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    const struct plan_rates slow = {1e9, 1e9, 1e9}, fast = {4e9, 4e9, 4e9};
    struct estimate_time t[4];
    const char *dir = jobdir_make(f->root, "t", "lora", "\"max_steps\": 10", 1);
    struct run *r = load(dir, EXIT_DONE, &e);
    OK(estimate_seconds(r, &slow, &t[0], &e));
    OK(estimate_seconds(r, &fast, &t[1], &e));
    assert_true(fabs(t[0].step / t[1].step - 4) < 1e-9);
    assert_true(fabs(t[0].job / t[0].step - 10) < 1e-9);
    unload(r);
    dir = jobdir_make(f->root, "v", "lora", "\"max_steps\": 10, \"validation_split\": 0.3,"
                      " \"eval_steps\": 5", 1);
    r = load(dir, EXIT_DONE, &e);
    OK(estimate_seconds(r, &slow, &t[2], &e));
    assert_true(t[2].job > 10 * t[2].step);
    unload(r);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        TEST(the_peak_is_within_2_percent_of_the_measured_one),
        TEST(the_parts_are_what_is_allocated),
        TEST(validation_counts_too),
        TEST(a_plan_adds_up),
        TEST(the_result_has_the_size_that_was_planned),
        TEST(the_first_policy_that_fits_is_taken),
        TEST(what_does_not_fit_is_refused_with_settings_that_do),
        TEST(recompute_is_advised_where_it_would_do),
        TEST(memory_that_others_hold_is_worth_a_retry),
        TEST(a_failing_call_never_breaks_a_plan),
        TEST(a_device_is_measured_once),
        TEST(a_step_takes_the_time_of_its_work),
    };
    return cmocka_run_group_tests_name("estimate", tests, NULL, NULL);
}
