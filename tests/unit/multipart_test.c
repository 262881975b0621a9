/* service/multipart: the parts come out byte for byte, however the body is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/multipart.h"

#include <stdlib.h>
#include <string.h>

#define TYPE "multipart/form-data; boundary=XyZ"

/* Everything that came out: "<name|filename|content>" per part, '-' for a part without filename. */
struct seen {
    struct buf b;
    const char *fail_at; /* name of the part whose begin fails */
};

static int begin(void *ctx, const struct multipart_part *p, struct err *e)
{
    struct seen *s = ctx;
    if (s->fail_at && str_eq(p->name, s->fail_at)) return err_set(e, E_NOSPACE, "sink");
    buf_printf(&s->b, "<%s|%s|", p->name, p->is_file ? p->filename : "-");
    return buf_ok(&s->b, e);
}

static int data(void *ctx, const char *p, size_t n, struct err *e)
{
    struct seen *s = ctx;
    buf_put(&s->b, p, n);
    return buf_ok(&s->b, e);
}

static int end(void *ctx, struct err *e)
{
    struct seen *s = ctx;
    buf_puts(&s->b, ">");
    return buf_ok(&s->b, e);
}

/* Feeds body in pieces of `step` bytes (the first one `first`); 0 or -1. */
static int feed(struct seen *s, const char *type, const char *body, size_t n, size_t first,
                size_t step, struct err *e)
{
    const struct multipart_sink sink = {s, begin, data, end};
    struct multipart *m = mem_zalloc(sizeof *m, e);
    assert_non_null(m);
    buf_clear(&s->b);
    buf_init(&s->b, 1 << 22);
    int rc = multipart_init(m, type, &sink, e);
    for (size_t i = 0, k = first; i < n && !rc; i += k, k = step) {
        if (k > n - i) k = n - i;
        rc = multipart_put(m, body + i, k, e);
    }
    if (!rc) rc = multipart_finish(m, e);
    mem_free(m);
    return rc;
}

static const char body[] = "ignored preamble\r\n"
                           "--XyZ\r\n"
                           "Content-Disposition: form-data; name=\"expires_after[anchor]\"\r\n\r\n"
                           "created_at\r\n"
                           "--XyZ \t\r\n"
                           "content-disposition:form-data; filename=\"a b;%22c\\\".jsonl\"; "
                           "name=file\r\n"
                           "Content-Type: multipart/mixed; boundary=q\r\n\r\n"
                           "\r\n--XyY\r\r\n--Xy\r\n--q\r\nhello\r\n\r\n"
                           "--XyZ\r\n"
                           "Content-Disposition: form-data; name=\"empty\"\r\n\r\n"
                           "\r\n"
                           "--XyZ--\r\nignored epilogue";
static const char parts[] = "<expires_after[anchor]|-|created_at>"
                            "<file|a b;\"c\".jsonl|\r\n--XyY\r\r\n--Xy\r\n--q\r\nhello\r\n>"
                            "<empty|-|>";

static void every_cut_gives_the_same_parts(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct seen s = {0};
    size_t n = sizeof body - 1;
    for (size_t first = 1; first <= n; first++) {
        assert_int_equal(feed(&s, TYPE, body, n, first, n, &e), 0);
        assert_string_equal(buf_str(&s.b), parts);
        assert_int_equal(feed(&s, TYPE, body, n, first, 7, &e), 0);
        assert_string_equal(buf_str(&s.b), parts);
    }
    assert_int_equal(feed(&s, TYPE, body, n, 1, 1, &e), 0);
    assert_string_equal(buf_str(&s.b), parts);
    buf_clear(&s.b);
}

static void a_truncated_body_is_an_error_at_every_length(void **state)
{
    (void)state;
    struct seen s = {0};
    size_t whole = (size_t)(strstr(body, "--XyZ--") - body) + strlen("--XyZ--");
    for (size_t n = 0; n < sizeof body; n++) {
        struct err e = ERR_INIT;
        assert_int_equal(feed(&s, TYPE, body, n, n ? n : 1, 1, &e), n < whole ? -1 : 0);
        if (n < whole) assert_int_equal(e.code, E_ARG);
    }
    buf_clear(&s.b);
}

static void large_binary_data_pass_unchanged(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct seen s = {0};
    struct buf b;
    buf_init(&b, 1 << 22);
    buf_puts(&b, "--XyZ\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\n");
    size_t from = b.len;
    uint32_t x = 1;
    for (int i = 0; i < 1000000; i++) {
        x = x * 1664525u + 1013904223u;
        /* Many of the bytes that delimiters are made of. */
        buf_putc(&b, (x >> 24) % 3 ? "\r\n--XyZ"[(x >> 20) % 7] : (char)(x >> 16));
    }
    size_t n = b.len - from;
    char *want = mem_dup(b.data + from, n, &e);
    /* The content must not hold the delimiter by chance. */
    assert_null(memmem(want, n, "\r\n--XyZ", 7));
    buf_puts(&b, "\r\n--XyZ--");
    assert_int_equal(feed(&s, TYPE, b.data, b.len, 5, 1021, &e), 0);
    assert_int_equal(s.b.len, strlen("<f|x|>") + n);
    assert_memory_equal(s.b.data + 5, want, n);
    mem_free(want);
    buf_clear(&b);
    buf_clear(&s.b);
}

