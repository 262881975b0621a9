/* POST /v1/files/{id}/validate and /preview on a real server: what a client learns about a data set
 * before it creates a job. */
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
#include <unistd.h>

static struct server server;

#define MODEL "\"model\": \"base/tiny\""

static int set_up(void **state)
{
    char dir[128], body[256];
    (void)state;
    server_start(&server, NULL);
    snprintf(dir, sizeof dir, "%s/models/tiny", server.dir);
    model_dir_write(dir);
    snprintf(body, sizeof body, "{\"id\": \"base/tiny\", \"path\": \"%s\"}", dir);
    struct answer a = server_post(&server, "/v1/models", body);
    if (a.status != 200) fail_msg("model: %s", a.body);
    answer_clear(&a);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    server_remove(&server);
    return 0;
}

/* Uploads text for `purpose` and asks `call` about it. */
static struct answer ask(const char *purpose, const char *name, const char *text, const char *call,
                         const char *body)
{
    char id[64], path[128];
    server_upload_ok(&server, purpose, name, text, strlen(text), id);
    snprintf(path, sizeof path, "/v1/files/%s/%s", id, call);
    struct answer a = server_post(&server, path, body);
    if (a.status == 200) assert_string_equal(answer_str(&a, "file_id"), id);
    return a;
}

static json_int_t number(const struct answer *a, const char *path)
{
    const json_t *v = answer_get(a, path);
    if (!json_is_integer(v)) fail_msg("no number %s in %s", path, a->body);
    return json_integer_value(v);
}

static void expect(const struct answer *a, long status)
{
    if (a->status != status) fail_msg("%ld: %s", a->status, a->body);
}

/* The list at `path` as text. */
static void expect_list(const struct answer *a, const char *path, const char *want)
{
    char *text = json_dumps(answer_get(a, path), JSON_COMPACT);
    if (!text || strcmp(text, want)) fail_msg("%s is %s instead of %s", path, text, want);
    free(text);
}

static void a_good_file_is_ok_in_either_container(void **state)
{
    (void)state;
    struct answer a = ask("fine-tune", "a.csv", "\xef\xbb\xbfprompt,completion\r\na,\"b\r\nc\"\r\n",
                          "validate", "{}");
    expect(&a, 200);
    assert_string_equal(answer_str(&a, "object"), "file.validation");
    assert_true(json_is_true(answer_get(&a, "ok")));
    assert_string_equal(answer_str(&a, "container"), "csv");
    assert_string_equal(answer_str(&a, "format"), "completion");
    assert_int_equal(number(&a, "rows"), 1);
    assert_true(json_is_null(answer_get(&a, "model")));
    answer_clear(&a);
    a = ask("fine-tune", "a.jsonl", "{\"text\":\"a\",\"label\":\"x\"}\n{\"text\":\"b\",\"label\""
           ":\"n\"}",
            "validate", NULL);
    expect(&a, 200);
    assert_string_equal(answer_str(&a, "format"), "label");
    expect_list(&a, "labels", "[\"n\",\"x\"]");
    answer_clear(&a);
}

static void all_problems_are_told_at_once_and_are_no_error(void **state)
{
    (void)state;
    static const char rows[] = "instruction,output\na,b\n\"c\nd\",\"e\"f\ng\nh,\n";
    struct answer a = ask("user_data", "notes.txt", rows, "validate", "{}");
    expect(&a, 200);
    assert_true(json_is_false(answer_get(&a, "ok")));
    assert_int_equal(json_array_size(answer_get(&a, "problems")), 3);
    assert_int_equal(number(&a, "problems.0.line"), 4);
    assert_int_equal(number(&a, "problems.0.column"), 7);
    assert_string_equal(answer_str(&a, "problems.0.reason"), "text behind the closing quote");
    assert_int_equal(number(&a, "problems.1.line"), 5);
    assert_string_equal(answer_str(&a, "problems.2.field"), "output");
    answer_clear(&a);
    char *many = malloc(80 * 11 + 1);
    for (int i = 0; i < 80; i++) memcpy(many + 11 * i, "{\"text\":1}\n", 12);
    a = ask("user_data", "many.jsonl", many, "validate", "{}");
    free(many);
    expect(&a, 200);
    assert_int_equal(json_array_size(answer_get(&a, "problems")), 50);
    assert_int_equal(number(&a, "more"), 30);
    answer_clear(&a);
}

