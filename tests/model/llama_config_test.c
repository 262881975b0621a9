/* config.json of the Llama family: what is read, which defaults hold, and that nothing meaningful
 * is ignored. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/model/llama_config.h"
#include "engine/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char LLAMA[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64,"
    " \"intermediate_size\": 96, \"num_hidden_layers\": 3, \"num_attention_heads\": 4,"
    " \"num_key_value_heads\": 2, \"vocab_size\": 100, \"max_position_embeddings\": 256,"
    " \"rms_norm_eps\": 1e-05, \"rope_theta\": 50000.0, \"hidden_act\": \"silu\","
    " \"tie_word_embeddings\": false, \"bos_token_id\": 1, \"eos_token_id\": 2,"
    " \"torch_dtype\": \"bfloat16\", \"use_cache\": true, \"pretraining_tp\": 1}";

/* LLAMA with the members of `patch` put over it; a member given as "-" is removed. */
static json_t *patched(const char *patch)
{
    struct err e = ERR_INIT;
    const char *key;
    json_t *o = jx_parse(LLAMA, sizeof LLAMA - 1, &e), *p = jx_parse(patch, strlen(patch), &e), *v;
    if (!p) print_error("%s: %s\n", patch, e.msg);
    assert_true(o && p);
    json_object_foreach(p, key, v) {
        if (json_is_string(v) && strcmp(json_string_value(v), "-") == 0)
            json_object_del(o, key);
        else
            json_object_set(o, key, v);
    }
    json_decref(p);
    return o;
}

static struct llama_config accept(const char *patch)
{
    struct err e = ERR_INIT;
    struct hf_config base;
    struct llama_config c;
    json_t *o = patched(patch);
    int rc = hfconfig_parse(&base, o, &e) || llama_config_parse(&c, &base, &e);
    if (rc) print_error("%s: %s\n", patch, e.msg);
    assert_int_equal(rc, 0);
    hfconfig_clear(&base);
    json_decref(o);
    return c;
}

static void a_llama_is_read_in_full(void **state)
{
    (void)state;
    struct llama_config c = accept("{}");
    assert_int_equal(c.hidden_size, 64);
    assert_int_equal(c.intermediate_size, 96);
    assert_int_equal(c.num_hidden_layers, 3);
    assert_int_equal(c.num_attention_heads, 4);
    assert_int_equal(c.num_key_value_heads, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.vocab_size, 100);
    assert_int_equal(c.max_position_embeddings, 256);
    assert_true(c.rms_norm_eps == 1e-5 && c.rope_theta == 50000 && c.rope_factor == 1);
    assert_int_equal(c.rope, ROPE_DEFAULT);
    assert_false(c.tie_word_embeddings || c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm);
}

static void missing_fields_take_the_defaults_of_transformers(void **state)
{
    (void)state;
    struct llama_config c = accept(
        "{\"architectures\": \"-\", \"num_key_value_heads\": \"-\", \"rms_norm_eps\": \"-\","
        " \"rope_theta\": \"-\", \"hidden_act\": \"-\", \"tie_word_embeddings\": \"-\","
        " \"bos_token_id\": null, \"eos_token_id\": \"-\", \"torch_dtype\": \"-\"}");
    assert_int_equal(c.num_key_value_heads, 4);
    assert_true(c.rms_norm_eps == 1e-6 && c.rope_theta == 10000);
    assert_false(c.tie_word_embeddings);
}

