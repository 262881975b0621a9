/* npz: arrays as numpy writes them come back, and nothing malformed gets in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/buf.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/fmt/npz.h"
#include "engine/fmt/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN "tests/unit/golden/"
#define MOST ((int64_t)1 << 40)

static char dir[64], path[128];

static int make_folder(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/graft-npz-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/f.npz", dir);
    return 0;
}

static int drop_folder(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    return fs_rmtree(dir, &e);
}

static double element(const struct npz_array *a, int64_t i)
{
    float f;
    switch (a->dtype) {
    case DT_F64: return ((const double *)a->data)[i];
    case DT_I32: return ((const int32_t *)a->data)[i];
    case DT_I64: return (double)((const int64_t *)a->data)[i];
    case DT_U8: return ((const uint8_t *)a->data)[i];
    default: break;
    }
    struct err e = ERR_INIT;
    const char *p = a->data;
    assert_int_equal(st_convert(&f, DT_F32, p + i * (int64_t)dtype_size(a->dtype), a->dtype, 1, &e),
                     0);
    return f;
}

static void every_type_order_and_version_of_numpy_comes_back(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum dtype dtype;
        int rank;
        int64_t shape[3];
    } want[] = {
        {"Transformer/encoderblock_0/kernel", DT_F32, 2, {3, 5}},
        {"byte", DT_U8, 1, {11}},
        {"double", DT_F64, 3, {2, 3, 4}},
        {"empty", DT_F32, 2, {0, 3}},
        {"fortran", DT_F32, 3, {3, 4, 5}},
        {"fortran2", DT_I64, 2, {6, 2}},
        {"half", DT_F16, 1, {7}},
        {"int", DT_I32, 2, {4, 2}},
        {"long", DT_I64, 1, {9}},
        {"scalar", DT_F32, 0, {0}},
        {"version2", DT_F32, 2, {2, 2}},
        {"version3", DT_F32, 2, {2, 2}},
    };
    static const char *const files[] = {GOLDEN "npz_stored.npz", GOLDEN "npz_deflated.npz"};
    for (int f = 0; f < 2; f++) {
        struct err e = ERR_INIT;
        struct npz *z = npz_open(files[f], MOST, &e);
        if (!z) fail_msg("%s", e.msg);
        assert_int_equal(npz_count(z), sizeof want / sizeof *want);
        for (int i = 0; i < npz_count(z); i++) {
            const struct npz_array *a = npz_at(z, i);
            bool integers = a->dtype == DT_I32 || a->dtype == DT_I64 || a->dtype == DT_U8;
            int64_t count = 1;
            assert_string_equal(a->name, want[i].name);
            assert_ptr_equal(npz_find(z, want[i].name), a);
            assert_int_equal(a->dtype, want[i].dtype);
            assert_int_equal(a->rank, want[i].rank);
            for (int d = 0; d < a->rank; d++) {
                assert_int_equal(a->shape[d], want[i].shape[d]);
                count *= want[i].shape[d];
            }
            assert_int_equal(a->count, count);
            assert_int_equal(a->bytes, count * (int64_t)dtype_size(a->dtype));
            assert_int_equal((uintptr_t)a->data % 64, 0);
            for (int64_t k = 0; k < count; k++)
                assert_true(element(a, k) == (integers ? (double)k : (double)k * 0.5 - 3));
        }
        assert_null(npz_find(z, "half.npy"));
        npz_close(z);
    }
}

static void refuse(enum errc code, const char *says)
{
    struct err e = ERR_INIT;
    struct npz *z = npz_open(path, MOST, &e);
    if (z) fail_msg("accepted; it should have said '%s'", says);
    if (e.code != code || !strstr(e.msg, says))
        fail_msg("%s '%s' lacks '%s'", err_name(e.code), e.msg, says);
}

/* A .npy of the given version byte, header and data. */
static void put_npy(int version, const char *header, size_t data)
{
    struct buf b;
    struct err e = ERR_INIT;
    size_t n = strlen(header);
    buf_init(&b, 1 << 24);
    buf_put(&b, "\x93NUMPY", 6);
    buf_putc(&b, (char)version);
    buf_putc(&b, 0);
    for (int i = 0; i < (version == 1 ? 2 : 4); i++) buf_putc(&b, (char)(n >> 8 * i));
    buf_put(&b, header, n);
    for (size_t i = 0; i < data; i++) buf_putc(&b, 1);
    assert_int_equal(fs_write_file(path, buf_str(&b), b.len, &e), 0);
    buf_clear(&b);
}

