/* The real server and the real engine, killed: the result has the bytes of an undisturbed run, and
 * the data folder keeps its invariants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "service/log.h"
#include "tests/lib/check.h"
#include "tests/lib/model_dir.h"
#include "tests/lib/server.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 160, KILLS = 10 };

static struct server server;
static char training[64];
static json_t *reference; /* manifest of an undisturbed run: path -> {bytes, sha256} */

static const char *const args[] = {"--poll-ms", "10", "--retry-ms", "10", "--job-attempts", "100",
                                   NULL};

static void create(char id[64])
{
    char body[512];
    snprintf(body, sizeof body,
             "{\"model\": \"base/tiny\", \"training_file\": \"%s\", \"seed\": 7, \"method\": "
             "{\"type\": \"lora\", \"lora\": {\"hyperparameters\": {\"r\": 2, \"max_steps\": %d, "
             "\"batch_size\": 4, \"checkpoint_steps\": 8, \"validation_split\": 0.25}}}}",
             training, STEPS);
    struct answer a = server_post(&server, "/v1/fine_tuning/jobs", body);
    if (a.status != 200) fail_msg("job: %ld %s", a.status, a.body);
    snprintf(id, 64, "%s", answer_str(&a, "id"));
    answer_clear(&a);
}

struct look {
    char status[32];
    int64_t attempt, step, pid;
};

static struct look look(const char *id)
{
    char path[128];
    struct look l = {0};
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs/%s", id);
    struct answer a = server_get(&server, path);
    assert_int_equal(a.status, 200);
    snprintf(l.status, sizeof l.status, "%s", answer_str(&a, "status"));
    l.attempt = json_integer_value(answer_get(&a, "graft.attempt"));
    l.step = json_integer_value(answer_get(&a, "graft.progress.step"));
    l.pid = json_integer_value(answer_get(&a, "graft.progress.pid"));
    if (str_eq(l.status, "failed")) fail_msg("%s", a.body);
    answer_clear(&a);
    return l;
}

static struct look wait_end(const char *id)
{
    for (int i = 0; i < 6000; i++) {
        struct look l = look(id);
        if (str_eq(l.status, "succeeded")) return l;
        usleep(10000);
    }
    fail_msg("job %s does not end", id);
    return (struct look){0};
}

static json_t *manifest(const char *id)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    snprintf(path, sizeof path, "%s/data/jobs/%s/result/manifest.json", server.dir, id);
    json_t *top = jx_load_file(path, 1 << 20, &e);
    if (!top) fail_msg("%s", e.msg);
    json_t *files = json_incref(json_object_get(top, "files"));
    json_decref(top);
    return files;
}

/* Cards and graft.json name the job; everything else must be the same to the byte. */
static void assert_same_bytes(const char *id)
{
    const char *path;
    json_t *want, *got = manifest(id);
    int compared = 0;
    assert_int_equal(json_object_size(got), json_object_size(reference));
    json_object_foreach(reference, path, want) {
        json_t *have = json_object_get(got, path);
        if (!have) fail_msg("%s is missing", path);
        if (str_ends(path, "README.md") || str_ends(path, "graft.json")) continue;
        if (!json_equal(want, have)) fail_msg("%s differs in job %s", path, id);
        compared++;
    }
    assert_true(compared >= 5);
    json_decref(got);
}

static int set_up(void **state)
{
    char rows[2048] = "", dir[128], body[256], id[64];
    (void)state;
    server_start(&server, args);
    snprintf(dir, sizeof dir, "%s/models/tiny", server.dir);
    model_dir_write(dir);
    snprintf(body, sizeof body, "{\"id\": \"base/tiny\", \"path\": \"%s\"}", dir);
    struct answer a = server_post(&server, "/v1/models", body);
    if (a.status != 200) fail_msg("model: %s", a.body);
    answer_clear(&a);
    for (int i = 0, n = 0; i < 16; i++)
        n += snprintf(rows + n, sizeof rows - (size_t)n,
                      "{\"prompt\": \"%d + 1 =\", \"completion\": \" %d\"}\n", i, i + 1);
    server_upload_ok(&server, "fine-tune", "sums.jsonl", rows, strlen(rows), training);
    create(id);
    struct look l = wait_end(id);
    assert_int_equal(l.attempt, 1);
    reference = manifest(id);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    json_decref(reference);
    server_remove(&server);
    return 0;
}

static void check_folder(void)
{
    char data[128];
    server_stop(&server);
    snprintf(data, sizeof data, "%s/data", server.dir);
    assert_int_equal(check_data(data, NULL, stderr), 0);
    server_restart(&server, args);
}

static void ten_kills_of_server_and_worker_change_no_byte(void **state)
{
    (void)state;
    char id[64];
    struct look l = {0};
    int workers = 0, servers = 0;
    int64_t hit_step = 0;
    create(id);
    for (uint32_t k = 0; workers + servers < KILLS && k < 2000; k++) {
        usleep(1000 + rng_u32(1, RNG_USER, 0, k) % 20000);
        l = look(id);
        if (str_eq(l.status, "succeeded")) break;
        /* Some way between two kills, or the job would never end. */
        if (!str_eq(l.status, "running") || l.step < hit_step + STEPS / (KILLS + 4)) continue;
        hit_step = l.step;
        if ((workers + servers) % 2) {
            server_kill(&server);
            server_restart(&server, args);
            servers++;
        } else if (kill((pid_t)l.pid, SIGKILL) == 0) {
            workers++;
        }
    }
    l = wait_end(id);
    print_message("%d kills of workers, %d of servers, %d attempts\n", workers, servers,
                  (int)l.attempt);
    assert_true(workers >= 3 && servers >= 3);
    assert_int_equal(l.attempt, workers + 1); /* a new server adopts: its death costs no attempt */
    assert_same_bytes(id);
    check_folder();
}

static void the_engine_may_die_at_each_of_its_points(void **state)
{
    (void)state;
    static const char *const points[] = {
        "job.step_done:20", "job.checkpoint_begun:3", "job.checkpoint_filled:3",
        "job.checkpoint_written:3", "job.adapter_written:1", "job.before_result:1",
        "job.result_published:1", "worker.after_exit_json:1"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        char id[64];
        bool told = str_starts(points[i], "worker.after");
        server_stop(&server);
        setenv("GRAFT_WORKER_CRASH", points[i], 1);
        server_restart(&server, args);
        unsetenv("GRAFT_WORKER_CRASH");
        create(id);
        /* The first attempt dies there, or even the first few; then the environment is clean. */
        for (int n = 0; n < 3000 && !told && look(id).attempt < 2; n++) usleep(5000);
        server_kill(&server);
        server_restart(&server, args);
        struct look l = wait_end(id);
        if (!told && l.attempt < 2) fail_msg("%s was not reached", points[i]);
        assert_same_bytes(id);
    }
    check_folder();
}

int main(void)
{
    mem_hook_libraries();
    log_set_level(LOG_OFF);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_kills_of_server_and_worker_change_no_byte),
        cmocka_unit_test(the_engine_may_die_at_each_of_its_points),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
