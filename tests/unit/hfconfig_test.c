/* config.json: what all families share, and the strict readers that families use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/fmt/hfconfig.h"

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

static struct hf_config accept(const char *patch)
{
    struct err e = ERR_INIT;
    struct hf_config c;
    json_t *o = patched(patch);
    int rc = hfconfig_parse(&c, o, &e);
    if (rc) print_error("%s: %s\n", patch, e.msg);
    assert_int_equal(rc, 0);
    assert_ptr_equal(c.json, o);
    json_decref(o);
    return c;
}

static void what_all_families_share_is_read(void **state)
{
    (void)state;
    struct hf_config c = accept("{}");
    assert_string_equal(c.model_type, "llama");
    assert_string_equal(c.architecture, "LlamaForCausalLM");
    assert_int_equal(c.vocab_size, 100);
    assert_int_equal(c.bos, 1);
    assert_int_equal(c.neos, 1);
    assert_int_equal(c.eos[0], 2);
    assert_int_equal(c.dtype, DT_BF16);
    hfconfig_clear(&c);
    assert_null(c.json);
    c = accept("{\"architectures\": \"-\", \"bos_token_id\": null, \"eos_token_id\": \"-\","
               " \"torch_dtype\": \"-\"}");
    assert_null(c.architecture);
    assert_int_equal(c.bos, -1);
    assert_int_equal(c.neos, 0);
    assert_int_equal(c.dtype, DT_F32);
    hfconfig_clear(&c);
    /* A model of images has no tokens. */
    c = accept("{\"vocab_size\": \"-\", \"architectures\": []}");
    assert_int_equal(c.vocab_size, 0);
    hfconfig_clear(&c);
}

static void end_tokens_may_be_a_list_and_dtype_a_newer_name(void **state)
{
    (void)state;
    struct hf_config c = accept("{\"eos_token_id\": [99, 0, 7], \"dtype\": \"float16\","
                                " \"torch_dtype\": \"float32\", \"hidden_act\": \"swish\"}");
    assert_int_equal(c.neos, 3);
    assert_int_equal(c.eos[0], 99);
    assert_int_equal(c.eos[2], 7);
    assert_int_equal(c.dtype, DT_F16);
    hfconfig_clear(&c);
}

static const struct {
    const char *patch;
    enum errc code;
    const char *param;
} bad[] = {
    {"{\"architectures\": [3]}", E_ARG, "architectures"},
    {"{\"vocab_size\": 0}", E_RANGE, "vocab_size"},
    {"{\"vocab_size\": 4194305}", E_RANGE, "vocab_size"},
    {"{\"model_type\": \"-\"}", E_ARG, "model_type"},
    {"{\"model_type\": 3}", E_ARG, "model_type"},
    {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}", E_UNSUPPORTED,
     "quantization_config"},
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
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = ERR_INIT;
        struct hf_config c = {.vocab_size = 77};
        json_t *o = patched(bad[i].patch);
        int rc = hfconfig_parse(&c, o, &e);
        if (!rc || e.code != bad[i].code || strcmp(e.param, bad[i].param) != 0)
            print_error("%s: got %s at '%s': %s\n", bad[i].patch, err_name(e.code), e.param, e.msg);
        assert_int_equal(rc, -1);
        assert_int_equal(e.code, bad[i].code);
        assert_string_equal(e.param, bad[i].param);
        assert_int_equal(c.vocab_size, 77); /* untouched */
        json_decref(o);
    }
    struct err e = ERR_INIT;
    struct hf_config c;
    json_t *list = json_array();
    assert_int_equal(hfconfig_parse(&c, list, &e), -1);
    assert_int_equal(e.code, E_FORMAT);
    json_decref(list);
}

static void fields_of_a_family_have_ranges_and_defaults(void **state)
{
    (void)state;
    struct sizes {
        int64_t hidden, heads;
    } v = {7, 7};
    const struct hf_number list[] = {
        {"hidden_size", offsetof(struct sizes, hidden), 1, 64, HF_REQUIRED},
        {"n_head", offsetof(struct sizes, heads), 1, 64, 12}};
    struct err e = ERR_INIT;
    json_t *o = patched("{}");
    assert_int_equal(hfconfig_numbers(o, list, 2, &v, &e), 0);
    assert_true(v.hidden == 64 && v.heads == 12);
    json_object_set_new(o, "n_head", json_integer(65));
    assert_int_equal(hfconfig_numbers(o, list, 2, &v, &e), -1);
    assert_string_equal(e.param, "n_head");
    json_object_del(o, "hidden_size");
    assert_int_equal(hfconfig_numbers(o, list, 1, &v, &e), -1);
    assert_int_equal(e.code, E_ARG);
    static const char *const off[] = {"use_this", "tie_word_embeddings", NULL};
    e = ERR_INIT;
    assert_int_equal(hfconfig_refuse(o, off, &e), 0);
    json_object_set_new(o, "use_this", json_integer(0));
    assert_int_equal(hfconfig_refuse(o, off, &e), -1);
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_string_equal(e.param, "use_this");
    json_decref(o);
}

static void a_file_is_loaded_or_explained(void **state)
{
    (void)state;
    char dir[] = "/tmp/graft-cfg-XXXXXX", path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    struct hf_config c;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(fs_join(path, dir, "config.json", &e), 0);
    assert_int_equal(hfconfig_load(&c, dir, &e), -1);
    assert_int_equal(e.code, E_NOTFOUND);
    assert_int_equal(fs_write_file(path, "{\n\"model_type\": }", 17, &e), 0);
    assert_int_equal(hfconfig_load(&c, dir, &e), -1);
    assert_non_null(strstr(e.msg, "config.json: line 2"));
    assert_int_equal(fs_write_file(path, LLAMA, sizeof LLAMA - 1, &e), 0);
    mem_hook_libraries();
    size_t before = mem_live();
    for (int n = 1, done = 0; !done; n++) {
        fault_arm(FAULT_MEM, n, false);
        int rc = hfconfig_load(&c, dir, &e);
        done = fault_count(FAULT_MEM) < n;
        fault_arm(FAULT_MEM, 0, false);
        if (done) assert_int_equal(rc, 0); /* a refused scrap of JSON may not matter */
        if (rc) assert_int_equal(e.code, E_NOMEM);
        else hfconfig_clear(&c);
        assert_int_equal(mem_live(), before);
    }
    assert_int_equal(fs_rmtree(dir, &e), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_all_families_share_is_read),
        cmocka_unit_test(end_tokens_may_be_a_list_and_dtype_a_newer_name),
        cmocka_unit_test(wrong_and_unsupported_fields_are_named),
        cmocka_unit_test(fields_of_a_family_have_ranges_and_defaults),
        cmocka_unit_test(a_file_is_loaded_or_explained),
    };
    return cmocka_run_group_tests_name("hfconfig", tests, NULL, NULL);
}
