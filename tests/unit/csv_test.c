/* CSV files, and the shapes that are brought into one form: what a reader of rows gets. */
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

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static int make_file(void **state)
{
    (void)state;
    mem_hook_libraries();
    snprintf(path, sizeof path, "%s/graft-csv-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int drop_file(void **state)
{
    (void)state;
    return unlink(path);
}

static int note(void *ctx, const struct rows_problem *p, struct err *e)
{
    struct buf *b = ctx;
    (void)e;
    buf_printf(b, "%lld:%lld %s: %s\n", (long long)p->line, (long long)p->column, p->field,
               p->reason);
    return 0;
}

/* Everything the reader says: good rows as "LINE SHAPE JSON", problems as "!LINE:COLUMN ...". */
static int read_all(const char *text, size_t n, struct buf *out, struct err *e)
{
    struct rows r;
    struct row row;
    struct buf problems;
    assert_int_equal(fs_write_file(path, text, n, e), 0);
    buf_init(&problems, 1 << 20);
    int rc = rows_open(&r, path, note, &problems, e);
    if (!rc) {
        while ((rc = rows_next(&r, &row, e)) > 0) {
            char *all = jx_dump(row.json, e);
            buf_printf(out, "%lld %s %s\n", (long long)row.line, rows_shape_name(row.shape),
                       all ? all : "");
            mem_free(all);
            json_decref(row.json);
        }
        rows_close(&r);
    }
    buf_puts(out, buf_str(&problems));
    buf_clear(&problems);
    return rc;
}

static void expect(const char *text, size_t n, const char *want)
{
    struct err e = ERR_INIT;
    struct buf got;
    size_t before = mem_live();
    buf_init(&got, 1 << 20);
    assert_int_equal(read_all(text, n, &got, &e), 0);
    assert_string_equal(buf_str(&got), want);
    buf_clear(&got);
    assert_int_equal(mem_live(), before);
}

#define EXPECT(text, want) expect(text, sizeof(text) - 1, want)

static void cells_are_read_as_the_standard_says(void **state)
{
    (void)state;
    EXPECT("text\na\nb c\n", "2 text {\"text\":\"a\"}\n3 text {\"text\":\"b c\"}\n");
    EXPECT("\xef\xbb\xbf\"text\",id\r\n\"a, b\",7\r\n\"say \"\"hi\"\"\",\r\n",
           "2 text {\"text\":\"a, b\",\"id\":\"7\"}\n3 text {\"text\":\"say \\\"hi\\\"\"}\n");
    EXPECT("text\n\"two\nlines\"\n\"three\r\n\r\nof them\"\nlast",
           "2 text {\"text\":\"two\\nlines\"}\n4 text {\"text\":\"three\\r\\n\\r\\nof them\"}\n"
           "7 text {\"text\":\"last\"}\n");
    EXPECT("id,prompt,completion\n1,,\"x\"\n2,\"\",y\n",
           "2 completion {\"id\":\"1\",\"prompt\":\"\",\"completion\":\"x\"}\n"
           "3 completion {\"id\":\"2\",\"prompt\":\"\",\"completion\":\"y\"}\n");
    EXPECT("text\n\"\"\"\"\n a \n\n \n", "2 text {\"text\":\"\\\"\"}\n3 text {\"text\":\" a \"}\n");
    EXPECT(",text\n0,a\n", "2 text {\"text\":\"a\"}\n");
}

static void faults_of_a_record_stand_at_their_line_and_column(void **state)
{
    (void)state;
    EXPECT("text,id\n\"a\nb\",1,2\nx\ny,2\n",
           "5 text {\"text\":\"y\",\"id\":\"2\"}\n"
           "2:1 : 3 fields, but the header has 2\n4:1 : 1 fields, but the header has 2\n");
    EXPECT("text,id\na \"b\",1\nc,\"d\" e\nf,\"g\n",
           "2:3 : a quote inside a field without quotes\n3:6 : text behind the closing quote\n"
           "4:3 : this quote is never closed\n");
    EXPECT("text\na\xff\nb\0\nc\n",
           "4 text {\"text\":\"c\"}\n2:2 : byte 0xff is not UTF-8\n3:2 : NUL is not allowed\n");
    EXPECT("text,x\n\"\",\"\n\"\n", "2:1 text: must not be empty\n");
    EXPECT("prompt,completion\n\"a\n\nb\",\n", "4:4 completion: must not be empty\n");
    EXPECT("text\na\n\n\nb\n",
           "2 text {\"text\":\"a\"}\n5 text {\"text\":\"b\"}\n3:1 : 2 blank lines inside the fil"
           "e\n");
    EXPECT("text,id,text\na,1,b\n", "1:9 text: this column is there twice\n");
    EXPECT("text\n", "1:1 : the file has no rows\n");
    EXPECT("text,\"id\nx", "1:6 : this quote is never closed\n");
}

static void a_header_without_a_known_column_is_one_problem(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct buf got;
    buf_init(&got, 1 << 16);
    assert_int_equal(read_all("question;answer\na;b\nc;d\n", 24, &got, &e), 0);
    assert_non_null(strstr(buf_str(&got), "1:1 : neither a JSON object nor the header of a CSV"));
    assert_null(strstr(buf_str(&got), "\n2:"));
    buf_clear(&got);
}

static void a_quote_that_is_left_open_costs_a_bounded_record(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct buf text;
    buf_init(&text, 64 << 20);
    buf_puts(&text, "text\n\"open\n");
    while (text.len < 9 << 20) buf_puts(&text, "a line of the file that the quote swallows\n");
    assert_int_equal(fs_write_file(path, buf_str(&text), text.len, &e), 0);
    mem_peak_reset();
    size_t before = mem_live();
    json_t *o = dataset_check(path, &e);
    assert_true(mem_peak() - before < 16 << 20);
    const json_t *list = json_object_get(o, "problems"), *p = json_array_get(list, 0);
    assert_int_equal(json_array_size(list), 1);
    assert_int_equal(json_integer_value(json_object_get(p, "line")), 2);
    const char *reason = json_string_value(json_object_get(p, "reason"));
    assert_non_null(strstr(reason, "4 MiB; is this quote"));
    json_decref(o);
    buf_clear(&text);
}

#define TALK(list) "{\"messages\":[" list "]"
#define SAID(role, text) "{\"role\":\"" role "\",\"content\":\"" text "\"}"

static void alpaca_rows_become_conversations(void **state)
{
    (void)state;
    EXPECT("{\"instruction\":\"do\",\"output\":\"done\"}\n"
           "{\"instruction\":\"add\",\"input\":\"1 2\",\"output\":\"3\",\"system\":\"s\",\"histo"
           "ry\":[]}",
           "1 alpaca {\"instruction\":\"do\",\"output\":\"done\",\"messages\":["
           SAID("user", "do") "," SAID("assistant", "done") "]}\n"
           "2 alpaca {\"instruction\":\"add\",\"input\":\"1 2\",\"output\":\"3\",\"system\":\"s\","
           "\"history\":[],\"messages\":[" SAID("system", "s") "," SAID("user", "add\\n\\n1 2") ","
           SAID("assistant", "3") "]}\n");
    EXPECT("instruction,input,output\ndo,,\"done\"\n",
           "2 alpaca {\"instruction\":\"do\",\"output\":\"done\",\"messages\":["
           SAID("user", "do") "," SAID("assistant", "done") "]}\n");
    EXPECT("{\"instruction\":\"\",\"output\":1}\n{\"instruction\":\"a\",\"output\":\"b\","
           "\"history\":[[\"x\",\"y\"]]}\n",
           "1:16 instruction: must not be empty\n1:28 output: must be a string\n"
           "2:43 history: earlier turns are for rows of 'messages'\n");
}

static void sharegpt_rows_become_conversations(void **state)
{
    (void)state;
    EXPECT("{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\""
           ":\"a\","
           "\"weight\":0},{\"from\":\"observation\",\"value\":\"o\"}],\"system\":\"s\"}",
           "1 sharegpt {\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\","
           "\"value\":\"a\",\"weight\":0},{\"from\":\"observation\",\"value\":\"o\"}],\"system\""
           ":\"s\","
           "\"messages\":[" SAID("system", "s") "," SAID("user", "q") ",{\"role\":\"assistant\","
           "\"content\":\"a\",\"weight\":0}," SAID("tool", "o") "]}\n");
    EXPECT("{\"conversations\":[{\"from\":\"bot\",\"value\":\"q\"},{\"from\":\"gpt\",\"text\":\""
           "a\"}]}\n"
           "{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"}]}\n{\"conversations\":1}\n",
           "1:27 conversations[0].from: must be system, human, user, gpt, chatgpt, assistant, to"
           "ol or "
           "observation\n"
           "1:46 conversations[1]: 'value' is required: a string\n"
           "1:67 conversations[1].text: is not known; a turn has from, value and weight\n"
           "2:18 conversations: must contain a turn of gpt\n"
           "3:18 conversations: must be a list\n");
}

