/* safetensors: nothing malformed gets in, what is written comes back, failures leave nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], path[128];

static int make_folder(void **state)
{
    (void)state;
    mem_hook_libraries();
    /* In memory where possible: the loops below sync thousands of files. */
    snprintf(dir, sizeof dir, "%s/graft-st-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/f.safetensors", dir);
    return 0;
}

static int drop_folder(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    return fs_rmtree(dir, &e);
}

static void put_file(const char *name, const void *p, size_t n)
{
    char at[FS_PATH_MAX];
    struct err e = ERR_INIT;
    assert_int_equal(fs_join(at, dir, name, &e), 0);
    assert_int_equal(fs_write_file(at, p, n, &e), 0);
}

/* Length, header and `data` zero bytes. */
static void put_tensors(const char *name, const char *header, size_t n, size_t data)
{
    struct buf b;
    buf_init(&b, 64 << 20);
    for (int i = 0; i < 8; i++) buf_putc(&b, (char)((uint64_t)n >> (8 * i)));
    buf_put(&b, header, n);
    for (size_t i = 0; i < data; i++) buf_putc(&b, 0);
    put_file(name, buf_str(&b), b.len);
    buf_clear(&b);
}

static void expect_refused(const char *what, enum errc code, const char *fragment)
{
    struct err e = ERR_INIT;
    size_t before = mem_live();
    struct st *s = st_open(path, &e);
    if (s) print_error("%s: was accepted\n", what);
    assert_null(s);
    if (e.code != code || !strstr(e.msg, fragment))
        print_error("%s: got %s: %s\n", what, err_name(e.code), e.msg);
    assert_int_equal(e.code, code);
    assert_non_null(strstr(e.msg, fragment));
    assert_non_null(strstr(e.msg, path));
    assert_int_equal(mem_live(), before);
}

#define T(name, dtype, shape, span) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" span "}"

