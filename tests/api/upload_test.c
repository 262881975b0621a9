/* Uploads: whatever the order of parts and the framing, the bytes arrive; what fails leaves
 * nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/err.h"
#include "engine/base/hash.h"
#include "tests/lib/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TYPE "Content-Type: multipart/form-data; boundary=b"
#define PART "--b\r\nContent-Disposition: form-data; name="
#define FIELD(name, value) PART "\"" name "\"\r\n\r\n" value "\r\n"
#define FILE_PART(name, value) PART "\"file\"; filename=\"" name "\"\r\n" \
    "Content-Type: application/octet-stream\r\n\r\n" value "\r\n"
#define END "--b--\r\n"

static struct server server;

static int set_up(void **state)
{
    static const char *const args[] = {"--file-max-bytes", "33554432", NULL};
    (void)state;
    server_start(&server, args);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    server_remove(&server);
    return 0;
}

static struct answer post(const char *body, size_t n, bool chunked)
{
    const char *const headers[] = {TYPE, "Expect:", chunked ? "Transfer-Encoding: chunked" : NULL,
                                   NULL};
    return server_call(&server, &(struct call){"POST", "/v1/files", headers, body, n});
}

static int files(void)
{
    struct answer a = server_get(&server, "/v1/files");
    int n = (int)json_array_size(answer_get(&a, "data"));
    answer_clear(&a);
    return n;
}

/* Nothing half-done is on disk; how many files and blobs there are. */
static void assert_holds(int nfiles, int nblobs)
{
    assert_int_equal(files(), nfiles);
    assert_int_equal(server_count_files(&server, "blobs"), nblobs);
    assert_int_equal(server_count_files(&server, "spool"), 0);
}

static void parts_come_in_any_order_and_framing(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        FIELD("purpose", "user_data") FILE_PART("a.txt", "hello") END,
        FILE_PART("a.txt", "hello") FIELD("purpose", "user_data") END,
        FIELD("expires_after[anchor]", "created_at") FILE_PART("a.txt", "hello")
            FIELD("purpose", "user_data") FIELD("expires_after[seconds]", "3600") END,
    };
    for (int i = 0; i < 6; i++) {
        struct answer a = post(bodies[i / 2], strlen(bodies[i / 2]), i % 2);
        if (a.status != 200) fail_msg("row %d: %ld %s", i, a.status, a.body);
        assert_int_equal(json_integer_value(answer_get(&a, "bytes")), 5);
        assert_string_equal(answer_str(&a, "filename"), "a.txt");
        assert_string_equal(answer_str(&a, "purpose"), "user_data");
        assert_string_equal(answer_str(&a, "object"), "file");
        json_int_t created = json_integer_value(answer_get(&a, "created_at"));
        assert_true(llabs(created - (json_int_t)time(NULL)) < 60);
        if (i >= 4)
            assert_int_equal(json_integer_value(answer_get(&a, "expires_at")), created + 3600);
        char path[128];
        snprintf(path, sizeof path, "/v1/files/%s", answer_str(&a, "id"));
        answer_clear(&a);
        a = server_delete(&server, path);
        assert_true(json_is_true(answer_get(&a, "deleted")));
        answer_clear(&a);
        a = server_get(&server, path);
        assert_int_equal(a.status, 404);
        assert_string_equal(answer_str(&a, "error.code"), "file_not_found");
        answer_clear(&a);
    }
    assert_holds(0, 0);
}

/* The chunk border falls on every byte near the delimiters. */
static void chunk_borders_do_not_matter(void **state)
{
    (void)state;
    static const char body[] = FILE_PART("a", "\r\n--c\r\n") FIELD("purpose", "user_data") END;
    size_t n = sizeof body - 1;
    for (size_t cut = 1; cut < n; cut += cut < 20 || cut > 80 ? 9 : 3) {
        char b[1024];
        struct raw got;
        int k = snprintf(b, sizeof b, "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n" TYPE "\r\n"
                         "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                         "%zx\r\n%.*s\r\n%zx\r\n%s\r\n0\r\n\r\n",
                         cut, (int)cut, body, n - cut, body + cut);
        server_raw(&server, b, (size_t)k, &got);
        if (got.status != 200) fail_msg("cut %zu: %s", cut, got.text);
        assert_non_null(strstr(got.text, "\"bytes\":7,"));
    }
    struct answer list = server_get(&server, "/v1/files");
    for (size_t i = 0; i < json_array_size(answer_get(&list, "data")); i++) {
        char key[32], path[128];
        snprintf(key, sizeof key, "data.%zu.id", i);
        snprintf(path, sizeof path, "/v1/files/%s", answer_str(&list, key));
        struct answer a = server_delete(&server, path);
        assert_int_equal(a.status, 200);
        answer_clear(&a);
    }
    answer_clear(&list);
    assert_holds(0, 0);
}

