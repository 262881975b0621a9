/* engine/base: the promises everything else leans on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/arena.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/pool.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *scratch(void)
{
    static char dir[64];
    snprintf(dir, sizeof dir, "/tmp/graft-base-XXXXXX");
    assert_non_null(mkdtemp(dir));
    return dir;
}

static void wrapped_errors_keep_the_cause(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char longish[600];
    memset(longish, 'x', sizeof longish);
    longish[599] = 0;
    assert_int_equal(err_set(&e, E_FORMAT, "the cause"), -1);
    err_param(&e, "training_file");
    err_param(&e, "other");
    err_wrap(&e, "%s", longish);
    assert_int_equal(e.code, E_FORMAT);
    assert_string_equal(e.param, "training_file");
    assert_true(str_ends(e.msg, ": the cause"));
    assert_true(str_starts(e.where, "base_test.c:"));
}

static void messages_are_one_line_of_utf8(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    err_set(&e, E_FORMAT, "a\nb\x7f\xc2\x9b '%.3s' \xff\xc3!", "x\xc3\xa9\xc3\xa9");
    assert_string_equal(e.msg, "a b    'x\xc3\xa9' ?\?!");
    err_set(&e, E_FORMAT, "%.2s|", "x\xc3\xa9");
    assert_string_equal(e.msg, "x?|");
    err_param(&e, "%.2s", "\xf0\x9f\x98\x80");
    assert_string_equal(e.param, "??");
    for (int n = 470; n < 485; n++) { /* cut at the end of the buffer, inside a character */
        err_set(&e, E_FORMAT, "%*s\xf0\x9f\x98\x80", n, "");
        err_wrap(&e, "\xe2\x82\xac");
        assert_int_equal(str_utf8_bad(e.msg, strlen(e.msg)), strlen(e.msg));
    }
}

static void the_nth_allocation_fails_and_only_it(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    size_t before = mem_live();
    fault_arm(FAULT_MEM, 2, false);
    void *a = mem_alloc(10, &e), *b = mem_alloc(10, &e), *c = mem_alloc(10, &e);
    fault_arm(FAULT_MEM, 0, false);
    assert_non_null(a);
    assert_null(b);
    assert_non_null(c);
    assert_int_equal(e.code, E_NOMEM);
    mem_free(a);
    mem_free(c);
    assert_int_equal(mem_live(), before);
}

static void arenas_and_buffers_stop_at_their_cap(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct arena a;
    struct buf b;
    arena_init(&a, 64);
    assert_non_null(arena_alloc(&a, 40, &e));
    assert_null(arena_alloc(&a, 40, &e));
    assert_int_equal(e.code, E_LIMIT);
    arena_clear(&a);
    buf_init(&b, 10);
    buf_puts(&b, "12345");
    buf_printf(&b, "%d", 67890);
    assert_int_equal(buf_ok(&b, &e), 0);
    buf_putc(&b, '!');
    buf_puts(&b, "");
    assert_int_equal(buf_ok(&b, &e), -1);
    assert_string_equal(buf_str(&b), "1234567890");
    buf_clear(&b);
}