static const struct bad {
    const char *header;
    size_t data;
    enum errc code;
    const char *fragment;
} bad[] = {
    /* The header as text. */
    {"", 0, E_FORMAT, "does not start with '{'"},
    {"[]", 0, E_FORMAT, "does not start with '{'"},
    {" {}", 0, E_FORMAT, "does not start with '{'"},
    {"null", 0, E_FORMAT, "does not start with '{'"},
    {"{", 0, E_FORMAT, "line 1, column 1"},
    {"{]", 0, E_FORMAT, "line 1, column 2"},
    {"{} x", 0, E_FORMAT, "end of file expected"},
    {"{}{}", 0, E_FORMAT, "end of file expected"},
    {"{'a':1}", 0, E_FORMAT, "header: line 1"},
    {"{\"a\":NaN}", 0, E_FORMAT, "header: line 1"},
    {"{\"a\":{},}", 0, E_FORMAT, "header: line 1"},
    {"{//\n}", 0, E_FORMAT, "header: line 1"},
    {"{\"\xff\":{}}", 0, E_FORMAT, "byte 2 is not UTF-8"},
    {"{\"\xc0\x80\":{}}", 0, E_FORMAT, "byte 2 is not UTF-8"},
    {"{\"\xed\xa0\x80\":{}}", 0, E_FORMAT, "byte 2 is not UTF-8"},
    {"{\"\\ud800\":{}}", 0, E_FORMAT, "header: line 1"},
    {"{\"a\\u0000\":{}}", 0, E_FORMAT, "header: line 1"},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}", 0, E_LIMIT,
     "nested deeper"},
    /* Names. */
    {"{" T("a", "U8", "[1]", "[0,1]") "," T("a", "U8", "[1]", "[1,2]") "}", 2, E_FORMAT,
     "duplicate"},
    {"{" T("a", "U8", "[1]", "[0,1]") "," T("\\u0061", "U8", "[1]", "[1,2]") "}", 2, E_FORMAT,
     "duplicate"},
    {"{" T("a\\n", "U8", "[1]", "[0,1]") "}", 1, E_FORMAT, "control character"},
    {"{" T("\\u001f", "U8", "[1]", "[0,1]") "}", 1, E_FORMAT, "control character"},
    {"{" T("\\u007f", "U8", "[1]", "[0,1]") "}", 1, E_FORMAT, "control character"},
    {"{" T("\\u0085", "U8", "[1]", "[0,1]") "}", 1, E_FORMAT, "control character"},
    {"{\"a\t\":{}}", 0, E_FORMAT, "control character"},
    /* An entry and its fields. */
    {"{\"a\":1}", 0, E_FORMAT, "tensor 'a': must have 'dtype'"},
    {"{\"a\":null}", 0, E_FORMAT, "tensor 'a': must have 'dtype'"},
    {"{\"a\":[]}", 0, E_FORMAT, "tensor 'a': must have 'dtype'"},
    {"{\"a\":{}}", 0, E_FORMAT, "tensor 'a': must have 'dtype'"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, E_FORMAT, "must have 'dtype'"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, E_FORMAT, "must have 'dtype'"},
    {"{\"a\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0, E_FORMAT, "must have 'dtype'"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":1}}", 0, E_FORMAT,
     "no more"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0,
     E_FORMAT, "duplicate"},
    {"{\"a\":{\"dtype\":8,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, E_FORMAT,
     "must have 'dtype'"},
    {"{" T("a", "F31", "[1]", "[0,4]") "}", 4, E_FORMAT, "unknown dtype 'F31'"},
    {"{" T("a", "f32", "[1]", "[0,4]") "}", 4, E_FORMAT, "unknown dtype 'f32'"},
    {"{" T("a", "", "[1]", "[0,4]") "}", 4, E_FORMAT, "unknown dtype ''"},
    /* Shapes. */
    {"{" T("a", "U8", "1", "[0,1]") "}", 1, E_FORMAT, "'shape' must be a list"},
    {"{" T("a", "U8", "null", "[0,1]") "}", 1, E_FORMAT, "'shape' must be a list"},
    {"{" T("a", "U8", "{}", "[0,1]") "}", 1, E_FORMAT, "'shape' must be a list"},
    {"{" T("a", "U8", "[-1]", "[0,1]") "}", 1, E_FORMAT, "integers >= 0"},
    {"{" T("a", "U8", "[1.0]", "[0,1]") "}", 1, E_FORMAT, "integers >= 0"},
    {"{" T("a", "U8", "[1e0]", "[0,1]") "}", 1, E_FORMAT, "integers >= 0"},
    {"{" T("a", "U8", "[\\\"1\\\"]", "[0,1]") "}", 1, E_FORMAT, "header: line 1"},
    {"{" T("a", "U8", "[\"1\"]", "[0,1]") "}", 1, E_FORMAT, "integers >= 0"},
    {"{" T("a", "U8", "[[1]]", "[0,1]") "}", 1, E_FORMAT, "integers >= 0"},
    {"{" T("a", "U8", "[true]", "[0,1]") "}", 1, E_FORMAT, "integers >= 0"},
    {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, E_LIMIT, "9 dimensions"},
    {"{" T("a", "U8", "[4294967296,4294967296]", "[0,1]") "}", 1, E_FORMAT, "overflows"},
    {"{" T("a", "U8", "[4611686018427387904,4]", "[0,0]") "}", 0, E_FORMAT, "overflows"},
    {"{" T("a", "F64", "[1152921504606846976]", "[0,0]") "}", 0, E_FORMAT, "size overflows"},
    {"{" T("a", "U8", "[9223372036854775808]", "[0,1]") "}", 1, E_FORMAT, "header: line 1"},
    {"{" T("a", "F4", "[3]", "[0,1]") "}", 1, E_FORMAT, "whole number of bytes"},
    {"{" T("a", "F6_E2M3", "[2]", "[0,2]") "}", 2, E_FORMAT, "whole number of bytes"},
    /* Spans. */
    {"{" T("a", "F32", "[1]", "[0,3]") "}", 3, E_FORMAT, "need 4 bytes but 'data_offsets' span 3"},
    {"{" T("a", "F32", "[1]", "[0,5]") "}", 5, E_FORMAT, "need 4 bytes but 'data_offsets' span 5"},
    {"{" T("a", "F32", "[]", "[0,0]") "}", 0, E_FORMAT, "need 4 bytes"},
    {"{" T("a", "F32", "[0]", "[0,4]") "}", 4, E_FORMAT, "need 0 bytes"},
    {"{" T("a", "U8", "[1]", "[1,0]") "}", 1, E_FORMAT, "reversed"},
    {"{" T("a", "U8", "[1]", "[-1,0]") "}", 1, E_FORMAT, "leave the 1 bytes"},
    {"{" T("a", "U8", "[1]", "[0,2]") "}", 1, E_FORMAT, "leave the 1 bytes"},
    {"{" T("a", "U8", "[1]", "[0.0,1]") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "[0,1.0]") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "[0]") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "[0,1,1]") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "[]") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "{}") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "null") "}", 1, E_FORMAT, "list of two integers"},
    {"{" T("a", "U8", "[1]", "[0,9223372036854775807]") "}", 1, E_FORMAT, "leave the 1 bytes"},
    {"{" T("a", "U8", "[1]", "[9223372036854775807,9223372036854775807]") "}", 1, E_FORMAT,
     "leave the 1 bytes"},
    {"{" T("a", "U8", "[1]", "[1,2]") "}", 2, E_FORMAT, "leaves a hole"},
    {"{" T("a", "U8", "[1]", "[0,1]") "," T("b", "U8", "[1]", "[2,3]") "}", 3, E_FORMAT,
     "'b' begins at 2, which leaves a hole"},
    {"{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[1,3]") "}", 3, E_FORMAT,
     "'b' begins at 1, inside the tensor before it"},
    {"{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[0,2]") "}", 2, E_FORMAT,
     "inside the tensor before it"},
    {"{" T("a", "U8", "[4]", "[0,4]") "," T("b", "U8", "[0]", "[2,2]") "}", 4, E_FORMAT,
     "inside the tensor before it"},
    {"{" T("a", "U8", "[1]", "[0,1]") "}", 2, E_FORMAT, "1 bytes follow the last tensor"},
    {"{}", 1, E_FORMAT, "1 bytes follow the last tensor"},
    {"{\"__metadata__\":{}}", 1, E_FORMAT, "1 bytes follow the last tensor"},
    /* Metadata. */
    {"{\"__metadata__\":[]}", 0, E_FORMAT, "'__metadata__' must be an object"},
    {"{\"__metadata__\":null}", 0, E_FORMAT, "'__metadata__' must be an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, E_FORMAT, "strings only"},
    {"{\"__metadata__\":{\"a\":null}}", 0, E_FORMAT, "strings only"},
    {"{\"__metadata__\":{\"a\":{}}}", 0, E_FORMAT, "strings only"},
    {"{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, E_FORMAT, "duplicate"},
    {"{" T("__metadata__", "U8", "[0]", "[0,0]") "}", 0, E_FORMAT, "strings only"},
};

static void malformed_headers_are_refused_with_the_reason(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_tensors("f.safetensors", bad[i].header, strlen(bad[i].header), bad[i].data);
        expect_refused(bad[i].header, bad[i].code, bad[i].fragment);
    }
    assert_true(sizeof bad / sizeof *bad >= 80);
}

