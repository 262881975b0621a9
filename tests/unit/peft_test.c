/* LoRA adapters: the two files say exactly what PEFT expects, and nothing else is believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/fmt/peft.h"
#include "engine/fmt/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { R = 2, IN = 5, OUT = 3 };

static char dir[64];
static float factors[4][R * IN]; /* more than R * OUT */

static int make_folder(void **state)
{
    (void)state;
    mem_hook_libraries();
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < R * IN; k++) factors[i][k] = (float)(100 * i + k) / 8;
    snprintf(dir, sizeof dir, "%s/graft-peft-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_folder(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    return fs_rmtree(dir, &e);
}

static void clear_folder(void)
{
    struct err e = ERR_INIT;
    assert_int_equal(fs_rmtree(dir, &e), 0);
    assert_int_equal(fs_mkdirs(dir, &e), 0);
}

static const struct peft_module two[] = {
    {"model.layers.1.self_attn.v_proj", IN, OUT, factors[0], factors[1]},
    {"model.layers.0.self_attn.q_proj", IN, OUT, factors[2], factors[3]},
};
static const char *const short_names[] = {"q_proj", "v_proj"};

static struct peft_adapter sample(void)
{
    return (struct peft_adapter){
        .base_model = "default/llama", .task_type = "CAUSAL_LM", .r = R, .alpha = 4,
        .dropout = 0.05, .targets = short_names, .ntargets = 2, .modules = two, .nmodules = 2};
}

static char *read_all(const char *name)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(fs_join(path, dir, name, &e), 0);
    assert_int_equal(fs_read_file(path, &b, &e), 0);
    return buf_take(&b);
}

static void the_config_has_exactly_the_agreed_keys(void **state)
{
    (void)state;
    static const char want[] =
        "{\"peft_type\":\"LORA\",\"task_type\":\"CAUSAL_LM\",\"auto_mapping\":null,"
        "\"base_model_name_or_path\":\"default/llama\",\"revision\":null,\"inference_mode\":true,"
        "\"r\":2,\"lora_alpha\":4,\"lora_dropout\":0.05,\"bias\":\"none\","
        "\"fan_in_fan_out\":false,\"target_modules\":[\"q_proj\",\"v_proj\"],"
        "\"modules_to_save\":null,\"init_lora_weights\":true,\"use_rslora\":false,"
        "\"use_dora\":false,\"layers_to_transform\":null,\"layers_pattern\":null,"
        "\"rank_pattern\":{},\"alpha_pattern\":{}}";
    struct err e = ERR_INIT;
    struct peft_adapter a = sample();
    clear_folder();
    assert_int_equal(peft_write(dir, &a, &e), 0);
    char *text = read_all("adapter_config.json");
    json_t *o = jx_parse(text, strlen(text), &e);
    char *compact = jx_dump(o, &e);
    assert_string_equal(compact, want);
    json_decref(o);
    mem_free(compact);
    mem_free(text);
    a.alpha = sqrt(2);
    a.rslora = true;
    a.base_model = a.task_type = NULL;
    assert_int_equal(peft_write(dir, &a, &e), 0);
    text = read_all("adapter_config.json");
    assert_non_null(strstr(text, "\"lora_alpha\": 1.414213562373095"));
    assert_non_null(strstr(text, "\"base_model_name_or_path\": null"));
    assert_non_null(strstr(text, "\"task_type\": null"));
    assert_non_null(strstr(text, "\"use_rslora\": true"));
    mem_free(text);
}

