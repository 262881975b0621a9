/* The promises of c-style: same job, same bytes, whatever the threads, the recompute policy and the
 * pauses; and how far another split of a step into micro-batches, or more padding, may move it.
 *
 * The bound of the latter two. A gradient of a weight is a sum over the N tokens of the step,
 * rounded to f32 (u = 2^-24) in an order that follows from how the tokens are grouped. Two orders
 * differ, relative to the sum and where terms do not conspire, by some sqrt(N) u each. What a
 * token's own row goes through, forward and backward, does not depend on its neighbours. So the
 * relative L2 distance of two gradients stays below 4 sqrt(N) u. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/job/estimate.h"
#include "tests/lib/jobdir.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

static int begin(void **state)
{
    static char root[64];
    jobdir_root(root);
    *state = root;
    return 0;
}

static int end(void **state)
{
    struct err e = ERR_INIT;
    return fs_rmtree(*state, &e);
}

/* ---- the same bytes -------------------------------------------------------------------------- */

/* Whatever the settings decide; graft.json repeats the settings themselves. */
static const char *const files[] = {
    "result/merged/model.safetensors", "result/metrics.csv", "result/samples.json",
    "result/adapter/adapter_model.safetensors",
};

static void expect_same(const char *a, const char *b, bool adapter)
{
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof files / sizeof *files - !adapter; i++) {
        char x[FS_PATH_MAX], y[FS_PATH_MAX];
        struct buf p, q;
        buf_init(&p, 1 << 24);
        buf_init(&q, 1 << 24);
        OK(fs_join(x, a, files[i], &e));
        OK(fs_join(y, b, files[i], &e));
        OK(fs_read_file(x, &p, &e));
        OK(fs_read_file(y, &q, &e));
        if (p.len != q.len || memcmp(p.data, q.data, p.len) != 0)
            fail_msg("%s and %s differ", x, y);
        buf_clear(&p);
        buf_clear(&q);
    }
}

static void neither_policy_nor_threads_change_a_byte(void **state)
{
    static const char *const methods[] = {"lora", "full"};
    static const char *const policies[] = {"none", "cheap", "block"};
    static const int threads[] = {1, 2, 3, 7};
    char first[FS_PATH_MAX], name[32], settings[320];
    for (int m = 0; m < 2; m++)
        for (int p = 0; p < 3; p++)
            for (int t = 0; t < 4; t++) {
                /* Every number of threads under none, half of them under the others; full
                 * training: one per policy. */
                if (m ? t != p : p && t % 2 != p % 2) continue;
                snprintf(settings, sizeof settings, "%s\"max_steps\": 5, \"batch_size\": 3,"
                         " \"gradient_accumulation_steps\": 2, \"learning_rate\": 0.01,"
                         " \"validation_split\": 0.15, \"samples\": [\"A\"],"
                         " \"sample_max_tokens\": 4, \"recompute\": \"%s\"",
                         m ? "" : "\"lora_dropout\": 0.1, ", policies[p]);
                snprintf(name, sizeof name, "%s-%s-%d", methods[m], policies[p], threads[t]);
                const char *dir = jobdir_make(*state, name, methods[m], settings, threads[t]);
                jobdir_run(dir, 1, NULL, EXIT_DONE);
                if (p == 0 && t == 0) snprintf(first, sizeof first, "%s", dir);
                else expect_same(first, dir, m == 0);
            }
}

static void make_wide_job(const char *dir)
{
    struct err e = ERR_INIT;
    struct buf b;
    char path[FS_PATH_MAX];
    OK(fs_mkdirs(dir, &e));
    buf_init(&b, 1 << 20);
    for (int i = 0; i < 512; i++)
        buf_printf(&b, "{\"text\": \"%03d a quick brown fox jumps over dogs\"}\n", i);
    OK(fs_join(path, dir, "rows.jsonl", &e));
    OK(fs_write_file(path, b.data, b.len, &e));
    b.len = 0;
    buf_printf(&b, "{\"version\": 1, \"id\": \"ftjob-test\", \"seed\": 1, \"model\":"
                   " {\"id\": \"t/m\", \"path\": \"" JOBDIR_MODEL "\", \"init\":"
                   " \"pretrained\"}, \"method\": \"lora\", \"settings\": {\"batch_size\":"
                   " 512, \"max_steps\": 4, \"lora_dropout\": 0.1}, \"training_file\": \"%s\","
                   " \"validation_file\": null, \"result_id\": \"t/o\", \"threads\": 2}", path);
    OK(fs_join(path, dir, "job.json", &e));
    OK(fs_write_file(path, b.data, b.len, &e));
    buf_clear(&b);
}