#define TOOL "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"n\":1}}}"
#define CALL(args) "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"function\":" \
                   "{\"name\":\"f\",\"arguments\":" args "}}]}"

static void tools_and_calls_have_one_form(void **state)
{
    (void)state;
    static const char want[] =
        "\"messages\":[" SAID("user", "q") ",{\"role\":\"assistant\",\"tool_calls\":[{\"type\":"
        "\"function\",\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}],\"content\":\"\"}]";
    char line[512];
    snprintf(line, sizeof line, "1 messages {\"tools\":[" TOOL "],%s}\n", want);
    EXPECT("{\"tools\":[" TOOL "]," "\"messages\":[" SAID("user", "q") ","
           CALL("{\"a\":1}") "]}", line);
    EXPECT("{\"tools\":[" TOOL "]," "\"messages\":[" SAID("user", "q") ","
           CALL("\"{\\\"a\\\": 1}\"") "]}", line);
    snprintf(line, sizeof line, "2 messages {%s,\"tools\":[{\"type\":\"function\",\"function\":"
             "{\"name\":\"g\"}}]}\n", want);
    EXPECT("messages,tools\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"q\"\"},{\"\"role\"\":"
           "\"\"assistant\"\",\"\"tool_calls\"\":[{\"\"type\"\":\"\"function\"\",\"\"function\"\":"
           "{\"\"name\"\":\"\"f\"\",\"\"arguments\"\":{\"\"a\"\":1}}}]}]\",\"[{\"\"type\"\":"
           "\"\"function\"\",\"\"function\"\":{\"\"name\"\":\"\"g\"\"}}]\"\n", line);
    EXPECT("{\"tools\":[]," "\"messages\":[" SAID("assistant", "a") "]}",
           "1 messages " TALK(SAID("assistant", "a")) "}\n");
}

