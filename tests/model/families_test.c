/* engine/model: what GPT-2, OPT and RoBERTa folders may say, how their tensors and modules are
 * called, and what starts fresh. The numbers are golden_test's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/model/golden/"

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

static char dir[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/graft-family-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_folder(void **state)
{
    struct err e;
    (void)state;
    return fs_rmtree(dir, &e);
}

/* dir/config.json: that of a golden with the members of `patch` put over it ("-": removed). */
static void put_config(const char *golden, const char *patch)
{
    struct err e = ERR_INIT;
    char path[256];
    const char *key;
    json_t *v;
    snprintf(path, sizeof path, GOLDEN "%s/config.json", golden);
    json_t *o = jx_load_file(path, 1 << 20, &e), *p = jx_parse(patch, strlen(patch), &e);
    if (!o || !p) fail_msg("%s", e.msg);
    json_object_foreach(p, key, v) {
        if (str_eq(json_string_value(v), "-")) json_object_del(o, key);
        else json_object_set(o, key, v);
    }
    char *text = jx_dump(o, &e);
    snprintf(path, sizeof path, "%s/config.json", dir);
    OK(fs_write_file(path, text, strlen(text), &e));
    mem_free(text);
    json_decref(o);
    json_decref(p);
}

static struct model *open_folder(const char *path, bool random, uint64_t seed)
{
    const struct model_options o = {.random = random, .seed = seed};
    struct err e = ERR_INIT;
    struct model *m = model_open(path, &o, &e);
    if (!m) fail_msg("%s", e.msg);
    OK(model_alloc(m, &e));
    return m;
}

static const struct param *param(const struct model *m, const char *name)
{
    const struct param *p = params_find(&m->params, name);
    if (!p) fail_msg("no tensor %s", name);
    return p;
}

static void what_a_builder_lacks_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *golden, *patch;
        enum errc code;
        const char *param;
    } bad[] = {
        {"gpt2", "{\"add_cross_attention\": true}", E_UNSUPPORTED, "add_cross_attention"},
        {"gpt2", "{\"activation_function\": \"mish\"}", E_UNSUPPORTED, "activation_function"},
        {"gpt2", "{\"activation_function\": 3}", E_ARG, "activation_function"},
        {"gpt2", "{\"architectures\": [\"GPT2DoubleHeadsModel\"]}", E_UNSUPPORTED, "architectures"},
        {"gpt2", "{\"quantization_config\": {}}", E_UNSUPPORTED, "quantization_config"},
        {"gpt2", "{\"n_embd\": \"-\"}", E_ARG, "n_embd"},
        {"gpt2", "{\"n_head\": 3}", E_ARG, "n_head"},
        {"gpt2", "{\"n_inner\": 0}", E_RANGE, "n_inner"},
        {"gpt2", "{\"n_layer\": 1025}", E_RANGE, "n_layer"},
        {"gpt2", "{\"n_positions\": 0}", E_RANGE, "n_positions"},
        {"gpt2", "{\"vocab_size\": \"-\"}", E_ARG, "vocab_size"},
        {"gpt2", "{\"layer_norm_epsilon\": -1}", E_RANGE, "layer_norm_epsilon"},
        {"gpt2", "{\"scale_attn_weights\": 1}", E_ARG, "scale_attn_weights"},
        {"gpt2", "{\"scale_attn_by_inverse_layer_idx\": \"no\"}", E_ARG,
         "scale_attn_by_inverse_layer_idx"},
        {"opt", "{\"activation_function\": \"softplus\"}", E_UNSUPPORTED, "activation_function"},
        {"opt", "{\"ffn_dim\": \"-\"}", E_ARG, "ffn_dim"},
        {"opt", "{\"num_attention_heads\": 3}", E_ARG, "num_attention_heads"},
        {"opt", "{\"do_layer_norm_before\": 1}", E_ARG, "do_layer_norm_before"},
        {"opt", "{\"enable_bias\": 0}", E_ARG, "enable_bias"},
        {"opt", "{\"word_embed_proj_dim\": 0}", E_RANGE, "word_embed_proj_dim"},
        {"opt", "{\"init_std\": -1}", E_RANGE, "init_std"},
        {"opt", "{\"architectures\": [\"OPTForSequenceClassification\"]}", E_UNSUPPORTED,
         "architectures"},
        {"roberta", "{\"position_embedding_type\": \"relative_key\"}", E_UNSUPPORTED,
         "position_embedding_type"},
        {"roberta", "{\"is_decoder\": true}", E_UNSUPPORTED, "is_decoder"},
        {"roberta", "{\"add_cross_attention\": true}", E_UNSUPPORTED, "add_cross_attention"},
        {"roberta", "{\"problem_type\": \"regression\"}", E_UNSUPPORTED, "problem_type"},
        {"roberta", "{\"hidden_act\": \"gelu_10\"}", E_UNSUPPORTED, "hidden_act"},
        {"roberta", "{\"id2label\": {}}", E_ARG, "id2label"},
        {"roberta", "{\"num_labels\": 4}", E_ARG, "num_labels"},
        {"roberta", "{\"pad_token_id\": 27}", E_ARG, "max_position_embeddings"},
        {"roberta", "{\"num_attention_heads\": 3}", E_ARG, "num_attention_heads"},
        {"roberta", "{\"architectures\": [\"RobertaForTokenClassification\"]}", E_UNSUPPORTED,
         "architectures"},
    };
    const struct model_options random = {.random = true};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = ERR_INIT;
        put_config(bad[i].golden, bad[i].patch);
        struct model *m = model_open(dir, &random, &e);
        if (m || e.code != bad[i].code || !str_eq(e.param, bad[i].param))
            fail_msg("%s %s: got %s at '%s': %s", bad[i].golden, bad[i].patch, err_name(e.code),
                     e.param, e.msg);
    }
}