static void malformed_lengths_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        enum errc code;
        const char *fragment;
    } rows[] = {
        {"", 0, E_FORMAT, "0 bytes are too few"},
        {"\2\0\0\0\0\0\0", 7, E_FORMAT, "7 bytes are too few"},
        {"\0\0\0\0\0\0\0\0", 8, E_FORMAT, "does not start with '{'"},
        {"\2\0\0\0\0\0\0\0", 8, E_FORMAT, "says 2 bytes but only 0 follow"},
        {"\3\0\0\0\0\0\0\0{}", 10, E_FORMAT, "says 3 bytes but only 2 follow"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, E_FORMAT, "but only 2 follow"},
        {"\xf8\xff\xff\xff\xff\xff\xff\xff{}", 10, E_FORMAT, "but only 2 follow"},
        {"\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10, E_FORMAT, "but only 2 follow"},
        {"\0\0\0\0\0\0\0\x02{}", 10, E_FORMAT, "but only 2 follow"},
        {"\1\0\0\0\0\0\0\0{}", 10, E_FORMAT, "header: line 1"},
        {"\3\0\0\0\0\0\0\0{}\0", 11, E_FORMAT, "byte 2 is NUL"},
        {"\7\0\0\0\0\0\0\0{\"a\":1\0}", 16, E_FORMAT, "is NUL"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_file("f.safetensors", rows[i].bytes, rows[i].n);
        expect_refused("length", rows[i].code, rows[i].fragment);
    }
}

static char *repeat(const char *head, const char *piece, int64_t n, const char *tail)
{
    struct buf b;
    buf_init(&b, 64 << 20);
    buf_puts(&b, head);
    for (int64_t i = 0; i < n; i++) {
        char at[32];
        snprintf(at, sizeof at, piece, (int)i);
        buf_puts(&b, at);
    }
    buf_puts(&b, tail);
    return buf_take(&b);
}

static void stated_limits_hold_on_both_sides(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    /* Header: 16 MiB is fine, one more is not. */
    char *text = mem_alloc(ST_HEADER_MAX + 1, &e);
    memset(text, ' ', ST_HEADER_MAX + 1);
    memcpy(text, "{}", 2);
    put_tensors("f.safetensors", text, ST_HEADER_MAX, 0);
    struct st *s = st_open(path, &e);
    assert_non_null(s);
    assert_int_equal(st_count(s), 0);
    st_close(s);
    put_tensors("f.safetensors", text, ST_HEADER_MAX + 1, 0);
    expect_refused("header of 16 MiB + 1", E_LIMIT, "at most 16777216");
    mem_free(text);
    /* Name: 512 bytes and 513. */
    for (int extra = 0; extra < 2; extra++) {
        text = repeat("{\"", "x", ST_NAME_MAX + extra,
                      "\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}");
        put_tensors("f.safetensors", text, strlen(text), 1);
        mem_free(text);
        if (extra) {
            expect_refused("name of 513 bytes", E_LIMIT, "longer than 512 bytes");
            continue;
        }
        s = st_open(path, &e);
        assert_non_null(s);
        st_close(s);
    }
    /* Parser objects are bounded before they are made. */
    text = repeat("{\"a\":[[]", ",[]", 2000000, "]}");
    put_tensors("f.safetensors", text, strlen(text), 0);
    mem_free(text);
    mem_peak_reset();
    size_t before = mem_live();
    expect_refused("two million lists", E_LIMIT, "more JSON values");
    assert_true(mem_peak() - before < 1 << 20);
}

static void the_number_of_tensors_is_limited(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    /* The shortest entries that fit 16 MiB: 200 000 of 62 bytes; all empty, so all at 0. */
    static const char piece[] = ",\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    for (int extra = 0; extra < 2; extra++) {
        struct buf b;
        buf_init(&b, 64 << 20);
        buf_puts(&b, "{\"__metadata__\":{}");
        for (int i = 0; i < ST_TENSORS_MAX + extra; i++) buf_printf(&b, piece, (unsigned)i);
        buf_putc(&b, '}');
        assert_int_equal(buf_ok(&b, &e), 0);
        put_tensors("f.safetensors", buf_str(&b), b.len, 0);
        buf_clear(&b);
        if (extra) {
            expect_refused("200 001 tensors", E_LIMIT, "more than 200000 tensors");
            continue;
        }
        struct st *s = st_open(path, &e);
        assert_non_null(s);
        assert_int_equal(st_count(s), ST_TENSORS_MAX);
        assert_non_null(st_find(s, "30d3f"));
        assert_null(st_find(s, "30d40"));
        st_close(s);
    }
}