struct watch {
    int steps;
    char recompute[16];
};

static enum engine_want pause_after_two(void *ctx)
{
    struct watch *w = ctx;
    return w->steps++ == 2 ? WANT_PAUSE : WANT_NONE;
}

static void note_policy(void *ctx, const char *level, const char *type, const char *message,
                        json_t *data)
{
    struct watch *w = ctx;
    const char *name = json_string_value(json_object_get(data, "recompute"));
    (void)level;
    (void)type;
    (void)message;
    if (name) snprintf(w->recompute, sizeof w->recompute, "%s", name);
}

/* A job that starts where memory is short and goes on where there is enough. */
static void a_resumed_job_may_take_another_policy(void **state)
{
    struct err e = ERR_INIT;
    struct watch w = {0};
    const struct engine_hooks hooks = {&w, NULL, note_policy, pause_after_two};
    char straight[FS_PATH_MAX], moved[FS_PATH_MAX], path[FS_PATH_MAX], mib[24];
    snprintf(straight, sizeof straight, "%s/straight", (char *)*state);
    snprintf(moved, sizeof moved, "%s/moved", (char *)*state);
    make_wide_job(straight);
    make_wide_job(moved);
    OK(fs_join(path, straight, "job.json", &e));
    json_t *job = jx_load_file(path, 1 << 20, &e), *p = engine_plan(job, *state, &e);
    if (!p) fail_msg("%s", e.msg);
    int64_t peak = json_integer_value(json_object_get(p, "peak_bytes"));
    jobdir_run(straight, 1, NULL, EXIT_DONE);
    snprintf(mib, sizeof mib, "%lld", (long long)(peak >> 20) - 14);
    setenv("GRAFT_MEMORY", mib, 1);
    jobdir_run(moved, 1, &hooks, EXIT_PAUSED);
    assert_string_equal(w.recompute, "block");
    unsetenv("GRAFT_MEMORY");
    jobdir_run(moved, 2, &hooks, EXIT_DONE);
    assert_string_equal(w.recompute, "none");
    expect_same(straight, moved, true);
    json_decref(job);
    json_decref(p);
}

/* ---- within the bound ------------------------------------------------------------------------ */

static struct run *load(const char *root, const char *name, const char *method,
                        const char *settings)
{
    struct err e = ERR_INIT;
    const char *dir = jobdir_make(root, name, method, settings, 2);
    struct run *r = mem_zalloc(sizeof *r, &e);
    r->attempt = 1;
    snprintf(r->dir, sizeof r->dir, "%s", dir);
    OK(journal_open(&r->journal, dir, 1, NULL, &e));
    OK(job_load(&r->job, dir, &e));
    OK(run_load(r, false, &e));
    return r;
}

static void unload(struct run *r)
{
    journal_close(&r->journal);
    run_close(r);
    mem_free(r);
}

/* Relative L2 distance of all gradients of two runs of one job. */
static double distance(const struct run *a, const struct run *b)
{
    const struct params *ps = &a->session.model->params, *qs = &b->session.model->params;
    double diff = 0, norm = 0;
    for (int i = 0; i < ps->n; i++)
        for (int64_t k = 0; k < ps->items[i]->count; k++) {
            if (ps->items[i]->kind != PARAM_TRAINABLE) break;
            double x = ps->items[i]->grad[k], y = qs->items[i]->grad[k];
            diff += (x - y) * (x - y);
            norm += x * x;
        }
    assert_true(norm > 0);
    return sqrt(diff / norm);
}

static double bound(double tokens)
{
    return 4 * sqrt(tokens) * 0x1p-24;
}