static void the_weights_have_the_names_and_shapes_peft_expects(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t rows, cols;
        const float *x;
    } want[] = {
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", R, IN, factors[2]},
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", OUT, R, factors[3]},
        {"base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight", R, IN, factors[0]},
        {"base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", OUT, R, factors[1]},
    };
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    struct peft_adapter a = sample();
    clear_folder();
    assert_int_equal(peft_write(dir, &a, &e), 0);
    assert_int_equal(fs_join(path, dir, "adapter_model.safetensors", &e), 0);
    struct st *s = st_open(path, &e);
    assert_non_null(s);
    assert_int_equal(st_count(s), 4);
    assert_string_equal(st_metadata(s, "format"), "pt");
    for (int i = 0; i < 4; i++) {
        const struct st_tensor *t = st_at(s, i);
        assert_string_equal(t->name, want[i].name);
        assert_int_equal(t->dtype, DT_F32);
        assert_int_equal(t->rank, 2);
        assert_int_equal(t->shape[0], want[i].rows);
        assert_int_equal(t->shape[1], want[i].cols);
        assert_memory_equal(t->data, want[i].x, (size_t)t->bytes);
    }
    st_close(s);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct peft_adapter a = sample();
    size_t before = mem_live();
    a.fan_in_fan_out = true;
    clear_folder();
    assert_int_equal(peft_write(dir, &a, &e), 0);
    struct peft_adapter *b = peft_read(dir, &e);
    if (!b) print_error("%s\n", e.msg);
    assert_non_null(b);
    assert_int_equal(b->r, R);
    assert_true(b->alpha == 4 && b->dropout == 0.05 && !b->rslora && b->fan_in_fan_out);
    assert_true(peft_scaling(b) == 2);
    assert_string_equal(b->base_model, "default/llama");
    assert_string_equal(b->task_type, "CAUSAL_LM");
    assert_int_equal(b->ntargets, 2);
    assert_string_equal(b->targets[1], "v_proj");
    assert_int_equal(b->nmodules, 2);
    for (int i = 0; i < 2; i++) {
        const struct peft_module *m = peft_find(b, two[i].name);
        assert_ptr_equal(m, &b->modules[1 - i]); /* sorted */
        assert_int_equal(m->in, IN);
        assert_int_equal(m->out, OUT);
        assert_memory_equal(m->A, two[i].A, R * IN * sizeof(float));
        assert_memory_equal(m->B, two[i].B, R * OUT * sizeof(float));
    }
    assert_null(peft_find(b, "q_proj"));
    b->rslora = true;
    assert_true(fabs(peft_scaling(b) - 4 / sqrt(2)) < 1e-15);
    peft_free(b);
    assert_int_equal(mem_live(), before);
}

static void targets_select_by_whole_components(void **state)
{
    (void)state;
    static const char *const targets[] = {"q_proj", "attn.c_attn", "lm_head"};
    static const struct {
        const char *module;
        bool yes;
    } rows[] = {
        {"model.layers.0.self_attn.q_proj", true}, {"q_proj", true}, {"lm_head", true},
        {"model.layers.0.self_attn.xq_proj", false}, {"model.q_proj.k_proj", false},
        {"h.0.attn.c_attn", true}, {"attn.c_attn", true}, {"h.0.battn.c_attn", false},
        {"c_attn", false}, {"q_proj.", false}, {"", false}, {"proj", false},
    };
    struct peft_adapter a = {.targets = targets, .ntargets = 3};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(peft_selects(&a, rows[i].module), rows[i].yes);
}

static void targets_that_miss_modules_are_not_written(void **state)
{
    (void)state;
    static const char *const more[] = {"q_proj", "v_proj", "k_proj"};
    struct err e = ERR_INIT;
    struct peft_adapter a = sample();
    clear_folder();
    a.ntargets = 1;
    assert_int_equal(peft_write(dir, &a, &e), -1);
    assert_int_equal(e.code, E_BUG);
    a.targets = more;
    a.ntargets = 3;
    assert_int_equal(peft_write(dir, &a, &e), -1);
    assert_non_null(strstr(e.msg, "k_proj"));
    assert_int_equal(rmdir(dir), 0); /* nothing was left */
    assert_int_equal(fs_mkdirs(dir, &e), 0);
}

