/* Packing: every document once, none beside its row, little padding, the same for the same seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/data/pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens in the longest row, padded as a batch is. */
static int64_t width(const struct pack *p, const int64_t *length)
{
    int64_t most = 0;
    for (int64_t k = 0; k < p->rows; k++) {
        int64_t sum = 0;
        for (int64_t i = p->first[k]; i < p->first[k + 1]; i++) sum += length[p->doc[i]];
        if (sum > most) most = sum;
    }
    return (most + 7) / 8 * 8;
}

static void check(const struct pack *p, const int64_t *length, int64_t n, int64_t most)
{
    char *seen = calloc((size_t)n, 1);
    assert_int_equal(p->n, n);
    assert_int_equal(p->first[0], 0);
    assert_int_equal(p->first[p->rows], n);
    for (int64_t k = 0; k < p->rows; k++) {
        int64_t sum = 0;
        assert_true(p->first[k] < p->first[k + 1]);
        for (int64_t i = p->first[k]; i < p->first[k + 1]; i++) {
            assert_in_range(p->doc[i], 0, n - 1);
            assert_false(seen[p->doc[i]]++);
            sum += length[p->doc[i]];
        }
        assert_true(sum <= most);
    }
    free(seen);
}

/* Lengths as instruction sets have them: log-normal, cut at `most`. */
static int64_t *lengths(int64_t n, double median, double spread, int64_t most)
{
    int64_t *length = malloc((size_t)n * sizeof *length);
    float *z = malloc((size_t)n * sizeof *z);
    rng_fill_normal(z, n, 1, 7, RNG_USER, 0);
    for (int64_t i = 0; i < n; i++) {
        double x = median * exp(spread * z[i]);
        length[i] = x < 2 ? 2 : x > (double)most ? most : (int64_t)x;
    }
    free(z);
    return length;
}

static void at_least_97_percent_of_a_row_are_tokens(void **state)
{
    (void)state;
    static const struct {
        int64_t n, most;
        double median, spread;
    } rows[] = {{5000, 1024, 120, 0.7}, {400, 1024, 120, 0.7}, {60, 512, 40, 0.6},
                {3000, 300, 50, 0.6},   {20000, 4096, 60, 1.2}, {1000, 509, 50, 1.0},
                {24, 4096, 90, 0.5}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct pack p;
        int64_t total = 0, n = rows[i].n;
        int64_t *length = lengths(n, rows[i].median, rows[i].spread, rows[i].most);
        for (int64_t k = 0; k < n; k++) total += length[k];
        assert_int_equal(pack_make(&p, length, n, rows[i].most, 1, &e), 0);
        check(&p, length, n, rows[i].most);
        double share = (double)total / (double)(p.rows * width(&p, length));
        print_message("%lld documents in %lld rows: %.2f %%\n", (long long)n, (long long)p.rows,
                      100 * share);
        assert_true(share >= 0.97);
        pack_clear(&p);
        free(length);
    }
}

static void small_cases_are_packed_as_by_hand(void **state)
{
    (void)state;
    static const struct {
        int64_t length[6], n, most, rows;
    } cases[] = {{{1}, 1, 1, 1},          {{8, 8, 8}, 3, 8, 3},        {{5, 3, 5, 3}, 4, 8, 2},
                 {{3, 3, 3, 3}, 4, 6, 2}, {{7, 1, 6, 2, 5, 3}, 6, 8, 3}, {{2, 9}, 2, 10, 2},
                 {{9, 1, 1}, 3, 11, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = ERR_INIT;
        struct pack p;
        assert_int_equal(pack_make(&p, cases[i].length, cases[i].n, cases[i].most, 3, &e), 0);
        check(&p, cases[i].length, cases[i].n, cases[i].most);
        assert_int_equal(p.rows, cases[i].rows);
        pack_clear(&p);
    }
}

static void the_seed_decides_and_nothing_else(void **state)
{
    (void)state;
    enum { N = 500 };
    struct err e = ERR_INIT;
    struct pack a, b, c;
    int64_t *length = lengths(N, 30, 0.5, 256);
    assert_int_equal(pack_make(&a, length, N, 256, 11, &e), 0);
    assert_int_equal(pack_make(&b, length, N, 256, 11, &e), 0);
    assert_int_equal(pack_make(&c, length, N, 256, 12, &e), 0);
    assert_int_equal(a.rows, b.rows);
    assert_memory_equal(a.doc, b.doc, N * sizeof *a.doc);
    assert_memory_equal(a.first, b.first, (size_t)(a.rows + 1) * sizeof *a.first);
    assert_true(memcmp(a.doc, c.doc, N * sizeof *a.doc) != 0);
    pack_clear(&a);
    pack_clear(&b);
    pack_clear(&c);
    free(length);
}

static void a_failed_allocation_leaves_nothing(void **state)
{
    (void)state;
    static const int64_t length[] = {3, 5, 2};
    for (int i = 1, done = 0; !done; i++) {
        struct err e = ERR_INIT;
        struct pack p;
        size_t before = mem_live();
        fault_arm(FAULT_MEM, i, false);
        int rc = pack_make(&p, length, 3, 8, 1, &e);
        fault_arm(FAULT_MEM, 0, false);
        done = rc == 0;
        if (rc) assert_int_equal(e.code, E_NOMEM);
        pack_clear(&p);
        assert_int_equal(mem_live(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(at_least_97_percent_of_a_row_are_tokens),
        cmocka_unit_test(small_cases_are_packed_as_by_hand),
        cmocka_unit_test(the_seed_decides_and_nothing_else),
        cmocka_unit_test(a_failed_allocation_leaves_nothing),
    };
    return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
