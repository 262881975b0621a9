/* Bad input: each row is a clear 4xx that names line or field, and leaves nothing behind. The real
 * engine looks at the content, in a process of its own. */
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
#include <sys/stat.h>
#include <unistd.h>

static struct server server;
static char training[64], upload[64]; /* a good data set; a file of another purpose */

struct counts {
    int files, jobs, models, blobs, spool, job_dirs, model_dirs;
};

static int length(const char *path)
{
    struct answer a = server_get(&server, path);
    int n = (int)json_array_size(answer_get(&a, "data"));
    answer_clear(&a);
    return n;
}

static struct counts count(void)
{
    return (struct counts){.files = length("/v1/files"),
                           .jobs = length("/v1/fine_tuning/jobs?limit=100"),
                           .models = length("/v1/models"),
                           .blobs = server_count_files(&server, "blobs"),
                           .spool = server_count_files(&server, "spool"),
                           .job_dirs = server_count_files(&server, "jobs"),
                           .model_dirs = server_count_files(&server, "models")};
}

static int set_up(void **state)
{
    static const char rows[] = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
    char dir[128], body[256];
    (void)state;
    server_start(&server, NULL);
    snprintf(dir, sizeof dir, "%s/models/tiny", server.dir);
    model_dir_write(dir);
    snprintf(body, sizeof body, "{\"id\": \"base/tiny\", \"path\": \"%s\"}", dir);
    struct answer a = server_post(&server, "/v1/models", body);
    if (a.status != 200) fail_msg("model: %s", a.body);
    answer_clear(&a);
    server_upload_ok(&server, "fine-tune", "rows.jsonl", rows, sizeof rows - 1, training);
    server_upload_ok(&server, "user_data", "notes.txt", "not rows", 8, upload);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    server_remove(&server);
    return 0;
}

struct want {
    int status;
    const char *code, *param;
    int line; /* of the first detail; 0: none is wanted */
};

/* Whether an answer is what a row wants; prints it if not. */
static bool as_wanted(const struct answer *a, const struct want *w, const char *what)
{
    const char *code = answer_str(a, "error.code"), *param = answer_str(a, "error.param");
    const char *message = answer_str(a, "error.message");
    json_int_t line = json_integer_value(answer_get(a, "error.details.0.line"));
    bool ok = a->status == w->status && message && *message && code &&
              (!w->code || !strcmp(code, w->code)) && answer_str(a, "error.type") &&
              (!w->param || (param && !strcmp(param, w->param))) &&
              (!w->line || line == w->line);
    if (!ok) print_error("%s: %ld %s\n", what, a->status, a->body);
    return ok;
}

static void assert_unchanged(const struct counts *before)
{
    struct counts now = count();
    assert_memory_equal(&now, before, sizeof now);
}

/* The template with $T replaced by `T`, and any other letter behind a $ by `other`. */
static void fill(char *to, size_t cap, const char *template, const char *T, const char *other)
{
    size_t n = 0;
    for (const char *p = template; *p; p++) {
        if (*p == '$')
            n += (size_t)snprintf(to + n, cap - n, "%s", *++p == 'T' ? T : other);
        else
            n += (size_t)snprintf(to + n, cap - n, "%c", *p);
        assert_true(n < cap);
    }
    to[n] = 0;
}

#define ROWS(text) text, sizeof text - 1
#define GOOD "{\"text\": \"fine\"}\n"

