/* The guard of the HTTP layer: what raw bytes get, and what becomes of the connection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/server.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define R11(method, target, headers) \
    method " " target " HTTP/1.1\r\nHost: localhost\r\n" headers "\r\n"
#define GET(target, headers) R11("GET", target, headers)
#define POST(target, headers) R11("POST", target, headers)
#define JSON "Content-Type: application/json\r\n"
#define LENGTH(n) "Content-Length: " n "\r\n"
#define CODING(c) "Transfer-Encoding: " c "\r\n"
#define PLAN(headers) POST("/v1/plans", JSON headers)
#define JOB(headers) POST("/v1/fine_tuning/jobs", JSON headers)
/* Would be answered with 200 if the bytes before it were cut at the wrong place. */
#define SMUGGLED "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"

enum fate { KEPT, CLOSED, WAITS };

struct row {
    const char *what, *bytes;
    int status; /* 0: no reply */
    enum fate fate;
};

static const struct row rows[] = {
    {"plain", GET("/healthz", ""), 200, KEPT},
    {"http/1.0", "GET /healthz HTTP/1.0\r\n\r\n", 200, CLOSED},
    {"http/1.0 with host", "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", 200, CLOSED},
    {"asks to close", GET("/healthz", "Connection: close\r\n"), 200, CLOSED},
    {"head", R11("HEAD", "/healthz", ""), 200, KEPT},
    {"empty line before", "\r\n" GET("/healthz", ""), 200, KEPT},
    {"query", GET("/v1/files?limit=1", ""), 200, KEPT},

    {"no host", "GET /healthz HTTP/1.1\r\n\r\n", 400, CLOSED},
    {"two hosts", GET("/healthz", "Host: localhost\r\n"), 400, CLOSED},
    {"two hosts, other case", GET("/healthz", "hOST: other\r\n"), 400, CLOSED},
    {"foreign host", "GET /v1/files HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, KEPT},
    {"foreign host in capitals", "GET /v1/files HTTP/1.1\r\nHost: EVIL.example:80\r\n\r\n", 421,
     KEPT},
    {"foreign origin", POST("/v1/plans", "Origin: http://evil.example\r\n" JSON LENGTH("2")) "{}",
     403, KEPT},
    {"http/1.2", "GET /healthz HTTP/1.2\r\nHost: localhost\r\n\r\n", 400, CLOSED},
    {"http/2.0", "GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, CLOSED},
    {"http/0.9", "GET /healthz\r\n\r\n", 400, CLOSED},
    {"no http", "HELLO\r\n\r\n", 0, CLOSED},
    {"lower-case version", "GET /healthz http/1.1\r\nHost: localhost\r\n\r\n", 400, CLOSED},
    {"http2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, CLOSED},
    {"tls hello", "\x16\x03\x01\x02\x01\xfc\x03\x03\r\n\r\n", 0, CLOSED},

    {"absolute form", "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400,
     CLOSED},
    {"connect", "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, CLOSED},
    {"star", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, CLOSED},
    {"no slash", "GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, CLOSED},
    {"fragment", GET("/healthz#x", ""), 400, CLOSED},
    {"raw utf-8 in the target", GET("/v1/files/\xc3\xa9", ""), 400, CLOSED},
    {"control character in the target", GET("/v1/files/\x01", ""), 400, CLOSED},
    {"delete character in the target", GET("/v1/files/\x7f", ""), 400, CLOSED},

    {"encoded nul", GET("/v1/files/a%00b", ""), 400, KEPT},
    {"encoded newline", GET("/v1/files/a%0d%0ab", ""), 400, KEPT},
    {"encoded dots", GET("/v1/files/%2e%2e", ""), 400, KEPT},
    {"encoded dots and slashes", GET("/a/b/resolve/main/..%2f..%2fetc%2fpasswd", ""), 400, KEPT},
    {"plain dots", GET("/v1/../healthz", ""), 400, KEPT},
    {"single dot", GET("/./healthz", ""), 400, KEPT},
    {"overlong slash", GET("/v1/files/%c0%af", ""), 400, KEPT},
    {"cut escape", GET("/v1/files/%4", ""), 400, KEPT},
    {"bad escape in the query", GET("/v1/files?after=%zz", ""), 400, KEPT},
    {"nul in the query", GET("/v1/files?after=%00", ""), 400, KEPT},
    {"slash inside an id", GET("/v1/files/a%2fb", ""), 404, KEPT},
    {"slash inside a literal", GET("/v1%2ffiles", ""), 404, KEPT},
    {"double slash", GET("//v1/files", ""), 404, KEPT},
    {"backslash", GET("/v1/files/..%5c..%5cx", ""), 404, KEPT},

    {"trace", R11("TRACE", "/v1/files", ""), 405, KEPT},
    {"put", R11("PUT", "/v1/files", LENGTH("0")), 405, KEPT},
    {"lower-case get", R11("get", "/v1/files", ""), 405, KEPT},
    {"unknown method", R11("BREW", "/v1/files", ""), 405, KEPT},
    {"malformed method", R11("G(T", "/v1/files", ""), 400, CLOSED},

    {"length and chunked", PLAN(LENGTH("4") CODING("chunked")) "2\r\n{}\r\n0\r\n\r\n" SMUGGLED,
     400, CLOSED},
    {"chunked and length", PLAN(CODING("chunked") LENGTH("4")) "2\r\n{}\r\n0\r\n\r\n" SMUGGLED,
     400, CLOSED},
    {"two lengths", PLAN(LENGTH("2") LENGTH("44")) "{}" SMUGGLED, 400, CLOSED},
    {"two equal lengths", PLAN(LENGTH("2") LENGTH("2")) "{}" SMUGGLED, 400, CLOSED},
    {"list of lengths", PLAN(LENGTH("2, 2")) "{}" SMUGGLED, 400, CLOSED},
    {"plus length", PLAN(LENGTH("+2")) "{}" SMUGGLED, 400, CLOSED},
    {"negative length", PLAN(LENGTH("-1")) SMUGGLED, 400, CLOSED},
    {"hex length", PLAN(LENGTH("0x2")) "{}" SMUGGLED, 400, CLOSED},
    {"empty length", PLAN("Content-Length:\r\n") SMUGGLED, 400, CLOSED},
    {"word as length", PLAN(LENGTH("two")) "{}" SMUGGLED, 400, CLOSED},
    {"chunked twice", PLAN(CODING("chunked") CODING("chunked")) "0\r\n\r\n" SMUGGLED, 400, CLOSED},
    {"identity, chunked", PLAN(CODING("identity, chunked")) "0\r\n\r\n" SMUGGLED, 400, CLOSED},
    {"xchunked", PLAN(CODING("xchunked")) "0\r\n\r\n" SMUGGLED, 400, CLOSED},
    {"chunked with a blank before the colon", PLAN("Transfer-Encoding : chunked\r\n") "0\r\n\r\n"
     SMUGGLED, 400, CLOSED},
    {"length with a blank before the colon", PLAN("Content-Length : 4\r\n") "{}" SMUGGLED, 400,
     CLOSED},
    {"chunked in http/1.0", "POST /v1/plans HTTP/1.0\r\nHost: localhost\r\n" JSON CODING("chunked")
     "\r\n2\r\n{}\r\n0\r\n\r\n", 400, CLOSED},
    {"gzip, chunked", PLAN(CODING("gzip, chunked")) "0\r\n\r\n", 400, CLOSED},
    {"chunked body", JOB(CODING("chunked")) "1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", 400, KEPT},
    {"chunk extension", JOB(CODING("chunked")) "2;a=b\r\n{}\r\n0\r\n\r\n", 400, KEPT},
    {"hex prefix in a chunk size", JOB(CODING("chunked")) "0x2\r\n{}\r\n0\r\n\r\n", 400, CLOSED},
    {"chunk size too large", JOB(CODING("chunked")) "ffffffffffffffffff\r\n{}\r\n0\r\n\r\n", 413,
     CLOSED},
    {"chunk without its end", JOB(CODING("chunked")) "2\r\n{}XX0\r\n\r\n", 400, CLOSED},
    {"body still to come", JOB(LENGTH("10")) "{}", 0, WAITS},
    {"two requests at once", GET("/healthz", "") GET("/healthz", ""), 200, KEPT},

    {"control character in a value", GET("/healthz", "X-A: a\x01" "b\r\n"), 400, CLOSED},
    {"delete character in a value", GET("/healthz", "X-A: a\x7f" "b\r\n"), 400, CLOSED},
    {"blank in a name", GET("/healthz", "X A: b\r\n"), 400, CLOSED},
    {"empty name (the library drops it)", GET("/healthz", ": b\r\n"), 200, KEPT},
    {"no colon", GET("/healthz", "X-A\r\n"), 400, CLOSED},
    {"tab in a value", GET("/healthz", "X-A: a\tb\r\n"), 200, KEPT},
    {"latin-1 in a value", GET("/healthz", "X-A: \xe9\r\n"), 200, KEPT},
    {"unknown expectation", PLAN("Expect: 200-ok\r\n" LENGTH("2")), 417, CLOSED},
    {"expectation refused", POST("/v1/nothing", "Expect: 100-continue\r\n" LENGTH("900")), 404,
     CLOSED},
    {"too large, not sent", PLAN("Expect: 100-continue\r\n" LENGTH("99999999")), 413, CLOSED},
    {"absurd length", PLAN(LENGTH("99999999999999999999999")), 413, CLOSED},
    {"large length", POST("/v1/files", "Content-Type: multipart/form-data; boundary=b\r\n"
     LENGTH("99999999999999")), 413, CLOSED},
    {"body where none belongs", R11("GET", "/healthz", LENGTH("2")) "{}", 200, KEPT},
    {"wrong type", POST("/v1/plans", "Content-Type: text/plain\r\n" LENGTH("2")) "{}", 415, KEPT},
    {"not json", PLAN(LENGTH("2")) "[]", 400, KEPT},
    {"upgrade", GET("/healthz", "Connection: Upgrade\r\nUpgrade: websocket\r\n"), 200, KEPT},
};

static struct server server;

static int set_up(void **state)
{
    (void)state;
    server_start(&server, NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    server_remove(&server);
    return 0;
}

/* Replies in our name, and none of another status: nothing after the request was taken for one.
 * Where the library itself refuses, it may repeat its head. */
static bool replies_ok(const struct row *row, const struct raw *got)
{
    char line[16];
    int same = 0;
    snprintf(line, sizeof line, "HTTP/1.1 %d", row->status);
    for (const char *p = got->text; (p = strstr(p, line)); p++) same++;
    if (same != got->replies) return false;
    if (strstr(got->text, "<html>")) return same >= 1;
    return same == (strcmp(row->what, "two requests at once") ? row->status > 0 : 2);
}

static int check(const struct row *row)
{
    struct raw got;
    server_raw(&server, row->bytes, strlen(row->bytes), &got);
    bool fate = row->fate == WAITS ? got.status == 0 : got.closed == (row->fate == CLOSED);
    if (got.status == row->status && replies_ok(row, &got) && fate) return 0;
    print_error("%s: status %d (want %d), %d replies, %s\n%s\n", row->what, got.status, row->status,
                got.replies, got.closed ? "closed" : "kept", got.text);
    return 1;
}

static void every_raw_request_gets_its_status_and_fate(void **state)
{
    (void)state;
    int bad = 0, n = sizeof rows / sizeof *rows;
    assert_true(n >= 60);
    for (int i = 0; i < n; i++) bad += check(&rows[i]);
    assert_int_equal(bad, 0);
}

/* The library cuts names and values at a NUL before anybody sees them (and takes a bare newline for
 * a line end): refused or not, it must stay one request with one reply. */
static void a_nul_byte_or_bare_newline_never_makes_a_second_request(void **state)
{
    (void)state;
#define BYTES(text) text, sizeof text - 1
    static const struct {
        const char *bytes;
        size_t n;
        int status;
    } t[] = {
        {BYTES("GET /healthz\0x HTTP/1.1\r\nHost: localhost\r\n\r\n"), 200},
        {BYTES("GET /healthz HTTP/1.1\0\r\nHost: localhost\r\n\r\n"), 400},
        {BYTES("GET /v1/files HTTP/1.1\r\nHost: evil\0.localhost\r\n\r\n"), 421},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\0Y: a\r\n\r\n"), 400},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n"), 200},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n"), 200},
        {BYTES("GET /healthz HTTP/1.1\nHost: localhost\n\n"), 200},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n"), 400},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\0\r\n\r\n"), 200},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \0chunked\r\n\r\n"),
         400},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct raw got;
        server_raw(&server, t[i].bytes, t[i].n, &got);
        if (got.status != t[i].status || got.replies != 1)
            fail_msg("row %zu: %d, %d replies: %s", i, got.status, got.replies, got.text);
    }
}

/* A header block or target at and beyond its limit. */
static void large_heads_are_refused_with_their_own_status(void **state)
{
    (void)state;
    static const struct {
        size_t target, header;
        int fields, status;
    } t[] = {
        {8192, 0, 0, 404}, {8193, 0, 0, 414},    {10, 30000, 1, 404},
        {10, 33000, 1, 431}, {10, 80000, 1, 431}, {10, 10, 95, 404}, {10, 10, 105, 431},
    };
    enum { CAP = 300000 };
    char *b = malloc(CAP);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct raw got;
        size_t n = (size_t)snprintf(b, CAP, "GET /");
        memset(b + n, 'a', t[i].target - 1);
        n += t[i].target - 1;
        n += (size_t)snprintf(b + n, CAP - n, " HTTP/1.1\r\nHost: localhost\r\n");
        for (int k = 0; k < t[i].fields; k++) {
            n += (size_t)snprintf(b + n, CAP - n, "x%d: ", k);
            memset(b + n, 'v', t[i].header);
            n += t[i].header;
            n += (size_t)snprintf(b + n, CAP - n, "\r\n");
        }
        n += (size_t)snprintf(b + n, CAP - n, "\r\n");
        server_raw(&server, b, n, &got);
        if (got.status != t[i].status)
            fail_msg("row %zu: %d, not %d: %.200s", i, got.status, t[i].status, got.text);
    }
    free(b);
}

