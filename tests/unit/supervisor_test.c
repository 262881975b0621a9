/* Jobs from creation to their end, with real worker processes (this program as `worker`) that run
 * the fake engine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "service/events.h"
#include "service/jobs.h"
#include "service/models.h"
#include "service/worker.h"
#include "tests/lib/fake_engine.h"
#include "tests/lib/kit.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int begin(void **state)
{
    struct kit *k = calloc(1, sizeof *k);
    kit_begin(k);
    kit_open(k);
    kit_model(k);
    *state = k;
    struct err e = ERR_INIT;
    return service_start(k->service, &e);
}

static int end(void **state)
{
    kit_end(*state);
    free(*state);
    return 0;
}

static json_int_t number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static json_int_t extra(const json_t *job, const char *key)
{
    return number(json_object_get(job, "graft"), key);
}

static json_t *get(struct kit *k, const char *id)
{
    struct err e = ERR_INIT;
    json_t *job = jobs_get(k->service, id, &e);
    assert_non_null(job);
    return job;
}

/* The worker's own progress, once it has done `step` steps. Its pid is in it. */
static json_int_t wait_for_step(struct kit *k, const char *id, json_int_t step)
{
    for (int i = 0; i < 2000; i++) {
        json_t *job = get(k, id), *p = json_object_get(json_object_get(job, "graft"), "progress");
        json_int_t at = number(p, "step"), pid = number(p, "pid");
        json_decref(job);
        if (at >= step) return pid;
        clock_sleep_ms(5);
    }
    fail_msg("job %s does not reach step %d", id, (int)step);
    return 0;
}

/* The result is that of a run without any disturbance. */
static void assert_exact(struct kit *k, const json_t *job, int64_t steps)
{
    struct err e = ERR_INIT;
    struct model m;
    char text[256] = "", want[64];
    const char *tuned = json_string_value(json_object_get(job, "fine_tuned_model"));
    assert_non_null(tuned);
    assert_int_equal(models_get(k->service, tuned, &m, &e), 0);
    const struct model_file *f = models_file(&m, "model.safetensors");
    assert_non_null(f);
    int fd = models_read(&m, f, &e);
    assert_true(fd >= 0);
    assert_true(fs_read(fd, text, sizeof text - 1, &e) > 0);
    snprintf(want, sizeof want, "\"%llu\"", (unsigned long long)fake_engine_value(steps));
    assert_non_null(strstr(text, want));
    fs_close(fd);
    models_clear(&m);
}

static bool has_event(struct kit *k, const char *id, const char *text)
{
    struct err e = ERR_INIT;
    struct page p = {.limit = 1000};
    json_t *list = events_list(k->service, id, &p, &e), *ev;
    bool found = false;
    size_t i;
    assert_non_null(list);
    json_array_foreach(json_object_get(list, "data"), i, ev)
        found = found || strstr(json_string_value(json_object_get(ev, "message")), text);
    json_decref(list);
    return found;
}

static void a_job_becomes_two_models_and_a_file(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct model m;
    char id[64], text[256];
    kit_job(k, "{\"steps\": 10}", id);
    json_t *job = kit_wait(k, id, "succeeded");
    const char *tuned = json_string_value(json_object_get(job, "fine_tuned_model"));
    assert_int_equal(number(job, "trained_tokens"), 70);
    assert_true(number(job, "finished_at") > 0);
    assert_true(json_is_null(json_object_get(job, "error")));
    assert_int_equal(json_array_size(json_object_get(job, "result_files")), 1);
    assert_exact(k, job, 10);
    assert_int_equal(models_get(k->service, tuned, &m, &e), 0);
    assert_string_equal(m.kind, "merged");
    assert_string_equal(m.parent, "default/base");
    assert_string_equal(m.job_id, id);
    models_clear(&m);
    snprintf(text, sizeof text, "%s-adapter", tuned);
    assert_int_equal(models_get(k->service, text, &m, &e), 0);
    assert_string_equal(m.kind, "adapter");
    models_clear(&m);
    assert_true(has_event(k, id, "checkpoint 3"));
    json_decref(job);
}

static void a_killed_worker_goes_on_from_its_checkpoint(void **state)
{
    struct kit *k = *state;
    char id[64];
    kit_job(k, "{\"steps\": 40, \"step_ms\": 10, \"checkpoint_every\": 5}", id);
    json_int_t pid = wait_for_step(k, id, 12);
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0);
    json_t *job = kit_wait(k, id, "succeeded");
    assert_int_equal(extra(job, "attempt"), 2);
    assert_false(has_event(k, id, "starting from step 0") &&
                 !has_event(k, id, "starting from step 1"));
    assert_exact(k, job, 40);
    json_decref(job);
}

