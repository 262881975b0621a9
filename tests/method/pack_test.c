/* Whole jobs on packed rows: the same loss and gradient as on rows of their own, and the same bytes
 * again for the same seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "tests/lib/jobdir.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static char root[64];

static int begin(void **state)
{
    (void)state;
    jobdir_root(root);
    return 0;
}

static int end(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    return fs_rmtree(root, &e);
}

/* One number of metrics in result/graft.json. */
static double number(const char *dir, const char *key)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    assert_int_equal(fs_join(path, dir, "result/graft.json", &e), 0);
    json_t *o = jx_load_file(path, 1 << 20, &e);
    double v = json_number_value(json_object_get(json_object_get(o, "metrics"), key));
    json_decref(o);
    return v;
}

static void near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fabs(want))) fail_msg("%.9g instead of %.9g", got, want);
}

/* A step over all rows at once: no order, no split into micro-batches can tell them apart. */
#define STEP "\"max_steps\": 3, \"batch_size\": 64, \"max_length\": 64, \"learning_rate\": 0.01"

static void packed_rows_have_the_loss_and_gradient_of_rows_of_their_own(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "lora"};
    for (int m = 0; m < 2; m++) {
        double loss[2][3], norm[2][3];
        for (int packing = 0; packing < 2; packing++) {
            char name[32];
            snprintf(name, sizeof name, "%s%d", methods[m], packing);
            const char *dir = jobdir_make(root, name, methods[m],
                                          packing ? STEP ", \"packing\": true" : STEP, 2);
            jobdir_run(dir, 1, NULL, EXIT_DONE);
            assert_int_equal(jobdir_column(dir, "train_loss", loss[packing], 3), 3);
            assert_int_equal(jobdir_column(dir, "grad_norm", norm[packing], 3), 3);
            assert_int_equal((int)number(dir, "rows"), 22);
            double rows = number(dir, "packed_rows");
            assert_true(packing ? rows < 12 : rows == 22);
        }
        /* The first step compares the batches; later ones what they taught. */
        near(loss[1][0], loss[0][0], 1e-6);
        near(norm[1][0], norm[0][0], 1e-5);
        near(loss[1][2], loss[0][2], 1e-4);
    }
}

static void a_packed_job_gives_the_same_bytes_again(void **state)
{
    (void)state;
    static const char settings[] = "\"n_epochs\": 2, \"batch_size\": 2, \"max_length\": 64, "
                                   "\"packing\": true, \"validation_split\": 0.2";
    char first[FS_PATH_MAX];
    struct err e = ERR_INIT;
    const char *dir = jobdir_make(root, "first", "lora", settings, 1);
    assert_int_equal(fs_join(first, dir, "result", &e), 0);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    dir = jobdir_make(root, "second", "lora", settings, 3);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    char second[FS_PATH_MAX];
    assert_int_equal(fs_join(second, dir, "result", &e), 0);
    jobdir_same(first, second);
}

static void truncation_is_counted_in_the_result(void **state)
{
    (void)state;
    const char *dir = jobdir_make(root, "cut", "lora",
                                  "\"max_steps\": 1, \"max_length\": 24, \"packing\": true", 2);
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    double cut = number(dir, "rows_truncated"), tokens = number(dir, "tokens_truncated");
    assert_true(cut > 0 && cut <= 22);
    assert_true(tokens >= cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_rows_have_the_loss_and_gradient_of_rows_of_their_own),
        cmocka_unit_test(a_packed_job_gives_the_same_bytes_again),
        cmocka_unit_test(truncation_is_counted_in_the_result),
    };
    return cmocka_run_group_tests_name("pack", tests, begin, end);
}