static void every_reply_carries_a_request_id(void **state)
{
    (void)state;
    static const char *const own[] = {"X-Request-Id: my-id_1.2", NULL};
    static const char *const evil[] = {"X-Request-Id: a b", NULL};
    static const char *const paths[] = {"/healthz", "/v1/nothing", "/v1/files/%00",
                                        "/a/b/resolve/main/x"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct answer a = server_get(&server, paths[i]);
        assert_non_null(answer_header(&a, "x-request-id"));
        assert_int_equal(strncmp(answer_header(&a, "x-request-id"), "req_", 4), 0);
        assert_int_equal(strlen(answer_header(&a, "x-request-id")), 28);
        answer_clear(&a);
    }
    struct answer a = server_call(&server, &(struct call){"GET", "/healthz", own, NULL, 0});
    assert_string_equal(answer_header(&a, "x-request-id"), "my-id_1.2");
    answer_clear(&a);
    a = server_call(&server, &(struct call){"GET", "/healthz", evil, NULL, 0});
    assert_int_equal(strncmp(answer_header(&a, "x-request-id"), "req_", 4), 0);
    answer_clear(&a);
    char *log = server_log(&server);
    assert_non_null(strstr(log, "\"request_id\":\"my-id_1.2\""));
    free(log);
}