static void the_families_differ_where_they_should(void **state)
{
    (void)state;
    struct llama_config c = accept("{\"attention_bias\": true, \"mlp_bias\": true,"
                                   " \"head_dim\": 32, \"tie_word_embeddings\": true}");
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && c.tie_word_embeddings);
    assert_int_equal(c.head_dim, 32);

    c = accept("{\"model_type\": \"mistral\", \"architectures\": [\"MistralForCausalLM\"]}");
    assert_true(c.slides[0] && c.slides[2]);
    assert_int_equal(c.sliding_window, 4096); /* transformers' default when the key is absent */
    c = accept("{\"model_type\": \"mistral\", \"architectures\": [], \"sliding_window\": 128}");
    assert_int_equal(c.sliding_window, 128);
    c = accept("{\"model_type\": \"mistral\", \"architectures\": null, \"sliding_window\": null}");
    assert_int_equal(c.sliding_window, 0);

    c = accept("{\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"],"
               " \"sliding_window\": 64, \"use_sliding_window\": false,"
               " \"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\"]}");
    assert_true(c.qkv_bias && !c.o_bias && !c.qk_norm);
    assert_int_equal(c.sliding_window, 0);
    c = accept("{\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"],"
               " \"sliding_window\": 64, \"use_sliding_window\": true,"
               " \"layer_types\": [\"full_attention\", \"full_attention\","
               " \"sliding_attention\"]}");
    assert_int_equal(c.sliding_window, 64);
    assert_true(!c.slides[0] && !c.slides[1] && c.slides[2]);
    c = accept("{\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"],"
               " \"sliding_window\": 64, \"use_sliding_window\": true,"
               " \"max_window_layers\": 1}");
    assert_true(!c.slides[0] && c.slides[1] && c.slides[2]);

    c = accept("{\"model_type\": \"qwen3\", \"architectures\": [\"Qwen3ForCausalLM\"]}");
    assert_true(c.qk_norm && !c.qkv_bias);
    assert_int_equal(c.head_dim, 128);
}

static void both_spellings_of_rope_mean_the_same(void **state)
{
    (void)state;
    static const char *const same[] = {
        "{\"rope_theta\": 5e5, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0,"
        " \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
        " \"original_max_position_embeddings\": 64}}",
        "{\"rope_theta\": \"-\", \"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8,"
        " \"low_freq_factor\": 1, \"high_freq_factor\": 4, \"rope_theta\": 500000,"
        " \"original_max_position_embeddings\": 64, \"partial_rotary_factor\": 1.0}}"};
    for (int i = 0; i < 2; i++) {
        struct llama_config c = accept(same[i]);
        assert_int_equal(c.rope, ROPE_LLAMA3);
        assert_true(c.rope_theta == 5e5 && c.rope_factor == 8 && c.rope_low_freq == 1 &&
                    c.rope_high_freq == 4);
        assert_int_equal(c.rope_original_max, 64);
    }
    struct llama_config c = accept("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.5}}");
    assert_int_equal(c.rope, ROPE_LINEAR);
    assert_true(c.rope_factor == 2.5 && c.rope_theta == 50000);
    c = accept("{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0}}");
    assert_int_equal(c.rope, ROPE_YARN);
    assert_int_equal(c.rope_original_max, 256);
    assert_true(c.rope_beta_fast == 32 && c.rope_beta_slow == 1 && c.rope_truncate);
    assert_true(fabs(c.rope_attention - 1.1386294361) < 1e-9); /* 0.1 ln 4 + 1 */
    c = accept("{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"mscale\": 0.5,"
               " \"mscale_all_dim\": 2}}");
    assert_true(fabs(c.rope_attention - 1.0693147181 / 1.2772588722) < 1e-9);
    c = accept("{\"rope_scaling\": null,"
               " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 7}}");
    assert_int_equal(c.rope, ROPE_DEFAULT);
    assert_true(c.rope_theta == 7);
}

#define MISTRAL "\"model_type\": \"mistral\", \"architectures\": [\"MistralForCausalLM\"]"
#define QWEN2 "\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"]"
#define LLAMA3(more) \
    "{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, " \
    "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 64" more "}}"