static void utf8_is_checked_by_the_table(void **state)
{
    (void)state;
    static const struct { const char *s; size_t n, bad; } rows[] = {
        {"abc", 3, 3}, {"\xc3\xa9", 2, 2}, {"\xe2\x82\xac", 3, 3}, {"\xf0\x9f\x98\x80", 4, 4},
        {"a\xc0\x80", 3, 1}, {"\xed\xa0\x80", 3, 0}, {"\xf4\x90\x80\x80", 4, 0},
        {"ab\xe2\x82", 4, 2}, {"\xff", 1, 0}, {"\xe0\x80\xaf", 3, 0}, {"\x80", 1, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(str_utf8_bad(rows[i].s, rows[i].n), rows[i].bad);
    for (uint32_t cp = 1; cp < 0x110000; cp += 7) {
        char out[4];
        uint32_t back;
        if (cp >= 0xd800 && cp < 0xe000) continue;
        int n = str_utf8_put(cp, out);
        assert_int_equal(str_utf8_bad(out, (size_t)n), n);
        assert_int_equal(str_utf8_next(out, (size_t)n, &back), n);
        assert_int_equal(back, cp);
    }
}

static void philox_matches_its_published_vectors(void **state)
{
    (void)state;
    /* Known-answer vectors of Random123 for philox4x32-10. */
    uint32_t zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u}, w[4];
    rng_philox(0, zero, w);
    assert_int_equal(w[0], 0x6627e8d5u);
    assert_int_equal(w[1], 0xe169c58du);
    assert_int_equal(w[2], 0xbc57ac4cu);
    assert_int_equal(w[3], 0x9b00dbd8u);
    rng_philox(~0ull, ones, w);
    assert_int_equal(w[0], 0x408f276du);
    assert_int_equal(w[1], 0x41c83b0eu);
    assert_int_equal(w[2], 0xa20bc7c6u);
    assert_int_equal(w[3], 0x6d5451fdu);
}

static void shuffles_are_permutations(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 3, 17, 256, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s], moved = 0;
        char seen[1000] = {0};
        for (int64_t i = 0; i < n; i++) {
            int64_t j = rng_permute(7, 3, n, i);
            assert_in_range(j, 0, n - 1);
            assert_false(seen[j]);
            seen[j] = 1;
            moved += j != rng_permute(7, 4, n, i);
        }
        if (n > 100) assert_true(moved > n / 2);
    }
}

static void normals_have_the_moments_of_normals(void **state)
{
    (void)state;
    enum { N = 100001 };
    static float x[N];
    double s1 = 0, s2 = 0;
    rng_fill_normal(x, N, 2.0f, 1, RNG_INIT, 0);
    for (int i = 0; i < N; i++) {
        s1 += x[i];
        s2 += (double)x[i] * x[i];
    }
    assert_true(s1 / N > -0.03 && s1 / N < 0.03); /* 4.7 standard errors */
    assert_true(s2 / N > 3.9 && s2 / N < 4.1);    /* 5.6 standard errors */
}

static void hashes_match_known_answers(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char hex[65];
    assert_int_equal(hash_sha256("abc", 3, hex, &e), 0);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(hash_git_blob("hello\n", 6, hex, &e), 0);
    assert_string_equal(hex, "ce013625030ba8dba906f756967f9e9ca394464a");
}

static void json_limits_and_errors(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char deep[100];
    memset(deep, '[', 50);
    memset(deep + 50, ']', 50);
    assert_null(jx_parse(deep, 100, &e));
    assert_int_equal(e.code, E_LIMIT);
    assert_null(jx_parse("{\"a\":1,\n \"a\":2}", 15, &e));
    assert_non_null(strstr(e.msg, "line 2"));
    assert_null(jx_parse("{\"a\": \"\\u0000\"}", 14, &e));
    assert_null(jx_parse("[1\0]", 4, &e));
    assert_int_equal(e.code, E_FORMAT);
    static const char text[] = "{\"n\": 3, \"s\": \"[[[[\", \"x\": 2.5, \"z\": null}";
    json_t *o = jx_parse(text, sizeof text - 1, &e);
    assert_non_null(o);
    int64_t n = 9;
    double x;
    assert_int_equal(jx_int64(o, "n", 0, 5, &n, &e), 0);
    assert_int_equal(n, 3);
    assert_int_equal(jx_int64(o, "n", 4, 5, &n, &e), -1);
    assert_int_equal(e.code, E_RANGE);
    assert_string_equal(e.param, "n");
    assert_int_equal(jx_int64(o, "x", 0, 5, &n, &e), -1);
    assert_int_equal(jx_opt_int64(o, "z", 0, 5, &n, &e), 0);
    assert_int_equal(jx_real(o, "n", 0, 5, &x, &e), 0);
    assert_int_equal(jx_opt_real(o, "s", 0, 5, &x, &e), -1);
    json_decref(o);
}