/* What PEFT 0.21 itself writes for such an adapter, in our order. */
static const char FULL[] =
    "{\"alora_invocation_tokens\": null, \"alpha_pattern\": {}, \"arrow_config\": null,"
    " \"auto_mapping\": null, \"base_model_name_or_path\": null, \"bias\": \"none\","
    " \"corda_config\": null, \"ensure_weight_tying\": false, \"eva_config\": null,"
    " \"exclude_modules\": null, \"fan_in_fan_out\": false, \"inference_mode\": true,"
    " \"init_lora_weights\": true, \"layer_replication\": null, \"layers_pattern\": null,"
    " \"layers_to_transform\": null, \"loftq_config\": {}, \"lora_alpha\": 8,"
    " \"lora_bias\": false, \"lora_dropout\": 0.0, \"megatron_config\": null,"
    " \"megatron_core\": \"megatron.core\", \"modules_to_save\": null, \"peft_type\": \"LORA\","
    " \"peft_version\": \"0.21.2\", \"qalora_group_size\": 16, \"r\": 2, \"rank_pattern\": {},"
    " \"revision\": null, \"target_modules\": [\"q_proj\", \"v_proj\"],"
    " \"target_parameters\": null, \"task_type\": \"CAUSAL_LM\","
    " \"trainable_token_indices\": null, \"use_dora\": false, \"use_qalora\": false,"
    " \"use_rslora\": false}";

static void put_config(const char *patch)
{
    char path[FS_PATH_MAX];
    const char *key;
    struct err e = ERR_INIT;
    json_t *o = jx_parse(FULL, sizeof FULL - 1, &e), *p = jx_parse(patch, strlen(patch), &e), *v;
    assert_true(o && p);
    json_object_foreach(p, key, v) {
        if (json_is_string(v) && strcmp(json_string_value(v), "-") == 0)
            json_object_del(o, key);
        else
            json_object_set(o, key, v);
    }
    char *text = jx_dump(o, &e);
    assert_int_equal(fs_join(path, dir, "adapter_config.json", &e), 0);
    assert_int_equal(fs_write_file(path, text, strlen(text), &e), 0);
    mem_free(text);
    json_decref(o);
    json_decref(p);
}

static void settings_that_are_not_applied_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *patch;
        enum errc code; /* E_OK: accepted */
        const char *fragment;
    } rows[] = {
        {"{}", E_OK, ""},
        {"{\"init_lora_weights\": \"gaussian\"}", E_OK, ""},
        {"{\"init_lora_weights\": \"-\", \"bias\": \"-\", \"task_type\": \"-\"}", E_OK, ""},
        {"{\"some_future_option\": null, \"another\": false, \"more\": []}", E_OK, ""},
        {"{\"peft_type\": \"-\"}", E_ARG, "peft_type"},
        {"{\"peft_type\": \"IA3\"}", E_UNSUPPORTED, "peft_type"},
        {"{\"r\": \"-\"}", E_ARG, "'r'"},
        {"{\"r\": 0}", E_RANGE, "'r'"},
        {"{\"r\": 3}", E_FORMAT, "r = 3"},
        {"{\"lora_alpha\": \"-\"}", E_ARG, "lora_alpha"},
        {"{\"lora_alpha\": -1}", E_RANGE, "lora_alpha"},
        {"{\"lora_dropout\": 1.5}", E_RANGE, "lora_dropout"},
        {"{\"bias\": \"all\"}", E_UNSUPPORTED, "bias"},
        {"{\"use_dora\": true}", E_UNSUPPORTED, "use_dora"},
        {"{\"use_rslora\": 1}", E_ARG, "use_rslora"},
        {"{\"fan_in_fan_out\": 1}", E_ARG, "fan_in_fan_out"},
        {"{\"lora_bias\": true}", E_UNSUPPORTED, "lora_bias"},
        {"{\"rank_pattern\": {\"q_proj\": 4}}", E_UNSUPPORTED, "rank_pattern"},
        {"{\"alpha_pattern\": {\"q_proj\": 4}}", E_UNSUPPORTED, "alpha_pattern"},
        {"{\"modules_to_save\": [\"lm_head\"]}", E_UNSUPPORTED, "modules_to_save"},
        {"{\"layers_to_transform\": [0]}", E_UNSUPPORTED, "layers_to_transform"},
        {"{\"layers_to_transform\": 0}", E_UNSUPPORTED, "layers_to_transform"},
        {"{\"exclude_modules\": [\"k_proj\"]}", E_UNSUPPORTED, "exclude_modules"},
        {"{\"init_lora_weights\": \"pissa\"}", E_UNSUPPORTED, "init_lora_weights"},
        {"{\"some_future_option\": 1}", E_UNSUPPORTED, "some_future_option"},
        {"{\"target_modules\": \"-\"}", E_ARG, "target_modules"},
        {"{\"target_modules\": \".*_proj\"}", E_UNSUPPORTED, "regular expression"},
        {"{\"target_modules\": [\"q_proj\", \"\"]}", E_ARG, "target_modules"},
        {"{\"target_modules\": [\"q_proj\", 1]}", E_ARG, "target_modules"},
        {"{\"target_modules\": [\"q_proj\"]}", E_FORMAT, "does not select"},
        {"{\"target_modules\": [\"q_proj\", \"v_proj\", \"k_proj\"]}", E_FORMAT, "'k_proj'"},
        {"{\"target_modules\": [\"model.layers.0.self_attn.q_proj\", \"self_attn.v_proj\"]}", E_OK,
         ""},
        {"{\"target_modules\": []}", E_FORMAT, "does not select"},
        {"{\"base_model_name_or_path\": 3}", E_ARG, "base_model_name_or_path"},
    };
    struct err e = ERR_INIT;
    struct peft_adapter a = sample();
    clear_folder();
    assert_int_equal(peft_write(dir, &a, &e), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_config(rows[i].patch);
        size_t before = mem_live();
        err_clear(&e);
        struct peft_adapter *b = peft_read(dir, &e);
        if (e.code != rows[i].code || !strstr(e.msg, rows[i].fragment))
            print_error("%s: got %s: %s\n", rows[i].patch, err_name(e.code), e.msg);
        assert_int_equal(e.code, rows[i].code);
        assert_non_null(strstr(e.msg, rows[i].fragment));
        assert_int_equal(b != NULL, rows[i].code == E_OK);
        peft_free(b);
        assert_int_equal(mem_live(), before);
    }
}

