/* Fine-tuning jobs over HTTP, with the real engine on a tiny model: the shapes that SDKs read, the
 * ways a job ends, and what may not be done in which state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/model_dir.h"
#include "tests/lib/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct server server;
static char training[64];

static void register_model(void)
{
    char dir[128], body[256];
    snprintf(dir, sizeof dir, "%s/models/tiny", server.dir);
    model_dir_write(dir);
    snprintf(body, sizeof body, "{\"id\": \"base/tiny\", \"path\": \"%s\"}", dir);
    struct answer a = server_post(&server, "/v1/models", body);
    if (a.status != 200) fail_msg("model: %s", a.body);
    answer_clear(&a);
}

static int set_up(void **state)
{
    static const char *const args[] = {"--poll-ms", "20", "--jobs-max", "2", NULL};
    char rows[2048];
    size_t n = 0;
    (void)state;
    server_start(&server, args);
    register_model();
    for (int i = 0; i < 16; i++)
        n += (size_t)snprintf(rows + n, sizeof rows - n,
                              "{\"prompt\": \"%d + 1 =\", \"completion\": \" %d\"}\n", i, i + 1);
    server_upload_ok(&server, "fine-tune", "sums.jsonl", rows, n, training);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    server_remove(&server);
    return 0;
}

/* The body of a job with `more` (begins with ", " or is empty); its length. */
static size_t job_body(char *to, size_t cap, const char *more)
{
    return (size_t)snprintf(to, cap, "{\"model\": \"base/tiny\", \"training_file\": \"%s\"%s}",
                            training, more);
}

/* Creates a job; `more` is appended to the body (begins with ", " or is empty). */
static void create(const char *more, char id[64])
{
    char body[1024];
    job_body(body, sizeof body, more);
    struct answer a = server_post(&server, "/v1/fine_tuning/jobs", body);
    if (a.status != 200) fail_msg("job: %ld %s", a.status, a.body);
    snprintf(id, 64, "%s", answer_str(&a, "id"));
    answer_clear(&a);
}

/* One that would run for minutes. */
#define LONG ", \"method\": {\"type\": \"lora\", \"lora\": {\"hyperparameters\": {\"r\": 2, " \
    "\"max_steps\": 100000, \"n_epochs\": 50, \"batch_size\": 1, \"checkpoint_steps\": 50}}}"
#define SHORT ", \"method\": {\"type\": \"lora\", \"lora\": {\"hyperparameters\": {\"r\": 2, " \
    "\"max_steps\": 12, \"batch_size\": 4, \"checkpoint_steps\": 4, \"validation_split\": 0.25}}}"

static struct answer job(const char *id, const char *method, const char *rest)
{
    char path[160];
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs/%s%s", id, rest);
    return server_call(&server, &(struct call){.method = method, .path = path});
}

static void wait_status(const char *id, const char *wanted)
{
    char seen[64] = "";
    for (int i = 0; i < 1500; i++) {
        struct answer a = job(id, "GET", "");
        assert_int_equal(a.status, 200);
        snprintf(seen, sizeof seen, "%s", answer_str(&a, "status"));
        bool there = !strcmp(seen, wanted), failed = !strcmp(seen, "failed") && !there;
        if (failed) print_error("%s\n", a.body);
        answer_clear(&a);
        if (there) return;
        if (failed) break;
        usleep(20000);
    }
    fail_msg("job %s is %s, not %s", id, seen, wanted);
}