static void json_is_whole_or_out_of_memory(void **state)
{
    (void)state;
    static const char text[] = "{\"a key that is longer than a first buffer\": [\"and its value\", "
                               "1, 2.5, true, null], \"b\": {\"c\": \"d\"}}";
    struct err e = ERR_INIT;
    mem_hook_libraries();
    json_t *o = jx_parse(text, sizeof text - 1, &e);
    char *whole = jx_dump(o, &e);
    json_decref(o);
    for (int n = 1, done = 0; !done; n++) {
        size_t before = mem_live();
        char *again = NULL;
        fault_arm(FAULT_MEM, n, false);
        json_t *top = NULL;
        o = jx_parse(text, sizeof text - 1, &e);
        if (o) top = jx_pack(&e, "{s:O, s:s}", "in", o, "key", "value");
        if (top) again = jx_dump(o, &e);
        done = fault_count(FAULT_MEM) < n;
        fault_arm(FAULT_MEM, 0, false);
        if (again) assert_string_equal(again, whole);
        else assert_int_equal(e.code, E_NOMEM);
        assert_true(!done || again);
        mem_free(again);
        json_decref(top);
        json_decref(o);
        assert_int_equal(mem_live(), before);
    }
    mem_free(whole);
}

static void reals_are_written_short_and_exact(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    static const struct { double x; const char *text; } rows[] = {
        {0.0002, "0.0002"}, {0.1, "0.1"}, {32, "32.0"}, {1e-8, "1e-8"}, {-2.5, "-2.5"},
        {1e300, "1e+300"}, {0.1 + 0.2, "0.30000000000000004"}, {123456789.125, "123456789.125"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *v = json_pack("{s:f, s:s, s:i}", "x", rows[i].x, "s",
                              "\\\"0.00020000000000000001", "n", 7);
        char *text = jx_dump(v, &e), want[120];
        snprintf(want, sizeof want, "{\"x\":%s,\"s\":\"\\\\\\\"0.00020000000000000001\",\"n\":7}",
                 rows[i].text);
        assert_string_equal(text, want);
        json_t *back = jx_parse(text, strlen(text), &e);
        assert_true(json_real_value(json_object_get(back, "x")) == rows[i].x);
        json_decref(back);
        mem_free(text);
        json_decref(v);
    }
}

static void a_published_file_is_whole_or_absent(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX], sha[65];
    const char *dir = scratch();
    assert_int_equal(fs_join(path, dir, "f", &e), 0);
    assert_int_equal(fs_write_file(path, "old", 3, &e), 0);
    /* Let every file call of the publication fail in turn. */
    for (int n = 1;; n++) {
        fault_arm(FAULT_FILE, n, true);
        struct fs_writer *w = fs_writer_new(path, &e);
        int rc = -1;
        if (w && fs_writer_put(w, "newer", 5, &e)) fs_writer_abort(w);
        else if (w) rc = fs_writer_publish(w, sha, &e);
        fault_arm(FAULT_FILE, 0, false);
        struct buf b;
        buf_init(&b, 100);
        assert_int_equal(fs_read_file(path, &b, &e), 0);
        if (rc == 0) assert_string_equal(buf_str(&b), "newer");
        else assert_true(!strcmp(buf_str(&b), "old") || !strcmp(buf_str(&b), "newer"));
        buf_clear(&b);
        if (rc == 0) {
            assert_true(n > 4);
            break;
        }
        assert_true(n < 50);
    }
    assert_int_equal(fs_rmtree(dir, &e), 0);
    assert_false(fs_exists(dir));
}