static void broken_data_sets_are_refused_with_their_line(void **state)
{
    (void)state;
    static const struct {
        const char *what, *bytes;
        size_t n;
        int line;
        const char *said; /* in the message */
    } t[] = {
        {"broken row", ROWS(GOOD GOOD "{\"text\": \"cut\n" GOOD), 3, "line 3, column 13: "},
        {"trailing comma", ROWS(GOOD "{\"text\": \"x\",}\n"), 2, "line 2"},
        {"two values", ROWS("{\"text\": \"x\"} {\"text\": \"y\"}\n"), 1, "line 1"},
        {"not an object", ROWS("[1, 2]\n"), 1, "line 1"},
        {"no json", ROWS("hello\n"), 1, "line 1"},
        {"wrong field", ROWS(GOOD "{\"txt\": \"x\"}\n"), 2, "line 2"},
        {"wrong type", ROWS(GOOD GOOD GOOD "{\"text\": 5}\n"), 4, "line 4"},
        {"two shapes", ROWS(GOOD "{\"prompt\": \"a\", \"completion\": \"b\"}\n"), 2, "line 2"},
        {"half a row", ROWS("{\"prompt\": \"a\"}\n"), 1, "line 1"},
        {"messages as text", ROWS("{\"messages\": \"hi\"}\n"), 1, "line 1"},
        {"unknown role", ROWS("{\"messages\": [{\"role\": \"king\", \"content\": \"x\"}]}\n"), 1,
         "line 1"},
        {"duplicate key", ROWS("{\"text\": \"a\", \"text\": \"b\"}\n"), 1, "line 1"},
        {"blank line inside", ROWS(GOOD "\n" GOOD), 2, "line 2"},
        {"not utf-8", ROWS(GOOD "{\"text\": \"\xff\"}\n"), 2, "line 2"},
        {"overlong utf-8", ROWS("{\"text\": \"\xc0\xaf\"}\n"), 1, "line 1"},
        {"nul byte", ROWS(GOOD "{\"text\": \"a\0b\"}\n"), 2, "line 2"},
        {"utf-16", ROWS("\xff\xfe{\0\"\0t\0"), 1, "line 1"},
        {"nested too deep", ROWS("{\"text\": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
                                 "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}\n"), 1, "line 1"},
        {"only newlines", ROWS("\n\n\n"), 0, NULL},
        {"empty", ROWS(""), 0, "empty"},
    };
    struct counts before = count();
    int bad = 0;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct want w = {422, t[i].n ? "dataset_invalid" : NULL, "file", t[i].line};
        struct answer a = server_upload(&server, "fine-tune", "data.jsonl", t[i].bytes, t[i].n);
        bool said = !t[i].said || (answer_str(&a, "error.message") &&
                                   strstr(answer_str(&a, "error.message"), t[i].said));
        bad += !(as_wanted(&a, &w, t[i].what) && said);
        if (!said) print_error("%s: %s\n", t[i].what, a.body);
        answer_clear(&a);
    }
    assert_int_equal(bad, 0);
    assert_unchanged(&before);
}

static void a_line_of_absurd_size_is_refused(void **state)
{
    (void)state;
    size_t n = 5 << 20;
    char *p = malloc(n + 16);
    size_t k = (size_t)snprintf(p, n, "{\"text\": \"");
    memset(p + k, 'a', n);
    memcpy(p + k + n - 16, "\"}\n", 4);
    struct counts before = count();
    struct answer a = server_upload(&server, "fine-tune", "long.jsonl", p, k + n - 13);
    assert_int_equal(a.status, 422);
    assert_string_equal(answer_str(&a, "error.param"), "file");
    answer_clear(&a);
    free(p);
    assert_unchanged(&before);
}

/* A safetensors file with this header text and `bytes` of data. */
static size_t tensors(char *out, const char *header, size_t bytes)
{
    uint64_t n = strlen(header);
    memcpy(out, &n, 8);
    memcpy(out + 8, header, n);
    memset(out + 8 + n, 0, bytes);
    return 8 + (size_t)n + bytes;
}

