/* dataset_check: every problem of a JSONL or CSV file, with its line, column, field and reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/data/dataset.h"
#include "engine/data/rows.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static int make_file(void **state)
{
    (void)state;
    mem_hook_libraries();
    snprintf(path, sizeof path, "%s/graft-rows-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int drop_file(void **state)
{
    (void)state;
    return unlink(path);
}

static json_t *check(const char *text, size_t n)
{
    struct err e = ERR_INIT;
    size_t before = mem_live();
    assert_int_equal(fs_write_file(path, text, n, &e), 0);
    assert_int_equal(mem_live(), before);
    json_t *o = dataset_check(path, &e);
    if (!o) print_error("%s\n", e.msg);
    assert_non_null(o);
    return o;
}

static void expect_good(const char *text, size_t n, const char *format, int rows)
{
    struct err e = ERR_INIT;
    json_t *o = check(text, n);
    char *all = jx_dump(o, &e);
    char want[160];
    snprintf(want, sizeof want, "{\"ok\":true,\"format\":\"%s\",\"container\":\"%s\",\"rows\":%d,"
             "\"problems\":[],\"more\":0}", format, strchr(text, '{') ? "jsonl" : "csv", rows);
    assert_string_equal(all, want);
    mem_free(all);
    json_decref(o);
}

#define U "{\"role\":\"user\",\"content\":\"q\"}"
#define A "{\"role\":\"assistant\",\"content\":\"a\"}"
#define M(list) "{\"messages\":[" list "]}"
#define GOOD(text, format, rows) expect_good(text, sizeof(text) - 1, format, rows)

static void good_files_pass(void **state)
{
    (void)state;
    GOOD("{\"text\":\"a\"}\n{\"text\":\"b\"}\n", "text", 2);
    GOOD("{\"text\":\"a\"}", "text", 1);
    GOOD("{\"text\":\"a\"}\r\n{\"text\":\"b\"}\r\n", "text", 2);
    GOOD("\xef\xbb\xbf{\"text\":\"a\"}\n", "text", 1);
    GOOD("{\"text\":\"a\"}\n\n  \t\r\n\n", "text", 1);
    GOOD("  {\"id\":123456789012345678901234567890,\"text\":\"\\u00e9\xc3\xa9\",\"x\":[{}]}  ",
         "text", 1);
    GOOD("{\"prompt\":\"\",\"completion\":\"c\"}\n{\"completion\":\"c\",\"prompt\":\"p\"}",
         "completion", 2);
    GOOD(M(U "," A), "messages", 1);
    GOOD(M("{\"role\":\"system\",\"content\":\"\"}," U ",{\"role\":\"assistant\",\"content\":\"a\","
           "\"weight\":0}," U ",{\"role\":\"assistant\",\"content\":\"a\",\"weight\":1.0},"
           "{\"role\":\"tool\",\"content\":\"\",\"name\":\"n\",\"tool_calls\":null},"
           "{\"role\":\"developer\",\"content\":\"d\",\"weight\":null}"), "messages", 1);
    GOOD("{\"messages\":[" A "],\"tools\":null}", "messages", 1);
}

struct finding {
    int64_t line, column;
    const char *field, *reason; /* reason: a fragment */
};

static void expect_problems(const char *text, size_t n, const struct finding *want, size_t count)
{
    struct err e = ERR_INIT;
    size_t before = mem_live();
    json_t *o = check(text, n), *list = json_object_get(o, "problems");
    char *all = jx_dump(o, &e);
    bool same = json_array_size(list) == count && json_is_false(json_object_get(o, "ok"));
    for (size_t i = 0; same && i < count; i++) {
        const json_t *p = json_array_get(list, i);
        same = json_integer_value(json_object_get(p, "line")) == want[i].line &&
               json_integer_value(json_object_get(p, "column")) == want[i].column &&
               !strcmp(json_string_value(json_object_get(p, "field")), want[i].field) &&
               strstr(json_string_value(json_object_get(p, "reason")), want[i].reason);
    }
    if (!same) print_error("%.200s\n  gave %s\n", text, all);
    assert_true(same);
    mem_free(all);
    json_decref(o);
    assert_int_equal(mem_live(), before);
}