static void refusals_by_the_guard_have_our_error_shape(void **state)
{
    (void)state;
    struct raw got;
    static const char b[] = GET("/healthz", "Host: localhost\r\n");
    server_raw(&server, b, sizeof b - 1, &got);
    assert_non_null(strstr(got.text, "{\"error\":{\"message\":\"exactly one Host header is "));
    assert_non_null(strstr(got.text, "x-request-id: req_"));
    assert_non_null(strstr(got.text, "Connection: close"));
}

static void a_405_lists_what_is_allowed(void **state)
{
    (void)state;
    struct answer a = server_call(&server, &(struct call){"PUT", "/v1/files", NULL, NULL, 0});
    assert_int_equal(a.status, 405);
    assert_string_equal(answer_header(&a, "allow"), "POST, GET");
    assert_string_equal(answer_str(&a, "error.code"), "method_not_allowed");
    answer_clear(&a);
}

static void expect_100_is_answered_only_when_the_body_is_welcome(void **state)
{
    (void)state;
    static const char b[] = POST("/v1/plans", JSON "Expect: 100-continue\r\nContent-Length: 2\r\n");
    char text[256] = "";
    int fd = server_connect(&server);
    assert_int_equal(send(fd, b, sizeof b - 1, MSG_NOSIGNAL), sizeof b - 1);
    assert_true(recv(fd, text, sizeof text - 1, 0) > 0);
    assert_int_equal(strncmp(text, "HTTP/1.1 100", 12), 0);
    assert_int_equal(send(fd, "[]", 2, MSG_NOSIGNAL), 2);
    assert_true(recv(fd, text, sizeof text - 1, 0) > 0);
    assert_int_equal(strncmp(text, "HTTP/1.1 400", 12), 0);
    close(fd);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Sends `drip` byte by byte every 100 ms after `start`; how long until the server cuts it off. */
static double until_cut(const char *start, const char *drip)
{
    int fd = server_connect(&server);
    double t = seconds();
    assert_true(send(fd, start, strlen(start), MSG_NOSIGNAL) >= 0);
    for (int i = 0; seconds() - t < 10; i++) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        char c;
        if (poll(&p, 1, 100) > 0 && recv(fd, &c, 1, MSG_DONTWAIT) <= 0) break;
        if (send(fd, &drip[(size_t)i % strlen(drip)], 1, MSG_NOSIGNAL) < 0) break;
    }
    close(fd);
    return seconds() - t;
}