static void malformed_bodies_are_refused(void **state)
{
    (void)state;
#define PART(h) "--XyZ\r\n" h "\r\n\r\nv\r\n--XyZ--"
    static const struct {
        const char *body;
        enum errc code;
    } bad[] = {
        {"", E_ARG},
        {"nothing here", E_ARG},
        {"--XyZjunk\r\n\r\n", E_ARG},
        {"--XyZ-junk", E_ARG},
        {"--XyZ\n\n", E_ARG},
        {"--XyZ\r\n\r\nv\r\n--XyZ--", E_ARG},
        {PART("X: y"), E_ARG},
        {PART("Content-Disposition: form-data"), E_ARG},
        {PART("Content-Disposition: form-data; name=\"\""), E_ARG},
        {PART("Content-Disposition: attachment; name=\"a\""), E_ARG},
        {PART("Content-Disposition: form-data; name=\"a"), E_ARG},
        {PART("Content-Disposition: form-data; name=\"a\"; name=\"b\""), E_ARG},
        {PART("Content-Disposition: form-data; name=a; filename=x; filename=y"), E_ARG},
        {PART("Content-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b"),
         E_ARG},
        {PART("Content-Disposition: form-data; name=\"a\x01\""), E_ARG},
        {PART("Content-Disposition: form-data; name=\"\xff\""), E_ARG},
        {PART("no colon\r\nContent-Disposition: form-data; name=a"), E_ARG},
        {PART("Content-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64"),
         E_UNSUPPORTED},
    };
    struct seen s = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = ERR_INIT;
        if (feed(&s, TYPE, bad[i].body, strlen(bad[i].body), 3, 5, &e) != -1)
            fail_msg("accepted: %s", bad[i].body);
        assert_int_equal(e.code, bad[i].code);
    }
    buf_clear(&s.b);
}

static void a_file_name_cannot_forge_a_field_name(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct seen s = {0};
    static const char b[] = "--XyZ\r\nContent-Disposition: form-data; "
                            "filename=\"a name=\\\"x\\\"\"; name=\"file\"\r\n\r\n\r\n--XyZ--";
    assert_int_equal(feed(&s, TYPE, b, sizeof b - 1, 10, 10, &e), 0);
    assert_string_equal(buf_str(&s.b), "<file|a name=\"x\"|>");
    buf_clear(&s.b);
}

static void limits_on_headers_and_parts_hold(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct seen s = {0};
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_puts(&b, "--XyZ\r\nX: ");
    for (int i = 0; i < MULTIPART_HEADERS_MAX; i++) buf_putc(&b, 'a');
    assert_int_equal(feed(&s, TYPE, b.data, b.len, 100, 100, &e), -1);
    assert_int_equal(e.code, E_LIMIT);
    for (int over = 0; over < 2; over++) {
        buf_clear(&b);
        for (int i = 0; i < MULTIPART_PARTS_MAX + over; i++)
            buf_puts(&b, "--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n");
        buf_puts(&b, "--XyZ--");
        assert_int_equal(feed(&s, TYPE, b.data, b.len, 100, 100, &e), over ? -1 : 0);
    }
    buf_clear(&b);
    buf_clear(&s.b);
}

static void the_boundary_is_taken_from_the_header(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        int rc;
    } t[] = {
        {"multipart/form-data; boundary=XyZ", 0},
        {"Multipart/Form-Data; charset=utf-8; Boundary=\"XyZ\"", 0},
        {"multipart/form-data;boundary=XyZ", 0},
        {"multipart/form-data", -1},
        {"multipart/form-data; boundary=", -1},
        {"multipart/form-data; boundary=\"XyZ", -1},
        {"multipart/form-data; boundary=X\"yZ\"", -1},
        {"multipart/mixed; boundary=XyZ", -1},
        {"text/plain; boundary=XyZ", -1},
        {NULL, -1},
        {"multipart/form-data; boundary=123456789012345678901234567890123456789012345678901234567"
         "89012345678901", -1},
    };
    static const char b[] = "--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--XyZ--";
    struct seen s = {0};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct err e = ERR_INIT;
        assert_int_equal(feed(&s, t[i].type, b, sizeof b - 1, 9, 9, &e), t[i].rc);
    }
    buf_clear(&s.b);
}

static void a_failing_sink_ends_the_parse_with_its_error(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct seen s = {.fail_at = "file"};
    assert_int_equal(feed(&s, TYPE, body, sizeof body - 1, 1000, 1000, &e), -1);
    assert_int_equal(e.code, E_NOSPACE);
    assert_string_equal(buf_str(&s.b), "<expires_after[anchor]|-|created_at>");
    buf_clear(&s.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut_gives_the_same_parts),
        cmocka_unit_test(a_truncated_body_is_an_error_at_every_length),
        cmocka_unit_test(large_binary_data_pass_unchanged),
        cmocka_unit_test(malformed_bodies_are_refused),
        cmocka_unit_test(a_file_name_cannot_forge_a_field_name),
        cmocka_unit_test(limits_on_headers_and_parts_hold),
        cmocka_unit_test(the_boundary_is_taken_from_the_header),
        cmocka_unit_test(a_failing_sink_ends_the_parse_with_its_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