static void dropout_of_the_backbone_is_no_reason_to_refuse(void **state)
{
    (void)state;
    put_config("opt", "{\"dropout\": 0.3, \"attention_dropout\": 0.2, \"layerdrop\": 0.1}");
    model_free(open_folder(dir, true, 1));
}

static void tensors_keep_their_names_and_sites_have_those_of_the_head_model(void **state)
{
    (void)state;
    static const struct {
        const char *golden, *tensor, *site;
        bool wt;
    } cases[] = {
        {"gpt2", "h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc", true},
        {"gpt2-untied", "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc", true},
        {"opt-plain", "decoder.layers.0.fc1.weight", "model.decoder.layers.0.fc1", false},
        {"opt", "model.decoder.layers.0.fc1.weight", "model.decoder.layers.0.fc1", false},
        {"opt-postnorm", "model.decoder.project_in.weight", "model.decoder.project_in", false},
        {"roberta", "roberta.encoder.layer.1.attention.self.key.weight",
         "roberta.encoder.layer.1.attention.self.key", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[256];
        snprintf(path, sizeof path, GOLDEN "%s", cases[i].golden);
        struct model *m = open_folder(path, false, 0);
        const struct param *w = param(m, cases[i].tensor);
        int k = 0;
        while (k < m->nsites && !str_eq(m->sites[k].path, cases[i].site)) k++;
        if (k == m->nsites) fail_msg("no site %s", cases[i].site);
        const struct site *s = &m->sites[k];
        assert_ptr_equal(s->w, w);
        assert_int_equal(s->wt, cases[i].wt);
        assert_int_equal(w->shape[0], s->wt ? s->in : s->out);
        assert_int_equal(w->shape[1], s->wt ? s->out : s->in);
        model_free(m);
    }
}

/* The golden RoBERTa as a checkpoint of another head: no classifier, but what such files carry. */
static void write_masked_language_model(void)
{
    static const char *const more[] = {"lm_head.bias", "lm_head.dense.weight",
                                       "roberta.pooler.dense.bias",
                                       "roberta.embeddings.position_ids"};
    const float zeros[8] = {0};
    struct err e = ERR_INIT;
    char path[256];
    struct st *s = st_open(GOLDEN "roberta/model.safetensors", &e);
    assert_non_null(s);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    struct st_writer *w = st_writer_new(path, &e);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < st_count(s); i++) {
            const struct st_tensor *t = st_at(s, i);
            if (str_starts(t->name, "classifier.")) continue;
            if (pass) OK(st_writer_put(w, t->data, (size_t)t->bytes, &e));
            else OK(st_writer_add(w, t->name, t->dtype, t->rank, t->shape, &e));
        }
        for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
            if (pass) OK(st_writer_put(w, zeros, sizeof zeros, &e));
            else OK(st_writer_add(w, more[i], DT_F32, 1, &(int64_t){8}, &e));
        }
    }
    OK(st_writer_publish(w, NULL, &e));
    st_close(s);
}