static void legal_oddities_are_accepted(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        int n;
    } rows[] = {
        {"{}", 0, 0},
        {"{}      ", 0, 0},
        {"{ \"__metadata__\" : { } }\n", 0, 0},
        {"{" T("", "U8", "[]", "[0,1]") "}", 1, 1},
        {"{" T("a", "F32", "[0,9223372036854775807]", "[0,0]") "}", 0, 1},
        {"{" T("a", "C64", "[1,1,1,1,1,1,1,1]", "[0,8]") "}", 8, 1},
        {"{" T("a", "F4", "[2]", "[0,1]") "," T("b", "F6_E3M2", "[4]", "[1,4]") "}", 4, 2},
        {"{" T("b", "U8", "[1]", "[1,2]") "," T("z", "U8", "[0]", "[1,1]") ","
             T("a", "U8", "[1]", "[0,1]") "}", 2, 3},
        {"{" T("\xc3\xa9\xf0\x9f\x98\x80", "BOOL", "[1]", "[0,1]") "}", 1, 1},
    };
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_tensors("f.safetensors", rows[i].header, strlen(rows[i].header), rows[i].data);
        struct st *s = st_open(path, &e);
        if (!s) print_error("%s: %s\n", rows[i].header, e.msg);
        assert_non_null(s);
        assert_int_equal(st_count(s), rows[i].n);
        for (int j = 1; j < rows[i].n; j++)
            assert_true(strcmp(st_at(s, j - 1)->name, st_at(s, j)->name) < 0);
        st_close(s);
    }
}

static void types_that_graft_does_not_compute_with_keep_their_name(void **state)
{
    (void)state;
    static const char h[] = "{" T("a", "I8", "[2]", "[0,2]") "," T("b", "F8_E4M3", "[1]", "[2,3]")
                            "," T("c", "BF16", "[1]", "[3,5]") "}";
    struct err e = ERR_INIT;
    put_tensors("f.safetensors", h, sizeof h - 1, 5);
    struct st *s = st_open(path, &e);
    assert_non_null(s);
    assert_int_equal(st_find(s, "a")->dtype, DT_COUNT);
    assert_string_equal(st_find(s, "b")->dtype_name, "F8_E4M3");
    assert_int_equal(st_find(s, "b")->bytes, 1);
    assert_int_equal(st_find(s, "c")->dtype, DT_BF16);
    st_close(s);
}

static void unaligned_tensors_are_given_aligned(void **state)
{
    (void)state;
    static const char h[] = "{" T("a", "U8", "[1]", "[0,1]") "," T("b", "F32", "[2]", "[1,9]")
                            "," T("c", "F64", "[1]", "[9,17]") "}";
    struct buf b;
    struct err e = ERR_INIT;
    float two[2] = {1.5f, -2};
    double one = 0.25;
    buf_init(&b, 4096);
    for (int i = 0; i < 8; i++) buf_putc(&b, (char)((sizeof h - 1) >> (8 * i)));
    buf_put(&b, h, sizeof h - 1);
    buf_putc(&b, 7);
    buf_put(&b, two, sizeof two);
    buf_put(&b, &one, sizeof one);
    put_file("f.safetensors", buf_str(&b), b.len);
    buf_clear(&b);
    size_t before = mem_live();
    struct st *s = st_open(path, &e);
    assert_non_null(s);
    const struct st_tensor *t = st_find(s, "b"), *u = st_find(s, "c");
    assert_int_equal((uintptr_t)t->data % 4, 0);
    assert_int_equal((uintptr_t)u->data % 8, 0);
    assert_memory_equal(t->data, two, sizeof two);
    assert_memory_equal(u->data, &one, sizeof one);
    assert_int_equal(*(const unsigned char *)st_find(s, "a")->data, 7);
    st_close(s);
    assert_int_equal(mem_live(), before);
}