struct weight {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[3];
};

static void put_weights(const struct weight *v, int n)
{
    static const unsigned char zeros[256];
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    assert_int_equal(fs_join(path, dir, "adapter_model.safetensors", &e), 0);
    struct st_writer *w = st_writer_new(path, &e);
    for (int i = 0; i < n; i++)
        assert_int_equal(st_writer_add(w, v[i].name, v[i].dtype, v[i].rank, v[i].shape, &e), 0);
    for (int i = 0; i < n; i++) {
        size_t bytes = dtype_size(v[i].dtype);
        for (int k = 0; k < v[i].rank; k++) bytes *= (size_t)v[i].shape[k];
        assert_int_equal(st_writer_put(w, zeros, bytes, &e), 0);
    }
    assert_int_equal(st_writer_publish(w, NULL, &e), 0);
}

#define Q "base_model.model.m.q_proj"
#define V "base_model.model.m.v_proj"

static void weights_that_are_not_pairs_of_factors_are_refused(void **state)
{
    (void)state;
    static const struct {
        struct weight v[5];
        int n;
        enum errc code;
        const char *fragment;
    } rows[] = {
        {{{Q ".lora_A.weight", DT_F32, 2, {2, 4}}, {Q ".lora_B.weight", DT_BF16, 2, {3, 2}},
          {V ".lora_A.weight", DT_F16, 2, {2, 4}}, {V ".lora_B.weight", DT_F32, 2, {3, 2}}},
         4, E_OK, ""},
        {{{Q ".lora_A.weight", DT_F32, 2, {2, 4}}}, 1, E_FORMAT, "'m.q_proj' has no lora_B"},
        {{{Q ".lora_B.weight", DT_F32, 2, {3, 2}}}, 1, E_FORMAT, "has no lora_A"},
        {{{Q ".lora_A.weight", DT_F32, 2, {2, 4}}, {V ".lora_B.weight", DT_F32, 2, {3, 2}}}, 2,
         E_FORMAT, "has no lora_B"},
        {{{Q ".lora_A.weight", DT_F32, 2, {4, 2}}, {Q ".lora_B.weight", DT_F32, 2, {3, 2}}}, 2,
         E_FORMAT, "lora_A must be"},
        {{{Q ".lora_A.weight", DT_F32, 2, {2, 4}}, {Q ".lora_B.weight", DT_F32, 2, {2, 3}}}, 2,
         E_FORMAT, "lora_A must be"},
        {{{Q ".lora_A.weight", DT_F32, 1, {8}}, {Q ".lora_B.weight", DT_F32, 2, {3, 2}}}, 2,
         E_FORMAT, "lora_A must be"},
        {{{Q ".lora_A.weight", DT_F32, 3, {2, 4, 1}}, {Q ".lora_B.weight", DT_F32, 2, {3, 2}}}, 2,
         E_FORMAT, "lora_A must be"},
        {{{Q ".lora_A.weight", DT_I32, 2, {2, 4}}, {Q ".lora_B.weight", DT_F32, 2, {3, 2}}}, 2,
         E_UNSUPPORTED, "I32"},
        {{{Q ".lora_A.default.weight", DT_F32, 2, {2, 4}}}, 1, E_UNSUPPORTED, "not a LoRA factor"},
        {{{Q ".lora_magnitude_vector", DT_F32, 1, {3}}}, 1, E_UNSUPPORTED, "not a LoRA factor"},
        {{{"m.q_proj.lora_A.weight", DT_F32, 2, {2, 4}}}, 1, E_UNSUPPORTED, "not a LoRA factor"},
        {{{"base_model.model.lora_A.weight", DT_F32, 2, {2, 4}}}, 1, E_UNSUPPORTED,
         "not a LoRA factor"},
        {{{"x", DT_F32, 0, {0}}}, 0, E_FORMAT, "no such module has weights"},
    };
    struct err e = ERR_INIT;
    clear_folder();
    put_config("{}");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_weights(rows[i].v, rows[i].n);
        size_t before = mem_live();
        err_clear(&e);
        struct peft_adapter *b = peft_read(dir, &e);
        if (e.code != rows[i].code || !strstr(e.msg, rows[i].fragment))
            print_error("row %zu: got %s: %s\n", i, err_name(e.code), e.msg);
        assert_int_equal(e.code, rows[i].code);
        assert_non_null(strstr(e.msg, rows[i].fragment));
        peft_free(b);
        assert_int_equal(mem_live(), before);
    }
}

