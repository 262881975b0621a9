/* service/router, request, reply: targets, the guard on headers, ranges and error bodies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/auth.h"
#include "service/reply.h"
#include "service/request.h"
#include "service/router.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static int nothing(struct request *r, struct reply *o, struct err *e)
{
    (void)r, (void)o, (void)e;
    return 0;
}

#define ROW(m, p) {m, p, nothing, BODY_NONE, SHAPE_OPENAI, 0}
static const struct route table[] = {
    ROW("GET", "/v1/files"),
    ROW("POST", "/v1/files"),
    ROW("GET", "/v1/files/{id}"),
    ROW("GET", "/v1/files/{id}/content"),
    ROW("GET", "/v1/models/{id+}"),
    ROW("DELETE", "/v1/models/{id+}"),
    ROW("GET", "/api/models/{repo+}/tree/{rev/}"),
    ROW("GET", "/api/models/{repo+}/tree/{rev/}/{path*}"),
    ROW("GET", "/api/models/{repo+}"),
    ROW("GET", "/{repo+}/resolve/{rev/}/{path*}"),
};
enum { NTABLE = sizeof table / sizeof *table };

/* "row: param|param" of a target, or the name of the error. */
static const char *route(const char *method, const char *path)
{
    static char out[512];
    struct err e = ERR_INIT;
    struct arena a;
    struct route_match m;
    arena_init(&a, 1 << 20);
    if (router_find(table, NTABLE, method, path, &a, &m, &e)) {
        snprintf(out, sizeof out, "%s%s%s", err_name(e.code), m.allow[0] ? ": " : "", m.allow);
    } else {
        int n = snprintf(out, sizeof out, "%d:", (int)(m.route - table));
        for (int i = 0; i < ROUTER_PARAMS && m.param[i]; i++)
            n += snprintf(out + n, sizeof out - (size_t)n, " %s", m.param[i]);
    }
    arena_clear(&a);
    return out;
}