static void every_dtype_survives_a_round_trip(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{2, 3, 4}, {0, 5, 1}, {1, 1, 1}, {7, 1, 3}};
    struct err e = ERR_INIT;
    unsigned char data[DT_COUNT][24 * 8];
    char name[16], sha[65], again[65];
    for (size_t i = 0; i < sizeof data; i++)
        ((unsigned char *)data)[i] = (unsigned char)(i * 37 + 1);
    for (int rank = 0; rank <= 3; rank++) {
        struct st_writer *w = st_writer_new(path, &e);
        assert_non_null(w);
        assert_int_equal(st_writer_meta(w, "format", "pt", &e), 0);
        assert_int_equal(st_writer_meta(w, "na\"me", "v\n\xc3\xa9", &e), 0);
        size_t bytes[DT_COUNT];
        for (int d = 0; d < DT_COUNT; d++) {
            bytes[d] = dtype_size((enum dtype)d);
            for (int k = 0; k < rank; k++) bytes[d] *= (size_t)shapes[d % 4][k];
            snprintf(name, sizeof name, "t%d", DT_COUNT - d);
            assert_int_equal(
                st_writer_add(w, name, (enum dtype)d, rank, shapes[d % 4], &e), 0);
        }
        for (int d = 0; d < DT_COUNT; d++) { /* in two pieces */
            assert_int_equal(st_writer_put(w, data[d], bytes[d] / 3, &e), 0);
            assert_int_equal(
                st_writer_put(w, data[d] + bytes[d] / 3, bytes[d] - bytes[d] / 3, &e), 0);
        }
        assert_int_equal(st_writer_publish(w, sha, &e), 0);
        assert_int_equal(hash_file_sha256(path, again, &e), 0);
        assert_string_equal(sha, again);
        struct st *s = st_open(path, &e);
        assert_non_null(s);
        assert_int_equal(st_count(s), DT_COUNT);
        assert_string_equal(st_metadata(s, "format"), "pt");
        assert_string_equal(st_metadata(s, "na\"me"), "v\n\xc3\xa9");
        assert_null(st_metadata(s, "none"));
        for (int d = 0; d < DT_COUNT; d++) {
            snprintf(name, sizeof name, "t%d", DT_COUNT - d);
            const struct st_tensor *t = st_find(s, name);
            assert_non_null(t);
            assert_int_equal(t->dtype, d);
            assert_int_equal(t->rank, rank);
            assert_int_equal(t->bytes, bytes[d]);
            for (int k = 0; k < rank; k++) assert_int_equal(t->shape[k], shapes[d % 4][k]);
            if (bytes[d]) assert_memory_equal(t->data, data[d], bytes[d]);
        }
        st_close(s);
    }
}

static void the_data_starts_at_a_multiple_of_eight(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char name[16] = "";
    for (int i = 0; i < 9; i++) {
        struct st_writer *w = st_writer_new(path, &e);
        int64_t one = 1;
        name[i] = 'x';
        assert_int_equal(st_writer_add(w, name, DT_U8, 1, &one, &e), 0);
        assert_int_equal(st_writer_put(w, "!", 1, &e), 0);
        assert_int_equal(st_writer_publish(w, NULL, &e), 0);
        assert_int_equal(fs_size(path, &e) % 8, 1);
        struct st *s = st_open(path, &e);
        assert_non_null(s);
        assert_null(st_metadata(s, "format"));
        assert_int_equal(*(const char *)st_at(s, 0)->data, '!');
        st_close(s);
    }
}

static void a_writer_refuses_what_a_reader_would(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char longish[600];
    const int64_t huge[2] = {INT64_C(1) << 40, INT64_C(1) << 40}, one = 1, minus = -1;
    memset(longish, 'n', sizeof longish);
    longish[ST_NAME_MAX + 1] = 0;
    size_t before = mem_live();
    struct st_writer *w = st_writer_new(path, &e);
    assert_int_equal(st_writer_add(w, longish, DT_U8, 1, &one, &e), -1);
    assert_int_equal(st_writer_add(w, "a\nb", DT_U8, 1, &one, &e), -1);
    assert_int_equal(st_writer_add(w, "\xff", DT_U8, 1, &one, &e), -1);
    assert_int_equal(st_writer_add(w, "__metadata__", DT_U8, 1, &one, &e), -1);
    assert_int_equal(st_writer_add(w, "a", DT_U8, 2, huge, &e), -1);
    assert_int_equal(st_writer_add(w, "a", DT_U8, 1, &minus, &e), -1);
    assert_int_equal(st_writer_add(w, "a", DT_U8, ST_RANK + 1, huge, &e), -1);
    assert_int_equal(st_writer_add(w, "a", DT_U8, 1, &one, &e), 0);
    assert_int_equal(st_writer_add(w, "a", DT_U8, 1, &one, &e), -1);
    assert_int_equal(st_writer_meta(w, "k", "\xff", &e), -1);
    assert_int_equal(e.code, E_ARG);
    assert_int_equal(st_writer_put(w, "12", 2, &e), -1);
    assert_int_equal(e.code, E_BUG);
    assert_int_equal(st_writer_add(w, "b", DT_U8, 1, &one, &e), -1);
    assert_int_equal(st_writer_meta(w, "k", "v", &e), -1);
    assert_int_equal(e.code, E_BUG);
    assert_int_equal(st_writer_publish(w, NULL, &e), -1); /* a byte is missing */
    assert_int_equal(e.code, E_BUG);
    assert_int_equal(mem_live(), before);
}

static int entries(void)
{
    struct err e = ERR_INIT;
    char **names = NULL;
    int n = 0;
    assert_int_equal(fs_list(dir, &names, &n, &e), 0);
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return n;
}

static void clear_folder(void)
{
    struct err e = ERR_INIT;
    assert_int_equal(fs_rmtree(dir, &e), 0);
    assert_int_equal(fs_mkdirs(dir, &e), 0);
}