/* Rows of JSONL, 30 MB together. */
static char *many_rows(size_t *n)
{
    enum { BYTES = 30 << 20 };
    char *p = malloc(BYTES + 4096);
    size_t k = 0;
    assert_non_null(p);
    for (int i = 0; k < BYTES; i++)
        k += (size_t)snprintf(p + k, 4096, "{\"text\": \"row %d of a file that is sent in many "
                              "pieces: the quick brown fox jumps over the lazy dog\"}\n", i);
    *n = k;
    return p;
}

static void a_large_file_comes_back_byte_for_byte(void **state)
{
    (void)state;
    size_t n;
    struct err e = ERR_INIT;
    char *p = many_rows(&n), id[64], path[128], sha[65], etag[70];
    assert_int_equal(hash_sha256(p, n, sha, &e), 0);
    server_upload_ok(&server, "fine-tune", "large.jsonl", p, n, id);
    snprintf(path, sizeof path, "/v1/files/%s/content", id);
    snprintf(etag, sizeof etag, "\"%s\"", sha);

    struct answer a = server_get(&server, path);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.n, n);
    assert_memory_equal(a.body, p, n);
    assert_string_equal(answer_header(&a, "etag"), etag);
    assert_string_equal(answer_header(&a, "content-type"), "application/octet-stream");
    assert_string_equal(answer_header(&a, "content-disposition"),
                        "attachment; filename=\"large.jsonl\"; filename*=UTF-8''large.jsonl");
    answer_clear(&a);

    static const char *const range[] = {"Range: bytes=1000000-1000099", NULL};
    a = server_call(&server, &(struct call){"GET", path, range, NULL, 0});
    assert_int_equal(a.status, 206);
    assert_int_equal(a.n, 100);
    assert_memory_equal(a.body, p + 1000000, 100);
    char want[64];
    snprintf(want, sizeof want, "bytes 1000000-1000099/%zu", n);
    assert_string_equal(answer_header(&a, "content-range"), want);
    answer_clear(&a);

    char line[100];
    snprintf(line, sizeof line, "If-None-Match: %s", etag);
    const char *const known[] = {line, NULL};
    a = server_call(&server, &(struct call){"GET", path, known, NULL, 0});
    assert_int_equal(a.status, 304);
    assert_int_equal(a.n, 0);
    answer_clear(&a);

    a = server_call(&server, &(struct call){.method = "HEAD", .path = path});
    assert_int_equal(a.status, 200);
    assert_int_equal(answer_number(&a, "content-length"), (long)n);
    assert_int_equal(a.n, 0);
    answer_clear(&a);

    /* The same bytes again share the blob; it goes with the last file. */
    char again[64];
    server_upload_ok(&server, "fine-tune", "copy.jsonl", p, n, again);
    assert_holds(2, 1);
    snprintf(path, sizeof path, "/v1/files/%s", id);
    a = server_delete(&server, path);
    answer_clear(&a);
    assert_holds(1, 1);
    snprintf(path, sizeof path, "/v1/files/%s", again);
    a = server_delete(&server, path);
    answer_clear(&a);
    assert_holds(0, 0);
    free(p);
}

static void a_file_over_the_limit_is_413_and_gone(void **state)
{
    (void)state;
    size_t limit = 32 << 20, n = limit + 300;
    static const char head[] = FIELD("purpose", "user_data")
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n";
    char *p = calloc(1, n);
    for (int over = 0; over < 2; over++) {
        for (int chunked = 0; chunked < 2; chunked++) {
            size_t file = limit + (size_t)over, k = sizeof head - 1;
            memcpy(p, head, k);
            memset(p + k, 'x', file);
            memcpy(p + k + file, "\r\n" END, sizeof END + 1);
            struct answer a = post(p, k + file + sizeof END + 1, chunked);
            assert_int_equal(a.status, over ? 413 : 200);
            if (over) {
                assert_string_equal(answer_str(&a, "error.param"), "file");
                assert_string_equal(answer_str(&a, "error.type"), "invalid_request_error");
                answer_clear(&a);
                assert_holds(0, 0);
                continue;
            }
            char path[128];
            snprintf(path, sizeof path, "/v1/files/%s", answer_str(&a, "id"));
            answer_clear(&a);
            a = server_delete(&server, path);
            answer_clear(&a);
        }
    }
    free(p);
}