static void targets_find_their_row_and_parameters(void **state)
{
    (void)state;
    static const char *const t[][3] = {
        {"GET", "/v1/files", "0:"},
        {"HEAD", "/v1/files", "0:"},
        {"POST", "/v1/files", "1:"},
        {"GET", "/v1/files/file-1", "2: file-1"},
        {"GET", "/v1/files/file%2D1/content", "3: file-1"},
        {"GET", "/v1/models/llama", "4: llama"},
        {"GET", "/v1/models/org/llama", "4: org/llama"},
        {"GET", "/v1/models/org%2Fllama", "4: org/llama"},
        {"GET", "/v1/models/org%2fllama", "4: org/llama"},
        {"DELETE", "/v1/models/ft:a:b:c", "5: ft:a:b:c"},
        {"GET", "/api/models/a/b/tree/main", "6: a/b main"},
        {"GET", "/api/models/a/tree/main", "6: a main"},
        {"GET", "/api/models/a%2Fb/tree/refs%2Fpr%2F1", "6: a/b refs/pr/1"},
        {"GET", "/api/models/a/b/tree/main/x/y%20z", "7: a/b main x/y z"},
        {"GET", "/api/models/a/b", "8: a/b"},
        {"GET", "/a/b/resolve/main/d/f.bin", "9: a/b main d/f.bin"},
        {"GET", "/a/resolve/main/f.bin", "9: a main f.bin"},
        {"GET", "/a/b/resolve/refs%2Fpr%2F1/d%2Ff", "9: a/b refs/pr/1 d/f"},
        {"HEAD", "/a/b/resolve/main/%C3%A9", "9: a/b main \xc3\xa9"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        assert_string_equal(route(t[i][0], t[i][1]), t[i][2]);
}

static void hostile_targets_match_nothing(void **state)
{
    (void)state;
    static const char *const t[][3] = {
        {"GET", "/v1/files/a%2Fb", "not_found"},      /* an id has no slash */
        {"GET", "/v1/files/..", "invalid_argument"},
        {"GET", "/v1/files/%2e%2e", "invalid_argument"},
        {"GET", "/v1/files/%2E", "invalid_argument"},
        {"GET", "/v1/models/..%2fetc", "invalid_argument"},
        {"GET", "/v1/models/a%2f%2e%2e", "invalid_argument"},
        {"GET", "/v1/models/a/b/c", "not_found"},
        {"GET", "/v1/models/a%2Fb%2Fc", "not_found"},
        {"GET", "/v1/models/a%2Fb/c", "not_found"},
        {"GET", "/v1/models/%2Fb", "not_found"},
        {"GET", "/v1/models/a%2F", "not_found"},
        {"GET", "/v1/files/a%00b", "invalid_argument"},
        {"GET", "/v1/files/a%0ab", "invalid_argument"},
        {"GET", "/v1/files/%ff", "invalid_argument"},
        {"GET", "/v1/files/%c0%af", "invalid_argument"}, /* overlong slash */
        {"GET", "/v1/files/%", "invalid_argument"},
        {"GET", "/v1/files/%4", "invalid_argument"},
        {"GET", "/v1/files/%zz", "invalid_argument"},
        {"GET", "/v1/files/", "not_found"},
        {"GET", "/v1//files", "not_found"},
        {"GET", "/v1%2Ffiles", "not_found"},
        {"GET", "/v1/Files", "not_found"},
        {"GET", "/a/b/resolve/main/", "not_found"},
        {"GET", "/a/b/resolve/main/x//y", "not_found"},
        {"GET", "/a/b/resolve/main/x%2f%2fy", "not_found"},
        {"GET", "/a/b/resolve/main/../x", "invalid_argument"},
        {"GET", "/a/b/resolve/..%2f..%2fetc/passwd", "invalid_argument"},
        {"GET", "/", "not_found"},
        {"GET", "", "not_found"},
        {"GET", "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22/23/24/25/26/27/28/29/30"
                "/31/32/33", "not_found"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        if (strcmp(route(t[i][0], t[i][1]), t[i][2]))
            fail_msg("%s: %s, not %s", t[i][1], route(t[i][0], t[i][1]), t[i][2]);
}

static void other_methods_are_told_what_is_allowed(void **state)
{
    (void)state;
    assert_string_equal(route("PUT", "/v1/files"), "unsupported: GET, POST");
    assert_string_equal(route("POST", "/v1/models/a/b"), "unsupported: GET, DELETE");
    assert_string_equal(route("TRACE", "/v1/files/x"), "unsupported: GET");
    assert_string_equal(route("get", "/v1/files"), "unsupported: GET, POST");
}

/* A request with these header lines ("name: value" each). */
static void make(struct request *r, const char *method, const char *target, const char *version,
                 const char *const *headers)
{
    struct err e = ERR_INIT;
    request_init(r);
    r->method = method;
    r->version = version;
    request_set_target(r, target, &e);
    for (int i = 0; headers && headers[i]; i++) {
        char line[256];
        str_copy(line, sizeof line, headers[i]);
        char *colon = strchr(line, ':');
        *colon = 0;
        assert_int_equal(request_add_header(r, line, colon + 2, &e), 0);
    }
}

#define H(...) ((const char *const[]){__VA_ARGS__, NULL})

static void the_guard_lets_only_plain_framing_pass(void **state)
{
    (void)state;
    const struct {
        const char *method, *target, *version;
        const char *const *headers;
        int status; /* 0: passes */
    } t[] = {
        {"GET", "/", "HTTP/1.1", H("Host: a"), 0},
        {"GET", "/", "HTTP/1.0", NULL, 0},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: 5"), 0},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Transfer-Encoding: Chunked"), 0},
        {"GET", "/", "HTTP/1.1", NULL, 400},
        {"GET", "/", "HTTP/1.1", H("Host: a", "host: a"), 400},
        {"GET", "/", "HTTP/2.0", H("Host: a"), 400},
        {"GET", "/", "HTTP/1.2", H("Host: a"), 400},
        {"GET", "/", "", H("Host: a"), 400},
        {"GET", "http://a/", "HTTP/1.1", H("Host: a"), 400},
        {"OPTIONS", "*", "HTTP/1.1", H("Host: a"), 400},
        {"GET", "/#x", "HTTP/1.1", H("Host: a"), 400},
        {"GET", "/\x7f", "HTTP/1.1", H("Host: a"), 400},
        {"GET", "/\xc3\xa9", "HTTP/1.1", H("Host: a"), 400},
        {"G(T", "/", "HTTP/1.1", H("Host: a"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: 5", "Content-Length: 5"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"),
         400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Transfer-Encoding: chunked",
                                    "Transfer-Encoding: chunked"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Transfer-Encoding: identity"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Transfer-Encoding: gzip, chunked"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Transfer-Encoding: xchunked"), 400},
        {"POST", "/", "HTTP/1.0", H("Host: a", "Transfer-Encoding: chunked"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: +5"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: 0x5"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: 5, 5"), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: "), 400},
        {"POST", "/", "HTTP/1.1", H("Host: a", "Content-Length: 9999999999999999999"), 400},
        {"GET", "/", "HTTP/1.1", H("Host: a", "X-A : 1"), 400},
        {"GET", "/", "HTTP/1.1", H("Host: a", "X-A: a\x01" "b"), 400},
        {"GET", "/", "HTTP/1.1", H("Host: a", "X-A: a\tb"), 0},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct request r;
        struct err e = ERR_INIT;
        int status = 0;
        make(&r, t[i].method, t[i].target, t[i].version, t[i].headers);
        int rc = request_guard(&r, &status, &e);
        if (rc != (t[i].status ? -1 : 0) || (rc && status != t[i].status))
            fail_msg("row %zu: rc %d status %d", i, rc, status);
        request_clear(&r);
    }
}

static void targets_and_headers_are_limited(void **state)
{
    (void)state;
    char big[REQUEST_TARGET_BYTES + 2];
    for (int over = 0; over < 2; over++) {
        struct request r;
        struct err e = ERR_INIT;
        int status = 0;
        memset(big, 'a', sizeof big);
        big[0] = '/';
        big[REQUEST_TARGET_BYTES + over] = 0;
        make(&r, "GET", big, "HTTP/1.1", H("Host: a"));
        assert_int_equal(request_guard(&r, &status, &e), over ? -1 : 0);
        if (over) assert_int_equal(status, 414);
        request_clear(&r);
    }
    struct request r;
    struct err e = ERR_INIT;
    int status = 0;
    make(&r, "GET", "/", "HTTP/1.1", H("Host: a"));
    big[8000] = 0;
    for (int i = 0; i < 4; i++) assert_int_equal(request_add_header(&r, "x", big, &e), 0);
    assert_int_equal(request_guard(&r, &status, &e), 0);
    assert_int_equal(request_add_header(&r, "x", big, &e), 0);
    assert_int_equal(request_guard(&r, &status, &e), -1);
    assert_int_equal(status, 431);
    while (r.nheader < REQUEST_HEADERS) assert_int_equal(request_add_header(&r, "x", "", &e), 0);
    assert_int_equal(request_add_header(&r, "x", "", &e), -1);
    request_clear(&r);
}

static void queries_are_decoded_and_checked(void **state)
{
    (void)state;
    struct request r;
    struct err e = ERR_INIT;
    int64_t n = 20;
    make(&r, "GET", "/v1/files?limit=7&metadata%5Ba+b%5D=x%26y&after&&=", "HTTP/1.1", NULL);
    assert_string_equal(r.path, "/v1/files");
    assert_string_equal(request_query(&r, "metadata[a b]"), "x&y");
    assert_string_equal(request_query(&r, "after"), "");
    assert_int_equal(request_query_int(&r, "limit", 1, 100, &n, &e), 0);
    assert_int_equal(n, 7);
    assert_int_equal(request_query_int(&r, "limit", 1, 5, &n, &e), -1);
    assert_int_equal(e.code, E_RANGE);
    assert_string_equal(e.param, "limit");
    assert_int_equal(n, 7);
    err_clear(&e);
    assert_int_equal(request_query_only(&r, H("limit", "metadata[", "after", ""), &e), 0);
    assert_int_equal(request_query_only(&r, H("limit", "after", ""), &e), -1);
    assert_string_equal(e.param, "metadata[a b]");
    request_clear(&r);
}

/* The reply to a request with these headers for a file of 10 bytes: "status offset size". */
static const char *file_reply(const char *method, const char *const *headers)
{
    static char out[64];
    struct request r;
    struct reply o;
    struct err e = ERR_INIT;
    make(&r, method, "/f", "HTTP/1.1", headers);
    reply_init(&o, &r.arena);
    int fd = open("/dev/null", O_RDONLY);
    const struct reply_file f = {fd, 10, "application/octet-stream", "abc"};
    assert_int_equal(reply_file(&o, &r, &f, &e), 0);
    const char *range = "";
    for (int i = 0; i < o.nheader; i++)
        if (str_eq(o.header[i].name, "Content-Range")) range = o.header[i].value;
    snprintf(out, sizeof out, "%d %lld+%lld %s", o.status, (long long)o.offset, (long long)o.size,
             range);
    reply_clear(&o);
    request_clear(&r);
    return out;
}

static void ranges_follow_the_rules(void **state)
{
    (void)state;
    static const char *const t[][2] = {
        {"bytes=0-3", "206 0+4 bytes 0-3/10"},
        {"bytes=4-", "206 4+6 bytes 4-9/10"},
        {"bytes=-3", "206 7+3 bytes 7-9/10"},
        {"bytes=-99", "206 0+10 bytes 0-9/10"},
        {"bytes=9-9", "206 9+1 bytes 9-9/10"},
        {"bytes=0-99999999999999999999", "206 0+10 bytes 0-9/10"},
        {"bytes=10-", "416 0+0 bytes */10"},
        {"bytes=-0", "416 0+0 bytes */10"},
        {"bytes=99999999999999999999-", "416 0+0 bytes */10"},
        {"bytes=3-2", "200 0+10 "},
        {"bytes=0-1,3-4", "200 0+10 "},
        {"bytes= 0-1", "200 0+10 "},
        {"bytes=a-1", "200 0+10 "},
        {"bytes=1", "200 0+10 "},
        {"bytes=-", "200 0+10 "},
        {"items=0-1", "200 0+10 "},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        char line[64];
        snprintf(line, sizeof line, "Range: %s", t[i][0]);
        assert_string_equal(file_reply("GET", H(line)), t[i][1]);
    }
    assert_string_equal(file_reply("HEAD", H("Range: bytes=0-3")), "200 0+10 ");
    assert_string_equal(file_reply("GET", H("Range: bytes=0-3", "If-Range: \"abc\"")),
                        "206 0+4 bytes 0-3/10");
    assert_string_equal(file_reply("GET", H("Range: bytes=0-3", "If-Range: \"old\"")),
                        "200 0+10 ");
    assert_string_equal(file_reply("GET", H("If-None-Match: \"x\", W/\"abc\"")), "304 0+0 ");
    assert_string_equal(file_reply("GET", H("If-None-Match: *")), "304 0+0 ");
    assert_string_equal(file_reply("GET", H("If-None-Match: \"abcd\"")), "200 0+10 ");
}

static const char *header_of(const struct reply *o, const char *name)
{
    for (int i = 0; i < o->nheader; i++)
        if (str_eq(o->header[i].name, name)) return o->header[i].value;
    return NULL;
}

static void errors_have_the_shape_of_their_route(void **state)
{
    (void)state;
    struct request r;
    struct reply o;
    struct err e = ERR_INIT;
    make(&r, "GET", "/", "HTTP/1.1", NULL);
    reply_init(&o, &r.arena);
    err_set(&e, E_RANGE, "bad \xff \"quote\"");
    err_param(&e, "method.lora.hyperparameters.r");
    reply_error(&o, &r, &e);
    assert_int_equal(o.status, 400);
    assert_string_equal(o.bytes, "{\"error\":{\"message\":\"bad ? \\\"quote\\\"\",\"type\":"
                                 "\"invalid_request_error\",\"param\":"
                                 "\"method.lora.hyperparameters.r\",\"code\":\"out_of_range\"}}");
    reply_clear(&o);

    r.shape = SHAPE_HUB;
    reply_init(&o, &r.arena);
    err_clear(&e);
    err_set(&e, E_NOTFOUND, "no\nsuch");
    reply_fail(&o, 404, "EntryNotFound");
    reply_error(&o, &r, &e);
    assert_string_equal(o.bytes, "{\"error\":\"no such\"}");
    assert_string_equal(header_of(&o, "X-Error-Code"), "EntryNotFound");
    assert_string_equal(header_of(&o, "X-Error-Message"), "no such");
    reply_clear(&o);
    request_clear(&r);
}

static void permanent_conflicts_are_not_to_be_retried(void **state)
{
    (void)state;
    static const struct {
        enum errc code;
        int status;
        const char *retry;
    } t[] = {{E_CONFLICT, 409, "false"}, {E_NOSPACE, 507, "false"}, {E_NOMEM, 503, NULL},
             {E_ARG, 400, NULL},         {E_IO, 500, NULL}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct request r;
        struct reply o;
        struct err e = ERR_INIT;
        make(&r, "GET", "/", "HTTP/1.1", NULL);
        reply_init(&o, &r.arena);
        err_set(&e, t[i].code, "cannot open /secret/path");
        reply_error(&o, &r, &e);
        assert_int_equal(o.status, t[i].status);
        const char *retry = header_of(&o, "x-should-retry");
        assert_true(str_eq(retry, t[i].retry));
        /* What the server's own files are called is nobody's business. */
        assert_int_equal(strstr(o.bytes, "/secret") == NULL, t[i].status >= 500);
        reply_clear(&o);
        request_clear(&r);
    }
}

static int auth(const char *key, const char *const *headers, bool open)
{
    struct request r;
    struct reply o;
    struct err e = ERR_INIT;
    const struct auth a = {key, "graft, other.example"};
    make(&r, "GET", "/", "HTTP/1.1", headers);
    reply_init(&o, &r.arena);
    int rc = auth_check(&a, &r, open, &o, &e);
    int status = rc ? o.fail_status : 0;
    reply_clear(&o);
    request_clear(&r);
    return status;
}

static void keys_hosts_and_origins_are_checked(void **state)
{
    (void)state;
    assert_int_equal(auth("", H("Host: 127.0.0.1:80"), false), 0);
    assert_int_equal(auth("", H("Host: [::1]:80"), false), 0);
    assert_int_equal(auth("", H("Host: localhost"), false), 0);
    assert_int_equal(auth("", H("Host: 192.0.2.7:80"), false), 0);
    assert_int_equal(auth("", H("Host: GRAFT:80"), false), 0);
    assert_int_equal(auth("", H("Host: other.example"), false), 0);
    assert_int_equal(auth("", H("Host: evil.example"), false), 421);
    assert_int_equal(auth("", H("Host: graft.evil.example"), true), 421);
    assert_int_equal(auth("", H("Host: [::1"), false), 421);
    assert_int_equal(auth("", H("Host: 127.0.0.1.evil.example"), false), 421);
    assert_int_equal(auth("", H("Host: localhost:80", "Origin: http://localhost:80"), false), 0);
    assert_int_equal(auth("", H("Host: localhost:80", "Origin: http://evil.example"), false), 403);
    assert_int_equal(auth("", H("Host: localhost:80", "Origin: null"), false), 403);
    assert_int_equal(auth("secret", H("Host: x"), true), 0);
    assert_int_equal(auth("secret", H("Host: x"), false), 401);
    assert_int_equal(auth("secret", H("Host: x", "Authorization: Bearer secret"), false), 0);
    assert_int_equal(auth("secret", H("Host: x", "Authorization: bearer  secret"), false), 0);
    assert_int_equal(auth("secret", H("Host: x", "Authorization: Bearer secre"), false), 401);
    assert_int_equal(auth("secret", H("Host: x", "Authorization: Bearer secrets"), false), 401);
    assert_int_equal(auth("secret", H("Host: x", "Authorization: Basic secret"), false), 401);
    assert_int_equal(auth("secret", H("Host: x", "Authorization: Bearer "), false), 401);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(targets_find_their_row_and_parameters),
        cmocka_unit_test(hostile_targets_match_nothing),
        cmocka_unit_test(other_methods_are_told_what_is_allowed),
        cmocka_unit_test(the_guard_lets_only_plain_framing_pass),
        cmocka_unit_test(targets_and_headers_are_limited),
        cmocka_unit_test(queries_are_decoded_and_checked),
        cmocka_unit_test(ranges_follow_the_rules),
        cmocka_unit_test(errors_have_the_shape_of_their_route),
        cmocka_unit_test(permanent_conflicts_are_not_to_be_retried),
        cmocka_unit_test(keys_hosts_and_origins_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