static void wrong_tools_are_told(void **state)
{
    (void)state;
    EXPECT("{\"tools\":[{}],\"messages\":[" SAID("assistant", "a") "]}\n"
           "{\"tools\":{},\"messages\":[" SAID("assistant", "a") "]}\n"
           "{\"tools\":\"[\",\"messages\":[" SAID("assistant", "a") "]}\n"
           "{\"functions\":[],\"messages\":[" SAID("assistant", "a") "]}\n",
           "1:11 tools[0]: must be {\"type\": \"function\", \"function\": {\"name\", ...}}\n"
           "2:10 tools: must be a list\n"
           "3:10 tools: not JSON: line 1, column 1: ']' expected near end of file\n"
           "4:14 functions: is the old name of 'tools'; use that\n");
    EXPECT("{\"messages\":[" CALL("[1]") "]}\n{\"messages\":[" CALL("\"1\"") "]}\n"
           "{\"messages\":[{\"role\":\"user\",\"content\":\"q\",\"tool_calls\":[{}]}]}\n"
           "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}\n"
           "{\"id\":123456789012345678901," "\"messages\":[" CALL("{}") "]}\n",
           "1:47 messages[0].tool_calls: the arguments of call 1 must be an object\n"
           "2:47 messages[0].tool_calls: the arguments of call 1 must be an object\n"
           "3:56 messages[0].tool_calls: is for assistant messages only\n"
           "3:13 messages: must contain an assistant message\n"
           "4:47 messages[0].tool_calls: call 1 must be {\"type\": \"function\", \"function\": "
           "{\"name\", \"arguments\"}}\n"
           "5:74 messages[0].tool_calls: a row with tools must not hold integers beyond 64 bits\n");
}