#define USER_FILE FIELD("purpose", "user_data") FILE_PART("a", "x")
#define ANCHOR FIELD("expires_after[anchor]", "created_at")

static void malformed_forms_are_4xx_and_leave_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        int status;
        const char *param;
    } t[] = {
        {"", 400, NULL},
        {"--b", 400, NULL},
        {FILE_PART("a", "x"), 400, NULL}, /* no closing delimiter */
        {FIELD("purpose", "user_data") FILE_PART("a", "x") "--b", 400, NULL},
        {"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" END, 400, NULL},
        {"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n"
         "Content-Transfer-Encoding: base64\r\n\r\nx\r\n" END, 422, NULL},
        {END, 400, "file"},
        {FILE_PART("a", "x") END, 400, "purpose"},
        {FIELD("purpose", "user_data") END, 400, "file"},
        {FIELD("purpose", "user_data") FIELD("file", "x") END, 400, "file"},
        {FIELD("purpose", "") FILE_PART("a", "x") END, 400, "purpose"},
        {FIELD("purpose", "no such") FILE_PART("a", "x") END, 400, "purpose"},
        {FIELD("purpose", "user_data") FIELD("purpose", "batch") FILE_PART("a", "x") END, 400,
         "purpose"},
        {FIELD("purpose", "user_data") FIELD("other", "x") FILE_PART("a", "x") END, 400, "other"},
        {FIELD("purpose", "user_data") FILE_PART("a", "x") FILE_PART("b", "y") END, 400, "file"},
        {FIELD("purpose", "user_\xff") FILE_PART("a", "x") END, 400, "purpose"},
        {FIELD("purpose", "user_data") FILE_PART("a", "") END, 422, "file"},
        {FIELD("purpose", "user_data") FILE_PART("", "x") END, 400, "file"},
        {FIELD("purpose", "user_data") FILE_PART("../../etc/passwd", "x") END, 400, "file"},
        {FIELD("purpose", "user_data") FILE_PART("a/b", "x") END, 400, "file"},
        {FIELD("purpose", "user_data") FILE_PART("a\\b", "x") END, 400, "file"},
        {FIELD("purpose", "user_data") FILE_PART("..", "x") END, 400, "file"},
        {USER_FILE FIELD("expires_after[anchor]", "now") FIELD("expires_after[seconds]", "3600")
         END, 400, "expires_after[anchor]"},
        {USER_FILE ANCHOR FIELD("expires_after[seconds]", "3599") END, 400,
         "expires_after[seconds]"},
        {USER_FILE ANCHOR FIELD("expires_after[seconds]", "soon") END, 400,
         "expires_after[seconds]"},
        {USER_FILE ANCHOR END, 400, "expires_after[seconds]"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct answer a = post(t[i].body, strlen(t[i].body), i % 2);
        const char *param = answer_str(&a, "error.param");
        bool same = t[i].param ? param && !strcmp(param, t[i].param) : !param;
        if (a.status != t[i].status || !same)
            fail_msg("row %zu: %ld (want %d) %s", i, a.status, t[i].status, a.body);
        answer_clear(&a);
    }
    assert_holds(0, 0);
}

static void another_content_type_is_415(void **state)
{
    (void)state;
    static const char *const types[] = {"text/plain", "application/json",
                                        "multipart/form-data", "multipart/mixed; boundary=b"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char line[128];
        snprintf(line, sizeof line, "Content-Type: %s", types[i]);
        const char *const headers[] = {line, NULL};
        struct call c = {"POST", "/v1/files", headers, "{}", 2};
        struct answer a = server_call(&server, &c);
        assert_int_equal(a.status, 415);
        answer_clear(&a);
    }
}

