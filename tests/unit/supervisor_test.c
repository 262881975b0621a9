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

static void a_job_becomes_two_models_and_a_file(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct model m;
    char id[64], text[256] = "", want[64];
    kit_job(k, "{\"steps\": 10}", id);
    json_t *job = kit_wait(k, id, "succeeded");
    const char *tuned = json_string_value(json_object_get(job, "fine_tuned_model"));
    assert_non_null(tuned);
    assert_int_equal(number(job, "trained_tokens"), 70);
    assert_true(number(job, "finished_at") > 0);
    assert_true(json_is_null(json_object_get(job, "error")));
    assert_int_equal(json_array_size(json_object_get(job, "result_files")), 1);
    assert_int_equal(models_get(k->service, tuned, &m, &e), 0);
    assert_string_equal(m.kind, "merged");
    assert_string_equal(m.parent, "default/base");
    assert_string_equal(m.job_id, id);
    const struct model_file *f = models_file(&m, "model.safetensors");
    assert_non_null(f);
    int fd = models_read(&m, f, &e);
    assert_true(fd >= 0);
    assert_true(fs_read(fd, text, sizeof text - 1, &e) > 0);
    snprintf(want, sizeof want, "\"%llu\"", (unsigned long long)fake_engine_value(10));
    assert_non_null(strstr(text, want));
    fs_close(fd);
    models_clear(&m);
    snprintf(text, sizeof text, "%s-adapter", tuned);
    assert_int_equal(models_get(k->service, text, &m, &e), 0);
    assert_string_equal(m.kind, "adapter");
    models_clear(&m);
    json_decref(job);
}

int main(int argc, char **argv)
{
    if (fault_from_env()) return 2;
    mem_hook_libraries();
    if (argc > 1 && strcmp(argv[1], "worker") == 0)
        return worker_main(argc - 1, argv + 1, fake_engine_run);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_job_becomes_two_models_and_a_file, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