static void a_peer_that_drips_its_headers_is_cut_off(void **state)
{
    (void)state;
    static const char *const args[] = {"--header-timeout-s", "1", "--request-timeout-s", "1", NULL};
    server_stop(&server);
    server_restart(&server, args);
    double t = until_cut("", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: aaaaaaaaaaaaa");
    assert_true(t >= 0.8 && t < 2.5);
    t = until_cut("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ", "a");
    assert_true(t >= 0.8 && t < 2.5);
    /* The second request of a connection has no more time than the first. */
    t = until_cut(GET("/healthz", ""), "G");
    assert_true(t >= 0.8 && t < 4);
    /* A silent connection is closed, too, and meanwhile others are served. */
    int fd = server_connect(&server);
    struct answer a = server_get(&server, "/healthz");
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 4000), 1);
    close(fd);
    server_stop(&server);
    server_restart(&server, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_raw_request_gets_its_status_and_fate),
        cmocka_unit_test(a_nul_byte_or_bare_newline_never_makes_a_second_request),
        cmocka_unit_test(large_heads_are_refused_with_their_own_status),
        cmocka_unit_test(every_reply_carries_a_request_id),
        cmocka_unit_test(refusals_by_the_guard_have_our_error_shape),
        cmocka_unit_test(a_405_lists_what_is_allowed),
        cmocka_unit_test(expect_100_is_answered_only_when_the_body_is_welcome),
        cmocka_unit_test(a_peer_that_drips_its_headers_is_cut_off),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