static void lying_model_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t bytes;
    } t[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4},   /* truncated */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 12},  /* too long */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8},   /* shape lies */
        {"{\"a\":{\"dtype\":\"F99\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8},   /* dtype */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8},   /* hole */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8},    /* overlap */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8},    /* duplicate */
        {"[1]", 0},
        {"{\"a\":", 0},
        {"", 0},
    };
    char b[1024];
    struct counts before = count();
    int bad = 0;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        static const struct want w = {.status = 422, .param = "file"};
        size_t n = tensors(b, t[i].header, t[i].bytes);
        struct answer a = server_upload(&server, "model", "model.safetensors", b, n);
        bad += !as_wanted(&a, &w, t[i].header);
        answer_clear(&a);
    }
    static const struct {
        const char *name, *bytes;
        size_t n;
    } f[] = {
        {"model.safetensors", ROWS("short")},
        {"model.safetensors", ROWS("\xff\xff\xff\xff\xff\xff\xff\x7f{}")},
        {"model.safetensors", ROWS("")},
        {"config.json", ROWS("{\"a\": }")},
        {"config.json", ROWS("[]")},
        {"tokenizer.json", ROWS("{}")},
        {"tokenizer.json", ROWS("{\"model\": {\"type\": \"Nonsense\"}}")},
    };
    for (size_t i = 0; i < sizeof f / sizeof *f; i++) {
        static const struct want w = {.status = 422, .param = "file"};
        struct answer a = server_upload(&server, "model", f[i].name, f[i].bytes, f[i].n);
        bad += !as_wanted(&a, &w, f[i].name);
        answer_clear(&a);
    }
    assert_int_equal(bad, 0);
    assert_unchanged(&before);
}

#define JOB(rest) "{\"model\": \"base/tiny\", \"training_file\": \"$T\"" rest "}"
#define LORA(h) "\"method\": {\"type\": \"lora\", \"lora\": {\"hyperparameters\": {" h "}}}"
#define LORA_AT "method.lora.hyperparameters."

/* $T: a good data set, $U: a file of another purpose that holds no rows. */
static const struct {
    const char *body;
    struct want want;
} wrong_jobs[] = {
    {"", {400, NULL, "model", 0}},
    {"{}", {400, NULL, "model", 0}},
    {"[]", {400, "invalid_json", NULL, 0}},
    {"{\"model\": ", {400, "invalid_json", NULL, 0}},
    {"{\"model\": \"a\", \"model\": \"b\"}", {400, "invalid_json", NULL, 0}},
    {"{\"model\": \"base/tiny\"}", {400, NULL, "training_file", 0}},
    {"{\"model\": 5, \"training_file\": \"$T\"}", {400, NULL, "model", 0}},
    {"{\"model\": \"no/such\", \"training_file\": \"$T\"}",
     {404, "model_not_found", "model", 0}},
    {"{\"model\": \"../../etc\", \"training_file\": \"$T\"}",
     {404, "model_not_found", "model", 0}},
    {"{\"model\": \"base/tiny\", \"training_file\": \"file-none\"}",
     {404, "file_not_found", "training_file", 0}},
    {"{\"model\": \"base/tiny\", \"training_file\": \"../x\"}",
     {404, "file_not_found", "training_file", 0}},
    {JOB(", \"validation_file\": \"file-none\""),
     {404, "file_not_found", "validation_file", 0}},
    {"{\"model\": \"base/tiny\", \"training_file\": \"$U\"}",
     {422, "dataset_invalid", "training_file", 0}},
    {JOB(", \"epochs\": 3"), {400, NULL, "epochs", 0}},
    {JOB(", \"method\": \"lora\""), {400, NULL, "method", 0}},
    {JOB(", \"method\": {}"), {400, NULL, "method.type", 0}},
    {JOB(", \"method\": {\"type\": \"magic\"}"), {400, NULL, "method.type", 0}},
    {JOB(", \"method\": {\"type\": \"lora\", "
     "\"snell\": {}}"), {400, NULL, "method.snell", 0}},
    {JOB(", \"method\": {\"type\": \"lora\", "
     "\"lora\": {\"r\": 4}}"), {400, NULL, "method.lora.r", 0}},
    {JOB(", " LORA("\"rank\": 4")), {400, NULL, LORA_AT "rank", 0}},
    {JOB(", " LORA("\"r\": 0")), {400, NULL, LORA_AT "r", 0}},
    {JOB(", " LORA("\"r\": 99999999999")), {400, NULL, LORA_AT "r", 0}},
    {JOB(", " LORA("\"r\": 1.5")), {400, NULL, LORA_AT "r", 0}},
    {JOB(", " LORA("\"r\": \"four\"")), {400, NULL, LORA_AT "r", 0}},
    {JOB(", " LORA("\"learning_rate\": -1")), {400, NULL, LORA_AT "learning_rate", 0}},
    {JOB(", " LORA("\"lora_dropout\": 1e400")), {400, "invalid_json", NULL, 0}},
    {JOB(", " LORA("\"target_modules\": 7")), {400, NULL, LORA_AT "target_modules", 0}},
    {JOB(", \"hyperparameters\": {\"n_epochs\": 0}"),
     {400, NULL, "hyperparameters.n_epochs", 0}},
    {JOB(", \"seed\": -1"), {400, NULL, "seed", 0}},
    {JOB(", \"seed\": 2147483648"), {400, NULL, "seed", 0}},
    {JOB(", \"seed\": \"x\""), {400, NULL, "seed", 0}},
    {JOB(", \"suffix\": \"\""), {400, NULL, "suffix", 0}},
    {JOB(", \"suffix\": \"0123456789012345678901234567"
     "8901234567890123456789012345678901234\""), {400, NULL, "suffix", 0}},
    {JOB(", \"metadata\": []"), {400, NULL, "metadata", 0}},
    {JOB(", \"metadata\": {\"a\": 1}"), {400, NULL, "metadata.a", 0}},
    {JOB(", \"integrations\": [{\"type\": \"x\"}]"), {422, NULL, "integrations", 0}},
    {"{\"model\": \"base/tiny\", \"training_file\": \"a\\u0000b\"}",
     {400, "invalid_json", NULL, 0}},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}",
     {400, "invalid_json", NULL, 0}},
};

