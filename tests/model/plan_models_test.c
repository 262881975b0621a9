/* engine/core/plan on every family at its real sizes: one line per model. Nothing is loaded: a
 * config.json is enough to record and plan. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/engine.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"
#include "tests/lib/jobdir.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *config;
    int64_t B, T;
} models[] = {
    {"SmolLM2 135M", "\"llama\", \"hidden_size\": 576, \"intermediate_size\": 1536,"
     " \"num_hidden_layers\": 30, \"num_attention_heads\": 9, \"num_key_value_heads\": 3,"
     " \"vocab_size\": 49152, \"tie_word_embeddings\": true", 4, 512},
    {"Llama 3.2 1B", "\"llama\", \"hidden_size\": 2048, \"intermediate_size\": 8192,"
     " \"num_hidden_layers\": 16, \"num_attention_heads\": 32, \"num_key_value_heads\": 8,"
     " \"vocab_size\": 128256, \"tie_word_embeddings\": true", 8, 1024},
    {"Llama 2 7B", "\"llama\", \"hidden_size\": 4096, \"intermediate_size\": 11008,"
     " \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 32,"
     " \"vocab_size\": 32000", 1, 1024},
    {"Llama tiny", "\"llama\", \"hidden_size\": 16, \"intermediate_size\": 32,"
     " \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
     " \"vocab_size\": 259", 3, 40},
    {"Mistral 7B", "\"mistral\", \"hidden_size\": 4096, \"intermediate_size\": 14336,"
     " \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8,"
     " \"vocab_size\": 32000, \"sliding_window\": 4096", 2, 512},
    {"Qwen2 0.5B", "\"qwen2\", \"hidden_size\": 896, \"intermediate_size\": 4864,"
     " \"num_hidden_layers\": 24, \"num_attention_heads\": 14, \"num_key_value_heads\": 2,"
     " \"vocab_size\": 151936, \"tie_word_embeddings\": true", 4, 512},
    {"Qwen3 0.6B", "\"qwen3\", \"hidden_size\": 1024, \"intermediate_size\": 3072,"
     " \"num_hidden_layers\": 28, \"num_attention_heads\": 16, \"num_key_value_heads\": 8,"
     " \"head_dim\": 128, \"vocab_size\": 151936, \"tie_word_embeddings\": true", 4, 512},
    {"GPT-2 124M", "\"gpt2\", \"n_embd\": 768, \"n_layer\": 12, \"n_head\": 12,"
     " \"n_positions\": 1024, \"vocab_size\": 50257, \"tie_word_embeddings\": true", 4, 256},
    {"GPT-2 medium", "\"gpt2\", \"n_embd\": 1024, \"n_layer\": 24, \"n_head\": 16,"
     " \"n_positions\": 1024, \"vocab_size\": 50257, \"tie_word_embeddings\": true", 8, 1024},
    {"OPT 125M", "\"opt\", \"hidden_size\": 768, \"ffn_dim\": 3072, \"num_hidden_layers\": 12,"
     " \"num_attention_heads\": 12, \"vocab_size\": 50272, \"word_embed_proj_dim\": 768,"
     " \"tie_word_embeddings\": true", 4, 512},
    {"RoBERTa base", "\"roberta\", \"hidden_size\": 768, \"intermediate_size\": 3072,"
     " \"num_hidden_layers\": 12, \"num_attention_heads\": 12, \"vocab_size\": 50265,"
     " \"max_position_embeddings\": 514, \"type_vocab_size\": 1", 16, 128},
    {"ViT-B/16", "\"vit\", \"num_labels\": 100", 16, 0},
};

struct fixture {
    char root[64];
    json_t *settings;
};

static int begin(void **state)
{
    static struct fixture f;
    struct err e = ERR_INIT;
    jobdir_root(f.root);
    f.settings = engine_settings("lora", NULL, &e);
    *state = &f;
    return f.settings ? 0 : -1;
}

static int end(void **state)
{
    struct fixture *f = *state;
    struct err e = ERR_INIT;
    json_decref(f->settings);
    return fs_rmtree(f->root, &e);
}

static void write_config(const char *root, const char *inside)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX], text[1024];
    int n = snprintf(text, sizeof text,
                     "{\"model_type\": %s, \"max_position_embeddings\": 2048}", inside);
    /* A key may be given once. */
    if (strstr(inside, "max_position_embeddings") || strstr(inside, "vit"))
        n = snprintf(text, sizeof text, "{\"model_type\": %s}", inside);
    if (fs_join(path, root, "config.json", &e) || fs_write_file(path, text, (size_t)n, &e))
        fail_msg("%s", e.msg);
}

/* Step buffer under one policy; *worst: the largest ratio to the lower bound so far. */
static int64_t plan_one(struct graphs *gs, const struct graph_key *k, enum recompute policy,
                        double *worst, int64_t *ns)
{
    struct err e = ERR_INIT;
    struct graph g;
    gs->recompute = policy;
    int64_t start = clock_mono_ns();
    if (graph_make(gs, k, 2, &g, &e)) fail_msg("%s", e.msg);
    int64_t took = clock_mono_ns() - start;
    if (took > *ns) *ns = took;
    const struct plan_report *r = &g.plan->report;
    double ratio = (double)r->step_bytes / (double)r->lower_bound;
    assert_true(ratio >= 1.0);
    if (ratio > *worst) *worst = ratio;
    int64_t bytes = r->step_bytes;
    graph_clear(&g);
    return bytes;
}

static void check_model(const struct fixture *f, int i, const struct method *method)
{
    struct err e = ERR_INIT;
    const struct model_options o = {.random = true};
    const struct graph_key k = {.kind = GRAPH_TRAIN, .B = models[i].B, .T = models[i].T};
    double worst = 1;
    int64_t bytes[RECOMPUTE_COUNT], ns = 0;
    write_config(f->root, models[i].config);
    struct model *m = model_open(f->root, &o, &e);
    struct adaptation a = {.method = method, .model = m, .settings = f->settings};
    if (!m || method->attach(&a, &e)) fail_msg("%s: %s", models[i].name, e.msg);
    struct graphs gs;
    graphs_init(&gs, m, NULL);
    for (int p = 0; p < RECOMPUTE_COUNT; p++)
        bytes[p] = plan_one(&gs, &k, (enum recompute)p, &worst, &ns);
    print_message("%s, %s: %.0f %.0f %.0f MiB, at worst %.4f x lower bound, %.1f ms\n",
                  models[i].name, method->name, (double)bytes[0] / 1048576,
                  (double)bytes[1] / 1048576, (double)bytes[2] / 1048576, worst,
                  (double)ns / 1e6);
    assert_true(worst <= 1.10);
    assert_true(bytes[RECOMPUTE_CHEAP] <= bytes[RECOMPUTE_NONE]);
    assert_true(bytes[RECOMPUTE_BLOCK] < bytes[RECOMPUTE_NONE]);
    graphs_clear(&gs);
    method_end(&a);
    model_free(m);
}

static void every_model_is_placed_within_a_tenth_of_the_lower_bound(void **state)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        check_model(*state, (int)i, &method_lora);
        check_model(*state, (int)i, &method_full);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_model_is_placed_within_a_tenth_of_the_lower_bound),
    };
    return cmocka_run_group_tests_name("plan_models", tests, begin, end);
}