static double deviation(const struct param *p)
{
    double s = 0;
    for (int64_t i = 0; i < p->count; i++)
        s += (double)((const float *)p->data)[i] * ((const float *)p->data)[i];
    return sqrt(s / (double)p->count);
}

static void a_checkpoint_of_another_head_gets_a_fresh_classifier(void **state)
{
    (void)state;
    static const char W[] = "classifier.dense.weight";
    put_config("roberta", "{\"architectures\": [\"RobertaForMaskedLM\"]}");
    write_masked_language_model();
    struct model *m[3];
    for (int k = 0; k < 3; k++) m[k] = open_folder(dir, false, k == 2 ? 8 : 7);
    const struct param *w = param(m[0], W), *b = param(m[0], "classifier.out_proj.bias");
    size_t bytes = (size_t)w->count * 4;
    assert_memory_equal(w->data, param(m[1], W)->data, bytes);
    assert_memory_not_equal(w->data, param(m[2], W)->data, bytes);
    /* initializer_range is 0.25; of 64 numbers 4 standard errors are 35 %. */
    assert_true(fabs(deviation(w) / 0.25 - 1) < 0.35);
    for (int i = 0; i < 3; i++) assert_true(((const float *)b->data)[i] == 0);
    assert_null(w->source);
    assert_int_equal(model_stored(m[0], w), DT_F32);
    assert_non_null(param(m[0], "roberta.embeddings.LayerNorm.weight")->source);
    assert_null(params_find(&m[0]->params, "lm_head.bias"));
    for (int k = 0; k < 3; k++) model_free(m[k]);
}