#define BAD(text, ...) \
    do { \
        const struct finding want_[] = {__VA_ARGS__}; \
        expect_problems(text, sizeof(text) - 1, want_, sizeof want_ / sizeof *want_); \
    } while (0)

static void lines_that_are_not_json_objects_are_found(void **state)
{
    (void)state;
    BAD("", {1, 1, "", "no rows"});
    BAD("\n \n", {1, 1, "", "no rows"});
    BAD("\xef\xbb\xbf", {1, 1, "", "no rows"});
    BAD("{\"text\" 1}", {1, 9, "", "':' expected near '1'"});
    BAD("{\"text\":\"a\"}\n{\"text\":\"b\"", {2, 11, "", "not JSON: '}' expected"});
    BAD("{\"text\":\"a\"} {\"text\":\"b\"}", {1, 14, "", "end of file expected"});
    BAD("{\"text\":\"a\",}", {1, 13, "", "not JSON"});
    BAD("{'text':'a'}", {1, 2, "", "not JSON"});
    BAD("[1]", {1, 1, "", "must be a JSON object"});
    BAD("\"txt\"", {1, 1, "", "neither a JSON object nor the header of a CSV file"});
    BAD("{\"text\":\"a\",\"text\":\"b\"}", {1, 18, "", "duplicate"});
    BAD("{\"text\":\"a\tb\"}", {1, 10, "", "control character"});
    BAD("{\"text\":\"\\u0000\"}", {1, 16, "", "\\u0000 is not allowed"});
    BAD("{\"text\":\"a\0b\"}", {1, 11, "", "NUL is not allowed"});
    BAD("\0", {1, 1, "", "NUL is not allowed"});
    BAD("{\"text\":\"a\xff\"}", {1, 11, "", "byte 0xff is not UTF-8"});
    BAD("{\"text\":\"\xc3\xa9\xc3\"}", {1, 12, "", "byte 0xc3 is not UTF-8"});
    BAD("\xff\xfe{\0", {1, 1, "", "byte 0xff is not UTF-8"});
    BAD("{\"text\":\"\\ud800\"}", {1, 16, "", "not JSON: invalid Unicode"});
    BAD("{\"x\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],\"text\":\"a\"}",
        {1, 37, "", "nested deeper than 32"});
    BAD("{\"text\":\"a\"}\n\n{\"text\":\"b\"}", {2, 1, "", "blank line inside"});
    BAD("\n{\"text\":\"a\"}\n\n \n\r\n{\"text\":\"b\"}\n\n", {1, 1, "", "blank line inside"},
        {3, 1, "", "3 blank lines inside"});
}

static void wrong_fields_are_found_at_their_place(void **state)
{
    (void)state;
    BAD("{}", {1, 1, "", "a row needs one of"});
    BAD("{\"Text\":\"a\"}", {1, 1, "", "a row needs one of"});
    BAD("{\"prompt\":\"p\",\"chosen\":\"c\"}", {1, 1, "", "'completion' is required"});
    BAD("{\"completion\":\"c\"}", {1, 1, "", "'prompt' is required"});
    BAD("{\"text\":\"a\",\"prompt\":\"p\"}", {1, 1, "", "only one of"});
    BAD("{\"messages\":[],\"text\":\"a\"}", {1, 1, "", "only one of"});
    BAD("{\"text\":null}", {1, 9, "text", "must be a string"});
    BAD("{\"id\": 7, \"text\" : 3}", {1, 20, "text", "must be a string"});
    BAD("{\"id\": {\"text\":1}, \"a\\\"\": \"}\", \"text\": [\"a\"]}",
        {1, 40, "text", "must be a string"});
    BAD("{\"te\\u0078t\":1}", {1, 1, "text", "must be a string"});
    BAD("{\"text\":\"\"}", {1, 9, "text", "must not be empty"});
    BAD("{\"prompt\":1,\"completion\":\"\"}", {1, 11, "prompt", "must be a string"},
        {1, 26, "completion", "must not be empty"});
    BAD("{\"text\":\"a\"}\n{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"text\":\"b\"}",
        {2, 1, "", "a 'completion' row in a file of 'text' rows (since line 1)"});
    BAD("{}\n{\"text\":\"\"}\n" M(A), {1, 1, "", "a row needs one of"}, {2, 9, "text", "empty"},
        {3, 1, "", "(since line 2)"});
}