static void a_job_has_every_field_that_sdks_read(void **state)
{
    (void)state;
    static const char *const keys[] = {
        "id", "object", "created_at", "finished_at", "status", "error", "model", "fine_tuned_model",
        "hyperparameters", "organization_id", "result_files", "seed", "trained_tokens",
        "training_file", "validation_file", "method", "metadata", "integrations",
        "estimated_finish"};
    char id[64];
    create(SHORT ", \"seed\": 7, \"suffix\": \"My sums\", \"metadata\": {\"team\": \"a b\"}", id);
    wait_status(id, "succeeded");
    struct answer a = job(id, "GET", "");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!answer_get(&a, keys[i])) fail_msg("%s is missing: %s", keys[i], a.body);
    assert_string_equal(answer_str(&a, "object"), "fine_tuning.job");
    assert_int_equal(json_integer_value(answer_get(&a, "seed")), 7);
    assert_string_equal(answer_str(&a, "metadata.team"), "a b");
    assert_string_equal(answer_str(&a, "method.type"), "lora");
    assert_int_equal(json_integer_value(answer_get(&a, "method.lora.hyperparameters.r")), 2);
    assert_true(json_is_null(answer_get(&a, "error")));
    assert_true(json_integer_value(answer_get(&a, "trained_tokens")) > 0);
    assert_true(json_integer_value(answer_get(&a, "finished_at")) >=
                json_integer_value(answer_get(&a, "created_at")));
    const char *model = answer_str(&a, "fine_tuned_model");
    assert_non_null(strstr(model, "My-sums"));

    /* The result is a model, and its metrics are a file. */
    char path[256];
    snprintf(path, sizeof path, "/v1/models/%s", model);
    struct answer m = server_get(&server, path);
    assert_int_equal(m.status, 200);
    assert_string_equal(answer_str(&m, "graft.job_id"), id);
    answer_clear(&m);
    snprintf(path, sizeof path, "/v1/files/%s/content", answer_str(&a, "result_files.0"));
    m = server_get(&server, path);
    assert_int_equal(m.status, 200);
    assert_int_equal(strncmp(m.body, "step,", 5), 0);
    answer_clear(&m);
    answer_clear(&a);
}

static void supervised_means_the_default_adapter(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "", ", \"hyperparameters\": {\"n_epochs\": 1, \"batch_size\": \"auto\"}",
        ", \"method\": {\"type\": \"supervised\"}",
        (", \"method\": {\"type\": \"supervised\", \"supervised\": {\"hyperparameters\": "
         "{\"n_epochs\": \"auto\", \"learning_rate_multiplier\": 0.5}}}")};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        char id[64];
        create(bodies[i], id);
        struct answer a = job(id, "GET", "");
        assert_string_equal(answer_str(&a, "method.type"), "supervised");
        assert_true(json_is_integer(answer_get(&a, "hyperparameters.n_epochs")));
        assert_true(json_is_integer(answer_get(&a, "hyperparameters.batch_size")));
        answer_clear(&a);
        a = job(id, "POST", "/cancel");
        answer_clear(&a);
    }
}

static void events_are_listed_newest_first_in_pages(void **state)
{
    (void)state;
    char id[64], path[256], after[80] = "";
    create(SHORT, id);
    wait_status(id, "succeeded");
    json_int_t newest = INT64_MAX;
    int total = 0, pages = 0;
    for (bool more = true; more; pages++) {
        snprintf(path, sizeof path, "/events?limit=2%s%s", *after ? "&after=" : "", after);
        struct answer a = job(id, "GET", path);
        assert_int_equal(a.status, 200);
        size_t n = json_array_size(answer_get(&a, "data"));
        for (size_t i = 0; i < n; i++) {
            char key[40];
            snprintf(key, sizeof key, "data.%zu.created_at", i);
            json_int_t t = json_integer_value(answer_get(&a, key));
            assert_true(t <= newest);
            newest = t;
            snprintf(key, sizeof key, "data.%zu.object", i);
            assert_string_equal(answer_str(&a, key), "fine_tuning.job.event");
            snprintf(key, sizeof key, "data.%zu.id", i);
            snprintf(after, sizeof after, "%s", answer_str(&a, key));
            total++;
        }
        more = json_is_true(answer_get(&a, "has_more"));
        assert_true(n > 0);
        answer_clear(&a);
        assert_true(pages < 1000);
    }
    assert_true(total >= 3);
    struct answer a = job(id, "GET", "/events?after=ftevent-none-1");
    assert_int_equal(a.status, 404);
    answer_clear(&a);
    a = job("ftjob-none", "GET", "/events");
    assert_int_equal(a.status, 404);
    assert_string_equal(answer_str(&a, "error.code"), "job_not_found");
    answer_clear(&a);

    a = job(id, "GET", "/checkpoints");
    assert_int_equal(a.status, 200);
    assert_string_equal(answer_str(&a, "data.0.object"), "fine_tuning.job.checkpoint");
    assert_string_equal(answer_str(&a, "data.0.fine_tuning_job_id"), id);
    assert_true(json_is_object(answer_get(&a, "data.0.metrics")));
    answer_clear(&a);

    snprintf(path, sizeof path, "/v1/jobs/%s/metrics", id);
    a = server_get(&server, path);
    assert_int_equal(a.status, 200);
    size_t n = json_array_size(answer_get(&a, "series.step"));
    assert_true(n >= 12);
    snprintf(path, sizeof path, "series.step.%zu", n - 1);
    assert_int_equal(json_integer_value(answer_get(&a, path)), 12);
    json_t *loss = answer_get(&a, "series.train_loss");
    if (!loss) loss = answer_get(&a, "series.loss");
    assert_int_equal(json_array_size(loss), n);
    answer_clear(&a);
    snprintf(path, sizeof path, "/v1/jobs/%s/metrics?max_points=4", id);
    a = server_get(&server, path);
    n = json_array_size(answer_get(&a, "series.step"));
    assert_true(n >= 2 && n <= 8);
    answer_clear(&a);
}