static void labels_are_collected_and_of_one_kind(void **state)
{
    (void)state;
    static const struct {
        const char *text, *labels;
    } rows[] = {
        {"{\"text\":\"a\",\"label\":10}\n{\"text\":\"b\",\"label\":9}\n{\"text\":\"c\",\"label\""
               ":10}",
         "[9,10]"},
        {"{\"text\":\"a\",\"text_pair\":\"x\",\"label\":\"no\"}\n{\"text\":\"b\",\"label\":\"an\"}",
         "[\"an\",\"no\"]"},
        {"text,label\na,1\nb,0\n", "[0,1]"},
        {"label,text\n007,a\n7x,b\n", "[\"007\",\"7x\"]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        assert_int_equal(fs_write_file(path, rows[i].text, strlen(rows[i].text), &e), 0);
        json_t *o = dataset_check(path, &e);
        assert_true(json_is_true(json_object_get(o, "ok")));
        assert_string_equal(json_string_value(json_object_get(o, "format")), "label");
        char *labels = jx_dump(json_object_get(o, "labels"), &e);
        assert_string_equal(labels, rows[i].labels);
        mem_free(labels);
        json_decref(o);
    }
    EXPECT("{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"label\":\"1\"}\n{\"text\":\"c\",\"la"
           "bel\":1.5}\n"
           "{\"text\":\"d\",\"label\":\"\"}\n{\"text\":\"\",\"text_pair\":\"e\"}\n",
           "1 label {\"text\":\"a\",\"label\":1}\n"
           "2:21 label: must be an integer as in line 1\n"
           "3:21 label: must be a string or an integer\n4:21 label: must not be empty\n"
           "5:9 text: must not be empty\n5:1 : 'label' is required: a string or an integer\n");
    EXPECT("text,label\na,x\nb,\n", "2 label {\"text\":\"a\",\"label\":\"x\"}\n"
           "3:3 label: must not be empty\n");
}

static void a_failed_call_leaks_nothing_and_is_told(void **state)
{
    (void)state;
    static const char *const files[] = {
        "text,label\n\"a\nb\",x\nc,y\n",
        "{\"instruction\":\"do\",\"input\":\"x\",\"output\":\"done\",\"system\":\"s\"}\n",
        "{\"conversations\":[{\"from\":\"gpt\",\"value\":\"a\",\"weight\":1}],"
        "\"tools\":\"[]\"}\n",
        "{\"messages\":[" CALL("\"{}\"") "]}\n"};
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_MEM};
    for (size_t f = 0; f < 2 * sizeof files / sizeof *files; f++) {
        struct err e = ERR_INIT;
        assert_int_equal(fs_write_file(path, files[f / 2], strlen(files[f / 2]), &e), 0);
        for (int i = 1, done = 0; !done; i++) {
            size_t before = mem_live();
            fault_arm(classes[f % 2], i, false);
            json_t *o = dataset_check(path, &e);
            done = fault_count(classes[f % 2]) < i;
            fault_arm(classes[f % 2], 0, false);
            assert_true(o || !done);
            if (!o) assert_int_equal(e.code, f % 2 ? E_NOMEM : E_IO);
            if (o) assert_true(json_is_true(json_object_get(o, "ok")));
            json_decref(o);
            assert_int_equal(mem_live(), before);
        }
    }
}

/* Every byte of good files damaged in many ways: never a crash, always a report. */
static void damaged_files_are_reported_or_fine(void **state)
{
    (void)state;
    static const char *const files[] = {
        "text,label\r\n\"a \"\"q\"\",\n\",x\r\nc,y\n",
        "{\"conversations\":[{\"from\":\"gpt\",\"value\":\"a\"}],\"tools\":[" TOOL "]}",
        "{\"messages\":[" CALL("\"{}\"") "]}\n"};
    static const char bytes[] = "\0\n\r \"\\{}[],:0a\x80\xff";
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        size_t n = strlen(files[f]);
        for (size_t at = 0; at < n * (sizeof bytes - 1); at++) {
            struct err e = ERR_INIT;
            char text[512];
            memcpy(text, files[f], n);
            text[at % n] = bytes[at / n];
            assert_int_equal(fs_write_file(path, text, n, &e), 0);
            json_t *o = dataset_check(path, &e);
            assert_non_null(o);
            assert_int_equal(json_is_true(json_object_get(o, "ok")),
                             json_array_size(json_object_get(o, "problems")) == 0);
            json_decref(o);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cells_are_read_as_the_standard_says),
        cmocka_unit_test(faults_of_a_record_stand_at_their_line_and_column),
        cmocka_unit_test(a_header_without_a_known_column_is_one_problem),
        cmocka_unit_test(a_quote_that_is_left_open_costs_a_bounded_record),
        cmocka_unit_test(alpaca_rows_become_conversations),
        cmocka_unit_test(sharegpt_rows_become_conversations),
        cmocka_unit_test(tools_and_calls_have_one_form),
        cmocka_unit_test(wrong_tools_are_told),
        cmocka_unit_test(labels_are_collected_and_of_one_kind),
        cmocka_unit_test(a_failed_call_leaks_nothing_and_is_told),
        cmocka_unit_test(damaged_files_are_reported_or_fine),
    };
    return cmocka_run_group_tests_name("csv", tests, make_file, drop_file);
}