static const struct {
    const char *patch;
    enum errc code;
    const char *param;
} bad[] = {
    {"{\"model_type\": \"-\"}", E_ARG, "model_type"},
    {"{\"model_type\": 3}", E_ARG, "model_type"},
    {"{\"model_type\": \"gpt3\"}", E_UNSUPPORTED, "model_type"},
    {"{\"model_type\": \"Llama\"}", E_UNSUPPORTED, "model_type"},
    {"{\"architectures\": [\"LlamaForSequenceClassification\"]}", E_UNSUPPORTED, "architectures"},
    {"{\"architectures\": [3]}", E_ARG, "architectures"},
    {"{\"model_type\": \"qwen2\"}", E_UNSUPPORTED, "architectures"},
    {"{\"hidden_size\": \"-\"}", E_ARG, "hidden_size"},
    {"{\"hidden_size\": \"64\"}", E_ARG, "hidden_size"},
    {"{\"hidden_size\": 64.5}", E_ARG, "hidden_size"},
    {"{\"hidden_size\": 0}", E_RANGE, "hidden_size"},
    {"{\"hidden_size\": -64}", E_RANGE, "hidden_size"},
    {"{\"hidden_size\": 131073}", E_RANGE, "hidden_size"},
    {"{\"hidden_size\": 4611686018427387904}", E_RANGE, "hidden_size"},
    {"{\"intermediate_size\": \"-\"}", E_ARG, "intermediate_size"},
    {"{\"intermediate_size\": 1048577}", E_RANGE, "intermediate_size"},
    {"{\"num_hidden_layers\": \"-\"}", E_ARG, "num_hidden_layers"},
    {"{\"num_hidden_layers\": 0}", E_RANGE, "num_hidden_layers"},
    {"{\"num_hidden_layers\": 1025}", E_RANGE, "num_hidden_layers"},
    {"{\"num_attention_heads\": \"-\"}", E_ARG, "num_attention_heads"},
    {"{\"num_attention_heads\": 1025}", E_RANGE, "num_attention_heads"},
    {"{\"num_attention_heads\": 6, \"num_key_value_heads\": 2}", E_ARG, "num_attention_heads"},
    {"{\"num_key_value_heads\": 3}", E_ARG, "num_key_value_heads"},
    {"{\"num_key_value_heads\": 0}", E_RANGE, "num_key_value_heads"},
    {"{" MISTRAL ", \"num_key_value_heads\": \"-\"}", E_ARG, "num_key_value_heads"},
    {"{\"head_dim\": 0}", E_RANGE, "head_dim"},
    {"{\"head_dim\": 15}", E_ARG, "head_dim"},
    {"{\"head_dim\": 1026}", E_RANGE, "head_dim"},
    {"{\"hidden_size\": 12}", E_ARG, "head_dim"},
    {"{\"vocab_size\": \"-\"}", E_ARG, "vocab_size"},
    {"{\"vocab_size\": 0}", E_RANGE, "vocab_size"},
    {"{\"vocab_size\": 4194305}", E_RANGE, "vocab_size"},
    {"{\"max_position_embeddings\": \"-\"}", E_ARG, "max_position_embeddings"},
    {"{\"max_position_embeddings\": 0}", E_RANGE, "max_position_embeddings"},
    {"{\"rms_norm_eps\": -1e-6}", E_RANGE, "rms_norm_eps"},
    {"{\"rms_norm_eps\": \"1e-6\"}", E_ARG, "rms_norm_eps"},
    {"{\"hidden_act\": \"gelu\"}", E_UNSUPPORTED, "hidden_act"},
    {"{\"hidden_act\": 1}", E_ARG, "hidden_act"},
    {"{\"tie_word_embeddings\": 1}", E_ARG, "tie_word_embeddings"},
    {"{\"attention_bias\": \"no\"}", E_ARG, "attention_bias"},
    {"{" MISTRAL ", \"attention_bias\": true}", E_UNSUPPORTED, "attention_bias"},
    {"{" QWEN2 ", \"attention_bias\": true}", E_UNSUPPORTED, "attention_bias"},
    {"{" QWEN2 ", \"mlp_bias\": true}", E_UNSUPPORTED, "mlp_bias"},
    {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}", E_UNSUPPORTED,
     "quantization_config"},
    {"{\"rope_theta\": 0}", E_RANGE, "rope_theta"},
    {"{\"rope_theta\": \"1e4\"}", E_ARG, "rope_theta"},
    {"{\"partial_rotary_factor\": 0.5}", E_UNSUPPORTED, "partial_rotary_factor"},
    {"{\"rope_scaling\": 2}", E_ARG, "rope_scaling"},
    {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", E_UNSUPPORTED,
     "rope_scaling.rope_type"},
    {"{\"rope_parameters\": {\"rope_type\": \"longrope\", \"factor\": 2}}", E_UNSUPPORTED,
     "rope_parameters.rope_type"},
    {"{\"rope_parameters\": {\"rope_type\": \"yarn\"}}", E_ARG, "rope_parameters.factor"},
    {"{\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 2, \"beta_fast\": 0.5}}", E_ARG,
     "rope_parameters.beta_fast"},
    {"{\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 2, \"long_factor\": [1]}}",
     E_UNSUPPORTED, "rope_parameters.long_factor"},
    {"{\"rope_parameters\": {\"full_attention\": {}}}", E_UNSUPPORTED,
     "rope_parameters.full_attention"},
    {"{\"rope_parameters\": {\"rope_theta\": -1}}", E_RANGE, "rope_parameters.rope_theta"},
    {"{\"rope_parameters\": {\"partial_rotary_factor\": 0.25}}", E_UNSUPPORTED,
     "rope_parameters.partial_rotary_factor"},
    {"{\"rope_scaling\": {\"type\": \"linear\"}}", E_ARG, "rope_scaling.factor"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}}", E_RANGE, "rope_scaling.factor"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": \"2\"}}", E_ARG, "rope_scaling.factor"},
    {LLAMA3(", \"beta_fast\": 1"), E_UNSUPPORTED, "rope_scaling.beta_fast"},
    {LLAMA3(", \"attention_factor\": 0.7"), E_UNSUPPORTED, "rope_scaling.attention_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4,"
     " \"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}}", E_ARG,
     "rope_scaling.high_freq_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
     " \"high_freq_factor\": 4}}", E_ARG, "rope_scaling.original_max_position_embeddings"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 0,"
     " \"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}}", E_RANGE,
     "rope_scaling.low_freq_factor"},
    {"{" MISTRAL ", \"sliding_window\": 0}", E_RANGE, "sliding_window"},
    {"{" MISTRAL ", \"sliding_window\": \"4096\"}", E_ARG, "sliding_window"},
    {"{" QWEN2 ", \"use_sliding_window\": 1}", E_ARG, "use_sliding_window"},
    {"{\"layer_types\": [\"full_attention\"]}", E_ARG, "layer_types"},
    {"{\"layer_types\": \"full_attention\"}", E_ARG, "layer_types"},
    {"{\"layer_types\": [\"full_attention\", \"full_attention\", \"sliding_attention\"]}",
     E_UNSUPPORTED, "layer_types"},
    {"{" MISTRAL ", \"layer_types\": [\"sliding_attention\", \"full_attention\","
     " \"sliding_attention\"]}", E_UNSUPPORTED, "layer_types"},
    {"{" MISTRAL ", \"layer_types\": [\"full_attention\", \"chunked_attention\", 1]}",
     E_UNSUPPORTED, "layer_types"},
    {"{\"bos_token_id\": 100}", E_RANGE, "bos_token_id"},
    {"{\"bos_token_id\": -1}", E_RANGE, "bos_token_id"},
    {"{\"bos_token_id\": [1]}", E_ARG, "bos_token_id"},
    {"{\"eos_token_id\": 100}", E_RANGE, "eos_token_id"},
    {"{\"eos_token_id\": [2, 100]}", E_ARG, "eos_token_id"},
    {"{\"eos_token_id\": [2, null]}", E_ARG, "eos_token_id"},
    {"{\"eos_token_id\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", E_ARG, "eos_token_id"},
    {"{\"eos_token_id\": \"</s>\"}", E_ARG, "eos_token_id"},
    {"{\"torch_dtype\": \"int8\"}", E_UNSUPPORTED, "torch_dtype"},
    {"{\"dtype\": \"float64\"}", E_UNSUPPORTED, "dtype"},
    {"{\"dtype\": 32}", E_ARG, "dtype"},
};