static void wrong_messages_are_found_at_their_place(void **state)
{
    (void)state;
    BAD("{\"messages\":{}}", {1, 13, "messages", "must be a list"});
    BAD(M(""), {1, 13, "messages", "must contain an assistant message"});
    BAD(M(U), {1, 13, "messages", "must contain an assistant message"});
    BAD(M(A ",1"), {1, 49, "messages[1]", "must be an object"});
    BAD(M(A ", {}"), {1, 50, "messages[1]", "'role' is required"},
        {1, 50, "messages[1]", "'content' is required"});
    BAD(M("{\"role\":\"bot\",\"content\":\"\"}," A),
        {1, 22, "messages[0].role", "must be system, developer, user, assistant or tool"});
    BAD(M("{\"role\":1,\"content\":\"x\"}," A), {1, 22, "messages[0].role", "must be a string"});
    BAD(M("{\"role\":\"user\",\"content\":\"\"}," A), {1, 39, "messages[0].content", "empty"});
    BAD(M("{\"role\":\"assistant\",\"content\":\"\"}"), {1, 44, "messages[0].content", "empty"});
    BAD(M("{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}," A),
        {1, 39, "messages[0].content", "must be a string"});
    BAD(M("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}"),
        {1, 44, "messages[0].content", "must be a string"});
    BAD(M("{\"role\":\"assistant\",\"content\":\"a\",\"weight\":2}"),
        {1, 57, "messages[0].weight", "must be 0 or 1"});
    BAD(M("{\"role\":\"assistant\",\"content\":\"a\",\"weight\":true}"),
        {1, 57, "messages[0].weight", "must be 0 or 1"});
    BAD(M("{\"role\":\"user\",\"content\":\"a\",\"weight\":0}," A),
        {1, 52, "messages[0].weight", "assistant messages only"});
    BAD(M(A) "\n" M("{\"role\":\"user\",\"contents\":\"a\"}," A),
        {2, 14, "messages[0]", "'content' is required"},
        {2, 40, "messages[0].contents", "is not known"});
}

static char *many(const char *line, int n, size_t *len)
{
    struct buf b;
    buf_init(&b, 64 << 20);
    for (int i = 0; i < n; i++) buf_puts(&b, line);
    *len = b.len;
    return buf_take(&b);
}

static void the_first_fifty_are_shown_and_the_rest_counted(void **state)
{
    (void)state;
    size_t n;
    char *text = many("{\"text\":\"\"}\n", 73, &n);
    json_t *o = check(text, n);
    assert_int_equal(json_array_size(json_object_get(o, "problems")), 50);
    assert_int_equal(json_integer_value(json_object_get(o, "more")), 23);
    assert_int_equal(json_integer_value(json_object_get(o, "rows")), 73);
    json_decref(o);
    mem_free(text);
}

/* {"text":"xxx..."} of exactly n bytes. */
static char *long_row(size_t n)
{
    struct err e = ERR_INIT;
    char *s = mem_alloc(n + 1, &e);
    memset(s, 'x', n);
    memcpy(s, "{\"text\":\"", 9);
    memcpy(s + n - 2, "\"}", 3);
    return s;
}