static void rows_are_counted_in_tokens_of_a_model(void **state)
{
    (void)state;
    /* abcd</s>; a + b</s>; abcdef + x</s>: of the last the trained part is cut off. */
    static const char rows[] = "prompt,completion\n,abcd\na,b\nabcdef,x\n";
    struct answer a = ask("fine-tune", "rows.csv", rows, "validate",
                          "{" MODEL ", \"max_length\": 5}");
    expect(&a, 200);
    assert_true(json_is_true(answer_get(&a, "ok")));
    assert_string_equal(answer_str(&a, "model"), "base/tiny");
    assert_int_equal(number(&a, "rows"), 3);
    assert_int_equal(number(&a, "max_seq_length"), 5);
    assert_int_equal(number(&a, "num_tokens"), 5 + 3 + 5);
    assert_int_equal(number(&a, "num_trained_tokens"), 4 + 2);
    assert_int_equal(number(&a, "longest"), 8);
    assert_int_equal(number(&a, "rows_truncated"), 1);
    assert_int_equal(number(&a, "tokens_truncated"), 3);
    assert_int_equal(number(&a, "rows_skipped"), 1);
    assert_true(json_is_null(answer_get(&a, "chat_template")));
    assert_null(answer_get(&a, "data"));
    answer_clear(&a);
}

static void a_preview_shows_tokens_ids_and_what_is_trained(void **state)
{
    (void)state;
    struct answer a = ask("fine-tune", "rows.csv", "prompt,completion\nab,c d\nx,y\nz,w\n", "pre"
           "view",
                          "{" MODEL ", \"rows\": 2}");
    expect(&a, 200);
    assert_string_equal(answer_str(&a, "object"), "file.preview");
    assert_string_equal(answer_str(&a, "format"), "completion");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 2);
    assert_int_equal(number(&a, "data.0.line"), 2);
    expect_list(&a, "data.0.tokens", "[\"a\",\"b\",\"c\",\"\xc4\xa0\",\"d\",\"</s>\"]");
    expect_list(&a, "data.0.ids", "[97,98,99,32,100,257]");
    expect_list(&a, "data.0.labels", "[-100,-100,99,32,100,257]");
    expect_list(&a, "data.0.trained_spans", "[[2,6]]");
    assert_int_equal(number(&a, "data.0.num_tokens"), 6);
    assert_int_equal(number(&a, "data.0.num_trained_tokens"), 4);
    assert_true(json_is_false(answer_get(&a, "data.0.truncated")));
    answer_clear(&a);
}

static void a_preview_cuts_where_a_job_would(void **state)
{
    (void)state;
    struct answer a = ask("fine-tune", "long.csv", "text\nabcdefgh\n", "preview",
                          "{" MODEL ", \"max_length\": 4}");
    expect(&a, 200);
    expect_list(&a, "data.0.ids", "[97,98,99,100]");
    expect_list(&a, "data.0.trained_spans", "[[1,4]]");
    assert_true(json_is_true(answer_get(&a, "data.0.truncated")));
    answer_clear(&a);
}

#define TALK(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}," \
                   "{\"role\":\"assistant\",\"content\":\"a\",\"weight\":0}," \
                   "{\"role\":\"user\",\"content\":\"r\"}," \
                   "{\"role\":\"assistant\",\"content\":\"b\"}]" more "}\n"

static void conversations_need_a_template_and_show_its_spans(void **state)
{
    (void)state;
    static const char tools[] = ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\""
           "}}]";
    struct answer a = ask("fine-tune", "talk.jsonl", TALK(""), "preview", "{" MODEL "}");
    expect(&a, 400);
    assert_string_equal(answer_str(&a, "error.param"), "chat_template");
    assert_non_null(strstr(answer_str(&a, "error.message"), "mistral, gemma, zephyr, plain"));
    answer_clear(&a);
    a = ask("fine-tune", "talk.jsonl", TALK(""), "preview",
            "{" MODEL ", \"chat_template\": \"plain\"}");
    expect(&a, 200);
    /* User: q\nAssistant: a</s>\nUser: r\nAssistant: b</s>\n: of the second answer " b</s>". */
    assert_string_equal(answer_str(&a, "chat_template"), "plain");
    expect_list(&a, "data.0.trained_spans", "[[40,43]]");
    assert_int_equal(number(&a, "data.0.num_tokens"), 44);
    answer_clear(&a);
    char rows[1024];
    snprintf(rows, sizeof rows, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]%s}\n%s",
             tools, TALK(""));
    a = ask("fine-tune", "tools.jsonl", rows, "preview",
            "{" MODEL ", \"chat_template\": \"plain\"}");
    expect(&a, 200);
    assert_true(json_is_false(answer_get(&a, "ok")));
    assert_int_equal(number(&a, "problems.0.line"), 1);
    assert_non_null(strstr(answer_str(&a, "problems.0.reason"), "plain cannot say which tools"));
    assert_int_equal(json_array_size(answer_get(&a, "data")), 1);
    answer_clear(&a);
}