static void wrong_and_unsupported_fields_are_named(void **state)
{
    (void)state;
    char dir[] = "/tmp/graft-cfg-XXXXXX", path[FS_PATH_MAX];
    const struct model_options random = {.random = true};
    struct err e = ERR_INIT;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(fs_join(path, dir, "config.json", &e), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *o = patched(bad[i].patch);
        char *text = jx_dump(o, &e);
        assert_int_equal(fs_write_file(path, text, strlen(text), &e), 0);
        e = ERR_INIT;
        struct model *m = model_open(dir, &random, &e);
        if (m || e.code != bad[i].code || strcmp(e.param, bad[i].param) != 0)
            print_error("%s: got %s at '%s': %s\n", bad[i].patch, err_name(e.code), e.param, e.msg);
        assert_null(m);
        assert_int_equal(e.code, bad[i].code);
        assert_string_equal(e.param, bad[i].param);
        mem_free(text);
        json_decref(o);
    }
    assert_int_equal(fs_rmtree(dir, &e), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_llama_is_read_in_full),
        cmocka_unit_test(missing_fields_take_the_defaults_of_transformers),
        cmocka_unit_test(the_families_differ_where_they_should),
        cmocka_unit_test(both_spellings_of_rope_mean_the_same),
        cmocka_unit_test(wrong_and_unsupported_fields_are_named),
    };
    return cmocka_run_group_tests_name("llama_config", tests, NULL, NULL);
}