/* Numbers of the `id:` lines of a stream, checked to rise by one from `first`; the last. */
static long check_stream(const char *text, long first)
{
    long n = first - 1;
    for (const char *p = text; (p = strstr(p, "id: ")); p++) {
        if (p != text && p[-1] != '\n') continue;
        assert_int_equal(strtol(p + 4, NULL, 10), ++n);
    }
    return n;
}

static void a_stream_follows_a_job_to_its_end(void **state)
{
    (void)state;
    static const char *const accept[] = {"Accept: text/event-stream", NULL};
    static const char *const later[] = {"Accept: text/event-stream", "Last-Event-ID: 2", NULL};
    static const char *const bad[] = {"Accept: text/event-stream", "Last-Event-ID: x", NULL};
    char id[64], path[160];
    create(SHORT, id);
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs/%s/events", id);
    struct call c = {"GET", path, accept, NULL, 0};
    struct answer a = server_call(&server, &c);
    assert_int_equal(a.status, 200);
    assert_string_equal(answer_header(&a, "content-type"), "text/event-stream; charset=utf-8");
    assert_string_equal(answer_header(&a, "cache-control"), "no-store");
    long last = check_stream(a.body, 1);
    assert_true(last >= 3);
    assert_non_null(strstr(a.body, "event: message\ndata: {"));
    assert_non_null(strstr(a.body, "\n\ndata: [DONE]\n\n"));
    answer_clear(&a);
    wait_status(id, "succeeded");

    c.headers = later;
    a = server_call(&server, &c);
    assert_int_equal(check_stream(a.body, 3), last);
    answer_clear(&a);
    c.headers = bad;
    a = server_call(&server, &c);
    assert_int_equal(a.status, 400);
    answer_clear(&a);
    c.headers = accept;
    c.path = "/v1/fine_tuning/jobs/ftjob-none/events";
    a = server_call(&server, &c);
    assert_int_equal(a.status, 404);
    assert_string_equal(answer_str(&a, "error.code"), "job_not_found");
    answer_clear(&a);
}

static void conflict(const char *id, const char *action)
{
    struct answer a = job(id, "POST", action);
    if (a.status != 409) fail_msg("%s: %ld %s", action, a.status, a.body);
    assert_string_equal(answer_header(&a, "x-should-retry"), "false");
    assert_string_equal(answer_str(&a, "error.type"), "conflict_error");
    assert_string_equal(answer_str(&a, "error.code"), "invalid_job_state");
    answer_clear(&a);
}