static void only_a_head_may_be_missing(void **state)
{
    (void)state;
    const struct model_options o = {0};
    struct err e = ERR_INIT;
    put_config("roberta", "{\"num_hidden_layers\": 3}");
    write_masked_language_model();
    assert_null(model_open(dir, &o, &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_non_null(strstr(e.msg, "encoder.layer.2.attention.self.query.weight is missing"));
}

/* The golden GPT-2 with a stored head: its embedding, in which one number may be another. */
static void write_stored_head(float plus)
{
    struct err e = ERR_INIT;
    char path[256];
    struct st *s = st_open(GOLDEN "gpt2/model.safetensors", &e);
    assert_non_null(s);
    const struct st_tensor *words = st_find(s, "wte.weight");
    float *head = mem_dup(words->data, (size_t)words->bytes, &e);
    head[17] += plus;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    struct st_writer *w = st_writer_new(path, &e);
    for (int i = 0; i < st_count(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        if (!str_ends(t->name, ".attn.bias"))
            OK(st_writer_add(w, t->name, t->dtype, t->rank, t->shape, &e));
    }
    OK(st_writer_add(w, "lm_head.weight", DT_F32, 2, words->shape, &e));
    for (int i = 0; i < st_count(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        if (!str_ends(t->name, ".attn.bias")) OK(st_writer_put(w, t->data, (size_t)t->bytes, &e));
    }
    OK(st_writer_put(w, head, (size_t)words->bytes, &e));
    OK(st_writer_publish(w, NULL, &e));
    mem_free(head);
    st_close(s);
}

static void a_stored_copy_of_a_tied_head_must_be_one(void **state)
{
    (void)state;
    const struct model_options o = {0};
    struct err e = ERR_INIT;
    put_config("gpt2", "{}");
    write_stored_head(0);
    model_free(open_folder(dir, false, 0));
    write_stored_head(1);
    assert_null(model_open(dir, &o, &e));
    assert_string_equal(e.param, "tie_word_embeddings");
    put_config("gpt2", "{\"tie_word_embeddings\": false}");
    struct model *m = open_folder(dir, false, 0);
    assert_non_null(param(m, "lm_head.weight"));
    model_free(m);
}

static void fresh_weights_start_as_in_transformers(void **state)
{
    (void)state;
    put_config("gpt2", "{\"n_embd\": 64, \"n_layer\": 8, \"initializer_range\": 0.1}");
    struct model *m = open_folder(dir, true, 3);
    /* About 16000 numbers: 4 standard errors are 2.2 %. */
    double inner = deviation(param(m, "transformer.h.3.mlp.c_fc.weight"));
    double last = deviation(param(m, "transformer.h.3.mlp.c_proj.weight"));
    assert_true(fabs(inner / 0.1 - 1) < 0.025 && fabs(last / (0.1 / 4) - 1) < 0.025);
    assert_true(deviation(param(m, "transformer.h.3.mlp.c_fc.bias")) == 0);
    assert_true(deviation(param(m, "transformer.ln_f.weight")) == 1);
    model_free(m);
    put_config("roberta", "{}");
    m = open_folder(dir, true, 3);
    static const char *const padded[] = {"roberta.embeddings.word_embeddings.weight",
                                         "roberta.embeddings.position_embeddings.weight"};
    for (int k = 0; k < 2; k++) {
        const float *row = param(m, padded[k])->data;
        for (int i = 0; i < 24; i++) assert_int_equal(row[i] == 0, i >= 8 && i < 16);
    }
    model_free(m);
}

static void a_lack_of_memory_anywhere_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    static const char *const models[] = {GOLDEN "gpt2", GOLDEN "opt-plain", GOLDEN "roberta"};
    const struct model_options o = {0};
    mem_hook_libraries();
    for (int k = 0; k < 3; k++) {
        size_t before = mem_live();
        for (int n = 1, done = 0; !done; n += 1 + n / 16) { /* every one would take minutes */
            struct err e = ERR_INIT;
            fault_arm(FAULT_MEM, n, false);
            struct model *m = model_open(models[k], &o, &e);
            int rc = m ? model_alloc(m, &e) : -1;
            done = fault_count(FAULT_MEM) < n;
            fault_arm(FAULT_MEM, 0, false);
            if (done) assert_int_equal(rc, 0);
            if (rc) assert_int_equal(e.code, E_NOMEM);
            model_free(m);
            assert_int_equal(mem_live(), before);
        }
    }
}

static void a_classifier_generates_nothing(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct model_cache c;
    struct model *m = open_folder(GOLDEN "roberta", false, 0);
    assert_int_equal(m->max_length, 26); /* 28 rows, the first two are not for tokens */
    assert_int_equal(model_expect(m, &task_seq_cls, &e), 0);
    assert_int_equal(model_cache_init(&c, m, 1, 8, &e), -1);
    assert_int_equal(e.code, E_UNSUPPORTED);
    model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_builder_lacks_is_refused_by_name),
        cmocka_unit_test(dropout_of_the_backbone_is_no_reason_to_refuse),
        cmocka_unit_test(tensors_keep_their_names_and_sites_have_those_of_the_head_model),
        cmocka_unit_test(a_checkpoint_of_another_head_gets_a_fresh_classifier),
        cmocka_unit_test(only_a_head_may_be_missing),
        cmocka_unit_test(a_stored_copy_of_a_tied_head_must_be_one),
        cmocka_unit_test(fresh_weights_start_as_in_transformers),
        cmocka_unit_test(a_lack_of_memory_anywhere_is_an_error_and_leaks_nothing),
        cmocka_unit_test(a_classifier_generates_nothing),
    };
    return cmocka_run_group_tests_name("families", tests, make_folder, drop_folder);
}
