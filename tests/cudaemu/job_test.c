/* Whole jobs on CUDA: the losses of the CPU, the same bytes after a pause and in any order of
 * threads, activations in bf16. Runs on the emulation and on a GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "tests/lib/jobdir.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Dropout, accumulation, an epoch that ends in a smaller step. */
#define SETTINGS \
    "\"r\": 4, \"lora_dropout\": 0.1, \"max_steps\": 5, \"batch_size\": 3," \
    " \"gradient_accumulation_steps\": 2, \"learning_rate\": 0.01, \"validation_split\": 0.15," \
    " \"checkpoint_steps\": 2, \"warmup_ratio\": 0"

enum { STEPS = 5 };

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

struct fixture {
    char root[64], straight[FS_PATH_MAX];
};

static const char *make(const struct fixture *f, const char *name, const char *device,
                        const char *precision)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    const char *dir = jobdir_make(f->root, name, "lora", SETTINGS, 1);
    OK(fs_join(path, dir, "job.json", &e));
    json_t *o = jx_load_file(path, 1 << 20, &e);
    OK(jx_set(o, "device", json_string(device), &e) ||
       jx_set(o, "precision", json_string(precision), &e));
    char *text = jx_dump(o, &e);
    OK(fs_write_file(path, text, strlen(text), &e));
    mem_free(text);
    json_decref(o);
    return dir;
}

static void losses(const char *dir, double out[STEPS])
{
    assert_int_equal(jobdir_column(dir, "train_loss", out, STEPS), STEPS);
}

static int begin(void **state)
{
    struct err e = ERR_INIT;
    struct fixture *f = calloc(1, sizeof *f);
    jobdir_root(f->root);
    const char *dir = make(f, "straight", "cuda", "f32");
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    *state = f;
    return fs_join(f->straight, dir, "", &e);
}

static int end(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    int rc = fs_rmtree(f->root, &e);
    free(f);
    return rc;
}

static void expect_same(const struct fixture *f, const char *dir)
{
    char a[FS_PATH_MAX], b[FS_PATH_MAX];
    struct err e = ERR_INIT;
    OK(fs_join(a, f->straight, "result", &e) || fs_join(b, dir, "result", &e));
    jobdir_same(a, b);
}

static void the_losses_are_those_of_the_cpu(void **state)
{
    struct fixture *f = *state;
    double cpu[STEPS], cuda[STEPS];
    const char *dir = make(f, "cpu", "cpu", "f32");
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    losses(dir, cpu);
    losses(f->straight, cuda);
    assert_true(cpu[STEPS - 1] < cpu[0]);
    for (int i = 0; i < STEPS; i++)
        if (!(fabs(cuda[i] - cpu[i]) <= 1e-4))
            fail_msg("step %d: %.9g on the CPU, %.9g", i + 1, cpu[i], cuda[i]);
}

static enum engine_want pause_third(void *ctx)
{
    return ++*(int *)ctx == 4 ? WANT_PAUSE : WANT_NONE;
}

static void a_pause_does_not_change_a_byte(void **state)
{
    struct fixture *f = *state;
    int asked = 0;
    const struct engine_hooks hooks = {.ctx = &asked, .want = pause_third};
    const char *dir = make(f, "paused", "cuda", "f32");
    jobdir_run(dir, 1, &hooks, EXIT_PAUSED);
    jobdir_run(dir, 2, NULL, EXIT_DONE);
    expect_same(f, dir);
}

static void the_order_of_threads_does_not_change_a_byte(void **state)
{
    struct fixture *f = *state;
    void (*seed)(uint64_t) = NULL;
    const char *lib = getenv("GRAFT_CUDA_LIB");
    void *handle = lib ? dlopen(lib, RTLD_NOW | RTLD_NOLOAD) : NULL;
    if (handle) *(void **)&seed = dlsym(handle, "emu_seed");
    const char *dir = make(f, "shuffled", "cuda", "f32");
    if (seed) seed(77); /* on a GPU the order is its own anyway */
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    if (seed) seed(0);
    expect_same(f, dir);
}

static void bf16_activations_train_alike(void **state)
{
    struct fixture *f = *state;
    double f32[STEPS], bf16[STEPS];
    const char *dir = make(f, "bf16", "cuda", "bf16");
    jobdir_run(dir, 1, NULL, EXIT_DONE);
    losses(f->straight, f32);
    losses(dir, bf16);
    assert_memory_not_equal(f32, bf16, sizeof f32);
    for (int i = 0; i < STEPS; i++)
        if (!(fabs(bf16[i] - f32[i]) <= 0.02 * f32[i]))
            fail_msg("step %d: %.9g in f32, %.9g in bf16", i + 1, f32[i], bf16[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_losses_are_those_of_the_cpu),
        cmocka_unit_test(a_pause_does_not_change_a_byte),
        cmocka_unit_test(the_order_of_threads_does_not_change_a_byte),
        cmocka_unit_test(bf16_activations_train_alike),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("jobs", tests, begin, end);
}