static int fill_bytes(void *ctx, int i, struct st_writer *w, struct err *e)
{
    const struct st_model *m = ctx;
    int64_t n = (int64_t)dtype_size(m->v[i].dtype);
    for (int k = 0; k < m->v[i].rank; k++) n *= m->v[i].shape[k];
    for (int64_t k = 0; k < n; k++) {
        unsigned char c = (unsigned char)(i * 31 + k);
        if (st_writer_put(w, &c, 1, e)) return -1;
    }
    return 0;
}

static const struct st_entry five[] = {
    {"e", DT_F32, 2, {2, 3}}, {"d", DT_BF16, 1, {5}}, {"c", DT_F32, 1, {100}},
    {"b", DT_U8, 1, {0}},     {"a", DT_F16, 2, {4, 4}},
};

static struct st_model five_model(int64_t shard_bytes)
{
    struct st_model m = {dir, five, 5, shard_bytes, fill_bytes, NULL};
    return m;
}

static void check_five(const struct st *s)
{
    assert_int_equal(st_count(s), 5);
    assert_string_equal(st_metadata(s, "format"), "pt");
    for (int i = 0; i < 5; i++) {
        const struct st_tensor *t = st_find(s, five[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, five[i].dtype);
        for (int64_t k = 0; k < t->bytes; k++)
            assert_int_equal(((const unsigned char *)t->data)[k], (unsigned char)(i * 31 + k));
    }
}

static void models_come_back_whatever_the_shard_size(void **state)
{
    (void)state;
    static const struct {
        int64_t bytes;
        int files;
    } rows[] = {{0, 1}, {466, 1}, {465, 3}, {40, 4}, {1, 5}, {34, 4}, {431, 4}, {434, 3}};
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        clear_folder();
        struct st_model m = five_model(rows[i].bytes);
        m.ctx = &m;
        assert_int_equal(st_write_model(&m, &e), 0);
        if (entries() != rows[i].files)
            print_error("%lld bytes: %d files\n", (long long)rows[i].bytes, entries());
        assert_int_equal(entries(), rows[i].files);
        struct st *s = st_open_model(dir, &e);
        assert_non_null(s);
        check_five(s);
        st_close(s);
        assert_int_equal(st_write_model(&m, &e), -1);
        assert_int_equal(e.code, E_CONFLICT);
    }
}

static void a_wrong_fill_is_noticed(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    clear_folder();
    struct st_model m = five_model(30), lying = m;
    struct st_entry other[5];
    memcpy(other, five, sizeof five);
    other[1].shape[0] = 4; /* the fill gives less than `five` says */
    lying.v = other;
    m.ctx = &lying;
    assert_int_equal(st_write_model(&m, &e), -1);
    assert_int_equal(e.code, E_BUG);
    assert_non_null(strstr(e.msg, "'d'"));
    assert_int_equal(entries(), 0);
}

static void an_index_and_its_shards_must_agree(void **state)
{
    (void)state;
    static const char A[] = "{" T("a", "U8", "[1]", "[0,1]") "}";
    static const char AB[] = "{" T("a", "U8", "[1]", "[0,1]") "," T("b", "U8", "[1]", "[1,2]") "}";
    static const struct {
        const char *index;
        enum errc code;
        const char *fragment;
    } rows[] = {
        {"{", E_FORMAT, "line 1"},
        {"[]", E_ARG, "'weight_map' is required"},
        {"{}", E_ARG, "'weight_map' is required"},
        {"{\"weight_map\":[]}", E_ARG, "must be an object"},
        {"{\"weight_map\":{\"a\":1}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"../1.safetensors\"}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"x/1.safetensors\"}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"/1.safetensors\"}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\".1.safetensors\"}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"1.bin\"}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"\"}}", E_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"9.safetensors\"}}", E_NOTFOUND, "9.safetensors"},
        {"{\"weight_map\":{\"a\":\"2.safetensors\"}}", E_FORMAT, "holds 'b', which the index"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}", E_FORMAT,
         "2.safetensors holds 'a', which the index places in 1.safetensors"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\"}}", E_FORMAT,
         "lists 'b' in 1.safetensors"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", E_FORMAT,
         "duplicate"},
    };
    struct err e = ERR_INIT;
    clear_folder();
    assert_null(st_open_model(dir, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    put_tensors("1.safetensors", A, sizeof A - 1, 1);
    put_tensors("2.safetensors", AB, sizeof AB - 1, 2);
    size_t before = mem_live();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_file("model.safetensors.index.json", rows[i].index, strlen(rows[i].index));
        assert_null(st_open_model(dir, &e));
        if (e.code != rows[i].code || !strstr(e.msg, rows[i].fragment))
            print_error("%s: got %s: %s\n", rows[i].index, err_name(e.code), e.msg);
        assert_int_equal(e.code, rows[i].code);
        assert_non_null(strstr(e.msg, rows[i].fragment));
        assert_int_equal(mem_live(), before);
    }
    static const char good[] =
        "{\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"2.safetensors\"}}";
    put_file("model.safetensors.index.json", good, sizeof good - 1);
    struct st *s = st_open_model(dir, &e);
    assert_non_null(s);
    assert_int_equal(st_count(s), 2);
    st_close(s);
}