static void a_running_job_is_cancelled_once_and_for_all(void **state)
{
    (void)state;
    char id[64], path[128];
    create(LONG, id);
    wait_status(id, "running");
    conflict(id, "/resume");
    snprintf(path, sizeof path, "/v1/files/%s", training);
    struct answer a = server_delete(&server, path);
    assert_int_equal(a.status, 409);
    assert_string_equal(answer_header(&a, "x-should-retry"), "false");
    answer_clear(&a);
    a = server_delete(&server, "/v1/models/base%2Ftiny");
    assert_int_equal(a.status, 409);
    answer_clear(&a);
    a = job(id, "POST", "/cancel");
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    wait_status(id, "cancelled");
    conflict(id, "/pause");
    conflict(id, "/resume");
    /* Asking again for what is so already is no conflict: the first reply may have been lost. */
    a = job(id, "POST", "/cancel");
    assert_int_equal(a.status, 200);
    assert_string_equal(answer_str(&a, "status"), "cancelled");
    answer_clear(&a);
    a = job(id, "GET", "");
    assert_true(json_is_null(answer_get(&a, "fine_tuned_model")));
    answer_clear(&a);
}

static void a_paused_job_goes_on_where_it_stopped(void **state)
{
    (void)state;
    char id[64];
    create(LONG, id);
    wait_status(id, "running");
    struct answer a = job(id, "POST", "/pause");
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    wait_status(id, "paused");
    a = job(id, "POST", "/resume");
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    wait_status(id, "running");
    a = job(id, "POST", "/cancel");
    answer_clear(&a);
    wait_status(id, "cancelled");
}

static void a_succeeded_job_cannot_be_changed(void **state)
{
    (void)state;
    char id[64];
    create(SHORT, id);
    wait_status(id, "succeeded");
    conflict(id, "/cancel");
    conflict(id, "/pause");
    conflict(id, "/resume");
    struct answer a = job("ftjob-none", "POST", "/cancel");
    assert_int_equal(a.status, 404);
    answer_clear(&a);
}

static void an_idempotency_key_makes_one_job(void **state)
{
    (void)state;
    static const char *const headers[] = {"Content-Type: application/json",
                                          "Idempotency-Key: j1", NULL};
    char body[256];
    size_t n = job_body(body, sizeof body, "");
    struct call c = {"POST", "/v1/fine_tuning/jobs", headers, body, n};
    struct answer a = server_call(&server, &c), b = server_call(&server, &c);
    assert_int_equal(a.status, 200);
    assert_int_equal(b.status, 200);
    assert_string_equal(answer_str(&a, "id"), answer_str(&b, "id"));
    wait_status(answer_str(&a, "id"), "succeeded");
    answer_clear(&a);
    answer_clear(&b);
    c.n = job_body(body, sizeof body, ", \"seed\": 1");
    a = server_call(&server, &c);
    assert_int_equal(a.status, 422);
    answer_clear(&a);
}

static void jobs_are_listed_by_page_and_metadata(void **state)
{
    (void)state;
    char id[64];
    create(SHORT ", \"metadata\": {\"k\": \"x y\", \"l\": \"2\"}", id);
    struct answer a = server_get(&server, "/v1/fine_tuning/jobs?metadata%5Bk%5D=x+y");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 1);
    assert_string_equal(answer_str(&a, "data.0.id"), id);
    answer_clear(&a);
    a = server_get(&server, "/v1/fine_tuning/jobs?metadata[k]=x%20y&metadata[l]=3");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 0);
    answer_clear(&a);
    a = server_get(&server, "/v1/fine_tuning/jobs?metadata=null&limit=1");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 1);
    assert_true(json_is_null(answer_get(&a, "data.0.metadata")));
    answer_clear(&a);
    a = server_get(&server, "/v1/fine_tuning/jobs?limit=1");
    assert_true(json_is_true(answer_get(&a, "has_more")));
    char path[128];
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs?limit=1&after=%s",
             answer_str(&a, "data.0.id"));
    struct answer b = server_get(&server, path);
    assert_string_not_equal(answer_str(&a, "data.0.id"), answer_str(&b, "data.0.id"));
    answer_clear(&a);
    answer_clear(&b);
    static const char *const bad[] = {"limit=0", "limit=101", "after=ftjob-none", "metadata=x",
                                      "metadata[k=x", "order=asc2", "nonsense=1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(path, sizeof path, "/v1/fine_tuning/jobs?%s", bad[i]);
        a = server_get(&server, path);
        assert_true(a.status == 400 || a.status == 404);
        assert_non_null(answer_str(&a, "error.param"));
        answer_clear(&a);
    }
    wait_status(id, "succeeded");
}

