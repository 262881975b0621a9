#include "tests/cudaemu/bare/cmocka.h"

#include <fnmatch.h>

/* Where a failed check goes, and which tests run: as in the library itself, one per program. */
static jmp_buf escape;
static const char *filter;

void bare_fail(const char *file, int line)
{
    printf("[   LINE   ] --- %s:%d: error: Failure!\n", file, line);
    longjmp(escape, 1);
}

void cmocka_set_test_filter(const char *pattern)
{
    filter = pattern;
}

int _cmocka_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n,
                            CMFixtureFunction setup, CMFixtureFunction teardown)
{
    void *state = NULL;
    volatile int failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("[==========] %s: Running %zu test(s).\n", name, n);
    if (setup && (setjmp(escape) || setup(&state))) return 1;
    for (volatile size_t i = 0; i < n; i++) {
        void *own = tests[i].initial_state;
        if (filter && fnmatch(filter, tests[i].name, 0)) continue;
        printf("[ RUN      ] %s\n", tests[i].name);
        if (setjmp(escape)) {
            printf("[  FAILED  ] %s\n", tests[i].name);
            failed++;
            continue;
        }
        tests[i].test_func(own ? &own : &state);
        printf("[       OK ] %s\n", tests[i].name);
    }
    if (teardown) teardown(&state);
    return failed;
}