static int write_then_read(struct err *e)
{
    struct peft_adapter a = sample();
    if (peft_write(dir, &a, e)) return -1;
    struct peft_adapter *b = peft_read(dir, e);
    peft_free(b);
    return b ? 0 : -1;
}

static int just_write(struct err *e)
{
    struct peft_adapter a = sample();
    return peft_write(dir, &a, e);
}

static void a_failed_call_leaves_neither_file_nor_leak(void **state)
{
    (void)state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_MEM};
    int (*const steps[])(struct err *) = {just_write, write_then_read};
    for (int k = 0; k < 4; k++) {
        for (int n = 1, done = 0; !done; n++) {
            struct err e = ERR_INIT;
            clear_folder();
            size_t before = mem_live();
            fault_arm(classes[k / 2], n, false);
            int rc = steps[k % 2](&e);
            done = fault_count(classes[k / 2]) < n;
            fault_arm(classes[k / 2], 0, false);
            if (mem_live() != before) print_error("step %d, call %d: %s\n", k, n, e.msg);
            assert_int_equal(mem_live(), before);
            if (done) assert_int_equal(rc, 0); /* a refused scrap of JSON may not matter */
            if (rc) assert_true(e.code == E_IO || e.code == E_NOMEM);
            if (rc && k % 2 == 0) {
                assert_int_equal(rmdir(dir), 0);
                assert_int_equal(fs_mkdirs(dir, &e), 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_config_has_exactly_the_agreed_keys),
        cmocka_unit_test(the_weights_have_the_names_and_shapes_peft_expects),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(targets_select_by_whole_components),
        cmocka_unit_test(targets_that_miss_modules_are_not_written),
        cmocka_unit_test(settings_that_are_not_applied_are_refused_by_name),
        cmocka_unit_test(weights_that_are_not_pairs_of_factors_are_refused),
        cmocka_unit_test(a_failed_call_leaves_neither_file_nor_leak),
    };
    return cmocka_run_group_tests_name("peft", tests, make_folder, drop_folder);
}