static void wrong_jobs_are_refused_with_their_field(void **state)
{
    (void)state;
    static const char *const routes[] = {"/v1/fine_tuning/jobs", "/v1/plans"};
    static const char *const type[] = {"Content-Type: application/json", NULL};
    struct counts before = count();
    int bad = 0;
    for (size_t i = 0; i < 2 * sizeof wrong_jobs / sizeof *wrong_jobs; i++) {
        char body[2048];
        fill(body, sizeof body, wrong_jobs[i / 2].body, training, upload);
        struct call c = {"POST", routes[i % 2], type, body, strlen(body)};
        struct answer a = server_call(&server, &c);
        bad += !as_wanted(&a, &wrong_jobs[i / 2].want, wrong_jobs[i / 2].body);
        answer_clear(&a);
    }
    assert_int_equal(bad, 0);
    assert_unchanged(&before);
}

static void a_body_of_absurd_size_is_413(void **state)
{
    (void)state;
    size_t n = (1 << 20) + 1;
    char *p = malloc(n + 1);
    memset(p, ' ', n);
    p[n] = 0;
    static const char *const chunked[] = {"Content-Type: application/json",
                                          "Transfer-Encoding: chunked", "Expect:", NULL};
    static const char *const plain[] = {"Content-Type: application/json", "Expect:", NULL};
    for (int i = 0; i < 2; i++) {
        struct call c = {"POST", "/v1/fine_tuning/jobs", i ? chunked : plain, p, n};
        struct answer a = server_call(&server, &c);
        assert_int_equal(a.status, 413);
        assert_string_equal(answer_str(&a, "error.code"), "limit_exceeded");
        answer_clear(&a);
        /* One byte less is only empty of sense. */
        memcpy(p, "{}", 2);
        c.n = n - 1;
        a = server_call(&server, &c);
        assert_int_equal(a.status, 400);
        assert_string_equal(answer_str(&a, "error.param"), "model");
        answer_clear(&a);
    }
    free(p);
}