static void another_split_of_a_step_stays_within_the_bound(void **state)
{
    static const char *const methods[] = {"lora", "full"};
    static const struct { int batch, times; } splits[] = {{4, 1}, {2, 2}, {1, 4}, {3, 2}};
    for (int m = 0; m < 2; m++) {
        struct run *r[4];
        for (int i = 0; i < 4; i++) {
            char settings[160], name[32];
            struct err e = ERR_INIT;
            snprintf(settings, sizeof settings, "\"max_steps\": 1, \"batch_size\": %d,"
                     " \"gradient_accumulation_steps\": %d", splits[i].batch, splits[i].times);
            snprintf(name, sizeof name, "%s-%d", methods[m], i);
            r[i] = load(*state, name, methods[m], settings);
            assert_int_equal(train_run(r[i], &e), EXIT_DONE);
        }
        for (int i = 1; i < 3; i++) {
            double d = distance(r[0], r[i]), most = bound((double)r[0]->state.tokens);
            print_message("%s, 4x1 against %dx%d: %.2e of %.2e, loss %+.1e\n", methods[m],
                          splits[i].batch, splits[i].times, d, most,
                          r[i]->state.train_loss / r[0]->state.train_loss - 1);
            assert_int_equal(r[i]->state.trained, r[0]->state.trained);
            assert_true(d <= most);
            assert_true(fabs(r[i]->state.train_loss / r[0]->state.train_loss - 1) <= most);
        }
        assert_true(distance(r[0], r[3]) > 1e-3); /* 3x2 are other rows: the test can fail */
        for (int i = 0; i < 4; i++) unload(r[i]);
    }
}

/* The first rows as a batch whose rows are padded to T tokens. */
static void pad(const struct run *r, int64_t rows, int64_t T, struct batch *out)
{
    struct err e = ERR_INIT;
    const int64_t index[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    struct batch b = {0};
    OK(batch_fill(&b, r->train, index, rows, &e));
    *out = b;
    out->T = T;
    out->ids = mem_array(5 * rows * T, sizeof *out->ids, &e);
    out->target = out->ids + rows * T;
    out->pos = out->ids + 2 * rows * T;
    out->range = out->ids + 3 * rows * T;
    memset(out->target, 0xff, (size_t)(rows * T) * sizeof *out->target);
    for (int64_t i = 0; i < rows; i++) {
        size_t n = (size_t)b.T * sizeof(int32_t);
        memcpy(out->ids + i * T, b.ids + i * b.T, n);
        memcpy(out->target + i * T, b.target + i * b.T, n);
        memcpy(out->pos + i * T, b.pos + i * b.T, n);
        memcpy(out->range + 2 * i * T, b.range + 2 * i * b.T, 2 * n);
    }
    batch_clear(&b);
}

static float gradients(struct run *r, int64_t rows, int64_t T)
{
    struct err e = ERR_INIT;
    struct batch b;
    float loss = NAN;
    pad(r, rows, T, &b);
    const struct graph_key k = {.kind = GRAPH_TRAIN, .B = b.B, .T = b.T};
    struct graph *g = graphs_bind(&r->session.graphs, &k, &e);
    if (!g) fail_msg("%s", e.msg);
    OK(graph_feed(r->session.exec, g, &b, 0.01f, &e));
    OK(exec_run(r->session.exec, PHASE_STEP, 0, &e));
    OK(exec_read(r->session.exec, g->io.loss, &loss, sizeof loss, &e));
    batch_clear(&b);
    return loss;
}

static void padding_stays_within_the_bound(void **state)
{
    for (int64_t rows = 1; rows <= 12; rows += 11) {
        struct run *a = load(*state, "a", "full", "\"max_steps\": 1");
        struct run *b = load(*state, "b", "full", "\"max_steps\": 1");
        float loss = gradients(a, rows, 40), more = gradients(b, rows, 56);
        double d = distance(a, b), most = bound((double)rows * 40);
        print_message("%lld rows padded to 40 and to 56: %.2e of %.2e, loss %+.1e\n",
                      (long long)rows, d, most, (double)(more / loss - 1));
        assert_true(d <= most && fabs((double)(more / loss - 1)) <= most);
        unload(a);
        unload(b);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        TEST(neither_policy_nor_threads_change_a_byte),
        TEST(a_resumed_job_may_take_another_policy),
        TEST(another_split_of_a_step_stays_within_the_bound),
        TEST(padding_stays_within_the_bound),
    };
    return cmocka_run_group_tests_name("determinism", tests, NULL, NULL);
}