/* Sends the first n bytes of an upload of `length` bytes and leaves the socket open. */
static int half_upload(size_t length, const char *p, size_t n)
{
    char head[256];
    int fd = server_connect(&server);
    int k = snprintf(head, sizeof head, "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n" TYPE "\r\n"
                     "Content-Length: %zu\r\n\r\n", length);
    assert_int_equal(send(fd, head, (size_t)k, MSG_NOSIGNAL), k);
    for (size_t i = 0; i < n;) {
        ssize_t sent = send(fd, p + i, n - i, MSG_NOSIGNAL);
        assert_true(sent > 0);
        i += (size_t)sent;
    }
    return fd;
}

/* Until so many files are in the spool folder; fails after two seconds. */
static void wait_spool(int n)
{
    for (int i = 0; i < 200; i++) {
        if (server_count_files(&server, "spool") == n) return;
        usleep(10000);
    }
    fail_msg("%d files in the spool folder, not %d", server_count_files(&server, "spool"), n);
}

static void a_cut_connection_leaves_nothing(void **state)
{
    (void)state;
    static const char body[] = FIELD("purpose", "user_data") FILE_PART("a", "0123456789") END;
    size_t n = sizeof body - 1;
    for (size_t cut = 0; cut < n; cut += 23) {
        int fd = half_upload(n, body, cut);
        if (cut > n - 30) wait_spool(1);
        close(fd);
    }
    wait_spool(0);
    assert_holds(0, 0);
}

static void a_killed_server_shows_nothing_of_an_upload(void **state)
{
    (void)state;
    size_t n = 1 << 20;
    static const char *const args[] = {"--file-max-bytes", "33554432", NULL};
    static const char head[] = FIELD("purpose", "user_data")
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n";
    char *p = malloc(n), id[64];
    server_upload_ok(&server, "user_data", "kept.txt", "kept", 4, id);
    memcpy(p, head, sizeof head - 1);
    memset(p + sizeof head - 1, 'x', n - (sizeof head - 1));
    int fd = half_upload(2 * n, p, n);
    wait_spool(1);
    server_kill(&server);
    close(fd);
    assert_int_equal(server_count_files(&server, "spool"), 1);
    server_restart(&server, args);
    assert_holds(1, 1);
    char path[128];
    snprintf(path, sizeof path, "/v1/files/%s/content", id);
    struct answer a = server_get(&server, path);
    assert_string_equal(a.body, "kept");
    answer_clear(&a);
    snprintf(path, sizeof path, "/v1/files/%s", id);
    a = server_delete(&server, path);
    answer_clear(&a);
    free(p);
}

static void an_idempotency_key_makes_one_file(void **state)
{
    (void)state;
    static const char a1[] = FIELD("purpose", "user_data") FILE_PART("a", "one") END;
    static const char a2[] = FIELD("purpose", "user_data") FILE_PART("a", "two") END;
    static const char *const headers[] = {TYPE, "Idempotency-Key: key-1", NULL};
    static const char *const other[] = {TYPE, "X-Idempotency-Key: key-1", NULL};
    static const char *const empty[] = {TYPE, "Idempotency-Key;", NULL};
    struct call c = {"POST", "/v1/files", headers, a1, sizeof a1 - 1};
    struct answer first = server_call(&server, &c);
    assert_int_equal(first.status, 200);
    struct answer again = server_call(&server, &c);
    assert_int_equal(again.status, 200);
    assert_string_equal(first.body, again.body);
    answer_clear(&again);
    c.headers = other;
    again = server_call(&server, &c);
    assert_string_equal(first.body, again.body);
    answer_clear(&again);
    c.body = a2;
    c.n = sizeof a2 - 1;
    again = server_call(&server, &c);
    assert_int_equal(again.status, 422);
    answer_clear(&again);
    c.headers = empty;
    again = server_call(&server, &c);
    assert_int_equal(again.status, 400);
    assert_string_equal(answer_str(&again, "error.param"), "Idempotency-Key");
    answer_clear(&again);
    assert_holds(1, 1);
    char path[128];
    snprintf(path, sizeof path, "/v1/files/%s", answer_str(&first, "id"));
    answer_clear(&first);
    again = server_delete(&server, path);
    answer_clear(&again);
}