static void a_job_pauses_and_resumes(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    char id[64];
    kit_job(k, "{\"steps\": 60, \"step_ms\": 5}", id);
    wait_for_step(k, id, 7);
    json_t *job = jobs_pause(k->service, id, &e);
    assert_string_equal(json_string_value(json_object_get(job, "status")), "pausing");
    json_decref(job);
    json_decref(kit_wait(k, id, "paused"));
    clock_sleep_ms(50);
    json_decref(kit_wait(k, id, "paused"));
    json_decref(jobs_resume(k->service, id, &e));
    job = kit_wait(k, id, "succeeded");
    assert_int_equal(extra(job, "attempt"), 2);
    assert_exact(k, job, 60);
    json_decref(job);
}

static void a_running_job_is_cancelled_for_good(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    char id[64];
    kit_job(k, "{\"steps\": 1000, \"step_ms\": 5}", id);
    wait_for_step(k, id, 3);
    json_t *job = jobs_cancel(k->service, id, &e);
    assert_non_null(job);
    json_decref(job);
    job = kit_wait(k, id, "cancelled");
    assert_true(json_is_null(json_object_get(job, "fine_tuned_model")));
    json_decref(job);
    assert_null(jobs_pause(k->service, id, &e));
    assert_int_equal(e.code, E_CONFLICT);
    json_t *models = models_list(k->service, &e);
    assert_int_equal(json_array_size(json_object_get(models, "data")), 1); /* the base */
    json_decref(models);
}

static void stop(struct kit *k)
{
    service_close(k->service);
    k->service = NULL;
}

static void start(struct kit *k)
{
    struct err e = ERR_INIT;
    kit_open(k);
    assert_int_equal(service_start(k->service, &e), 0);
}

static void a_new_server_adopts_the_living_worker(void **state)
{
    struct kit *k = *state;
    char id[64];
    kit_job(k, "{\"steps\": 60, \"step_ms\": 10}", id);
    json_int_t pid = wait_for_step(k, id, 3);
    stop(k);
    start(k);
    json_t *job = get(k, id);
    json_int_t before = number(json_object_get(json_object_get(job, "graft"), "progress"), "step");
    json_decref(job);
    assert_int_equal(wait_for_step(k, id, before + 3), pid); /* the same process, heard again */
    job = kit_wait(k, id, "succeeded");
    assert_int_equal(extra(job, "attempt"), 1);
    assert_exact(k, job, 60);
    json_decref(job);
}

static void a_worker_that_ended_meanwhile_is_found(void **state)
{
    struct kit *k = *state;
    char done[64], dead[64];
    stop(k);
    k->config.jobs_max = 2;
    start(k);
    kit_job(k, "{\"steps\": 20, \"step_ms\": 10}", done);
    kit_job(k, "{\"steps\": 60, \"step_ms\": 10}", dead);
    json_int_t pid = wait_for_step(k, dead, 5);
    wait_for_step(k, done, 3);
    stop(k);
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0);
    clock_sleep_ms(600);
    start(k);
    json_t *job = kit_wait(k, done, "succeeded");
    assert_int_equal(extra(job, "attempt"), 1);
    assert_exact(k, job, 20);
    json_decref(job);
    job = kit_wait(k, dead, "succeeded");
    assert_int_equal(extra(job, "attempt"), 2);
    assert_exact(k, job, 60);
    json_decref(job);
}

static void sigterm_is_preemption(void **state)
{
    struct kit *k = *state;
    char id[64];
    kit_job(k, "{\"steps\": 60, \"step_ms\": 10, \"checkpoint_every\": 0}", id);
    json_int_t pid = wait_for_step(k, id, 8);
    assert_int_equal(kill((pid_t)pid, SIGTERM), 0);
    json_t *job = kit_wait(k, id, "succeeded");
    assert_int_equal(extra(job, "attempt"), 2);
    assert_false(has_event(k, id, "Job started, attempt 3"));
    assert_true(has_event(k, id, "checkpoint "));
    assert_exact(k, job, 60);
    json_decref(job);
}

static void a_silent_worker_loses_its_lease_and_is_replaced(void **state)
{
    struct kit *k = *state;
    char id[64];
    stop(k);
    k->config.lease_s = 1;
    start(k);
    kit_job(k, "{\"steps\": 40, \"step_ms\": 10}", id);
    json_int_t pid = wait_for_step(k, id, 8);
    assert_int_equal(kill((pid_t)pid, SIGSTOP), 0);
    json_t *job = kit_wait(k, id, "succeeded");
    assert_int_equal(extra(job, "attempt"), 2);
    assert_int_equal(kill((pid_t)pid, 0), -1); /* it did not survive */
    assert_exact(k, job, 40);
    json_decref(job);
}

