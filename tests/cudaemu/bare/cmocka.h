/* cmocka.h: the part of cmocka that tests/cudaemu uses, for machines with a GPU and little else.
 *
 * Same names and output; a failed check jumps out of its test. One thread.
 */
#ifndef GRAFT_BARE_CMOCKA_H
#define GRAFT_BARE_CMOCKA_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef void (*CMUnitTestFunction)(void **state);
typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
    const char *name;
    CMUnitTestFunction test_func;
    CMFixtureFunction setup_func, teardown_func;
    void *initial_state;
};

#define cmocka_unit_test(f) {#f, f, NULL, NULL, NULL}

void bare_fail(const char *file, int line) __attribute__((noreturn));
void cmocka_set_test_filter(const char *pattern);
int _cmocka_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n,
                            CMFixtureFunction setup, CMFixtureFunction teardown);
#define cmocka_run_group_tests(tests, setup, teardown) \
    cmocka_run_group_tests_name(#tests, tests, setup, teardown)
#define cmocka_run_group_tests_name(name, tests, setup, teardown) \
    _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof *(tests), setup, teardown)

#define bare_check(ok, text) \
    ((ok) ? (void)0 : (printf("[  ERROR   ] --- %s\n", text), bare_fail(__FILE__, __LINE__)))
#define fail_msg(...) \
    (printf("ERROR: "), printf(__VA_ARGS__), printf("\n"), bare_fail(__FILE__, __LINE__))
#define assert_true(c) bare_check(c, #c)
#define assert_false(c) bare_check(!(c), "not " #c)
#define assert_null(p) bare_check((p) == NULL, #p " == NULL")
#define assert_non_null(p) bare_check((p) != NULL, #p " != NULL")
#define assert_int_equal(a, b) bare_check((a) == (b), #a " == " #b)
#define assert_in_range(v, lo, hi) bare_check((v) >= (lo) && (v) <= (hi), #v " in " #lo " .. " #hi)
#define assert_memory_equal(a, b, n) bare_check(memcmp(a, b, n) == 0, #a " is " #b)
#define assert_memory_not_equal(a, b, n) bare_check(memcmp(a, b, n) != 0, #a " is not " #b)

#endif