static void lines_of_four_mebibytes_pass_and_longer_ones_are_passed_over(void **state)
{
    (void)state;
    struct buf b;
    for (int crlf = 0; crlf < 2; crlf++) {
        const char *end = crlf ? "\r\n" : "\n";
        char *fits = long_row(JSONL_LINE_MAX), *over = long_row(JSONL_LINE_MAX + 1);
        char *huge = long_row(3 * JSONL_LINE_MAX);
        buf_init(&b, 64 << 20);
        const char *const parts[] = {fits, end, over, end, fits, end, huge, end, "{}", end, over};
        for (int i = 0; i < 11; i++) buf_puts(&b, parts[i]);
        const struct finding want[] = {{2, 1, "", "longer than 4 MiB"},
                                       {4, 1, "", "longer than 4 MiB"},
                                       {5, 1, "", "a row needs"},
                                       {6, 1, "", "longer than 4 MiB"}};
        expect_problems(buf_str(&b), b.len, want, 4);
        buf_clear(&b);
        mem_free(fits);
        mem_free(over);
        mem_free(huge);
    }
}

static void memory_is_bounded_by_the_longest_line(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    size_t n;
    char *text = many("{\"text\":\"a line of moderate length, repeated often\"}\n", 1 << 18, &n);
    assert_int_equal(fs_write_file(path, text, n, &e), 0);
    mem_free(text);
    assert_true(n > 13 << 20);
    size_t before = mem_live();
    mem_peak_reset();
    json_t *o = dataset_check(path, &e);
    assert_true(json_is_true(json_object_get(o, "ok")));
    assert_int_equal(json_integer_value(json_object_get(o, "rows")), 1 << 18);
    assert_true(mem_peak() - before < 256 << 10);
    json_decref(o);
}

static void lines_survive_every_chunk_border(void **state)
{
    (void)state;
    /* Rows whose lengths drift over the 64 KiB chunks of the reader. */
    struct buf b;
    buf_init(&b, 64 << 20);
    int rows = 0;
    for (int len = 1; b.len < 3 << 20; len = len * 5 % 70001 + 1, rows++) {
        buf_puts(&b, "{\"text\":\"");
        for (int i = 0; i < len; i++) buf_putc(&b, (char)('a' + i % 26));
        buf_puts(&b, rows % 3 ? "\"}\n" : "\"}\r\n");
    }
    expect_good(buf_str(&b), b.len, "text", rows);
    buf_clear(&b);
}

static void the_reader_counts_and_strips(void **state)
{
    (void)state;
    static const char text[] = "\xef\xbb\xbf" "a\r\n\n\rb\n\xef\xbb\xbf" "c";
    static const char *const want[] = {"a", "", "\rb", "\xef\xbb\xbf" "c"};
    struct err e = ERR_INIT;
    struct jsonl r;
    struct jsonl_line l;
    assert_int_equal(fs_write_file(path, text, sizeof text - 1, &e), 0);
    assert_int_equal(jsonl_open(&r, path, &e), 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(jsonl_next(&r, &l, &e), 1);
        assert_int_equal(l.number, i + 1);
        assert_string_equal(l.text, want[i]);
        assert_int_equal(l.n, strlen(want[i]));
    }
    assert_int_equal(jsonl_next(&r, &l, &e), 0);
    assert_int_equal(jsonl_next(&r, &l, &e), 0);
    jsonl_close(&r);
}

static void a_check_that_cannot_be_made_says_why(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    size_t n;
    assert_null(dataset_check("/nonexistent/file.jsonl", &e));
    assert_int_equal(e.code, E_NOTFOUND);
    assert_null(dataset_check("/tmp", &e));
    assert_int_equal(e.code, E_IO);
    char *text = many("{\"text\":\"\"}\n{\"messages\":[{\"role\":\"x\"}]}\n", 3, &n);
    assert_int_equal(fs_write_file(path, text, n, &e), 0);
    mem_free(text);
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_MEM};
    for (int c = 0; c < 2; c++) {
        for (int i = 1, done = 0; !done; i++) {
            size_t before = mem_live();
            fault_arm(classes[c], i, false);
            json_t *o = dataset_check(path, &e);
            done = fault_count(classes[c]) < i;
            fault_arm(classes[c], 0, false);
            if (!o) assert_int_equal(e.code, c ? E_NOMEM : E_IO);
            if (o) assert_int_equal(json_array_size(json_object_get(o, "problems")), 15);
            json_decref(o);
            assert_int_equal(mem_live(), before);
            assert_true(o || !done);
        }
    }
}