static void methods_and_plans_come_from_the_engine(void **state)
{
    (void)state;
    struct answer a = server_get(&server, "/v1/methods");
    assert_int_equal(a.status, 200);
    assert_non_null(answer_str(&a, "data.0.name"));
    assert_true(json_is_object(answer_get(&a, "data.0.schema.properties")));
    answer_clear(&a);
    char body[512];
    job_body(body, sizeof body, SHORT);
    a = server_post(&server, "/v1/plans", body);
    if (a.status != 200) fail_msg("plan: %s", a.body);
    assert_true(json_integer_value(answer_get(&a, "peak_bytes")) > 10000);
    assert_true(json_real_value(answer_get(&a, "seconds")) > 0); /* measured in the sandbox */
    assert_true(json_is_true(answer_get(&a, "fits")));
    answer_clear(&a);
    a = server_get(&server, "/v1/fine_tuning/jobs?limit=100");
    assert_true(json_array_size(answer_get(&a, "data")) < 100);
    answer_clear(&a);
}

static void a_stopped_server_ends_its_streams_and_the_job_goes_on(void **state)
{
    (void)state;
    static const char *const args[] = {"--poll-ms", "20", "--jobs-max", "2", NULL};
    char id[64], head[256], text[4096];
    create(LONG, id);
    wait_status(id, "running");
    int fd = server_connect(&server);
    int n = snprintf(head, sizeof head, "GET /v1/fine_tuning/jobs/%s/events HTTP/1.1\r\n"
                     "Host: localhost\r\nAccept: text/event-stream\r\n\r\n", id);
    assert_int_equal(send(fd, head, (size_t)n, 0), n);
    assert_true(recv(fd, text, sizeof text, 0) > 0);
    time_t t = time(NULL);
    assert_int_equal(server_stop(&server), 0);
    assert_true(time(NULL) - t <= 3);
    while (recv(fd, text, sizeof text, 0) > 0) continue;
    close(fd);
    server_restart(&server, args);
    struct answer a = job(id, "GET", "");
    assert_string_equal(answer_str(&a, "status"), "running");
    answer_clear(&a);
    a = job(id, "POST", "/cancel");
    answer_clear(&a);
    wait_status(id, "cancelled");
}

/* The server passes its limit on to workers and checks. */
static void a_job_that_does_not_fit_fails_with_what_would(void **state)
{
    (void)state;
    static const char *const args[] = {"--poll-ms", "20", "--jobs-max", "2", NULL};
    char body[512], id[64];
    assert_int_equal(server_stop(&server), 0);
    setenv("GRAFT_MEMORY", "5", 1);
    server_restart(&server, args);
    job_body(body, sizeof body, SHORT);
    struct answer a = server_post(&server, "/v1/plans", body);
    assert_int_equal(a.status, 200);
    assert_true(json_is_false(answer_get(&a, "fits")));
    assert_non_null(strstr(answer_str(&a, "advice"), " MiB more than there is; "));
    answer_clear(&a);
    create(SHORT, id);
    wait_status(id, "failed");
    a = job(id, "GET", "");
    assert_non_null(strstr(answer_str(&a, "error.message"), " MiB more than there is; "));
    answer_clear(&a);
    assert_int_equal(server_stop(&server), 0);
    unsetenv("GRAFT_MEMORY");
    server_restart(&server, args);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_has_every_field_that_sdks_read),
        cmocka_unit_test(supervised_means_the_default_adapter),
        cmocka_unit_test(events_are_listed_newest_first_in_pages),
        cmocka_unit_test(a_stream_follows_a_job_to_its_end),
        cmocka_unit_test(a_running_job_is_cancelled_once_and_for_all),
        cmocka_unit_test(a_paused_job_goes_on_where_it_stopped),
        cmocka_unit_test(a_succeeded_job_cannot_be_changed),
        cmocka_unit_test(an_idempotency_key_makes_one_job),
        cmocka_unit_test(jobs_are_listed_by_page_and_metadata),
        cmocka_unit_test(a_stopped_server_ends_its_streams_and_the_job_goes_on),
        cmocka_unit_test(methods_and_plans_come_from_the_engine),
        cmocka_unit_test(a_job_that_does_not_fit_fails_with_what_would),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