static void the_parent_of_a_path_is_its_folder(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a/b", "a"}, {"/a", "/"}, {"a", "."}, {"/a/b/c", "/a/b"}, {"./a", "."}, {"a/", "a"},
    };
    char out[FS_PATH_MAX];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_parent(out, cases[i][0]);
        assert_string_equal(out, cases[i][1]);
    }
}

static void a_published_folder_notices_every_change(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char tmp[FS_PATH_MAX], done[FS_PATH_MAX], f[FS_PATH_MAX];
    const char *dir = scratch();
    fs_join(tmp, dir, "t/sub", &e);
    assert_int_equal(fs_mkdirs(tmp, &e), 0);
    fs_join(f, tmp, "a.bin", &e);
    assert_int_equal(fs_write_file(f, "12345678", 8, &e), 0);
    fs_join(tmp, dir, "t", &e);
    fs_join(done, dir, "done", &e);
    assert_int_equal(fs_check_dir(tmp, false, &e), -1);
    assert_int_equal(fs_publish_dir(tmp, done, &e), 0);
    assert_int_equal(fs_check_dir(done, true, &e), 0);
    fs_join(f, done, "sub/a.bin", &e);
    assert_int_equal(fs_write_file(f, "12345679", 8, &e), 0);
    assert_int_equal(fs_check_dir(done, false, &e), 0);
    assert_int_equal(fs_check_dir(done, true, &e), -1);
    assert_int_equal(e.code, E_CORRUPT);
    assert_int_equal(fs_write_file(f, "1", 1, &e), 0);
    assert_int_equal(fs_check_dir(done, false, &e), -1);
    fs_rmtree(dir, &e);
}

static void unsafe_names_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"", ".", "..", "../x", "a/b", ".hidden", "a b", "a\n",
                                      "\xc3\xa9"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(fs_safe_name(bad[i]));
    assert_true(fs_safe_name("model-00001-of-00002.safetensors"));
}

struct tally {
    _Atomic int seen[500];
    _Atomic int bad_thread;
    int threads;
};

static void mark(void *ctx, int64_t task, int thread)
{
    struct tally *t = ctx;
    atomic_fetch_add(&t->seen[task], 1);
    if (thread < 0 || thread >= t->threads) atomic_store(&t->bad_thread, 1);
}

static void pools_run_every_task_once(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    for (int threads = 1; threads <= 5; threads++) {
        struct pool *p = pool_new(threads, &e);
        assert_non_null(p);
        for (int run = 0; run < 300; run++) {
            static struct tally t;
            memset(&t, 0, sizeof t);
            t.threads = threads;
            int n = run % 500;
            pool_run(p, n, mark, &t);
            for (int i = 0; i < n; i++) assert_int_equal(t.seen[i], 1);
            assert_int_equal(t.bad_thread, 0);
        }
        pool_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_parent_of_a_path_is_its_folder),
        cmocka_unit_test(wrapped_errors_keep_the_cause),
        cmocka_unit_test(messages_are_one_line_of_utf8),
        cmocka_unit_test(the_nth_allocation_fails_and_only_it),
        cmocka_unit_test(arenas_and_buffers_stop_at_their_cap),
        cmocka_unit_test(utf8_is_checked_by_the_table),
        cmocka_unit_test(philox_matches_its_published_vectors),
        cmocka_unit_test(shuffles_are_permutations),
        cmocka_unit_test(normals_have_the_moments_of_normals),
        cmocka_unit_test(hashes_match_known_answers),
        cmocka_unit_test(json_limits_and_errors),
        cmocka_unit_test(reals_are_written_short_and_exact),
        cmocka_unit_test(json_is_whole_or_out_of_memory),
        cmocka_unit_test(a_published_file_is_whole_or_absent),
        cmocka_unit_test(a_published_folder_notices_every_change),
        cmocka_unit_test(unsafe_names_are_refused),
        cmocka_unit_test(pools_run_every_task_once),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