/* Runs `step` with call n of a class failing, for every n until it gets through. */
static void fail_each(enum fault_class c, int (*step)(struct err *), bool leaves_nothing)
{
    for (int n = 1;; n++) {
        struct err e = ERR_INIT;
        clear_folder();
        size_t before = mem_live();
        fault_arm(c, n, false);
        int rc = step(&e);
        int64_t seen = fault_count(c);
        fault_arm(c, 0, false);
        if (rc) {
            bool told = e.code == E_NOMEM || e.code == E_IO;
            if (!told) print_error("call %d: %s at %s: %s\n", n, err_name(e.code), e.where, e.msg);
            assert_true(told);
            if (leaves_nothing && entries()) print_error("call %d: %s\n", n, e.msg);
            if (leaves_nothing) assert_int_equal(entries(), 0);
        }
        assert_int_equal(mem_live(), before);
        if (seen < n) {
            assert_int_equal(rc, 0);
            assert_true(n > 10);
            return;
        }
        assert_true(n < 5000);
    }
}

static int write_sharded(struct err *e)
{
    struct st_model m = five_model(40);
    m.ctx = &m;
    return st_write_model(&m, e);
}

static int write_and_read(struct err *e)
{
    struct st_model m = five_model(40);
    m.ctx = &m;
    if (st_write_model(&m, e)) return -1;
    struct st *s = st_open_model(dir, e);
    if (!s) return -1;
    check_five(s);
    st_close(s);
    return 0;
}

static void a_failed_file_call_leaves_no_file_and_no_leak(void **state)
{
    (void)state;
    fail_each(FAULT_FILE, write_sharded, true);
    fail_each(FAULT_FILE, write_and_read, false);
}

static void a_failed_allocation_leaves_no_file_and_no_leak(void **state)
{
    (void)state;
    fail_each(FAULT_MEM, write_sharded, true);
    fail_each(FAULT_MEM, write_and_read, false);
}

/* The value of a 16-bit number by its definition, in double: sign, exponent bits, fraction bits. */
static double value16(uint16_t h, int exp_bits)
{
    int frac_bits = 15 - exp_bits, bias = (1 << (exp_bits - 1)) - 1;
    int exp = h >> frac_bits & ((1 << exp_bits) - 1), frac = h & ((1 << frac_bits) - 1);
    double v = exp == 0 ? ldexp(frac, 1 - bias - frac_bits)
                        : ldexp((1 << frac_bits) + frac, exp - bias - frac_bits);
    if (exp == (1 << exp_bits) - 1) v = frac ? NAN : INFINITY;
    return h & 0x8000 ? -v : v;
}

/* The nearest 16-bit number by search over all magnitudes, ties to the even code: x > 0 finite.
 * The code after the largest number, infinity, stands for the next power of two. */
static uint16_t nearest16(double x, int exp_bits)
{
    uint16_t inf = (uint16_t)(((1 << exp_bits) - 1) << (15 - exp_bits));
    int lo = 0, hi = inf; /* value(lo) <= x < value(hi) */
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (value16((uint16_t)mid, exp_bits) <= x) lo = mid;
        else hi = mid;
    }
    double below = value16((uint16_t)lo, exp_bits);
    double above = hi == inf ? 2 * value16((uint16_t)(inf - (1 << (15 - exp_bits))), exp_bits)
                             : value16((uint16_t)hi, exp_bits);
    if (x - below < above - x) return (uint16_t)lo;
    if (x - below > above - x) return (uint16_t)hi;
    return (uint16_t)(lo & 1 ? hi : lo);
}

static void check_to16(enum dtype dt, int exp_bits, float x)
{
    struct err e = ERR_INIT;
    uint16_t got, want;
    assert_int_equal(st_convert(&got, dt, &x, DT_F32, 1, &e), 0);
    if (isnan(x)) {
        assert_true(isnan(value16(got, exp_bits)));
        return;
    }
    uint16_t inf = (uint16_t)(((1 << exp_bits) - 1) << (15 - exp_bits));
    want = isinf(x) ? inf : nearest16(fabs((double)x), exp_bits);
    if (signbit(x)) want |= 0x8000;
    if (got != want) print_error("%a: %04x, want %04x\n", x, got, want);
    assert_int_equal(got, want);
}

