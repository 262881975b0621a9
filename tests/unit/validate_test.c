/* service/validate: whatever the checking process does, the server gets a report or an error.
 *
 * The process that is started is this very program: main() plays the child, by the kind asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/err.h"
#include "engine/base/str.h"
#include "service/validate.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char path[64];

/* ---- the child ---- */

static int open_descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *de; d && (de = readdir(d));) n += de->d_name[0] != '.';
    if (d) closedir(d);
    return n - 1; /* the folder itself */
}

static int play(const char *kind)
{
    char c;
    if (str_eq(kind, "crash")) raise(SIGSEGV);
    if (str_eq(kind, "code")) return 3;
    if (str_eq(kind, "silent")) return 0;
    if (str_eq(kind, "garbage")) return printf("not json") < 0;
    if (str_eq(kind, "wrong")) return printf("{\"error\": {\"code\": 99}}") < 0;
    if (str_eq(kind, "nomem"))
        return printf("{\"error\": {\"code\": %d, \"message\": \"x\", \"param\": \"\"}}",
                      E_NOMEM) < 0;
    if (str_eq(kind, "error"))
        return printf("{\"error\": {\"code\": %d, \"message\": "
                      "\"folder /proc/self/fd/3: cannot read /proc/self/fd/3/a.json\", "
                      "\"param\": \"a.b\"}}", E_NOTFOUND) < 0;
    if (str_eq(kind, "cpu")) {
        struct rlimit l = {1, 1};
        setrlimit(RLIMIT_CPU, &l);
        for (volatile int i = 0;; i++) continue;
    }
    static char flood[65536];
    while (str_eq(kind, "flood"))
        if (write(1, flood, sizeof flood) < 0) return 0;
    /* What the child was given: the file, readable only, at its beginning, and no other descriptor;
     * no environment to speak of. */
    bool readonly = write(3, "x", 1) < 0 && read(3, &c, 1) == 1 && c == 'h';
    return printf("{\"report\": {\"descriptors\": %d, \"readonly\": %s, \"environment\": %s}}",
                  open_descriptors(), readonly ? "true" : "false",
                  getenv("GRAFT_TEST_SECRET") ? "true" : "false") < 0;
}

static int getchar_of(int fd)
{
    unsigned char c = 0;
    return read(fd, &c, 1) == 1 ? c : -1;
}

/* ---- the tests ---- */

static json_t *run(const char *kind, enum errc code)
{
    struct err e = ERR_INIT;
    json_t *v = validate_file(path, kind, &e);
    assert_int_equal(e.code, code);
    assert_int_equal(v == NULL, code != E_OK);
    return v;
}

static void a_crash_is_a_fault_of_the_file(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_null(validate_file(path, "crash", &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_non_null(strstr(e.msg, "signal 11"));
}

static void a_limit_that_is_hit_is_told(void **state)
{
    (void)state;
    run("cpu", E_LIMIT);
    run("nomem", E_LIMIT);
    run("flood", E_LIMIT);
}

static void a_child_that_makes_no_sense_is_our_fault(void **state)
{
    (void)state;
    run("code", E_IO);
    run("silent", E_IO);
    run("garbage", E_IO);
    run("wrong", E_IO);
}

static void its_error_arrives_without_its_private_names(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_null(validate_file(path, "error", &e));
    assert_int_equal(e.code, E_FORMAT); /* the file itself was found */
    assert_string_equal(e.msg, "folder: cannot read a.json");
    assert_string_equal(e.param, "a.b");
    err_clear(&e);
    assert_null(validate_file("/proc/nonexistent", "jsonl", &e));
    assert_int_equal(e.code, E_NOTFOUND);
}

static void it_sees_the_file_and_nothing_else(void **state)
{
    (void)state;
    setenv("GRAFT_TEST_SECRET", "1", 1);
    int extra = open("/dev/null", O_RDWR); /* not even marked close-on-exec */
    json_t *v = run("inspect", E_OK);
    close(extra);
    /* 0, 1, 2 and the file */
    assert_int_equal(json_integer_value(json_object_get(v, "descriptors")), 4);
    assert_true(json_is_true(json_object_get(v, "readonly")));
    assert_true(json_is_false(json_object_get(v, "environment")));
    json_decref(v);
}

static void *in_thread(void *ctx)
{
    struct err e = ERR_INIT;
    json_t *v = validate_file(path, "inspect", &e);
    *(bool *)ctx = v != NULL;
    json_decref(v);
    return NULL;
}

static void checks_run_side_by_side(void **state)
{
    (void)state;
    pthread_t t[8];
    bool ok[8] = {false};
    for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&t[i], NULL, in_thread, &ok[i]), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(t[i], NULL);
        assert_true(ok[i]);
    }
}

static int set_up(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/graft-validate-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 || write(fd, "hello", 5) != 5 || close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static void a_preview_gets_the_file_and_what_is_asked(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    json_t *ask = json_pack("{s:s, s:i}", "model", "/a \"b\"", "rows", 3);
    json_t *v = validate_preview(path, ask, &e);
    assert_non_null(v);
    assert_true(json_equal(json_object_get(v, "ask"), ask));
    assert_int_equal(json_integer_value(json_object_get(v, "first")), 'h');
    json_decref(v);
    assert_null(validate_preview("/proc/nonexistent", ask, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    json_decref(ask);
}

/* The job alone is small: the child maps the weights and keeps the tokens. */
static void the_limits_of_a_plan_count_what_the_job_names(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char big[64];
    snprintf(big, sizeof big, "%s.big", path);
    int fd = open(big, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(ftruncate(fd, 3LL << 30), 0);
    close(fd);
    json_t *job = json_pack("{s:{s:s}, s:s}", "model", "path", big, "training_file", path);
    json_t *v = validate_plan(job, "", &e);
    assert_non_null(v);
    json_int_t bytes = json_integer_value(json_object_get(v, "bytes"));
    unlink(big);
    json_int_t stacks = sysconf(_SC_NPROCESSORS_ONLN) << 24;
    assert_true(bytes - stacks > 3LL << 30 && bytes - stacks < (3LL << 30) + 4096);
    json_decref(v);
    json_decref(job);
}

int main(int argc, char **argv)
{
    if (argc == 6 && str_eq(argv[3], "plan"))
        return printf("{\"report\": {\"bytes\": %s}}", argv[4]) < 0;
    /* A preview: what was asked, and the first byte of the file. */
    if (argc == 6 && str_eq(argv[3], "preview"))
        return printf("{\"report\": {\"ask\": %s, \"first\": %d}}", argv[5], getchar_of(3)) < 0;
    if (argc == 6 && str_eq(argv[1], "worker")) return play(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_crash_is_a_fault_of_the_file),
        cmocka_unit_test(a_limit_that_is_hit_is_told),
        cmocka_unit_test(a_child_that_makes_no_sense_is_our_fault),
        cmocka_unit_test(its_error_arrives_without_its_private_names),
        cmocka_unit_test(it_sees_the_file_and_nothing_else),
        cmocka_unit_test(a_preview_gets_the_file_and_what_is_asked),
        cmocka_unit_test(the_limits_of_a_plan_count_what_the_job_names),
        cmocka_unit_test(checks_run_side_by_side),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