static void failures_carry_the_workers_words(void **state)
{
    struct kit *k = *state;
    char id[64];
    kit_job(k, "{\"exit_code\": 11, \"exit_step\": 4}", id);
    json_t *job = kit_wait(k, id, "failed");
    const json_t *error = json_object_get(job, "error");
    assert_string_equal(json_string_value(json_object_get(error, "code")), "numeric_error");
    assert_string_equal(json_string_value(json_object_get(error, "message")),
                        "fake failure at step 4");
    assert_int_equal(extra(job, "attempt"), 1);
    json_decref(job);
    kit_job(k, "{\"kill_signal\": 11, \"exit_step\": 4}", id);
    job = kit_wait(k, id, "failed");
    assert_int_equal(extra(job, "attempt"), 2); /* poison: no third try */
    json_decref(job);
    kit_job(k, "{\"exit_code\": 20, \"exit_step\": 4, \"only_attempt\": 1}", id);
    job = kit_wait(k, id, "succeeded");
    assert_exact(k, job, 10);
    json_decref(job);
}

static void a_program_that_cannot_run_fails_the_job(void **state)
{
    struct kit *k = *state;
    char id[64];
    stop(k);
    snprintf(k->config.worker_path, sizeof k->config.worker_path, "/nonexistent/graft");
    start(k);
    kit_job(k, "{}", id);
    json_t *job = kit_wait(k, id, "failed");
    json_decref(job);
}

static void at_most_jobs_max_run_at_once(void **state)
{
    struct kit *k = *state;
    char id[3][64];
    struct err e = ERR_INIT;
    for (int i = 0; i < 3; i++) kit_job(k, "{\"steps\": 10, \"step_ms\": 5}", id[i]);
    for (int done = 0; done < 3;) {
        json_t *h = service_health(k->service, &e);
        assert_true(number(json_object_get(h, "jobs"), "running") <= 1);
        json_decref(h);
        json_t *job = get(k, id[done]);
        const char *s = json_string_value(json_object_get(job, "status"));
        assert_string_not_equal(s, "failed");
        done += strcmp(s, "succeeded") == 0;
        json_decref(job);
        clock_sleep_ms(2);
    }
}

/* One failing call of the server, anywhere in the life of a job: the job succeeds all the same. */
static void a_single_failure_of_the_server_costs_no_job(void **state)
{
    struct kit *k = *state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_SQL, FAULT_MEM, FAULT_SOCK,
                                               FAULT_THREAD};
    for (size_t c = 0; c < sizeof classes / sizeof *classes; c++) {
        for (int64_t n = 1, before = 1; n < 4000; n += before, before = n - before) {
            char id[64];
            bool done = false;
            kit_job(k, "{\"steps\": 6, \"step_ms\": 2}", id);
            fault_arm(classes[c], n, false);
            for (int i = 0; i < 4000 && !done; i++) {
                struct err e = ERR_INIT;
                json_t *job = jobs_get(k->service, id, &e); /* may itself be the one that fails */
                const char *s = json_string_value(json_object_get(job, "status"));
                done = s && strcmp(s, "succeeded") == 0;
                if (s && strcmp(s, "failed") == 0) fail_msg("%s", json_dumps(job, 0));
                json_decref(job);
                clock_sleep_ms(3);
            }
            int64_t calls = fault_count(classes[c]);
            fault_arm(classes[c], 0, false);
            if (!done) fail_msg("class %d, call %d: the job hangs", (int)c, (int)n);
            json_decref(kit_wait(k, id, "succeeded"));
            if (calls < n) break;
        }
    }
}

static void two_servers_do_not_share_a_folder(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct stat st;
    char path[FS_PATH_MAX];
    assert_null(service_open(&k->config, &fake_engine_calls, &e));
    assert_int_equal(e.code, E_CONFLICT);
    fs_join(path, k->config.data_dir, "graft.db", &e);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 077, 0); /* and nobody else reads it */
}

#define JOB(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(int argc, char **argv)
{
    if (fault_from_env()) return 2;
    mem_hook_libraries();
    if (argc > 1 && strcmp(argv[1], "worker") == 0)
        return worker_main(argc - 1, argv + 1, fake_engine_run);
    const struct CMUnitTest tests[] = {
        JOB(a_job_becomes_two_models_and_a_file),
        JOB(a_killed_worker_goes_on_from_its_checkpoint),
        JOB(a_job_pauses_and_resumes),
        JOB(a_running_job_is_cancelled_for_good),
        JOB(a_new_server_adopts_the_living_worker),
        JOB(a_worker_that_ended_meanwhile_is_found),
        JOB(sigterm_is_preemption),
        JOB(a_silent_worker_loses_its_lease_and_is_replaced),
        JOB(failures_carry_the_workers_words),
        JOB(a_program_that_cannot_run_fails_the_job),
        JOB(at_most_jobs_max_run_at_once),
        JOB(a_single_failure_of_the_server_costs_no_job),
        JOB(two_servers_do_not_share_a_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