static void half_precision_is_exact_in_all_65536_values(void **state)
{
    (void)state;
    static const struct {
        enum dtype dt;
        int exp_bits;
    } kinds[] = {{DT_F16, 5}, {DT_BF16, 8}};
    struct err e = ERR_INIT;
    for (int k = 0; k < 2; k++) {
        for (uint32_t h = 0; h < 65536; h++) {
            uint16_t in = (uint16_t)h, back;
            float x;
            double want = value16(in, kinds[k].exp_bits);
            assert_int_equal(st_convert(&x, DT_F32, &in, kinds[k].dt, 1, &e), 0);
            if (isnan(want)) {
                assert_true(isnan(x));
            } else {
                assert_true((double)x == want && !signbit(x) == !signbit(want));
                assert_int_equal(st_convert(&back, kinds[k].dt, &x, DT_F32, 1, &e), 0);
                assert_int_equal(back, in);
            }
            /* The numbers that decide rounding: the value, its neighbours, the midpoint upwards. */
            if (isnan(want) || h % 3) continue;
            float mid = (float)((want + value16((uint16_t)(in + 1), kinds[k].exp_bits)) / 2);
            const float near[] = {x, nextafterf(x, INFINITY), nextafterf(x, -INFINITY), mid,
                                  nextafterf(mid, INFINITY), nextafterf(mid, -INFINITY)};
            for (int i = 0; i < 6; i++) check_to16(kinds[k].dt, kinds[k].exp_bits, near[i]);
        }
        /* And a sweep over all exponents of f32. */
        for (uint32_t i = 0; i < 40000; i++) {
            uint32_t bits = i * 107377u * 977u;
            float x;
            memcpy(&x, &bits, sizeof x);
            check_to16(kinds[k].dt, kinds[k].exp_bits, x);
        }
    }
}

static void conversions_between_all_pairs_agree(void **state)
{
    (void)state;
    enum { N = 3000 }; /* more than two chunks, not a multiple */
    static float x[N], y[N], z[N];
    static unsigned char a[N * 4 + 1], b[N * 4 + 1];
    static const enum dtype kinds[] = {DT_F32, DT_BF16, DT_F16};
    struct err e = ERR_INIT;
    for (int i = 0; i < N; i++) x[i] = (float)((i * 2654435761u) % 100003) / 500.0f - 100.0f;
    for (int p = 0; p < 3; p++)
        for (int q = 0; q < 3; q++) { /* x -> p -> q equals (x -> p -> f32) -> q; unaligned */
            assert_int_equal(st_convert(a + 1, kinds[p], x, DT_F32, N, &e), 0);
            assert_int_equal(st_convert(b + 1, kinds[q], a + 1, kinds[p], N, &e), 0);
            assert_int_equal(st_convert(z, DT_F32, b + 1, kinds[q], N, &e), 0);
            assert_int_equal(st_convert(y, DT_F32, a + 1, kinds[p], N, &e), 0);
            for (int i = 0; i < N; i++) {
                float want = y[i];
                uint16_t h;
                if (kinds[q] != DT_F32) {
                    st_convert(&h, kinds[q], &want, DT_F32, 1, &e);
                    st_convert(&want, DT_F32, &h, kinds[q], 1, &e);
                }
                assert_true(z[i] == want);
            }
        }
    assert_int_equal(st_convert(a, DT_F32, b, DT_I32, 1, &e), -1);
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_int_equal(st_convert(a, DT_F32, b, DT_COUNT, 1, &e), -1);
    assert_int_equal(st_convert(a, DT_F16, b, DT_F32, 0, &e), 0);
}

static void a_real_model_has_the_shapes_of_its_config(void **state)
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
    assert_int_equal(fs_join(at, root, "models/babyllama-105", &e), 0);
    struct st *s = st_open_model(at, &e);
    assert_non_null(s);
    const struct st_tensor *t = st_find(s, "model.embed_tokens.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_F32);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 105);
    assert_int_equal(t->shape[1], 128);
    t = st_find(s, "model.layers.4.self_attn.k_proj.weight");
    assert_non_null(t);
    assert_int_equal(t->shape[0], 64); /* 4 key/value heads of 16 */
    assert_int_equal(t->shape[1], 128);
    t = st_find(s, "model.layers.0.mlp.down_proj.weight");
    assert_non_null(t);
    assert_int_equal(t->shape[0], 128);
    assert_int_equal(t->shape[1], 352);
    assert_null(st_find(s, "model.layers.5.mlp.down_proj.weight"));
    st_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_headers_are_refused_with_the_reason),
        cmocka_unit_test(malformed_lengths_are_refused),
        cmocka_unit_test(stated_limits_hold_on_both_sides),
        cmocka_unit_test(the_number_of_tensors_is_limited),
        cmocka_unit_test(legal_oddities_are_accepted),
        cmocka_unit_test(types_that_graft_does_not_compute_with_keep_their_name),
        cmocka_unit_test(unaligned_tensors_are_given_aligned),
        cmocka_unit_test(every_dtype_survives_a_round_trip),
        cmocka_unit_test(the_data_starts_at_a_multiple_of_eight),
        cmocka_unit_test(a_writer_refuses_what_a_reader_would),
        cmocka_unit_test(models_come_back_whatever_the_shard_size),
        cmocka_unit_test(a_wrong_fill_is_noticed),
        cmocka_unit_test(an_index_and_its_shards_must_agree),
        cmocka_unit_test(a_failed_file_call_leaves_no_file_and_no_leak),
        cmocka_unit_test(a_failed_allocation_leaves_no_file_and_no_leak),
        cmocka_unit_test(half_precision_is_exact_in_all_65536_values),
        cmocka_unit_test(conversions_between_all_pairs_agree),
        cmocka_unit_test(a_real_model_has_the_shapes_of_its_config),
    };
    return cmocka_run_group_tests_name("safetensors", tests, make_folder, drop_folder);
}