#define SAME "'descr': '|u1', 'fortran_order': False, "

static void headers_of_other_writers_are_read(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{" SAME "'shape': (2, 3), }   \n",
        "{" SAME "'shape': (2, 3)}",
        "{\"shape\":(2,3),\"fortran_order\":False,\"descr\":\"|u1\"}",
        "{ 'fortran_order': True, 'shape': (2L, 3L,), 'descr': '|u1', }",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct err e = ERR_INIT;
        put_npy(1 + (int)i % 3, good[i], 6);
        struct npz *z = npz_open(path, MOST, &e);
        if (!z) fail_msg("%s: %s", good[i], e.msg);
        assert_int_equal(npz_find(z, "arr_0")->shape[1], 3);
        assert_int_equal(npz_find(z, "arr_0")->count, 6);
        npz_close(z);
    }
}

static void a_header_that_is_not_exactly_one_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        enum errc code;
        const char *says;
    } bad[] = {
        {"", E_FORMAT, "not a header"},
        {"[]", E_FORMAT, "not a header"},
        {"{" SAME "'shape': (6,)", E_FORMAT, "not a header"},
        {"{" SAME "'shape': (6,)} x", E_FORMAT, "follows"},
        {"{" SAME "'shape': (6,), 'shape': (6,)}", E_FORMAT, "twice"},
        {"{" SAME "'shape': (6,), 'more': 1}", E_FORMAT, "unknown"},
        {"{" SAME "}", E_FORMAT, "needs"},
        {"{" SAME "'shape' (6,)}", E_FORMAT, "not a header"},
        {"{" SAME "'shape': (6,) 'x'}", E_FORMAT, "not a header"},
        {"{" SAME "'shape': 6}", E_FORMAT, "tuple"},
        {"{" SAME "'shape': (6)}", E_FORMAT, "tuple"},
        {"{" SAME "'shape': (2 3)}", E_FORMAT, "tuple"},
        {"{" SAME "'shape': (-6,)}", E_FORMAT, ">= 0"},
        {"{" SAME "'shape': (6.0,)}", E_FORMAT, "tuple"},
        {"{" SAME "'shape': (99999999999999999999,)}", E_FORMAT, "overflows"},
        {"{" SAME "'shape': (4294967296, 4294967296)}", E_FORMAT, "overflows"},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952,)}", E_FORMAT,
         "overflows"},
        {"{" SAME "'shape': (1, 1, 1, 1, 1, 1, 1, 1, 6)}", E_LIMIT, "dimensions"},
        {"{" SAME "'shape': (7,)}", E_FORMAT, "less than the 7"},
        {"{" SAME "'shape': (5,)}", E_FORMAT, "more than the 5"},
        {"{" SAME "'shape': (1099511627776,)}", E_LIMIT, "may unpack to"},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", E_UNSUPPORTED, ">f4"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", E_UNSUPPORTED, "|O"},
        {"{'descr': '|V2', 'fortran_order': False, 'shape': (3,)}", E_UNSUPPORTED, "|V2"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", E_UNSUPPORTED,
         "structured"},
        {"{'descr': 4, 'fortran_order': False, 'shape': (1,)}", E_FORMAT, "string"},
        {"{'descr': '|u1', 'fortran_order': 0, 'shape': (6,)}", E_FORMAT, "True or False"},
        {"{'descr': '|u1\\x00', 'fortran_order': False, 'shape': (6,)}", E_FORMAT, "string"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_npy(1, bad[i].header, 6);
        refuse(bad[i].code, bad[i].says);
    }
    put_npy(4, "{" SAME "'shape': (6,)}", 6);
    refuse(E_UNSUPPORTED, "version 4.0");
}

static void read_golden(const char *name, struct buf *b)
{
    char from[128];
    struct err e = ERR_INIT;
    snprintf(from, sizeof from, GOLDEN "%s", name);
    buf_init(b, 1 << 20);
    assert_int_equal(fs_read_file(from, b, &e), 0);
}

static void put_golden(const char *name)
{
    struct buf b;
    struct err e = ERR_INIT;
    read_golden(name, &b);
    assert_int_equal(fs_write_file(path, b.data, b.len, &e), 0);
    buf_clear(&b);
}