static void wrong_models_are_refused(void **state)
{
    (void)state;
    char dir[96], path[512];
    snprintf(dir, sizeof dir, "%s/models", server.dir);
    /* Below the root: an empty folder, a link that leads out, a folder with cut weights, a file. */
    snprintf(path, sizeof path, "%s/empty", dir);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/out", dir);
    assert_int_equal(symlink("/etc", path), 0);
    snprintf(path, sizeof path, "%s/cut", dir);
    model_dir_write(path);
    snprintf(path, sizeof path, "%s/cut/model.safetensors", dir);
    assert_int_equal(truncate(path, 5000), 0);
    snprintf(path, sizeof path, "%s/file", dir);
    fclose(fopen(path, "w"));

    /* $R: the root; $T: an uploaded file. */
    static const struct {
        const char *body;
        struct want want;
    } t[] = {
        {"{}", {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\"}", {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/tiny\", \"files\": []}", {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/tiny\", \"x\": 1}", {400, NULL, "x", 0}},
        {"{\"id\": \"a/b\", \"path\": 5}", {400, NULL, "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"tiny\"}", {400, NULL, "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/none\"}", {404, "folder_not_found", "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"/etc\"}", {404, "folder_not_found", "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/../../etc\"}", {404, "folder_not_found", "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/out\"}", {404, "folder_not_found", "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/file\"}", {400, NULL, "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/empty\"}", {422, NULL, "path", 0}},
        {"{\"id\": \"a/b\", \"path\": \"$R/cut\"}", {422, NULL, "path", 0}},
        {"{\"id\": \"a\", \"path\": \"$R/tiny\"}", {400, NULL, "id", 0}},
        {"{\"id\": \"a/../b\", \"path\": \"$R/tiny\"}", {400, NULL, "id", 0}},
        {"{\"id\": \"../b\", \"path\": \"$R/tiny\"}", {400, NULL, "id", 0}},
        {"{\"id\": \"a/b c\", \"path\": \"$R/tiny\"}", {400, NULL, "id", 0}},
        {"{\"id\": \"a/b--c\", \"path\": \"$R/tiny\"}", {400, NULL, "id", 0}},
        {"{\"id\": \"a/b.git\", \"path\": \"$R/tiny\"}", {400, NULL, "id", 0}},
        {"{\"id\": \"base/tiny\", \"path\": \"$R/tiny\"}", {409, NULL, "id", 0}},
        {"{\"id\": \"a/b\", \"files\": {}}", {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"files\": []}", {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"config.json\", \"file\": \"file-none\"}]}",
         {404, "file_not_found", NULL, 0}},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"../config.json\", \"file\": \"$T\"}]}",
         {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"/etc/x\", \"file\": \"$T\"}]}",
         {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"a\\\\b\", \"file\": \"$T\"}]}",
         {400, NULL, NULL, 0}},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"config.json\", \"file\": \"$T\"}]}",
         {422, NULL, "files", 0}},
    };
    struct counts before = count();
    int bad = 0;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        char body[2048];
        fill(body, sizeof body, t[i].body, training, dir);
        struct answer a = server_post(&server, "/v1/models", body);
        bad += !as_wanted(&a, &t[i].want, t[i].body);
        if (strstr(a.body, "/proc/self")) bad++, print_error("%s\n", a.body);
        answer_clear(&a);
    }
    assert_int_equal(bad, 0);
    assert_unchanged(&before);
}

/* 300 problems: the first fifty in full and how many more there are. */
static void many_problems_are_told_at_once(void **state)
{
    (void)state;
    char rows[8192];
    size_t n = 0;
    for (int i = 0; i < 300; i++)
        n += (size_t)snprintf(rows + n, sizeof rows - n, "%s", i % 2 ? GOOD : "{}\n");
    struct answer a = server_upload(&server, "fine-tune", "x.jsonl", rows, n);
    assert_int_equal(a.status, 422);
    assert_int_equal(json_array_size(answer_get(&a, "error.details")), 50);
    assert_int_equal(json_integer_value(answer_get(&a, "error.details.1.line")), 3);
    assert_non_null(answer_str(&a, "error.details.0.reason"));
    answer_clear(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_data_sets_are_refused_with_their_line),
        cmocka_unit_test(a_line_of_absurd_size_is_refused),
        cmocka_unit_test(lying_model_files_are_refused),
        cmocka_unit_test(wrong_jobs_are_refused_with_their_field),
        cmocka_unit_test(a_body_of_absurd_size_is_413),
        cmocka_unit_test(wrong_models_are_refused),
        cmocka_unit_test(many_problems_are_told_at_once),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