/* Damages good files in every way a byte can be damaged: never a crash, always a report. */
static void damaged_files_are_reported_or_fine(void **state)
{
    (void)state;
    static const char good[] = M(U "," A) "\n"
                               M("{\"role\":\"system\",\"content\":\"s\"}," U "," A);
    static const char bytes[] = "\0\n\r\t \"\\{}[],:0aux\x80\xc3\xe2\xf0\xff";
    char text[sizeof good];
    for (size_t i = 0; i < sizeof good - 1; i++) {
        for (size_t k = 0; k < sizeof bytes - 1; k++) {
            memcpy(text, good, sizeof good);
            text[i] = bytes[k];
            json_t *o = check(text, sizeof good - 1);
            const json_t *list = json_object_get(o, "problems");
            assert_int_equal(json_is_true(json_object_get(o, "ok")), json_array_size(list) == 0);
            for (size_t p = 0; p < json_array_size(list); p++) {
                const json_t *at = json_array_get(list, p);
                int64_t line = json_integer_value(json_object_get(at, "line"));
                int64_t column = json_integer_value(json_object_get(at, "column"));
                assert_in_range(line, 1, 3);
                assert_in_range(column, 1, sizeof good);
            }
            json_decref(o);
        }
    }
}

static void real_files_pass_or_are_told_what_they_lack(void **state)
{
    (void)state;
    const char *root = getenv("GRAFT_TEST_DATA");
    char at[FS_PATH_MAX];
    struct err e = ERR_INIT;
    if (!root) {
        printf("SKIP: GRAFT_TEST_DATA is not set\n");
        skip();
        return;
    }
    assert_int_equal(fs_join(at, root, "data/text/c4_demo.jsonl", &e), 0);
    json_t *o = dataset_check(at, &e);
    assert_non_null(o);
    assert_true(json_is_true(json_object_get(o, "ok")));
    assert_int_equal(json_integer_value(json_object_get(o, "rows")), 300);
    json_decref(o);
    assert_int_equal(fs_join(at, root, "data/instruct/gsm8k-train.jsonl", &e), 0);
    o = dataset_check(at, &e); /* question, answer */
    assert_non_null(o);
    assert_int_equal(json_integer_value(json_object_get(o, "rows")), 7473);
    assert_int_equal(json_integer_value(json_object_get(o, "more")), 7473 - 50);
    assert_true(json_is_null(json_object_get(o, "format")));
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_files_pass),
        cmocka_unit_test(lines_that_are_not_json_objects_are_found),
        cmocka_unit_test(wrong_fields_are_found_at_their_place),
        cmocka_unit_test(wrong_messages_are_found_at_their_place),
        cmocka_unit_test(the_first_fifty_are_shown_and_the_rest_counted),
        cmocka_unit_test(lines_of_four_mebibytes_pass_and_longer_ones_are_passed_over),
        cmocka_unit_test(memory_is_bounded_by_the_longest_line),
        cmocka_unit_test(lines_survive_every_chunk_border),
        cmocka_unit_test(the_reader_counts_and_strips),
        cmocka_unit_test(a_check_that_cannot_be_made_says_why),
        cmocka_unit_test(damaged_files_are_reported_or_fine),
        cmocka_unit_test(real_files_pass_or_are_told_what_they_lack),
    };
    return cmocka_run_group_tests_name("rows", tests, make_file, drop_file);
}
