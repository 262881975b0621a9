/* Settings and log lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "service/config.h"
#include "service/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int load(struct config *c, struct err *e, int argc, ...)
{
    char *argv[8];
    va_list ap;
    va_start(ap, argc);
    for (int i = 0; i < argc; i++) argv[i] = va_arg(ap, char *);
    va_end(ap);
    return config_load(c, argc, argv, e);
}

static void later_sources_win(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct config c;
    char path[] = "/tmp/graft-config-XXXXXX";
    static const char text[] = "# comment\n\n listen_port = 1111 \njobs_max=3\r\napi-key = a b\n"
                               "poll_ms = 7";
    int fd = mkstemp(path);
    close(fd);
    assert_int_equal(fs_write_file(path, text, sizeof text - 1, &e), 0);
    setenv("GRAFT_JOBS_MAX", "4", 1);
    setenv("GRAFT_LISTEN_PORT", "2222", 1);
    int rc = load(&c, &e, 4, "--config", path, "--listen-port=3333", "--log_level=warn");
    unsetenv("GRAFT_JOBS_MAX");
    unsetenv("GRAFT_LISTEN_PORT");
    unlink(path);
    assert_int_equal(rc, 0);
    assert_int_equal(c.listen_port, 3333);
    assert_int_equal(c.jobs_max, 4);
    assert_int_equal(c.poll_ms, 7);
    assert_string_equal(c.api_key, "a b");
    assert_string_equal(c.log_level, "warn");
    assert_string_equal(c.listen_address, "127.0.0.1");
}

static void mistakes_name_key_and_source(void **state)
{
    (void)state;
    static const struct { const char *flag, *value, *message; enum errc code; } rows[] = {
        {"--jobs_max", "0", "--jobs_max: jobs_max is 0; it must be between 1 and 1024", E_RANGE},
        {"--jobs_max", "1025", "between 1 and 1024", E_RANGE},
        {"--jobs_max", "two", "a whole number", E_ARG},
        {"--jobs_max", "1.5", "a whole number", E_ARG},
        {"--jobs", "1", "no setting 'jobs'", E_ARG},
        {"--jobs_maxx", "1", "no setting", E_ARG},
        {"--log_level", "loud", "not one of", E_ARG},
        {"jobs_max", "1", "unexpected argument", E_ARG},
        {"--", "1", "unexpected argument", E_ARG},
        {"--config", "/nonexistent/file", "cannot open", E_NOTFOUND},
        {"--log_level", "a very long level", "longer", E_RANGE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct config c;
        assert_int_equal(load(&c, &e, 2, rows[i].flag, rows[i].value), -1);
        assert_int_equal(e.code, rows[i].code);
        if (!strstr(e.msg, rows[i].message)) fail_msg("%s", e.msg);
    }
    struct err e = ERR_INIT;
    struct config c;
    assert_int_equal(load(&c, &e, 1, "--jobs_max"), -1);
    assert_int_equal(load(&c, &e, 2, "--jobs_max", "1024"), 0);
    assert_int_equal(load(&c, &e, 2, "--jobs_max", "1"), 0);
}

static json_t *line(const char *request_id, const char *msg, const struct log_field *f, char *out)
{
    struct err e = ERR_INIT;
    size_t n = log_format(out, LOG_LINE_MAX, LOG_INFO, request_id, msg, f);
    assert_true(n < LOG_LINE_MAX);
    assert_int_equal(strlen(out), n);
    assert_ptr_equal(strchr(out, '\n'), out + n - 1); /* one line, whatever is in it */
    json_t *o = jx_parse(out, n, &e);
    if (!o) fail_msg("%s: %s", e.msg, out);
    return o;
}

static void a_log_line_is_one_json_object_whatever_the_input(void **state)
{
    (void)state;
    char out[LOG_LINE_MAX];
    static const char nasty[] = "a\n{\"level\":\"error\"}\x01\x7f\\\"\xff"
                                "\xc3\xa9\xe2\x80\xa8\xc2\x85";
    json_t *o = line("req-1", nasty, LOG_FIELDS(LOG_S("k\n", nasty), LOG_N("n", -5)), out);
    assert_string_equal(json_string_value(json_object_get(o, "level")), "info");
    assert_int_equal(json_integer_value(json_object_get(o, "n")), -5);
    assert_non_null(json_object_get(o, "k\n"));
    assert_null(strstr(out, "\x7f"));
    assert_null(strstr(out, "\xff"));
    assert_null(strstr(out, "\xe2\x80\xa8"));
    assert_non_null(strstr(out, "\xc3\xa9")); /* text stays readable */
    json_decref(o);
    assert_non_null(o = line(NULL, "m", NULL, out));
    json_decref(o);
}

static void long_log_lines_are_cut_between_members(void **state)
{
    (void)state;
    char out[LOG_LINE_MAX], big[6000];
    memset(big, '\n', sizeof big); /* each becomes six bytes */
    for (size_t n = 0; n < 800; n++) {
        big[n] = 0;
        json_t *o = line("r", big, LOG_FIELDS(LOG_S("a", big), LOG_N("b", 1)), out);
        bool whole = json_object_get(o, "b") != NULL;
        assert_int_equal(json_is_true(json_object_get(o, "cut")), !whole);
        assert_non_null(json_object_get(o, "level"));
        json_decref(o);
        big[n] = '\n';
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_sources_win),
        cmocka_unit_test(mistakes_name_key_and_source),
        cmocka_unit_test(a_log_line_is_one_json_object_whatever_the_input),
        cmocka_unit_test(long_log_lines_are_cut_between_members),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
