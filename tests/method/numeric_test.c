/* engine/job/train: a number that is none ends the job, and the message names the operation, the
 * block and the tensor, wherever it first appears. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/hfdir.h"
#include "engine/fmt/safetensors.h"
#include "engine/job/run.h"
#include "tests/lib/jobdir.h"

#include <math.h>
#include <stdio.h>
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

/* A value for every element of a tensor, or for one of them. */
struct plant {
    const char *name;
    float value;
    int64_t at; /* -1: all */
};

/* The tiny model with other values, and a head of its own. */
static void make_model(const char *dir, const struct plant *plants)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    struct st *st = st_open_model(JOBDIR_MODEL, &e);
    assert_non_null(st);
    OK(fs_mkdirs(dir, &e));
    OK(fs_join(path, dir, "model.safetensors", &e));
    struct st_writer *w = st_writer_new(path, &e);
    assert_non_null(w);
    const struct st_tensor *embed = st_find(st, "model.embed_tokens.weight");
    OK(st_writer_add(w, "lm_head.weight", DT_F32, 2, embed->shape, &e));
    for (int i = 0; i < st_count(st); i++) {
        const struct st_tensor *t = st_at(st, i);
        OK(st_writer_add(w, t->name, DT_F32, t->rank, t->shape, &e));
    }
    for (int i = -1; i < st_count(st); i++) {
        const struct st_tensor *t = i < 0 ? embed : st_at(st, i);
        float *v = mem_array(t->count, sizeof *v, &e);
        OK(st_convert(v, DT_F32, t->data, t->dtype, t->count, &e));
        for (const struct plant *p = plants; p->name && i >= 0; p++) {
            if (!str_eq(p->name, t->name)) continue;
            for (int64_t k = 0; k < t->count; k++)
                if (p->at < 0 || p->at == k) v[k] = p->value;
        }
        OK(st_writer_put(w, v, (size_t)t->count * sizeof *v, &e));
        mem_free(v);
    }
    OK(st_writer_publish(w, NULL, &e));
    st_close(st);
    OK(hfdir_copy(JOBDIR_MODEL, dir, &e));
    OK(fs_join(path, dir, "config.json", &e));
    json_t *config = jx_load_file(path, 1 << 20, &e);
    OK(jx_set(config, "tie_word_embeddings", json_false(), &e));
    char *text = jx_dump(config, &e);
    OK(fs_write_file(path, text, strlen(text), &e));
    mem_free(text);
    json_decref(config);
}

/* The sentence with which a job on that model ends. */
static void end_of(const char *root, const struct plant *plants, const char *settings,
                   struct err *e)
{
    char model[FS_PATH_MAX], path[FS_PATH_MAX];
    *e = ERR_INIT;
    snprintf(model, sizeof model, "%s/model", root);
    make_model(model, plants);
    const char *dir = jobdir_make(root, "job", "lora", settings, 2);
    snprintf(path, sizeof path, "%s/job.json", dir);
    json_t *job = jx_load_file(path, 1 << 20, e);
    if (jx_set(json_object_get(job, "model"), "path", jx_pack(e, "s", model), e))
        fail_msg("%s", e->msg);
    char *text = jx_dump(job, e);
    if (fs_write_file(path, text, strlen(text), e)) fail_msg("%s", e->msg);
    mem_free(text);
    json_decref(job);
    assert_int_equal(engine_run(dir, 1, NULL, e), EXIT_NUMERIC);
    print_message("%s\n", e->msg);
    assert_true(str_starts(e->msg, "step 1 (a lower learning rate may help): "));
}

static void expect(const struct err *e, const char *part)
{
    if (!strstr(e->msg, part)) fail_msg("'%s' is not in: %s", part, e->msg);
}

static void in_the_forward_pass(void **state)
{
    static const struct plant inf[] = {{"model.layers.1.mlp.up_proj.weight", INFINITY, 7}, {0}};
    struct err e;
    end_of(*state, inf, "\"max_steps\": 3", &e);
    expect(&e, ": linear (forward, block 2 of 2, model.layers.1.mlp.up_proj.weight) gave ");
    expect(&e, " of linear.");
}

/* Tiny rows normed and scaled up to ordinary numbers: their derivative overflows. */
#define STEEP(tiny, large) \
    {"model.embed_tokens.weight", tiny, -1}, {"model.layers.0.self_attn.o_proj.weight", 0, -1}, \
    {"model.layers.0.mlp.down_proj.weight", 0, -1}, \
    {"model.layers.1.input_layernorm.weight", large, -1}

static void in_the_backward_pass(void **state)
{
    static const struct plant steep[] = {STEEP(4e-42f, 3e38f), {0}};
    static const char *const policies[] = {"none", "block"};
    for (int i = 0; i < 2; i++) {
        char settings[80];
        struct err e;
        snprintf(settings, sizeof settings, "\"max_steps\": 3, \"batch_size\": 1,"
                 " \"recompute\": \"%s\"", policies[i]);
        end_of(*state, steep, settings, &e);
        expect(&e, ": rmsnorm_dx (backward, block 2 of 2, model.layers.1.input_layernorm.weight)"
                   " gave ");
    }
}

static void in_the_update(void **state)
{
    static const struct plant steep[] = {STEEP(1e-28f, 1e25f),
                                         {"model.layers.0.input_layernorm.weight", 1e25f, -1},
                                         {0}};
    struct err e;
    end_of(*state, steep, "\"max_steps\": 3", &e);
    expect(&e, ": sumsq (update, gradient of model.layers.0.");
    expect(&e, " gave inf at element 0 of sumsq.");
}

static void in_weights_that_an_update_made(void **state)
{
    struct err e = ERR_INIT;
    const char *dir = jobdir_make(*state, "job", "full", "\"max_steps\": 9", 1);
    struct run *r = mem_zalloc(sizeof *r, &e);
    r->attempt = 1;
    snprintf(r->dir, sizeof r->dir, "%s", dir);
    OK(journal_open(&r->journal, dir, 1, NULL, &e));
    OK(job_load(&r->job, dir, &e));
    OK(run_load(r, false, &e));
    struct param *p = params_find(&r->session.model->params, "model.layers.0.mlp.up_proj.weight");
    ((float *)p->data)[5] = -INFINITY;
    r->state.step = 4; /* as if four updates had been made */
    r->state.begun = true;
    assert_int_equal(train_run(r, &e), EXIT_NUMERIC);
    expect(&e, "step 5 (a lower learning rate may help): adamw (update) had made element 5 of"
               " model.layers.0.mlp.up_proj.weight -inf in step 4");
    journal_close(&r->journal);
    run_close(r);
    mem_free(r);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        TEST(in_the_forward_pass),
        TEST(in_the_backward_pass),
        TEST(in_the_update),
        TEST(in_weights_that_an_update_made),
    };
    return cmocka_run_group_tests_name("numeric", tests, NULL, NULL);
}