static void archives_that_numpy_would_not_write_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        enum errc code;
        const char *says;
    } bad[] = {
        {"npz_twice.npz", E_FORMAT, "'a' is there twice"},
        {"npz_text.npz", E_FORMAT, "readme.txt"},
        {"npz_control.npz", E_FORMAT, "control character"},
        {"npz_long.npz", E_FORMAT, "array 'a': more than"},
        {"npz_bomb.npz", E_LIMIT, "array 'a': its 8388608 bytes"},
        {"npz_pickle.npz", E_UNSUPPORTED, "|O"},
    };
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_golden(bad[i].file);
        size_t peak = mem_live();
        mem_peak_reset();
        refuse(bad[i].code, bad[i].says);
        assert_true(mem_peak() - peak < 1 << 20); /* the bomb did not go off */
    }
    assert_int_equal(fs_write_file(path, "hello, numpy", 12, &e), 0);
    refuse(E_FORMAT, "neither");
    assert_int_equal(fs_write_file(path, "", 0, &e), 0);
    refuse(E_FORMAT, "neither");
}

static void more_than_the_caller_allows_is_refused(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_null(npz_open(GOLDEN "npz_stored.npz", 600, &e));
    assert_int_equal(e.code, E_LIMIT);
}

/* Byte i of the file is changed: it must be refused, or mean the same (dates, permissions). */
static void no_damaged_byte_changes_an_array(void **state)
{
    (void)state;
    static const char *const files[] = {"npz_stored.npz", "npz_deflated.npz"};
    for (int f = 0; f < 2; f++) {
        struct buf b;
        struct err e = ERR_INIT;
        int refused = 0;
        read_golden(files[f], &b);
        assert_int_equal(fs_write_file(path, b.data, b.len, &e), 0);
        struct npz *good = npz_open(path, MOST, &e);
        assert_non_null(good);
        for (size_t i = 0; i < b.len; i++) {
            b.data[i] ^= 0x41;
            FILE *out = fopen(path, "wb");
            assert_non_null(out);
            assert_int_equal(fwrite(b.data, 1, b.len, out), b.len);
            fclose(out);
            b.data[i] ^= 0x41;
            struct npz *z = npz_open(path, MOST, &e);
            refused += !z;
            for (int k = 0; z && k < npz_count(z); k++) {
                const struct npz_array *a = npz_at(z, k), *w = npz_find(good, a->name);
                if (!w) continue; /* another name is another array: who asks for it decides */
                assert_int_equal(a->dtype, w->dtype);
                assert_int_equal(a->bytes, w->bytes);
                assert_memory_equal(a->shape, w->shape, sizeof a->shape);
                assert_memory_equal(a->data, w->data, (size_t)a->bytes);
            }
            npz_close(z);
        }
        assert_true(refused > (int)b.len / 2);
        npz_close(good);
        buf_clear(&b);
    }
}

static void no_cut_file_is_accepted(void **state)
{
    (void)state;
    struct buf b;
    struct err e = ERR_INIT;
    read_golden("npz_deflated.npz", &b);
    for (size_t n = 0; n < b.len; n += 1 + n % 7) {
        FILE *out = fopen(path, "wb");
        assert_non_null(out);
        assert_int_equal(fwrite(b.data, 1, n, out), n);
        fclose(out);
        assert_null(npz_open(path, MOST, &e));
        assert_true(e.code == E_FORMAT);
    }
    buf_clear(&b);
}

static void every_failed_allocation_is_an_error_and_no_leak(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    size_t live = mem_live();
    int failures = 0;
    for (int64_t n = 1;; n++) {
        fault_arm(FAULT_MEM, n, false);
        struct npz *z = npz_open(GOLDEN "npz_stored.npz", MOST, &e);
        fault_arm(FAULT_MEM, 0, false);
        npz_close(z);
        assert_int_equal(mem_live(), live);
        if (z) break;
        assert_int_equal(e.code, E_NOMEM);
        failures++;
    }
    assert_true(failures > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_order_and_version_of_numpy_comes_back),
        cmocka_unit_test(headers_of_other_writers_are_read),
        cmocka_unit_test(a_header_that_is_not_exactly_one_is_refused),
        cmocka_unit_test(archives_that_numpy_would_not_write_are_refused),
        cmocka_unit_test(more_than_the_caller_allows_is_refused),
        cmocka_unit_test(no_damaged_byte_changes_an_array),
        cmocka_unit_test(no_cut_file_is_accepted),
        cmocka_unit_test(every_failed_allocation_is_an_error_and_no_leak),
    };
    return cmocka_run_group_tests_name("npz", tests, make_folder, drop_folder);
}