static void what_cannot_be_asked_is_refused_by_field(void **state)
{
    (void)state;
    static const struct {
        const char *call, *body, *param;
        long status;
        const char *code;
    } t[] = {
        {"preview", "{}", "model", 400, NULL},
        {"preview", "{\"model\": 3}", "model", 400, NULL},
        {"preview", "{\"model\": \"base/none\"}", "model", 404, "model_not_found"},
        {"preview", "{" MODEL ", \"rows\": 0}", "rows", 400, NULL},
        {"preview", "{" MODEL ", \"rows\": 101}", "rows", 400, NULL},
        {"preview", "{" MODEL ", \"row\": 1}", "row", 400, NULL},
        {"preview", "{" MODEL ", \"max_length\": 65}", "max_length", 400, NULL},
        {"preview", "{" MODEL ", \"max_length\": 1}", "max_length", 400, NULL},
        {"preview", "{" MODEL ", \"max_length\": \"x\"}", "max_length", 400, NULL},
        {"validate", "{\"max_length\": 8}", "model", 400, NULL},
        {"validate", "{" MODEL ", \"rows\": 3}", "rows", 400, NULL},
    };
    char id[64], path[128];
    server_upload_ok(&server, "fine-tune", "rows.csv", "text\na\n", 7, id);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        snprintf(path, sizeof path, "/v1/files/%s/%s", id, t[i].call);
        struct answer a = server_post(&server, path, t[i].body);
        const char *param = answer_str(&a, "error.param"), *code = answer_str(&a, "error.code");
        if (a.status != t[i].status || !param || strcmp(param, t[i].param) ||
            (t[i].code && (!code || strcmp(code, t[i].code))))
            fail_msg("%s: %ld %s", t[i].body, a.status, a.body);
        answer_clear(&a);
    }
    struct answer a = server_post(&server, "/v1/files/file-none/validate", "{}");
    expect(&a, 404);
    assert_string_equal(answer_str(&a, "error.code"), "file_not_found");
    answer_clear(&a);
}

static void looking_leaves_nothing_behind(void **state)
{
    (void)state;
    char id[64], path[128];
    server_upload_ok(&server, "fine-tune", "rows.csv", "text\na\n", 7, id);
    int blobs = server_count_files(&server, "blobs"), jobs = server_count_files(&server, "jobs");
    snprintf(path, sizeof path, "/v1/files/%s/preview", id);
    for (int i = 0; i < 3; i++) {
        struct answer a = server_post(&server, path, "{" MODEL "}");
        expect(&a, 200);
        answer_clear(&a);
    }
    assert_int_equal(server_count_files(&server, "blobs"), blobs);
    assert_int_equal(server_count_files(&server, "jobs"), jobs);
    assert_int_equal(server_count_files(&server, "spool"), 0);
}

/* A CSV file, its rows packed, with the count of what was cut in the events. */
static void a_csv_file_trains_with_its_rows_packed(void **state)
{
    (void)state;
    static const char rows[] = "prompt,completion\na,b\nc,\"d\ne\"\nfg,h\n\"i,\",j\nk,"
                               "0123456789012345678901234567890123456789012345678901234567890123\n";
    char id[64], job[64], body[512], path[128], status[32] = "";
    server_upload_ok(&server, "fine-tune", "rows.csv", rows, sizeof rows - 1, id);
    snprintf(body, sizeof body, "{" MODEL ", \"training_file\": \"%s\", \"method\": {\"type\": "
             "\"lora\", \"lora\": {\"hyperparameters\": {\"n_epochs\": 1, \"batch_size\": 4, "
             "\"max_length\": 32, \"packing\": true}}}}", id);
    struct answer a = server_post(&server, "/v1/fine_tuning/jobs", body);
    expect(&a, 200);
    snprintf(job, sizeof job, "%s", answer_str(&a, "id"));
    answer_clear(&a);
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs/%s", job);
    for (int i = 0; i < 1500 && strcmp(status, "succeeded") && strcmp(status, "failed"); i++) {
        usleep(20000);
        a = server_get(&server, path);
        snprintf(status, sizeof status, "%s", answer_str(&a, "status"));
        answer_clear(&a);
    }
    assert_string_equal(status, "succeeded");
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs/%s/events?limit=100", job);
    a = server_get(&server, path);
    /* 66 tokens of which 32 stay; the other rows have 3, 5, 4 and 4. */
    assert_non_null(strstr(a.body, "\"rows\":5,\"packed_rows\":2"));
    assert_non_null(strstr(a.body, "1 rows were cut at 32 tokens, which lost 34"));
    answer_clear(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_is_ok_in_either_container),
        cmocka_unit_test(all_problems_are_told_at_once_and_are_no_error),
        cmocka_unit_test(rows_are_counted_in_tokens_of_a_model),
        cmocka_unit_test(a_preview_shows_tokens_ids_and_what_is_trained),
        cmocka_unit_test(a_preview_cuts_where_a_job_would),
        cmocka_unit_test(conversations_need_a_template_and_show_its_spans),
        cmocka_unit_test(what_cannot_be_asked_is_refused_by_field),
        cmocka_unit_test(looking_leaves_nothing_behind),
        cmocka_unit_test(a_csv_file_trains_with_its_rows_packed),
    };
    return cmocka_run_group_tests_name("examine", tests, set_up, tear_down);
}