static void many_clients_at_once_are_all_answered(void **state)
{
    (void)state;
    enum { CLIENTS = 16, EACH = 8 };
    pid_t pid[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        pid[i] = fork();
        if (pid[i]) continue;
        for (int k = 0; k < EACH; k++) {
            char row[64], id[64], path[128];
            int n = snprintf(row, sizeof row, "{\"text\": \"%d %d\"}\n", i, k);
            server_upload_ok(&server, "fine-tune", "row.jsonl", row, (size_t)n, id);
            snprintf(path, sizeof path, "/v1/files/%s/content", id);
            struct answer a = server_get(&server, path);
            if (a.status != 200 || strcmp(a.body, row)) _exit(1);
            answer_clear(&a);
            snprintf(path, sizeof path, "/v1/files/%s", id);
            a = server_delete(&server, path);
            if (a.status != 200) _exit(1);
            answer_clear(&a);
        }
        _exit(0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        int status = -1;
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_int_equal(status, 0);
    }
    assert_holds(0, 0);
}

static void lists_are_paged_and_never_loop(void **state)
{
    (void)state;
    char ids[7][64], path[256];
    for (int i = 0; i < 7; i++)
        server_upload_ok(&server, i % 2 ? "batch" : "user_data", "f", "x", 1, ids[i]);
    /* Pages of three, newest first, as the SDKs ask for them. */
    char seen[2048] = "", after[80] = "";
    size_t used = 0;
    int pages = 0;
    for (bool more = true; more; pages++) {
        snprintf(path, sizeof path, "/v1/files?limit=3%s%s", *after ? "&after=" : "", after);
        struct answer a = server_get(&server, path);
        assert_string_equal(answer_str(&a, "object"), "list");
        size_t n = json_array_size(answer_get(&a, "data"));
        for (size_t i = 0; i < n; i++) {
            char key[32];
            snprintf(key, sizeof key, "data.%zu.id", i);
            used += (size_t)snprintf(seen + used, sizeof seen - used, "%s ", answer_str(&a, key));
        }
        snprintf(after, sizeof after, "%s", answer_str(&a, "last_id"));
        assert_non_null(answer_str(&a, "first_id"));
        more = json_is_true(answer_get(&a, "has_more"));
        answer_clear(&a);
    }
    assert_int_equal(pages, 3);
    char want[2048];
    used = 0;
    for (int i = 6; i >= 0; i--)
        used += (size_t)snprintf(want + used, sizeof want - used, "%s ", ids[i]);
    assert_string_equal(seen, want);

    struct answer a = server_get(&server, "/v1/files?order=asc&limit=1");
    assert_string_equal(answer_str(&a, "data.0.id"), ids[0]);
    answer_clear(&a);
    a = server_get(&server, "/v1/files?purpose=batch");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 3);
    answer_clear(&a);

    static const struct {
        const char *query;
        int status;
        const char *param;
    } bad[] = {
        {"after=file-unknown", 404, "after"}, {"limit=0", 400, "limit"},
        {"limit=10001", 400, "limit"},        {"limit=many", 400, "limit"},
        {"order=up", 400, "order"},           {"page=2", 400, "page"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(path, sizeof path, "/v1/files?%s", bad[i].query);
        a = server_get(&server, path);
        assert_int_equal(a.status, bad[i].status);
        assert_string_equal(answer_str(&a, "error.param"), bad[i].param);
        answer_clear(&a);
    }
    for (int i = 0; i < 7; i++) {
        snprintf(path, sizeof path, "/v1/files/%s", ids[i]);
        a = server_delete(&server, path);
        answer_clear(&a);
    }
    a = server_get(&server, "/v1/files");
    assert_false(json_is_true(answer_get(&a, "has_more")));
    assert_true(json_is_null(answer_get(&a, "first_id")));
    answer_clear(&a);
    assert_holds(0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_come_in_any_order_and_framing),
        cmocka_unit_test(chunk_borders_do_not_matter),
        cmocka_unit_test(a_large_file_comes_back_byte_for_byte),
        cmocka_unit_test(a_file_over_the_limit_is_413_and_gone),
        cmocka_unit_test(malformed_forms_are_4xx_and_leave_nothing),
        cmocka_unit_test(another_content_type_is_415),
        cmocka_unit_test(a_cut_connection_leaves_nothing),
        cmocka_unit_test(a_killed_server_shows_nothing_of_an_upload),
        cmocka_unit_test(an_idempotency_key_makes_one_file),
        cmocka_unit_test(many_clients_at_once_are_all_answered),
        cmocka_unit_test(lists_are_paged_and_never_loop),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
