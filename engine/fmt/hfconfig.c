#include "engine/fmt/hfconfig.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <stdio.h>
#include <string.h>

enum { CONFIG_BYTES = 4 << 20, REQUIRED = -1 };

static const struct family {
    const char *type, *architecture;
    int64_t sliding_window; /* transformers' default */
} families[HF_FAMILY_COUNT] = {
    [HF_LLAMA] = {"llama", "LlamaForCausalLM", 0},
    [HF_MISTRAL] = {"mistral", "MistralForCausalLM", 4096},
    [HF_QWEN2] = {"qwen2", "Qwen2ForCausalLM", 4096},
    [HF_QWEN3] = {"qwen3", "Qwen3ForCausalLM", 4096},
};

/* The largest values keep every product of three of them, times 8 bytes, below 2^63. */
static const struct number {
    const char *key;
    size_t at;
    int64_t lo, hi, fallback;
} numbers[] = {
    {"hidden_size", offsetof(struct hf_config, hidden_size), 1, 1 << 17, REQUIRED},
    {"intermediate_size", offsetof(struct hf_config, intermediate_size), 1, 1 << 20, REQUIRED},
    {"num_hidden_layers", offsetof(struct hf_config, num_hidden_layers), 1, 1024, REQUIRED},
    {"num_attention_heads", offsetof(struct hf_config, num_attention_heads), 1, 1024, REQUIRED},
    {"vocab_size", offsetof(struct hf_config, vocab_size), 1, 1 << 22, REQUIRED},
    {"max_position_embeddings", offsetof(struct hf_config, max_position_embeddings), 1, 1 << 26,
     REQUIRED},
    {"head_dim", offsetof(struct hf_config, head_dim), 1, 1024, 0},
    {"num_key_value_heads", offsetof(struct hf_config, num_key_value_heads), 1, 1024, 0},
};

static int unsupported(struct err *e, const char *key, const char *what)
{
    err_set(e, E_UNSUPPORTED, "'%s' %s", key, what);
    return err_param(e, "%s", key);
}

static int wrong(struct err *e, const char *key, const char *what)
{
    err_set(e, E_ARG, "'%s' %s", key, what);
    return err_param(e, "%s", key);
}

static bool given(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v);
}

static int read_family(struct hf_config *c, const json_t *o, struct err *e)
{
    const char *type;
    if (jx_str(o, "model_type", &type, e)) return -1;
    int f = 0;
    while (f < HF_FAMILY_COUNT && strcmp(families[f].type, type) != 0) f++;
    if (f == HF_FAMILY_COUNT) {
        err_set(e, E_UNSUPPORTED,
                "'model_type' is '%.40s'; graft adapts llama, mistral, qwen2 and qwen3", type);
        return err_param(e, "model_type");
    }
    c->family = (enum hf_family)f;
    const json_t *list = json_object_get(o, "architectures");
    if (!given(o, "architectures") || json_array_size(list) == 0) return 0;
    const char *name = json_string_value(json_array_get(list, 0));
    if (str_eq(name, families[f].architecture)) return 0;
    err_set(e, E_UNSUPPORTED, "'architectures' is '%.60s'; for %s only %s is supported",
            name ? name : "?", type, families[f].architecture);
    return err_param(e, "architectures");
}

static int read_numbers(struct hf_config *c, const json_t *o, struct err *e)
{
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const struct number *n = &numbers[i];
        int64_t v = n->fallback;
        if (n->fallback == REQUIRED ? jx_int64(o, n->key, n->lo, n->hi, &v, e)
                                    : jx_opt_int64(o, n->key, n->lo, n->hi, &v, e))
            return -1;
        memcpy((char *)c + n->at, &v, sizeof v);
    }
    return 0;
}

static int check_heads(struct hf_config *c, struct err *e)
{
    /* A missing count has another default in each family; only Llama's cannot mislead. */
    if (!c->num_key_value_heads && c->family != HF_LLAMA)
        return wrong(e, "num_key_value_heads", "is required");
    if (!c->num_key_value_heads) c->num_key_value_heads = c->num_attention_heads;
    if (c->num_attention_heads % c->num_key_value_heads)
        return wrong(e, "num_key_value_heads", "must divide 'num_attention_heads'");
    if (!c->head_dim && c->family == HF_QWEN3) c->head_dim = 128;
    if (!c->head_dim) {
        if (c->hidden_size % c->num_attention_heads)
            return wrong(e, "num_attention_heads", "must divide 'hidden_size'");
        c->head_dim = c->hidden_size / c->num_attention_heads;
    }
    if (c->head_dim % 2)
        return wrong(e, "head_dim", "must be even: rotary embeddings turn pairs");
    return 0;
}

static int read_flags(struct hf_config *c, const json_t *o, struct err *e)
{
    bool attention_bias = false;
    const char *act = "silu";
    double dropout = 0;
    if (jx_opt_str(o, "hidden_act", &act, e) ||
        jx_opt_bool(o, "tie_word_embeddings", &c->tie_word_embeddings, e) ||
        jx_opt_bool(o, "attention_bias", &attention_bias, e) ||
        jx_opt_bool(o, "mlp_bias", &c->mlp_bias, e) ||
        jx_opt_real(o, "attention_dropout", 0, 1, &dropout, e))
        return -1;
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return unsupported(e, "hidden_act", "must be 'silu'");
    if (dropout > 0) return unsupported(e, "attention_dropout", "must be 0");
    if (given(o, "quantization_config"))
        return unsupported(e, "quantization_config", "is set: give the unquantised checkpoint");
    bool takes_bias = c->family == HF_LLAMA || c->family == HF_QWEN3;
    if (attention_bias && !takes_bias) return unsupported(e, "attention_bias", "must be false");
    if (c->mlp_bias && c->family != HF_LLAMA) return unsupported(e, "mlp_bias", "must be false");
    c->qkv_bias = attention_bias || c->family == HF_QWEN2;
    c->o_bias = attention_bias;
    c->qk_norm = c->family == HF_QWEN3;
    return 0;
}

/* Puts the name of the object before the field that a getter found wrong. */
static int inside(struct err *e, const char *outer)
{
    char field[sizeof e->param];
    memcpy(field, e->param, sizeof field);
    snprintf(e->param, sizeof e->param, "%s.%.60s", outer, field);
    return err_wrap(e, "%s", outer);
}

static int check_rope_keys(json_t *r, struct err *e)
{
    static const char *const known[] = {
        "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
        "original_max_position_embeddings", "partial_rotary_factor"};
    const char *key;
    json_t *v;
    json_object_foreach(r, key, v) {
        size_t i = 0, n = sizeof known / sizeof *known;
        while (i < n && strcmp(known[i], key) != 0) i++;
        if (i == n && !json_is_null(v)) return unsupported(e, key, "is not known");
    }
    return 0;
}

static int read_llama3(struct hf_config *c, const json_t *r, struct err *e)
{
    if (jx_real(r, "low_freq_factor", 1e-6, 1e6, &c->rope_low_freq, e) ||
        jx_real(r, "high_freq_factor", 1e-6, 1e6, &c->rope_high_freq, e) ||
        jx_int64(r, "original_max_position_embeddings", 1, 1 << 26, &c->rope_original_max, e))
        return -1;
    if (c->rope_high_freq <= c->rope_low_freq)
        return wrong(e, "high_freq_factor", "must be larger than 'low_freq_factor'");
    c->rope = HF_ROPE_LLAMA3;
    return 0;
}

static int read_rope_object(struct hf_config *c, json_t *r, struct err *e)
{
    const char *type = "default";
    double part = 1;
    if (check_rope_keys(r, e) || jx_opt_str(r, "type", &type, e) ||
        jx_opt_str(r, "rope_type", &type, e) ||
        jx_opt_real(r, "rope_theta", 1, 1e12, &c->rope_theta, e) ||
        jx_opt_real(r, "partial_rotary_factor", 0, 1, &part, e))
        return -1;
    if (part < 1) return unsupported(e, "partial_rotary_factor", "must be 1");
    if (strcmp(type, "default") == 0) return 0;
    bool linear = strcmp(type, "linear") == 0;
    if (!linear && strcmp(type, "llama3") != 0)
        return unsupported(e, "rope_type", "must be 'default', 'linear' or 'llama3'");
    if (jx_real(r, "factor", 1, 1e6, &c->rope_factor, e)) return -1;
    if (!linear) return read_llama3(c, r, e);
    c->rope = HF_ROPE_LINEAR;
    return 0;
}

static int read_rope(struct hf_config *c, const json_t *o, struct err *e)
{
    /* Where both are given, transformers lets the older name win. */
    const char *outer = given(o, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    double part = 1;
    json_t *r;
    c->rope_theta = 10000;
    c->rope_factor = 1;
    if (jx_opt_real(o, "rope_theta", 1, 1e12, &c->rope_theta, e) ||
        jx_opt_real(o, "partial_rotary_factor", 0, 1, &part, e))
        return -1;
    if (part < 1) return unsupported(e, "partial_rotary_factor", "must be 1");
    if (!given(o, outer)) return 0;
    if (jx_object(o, outer, &r, e)) return -1;
    return read_rope_object(c, r, e) ? inside(e, outer) : 0;
}

static int check_layer_types(const struct hf_config *c, const json_t *o, struct err *e)
{
    const json_t *list = json_object_get(o, "layer_types");
    if (!given(o, "layer_types")) return 0;
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->num_hidden_layers)
        return wrong(e, "layer_types", "must be a list with one entry per layer");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        bool slides = str_eq(s, "sliding_attention") && c->sliding_window;
        if (!slides && !str_eq(s, "full_attention"))
            return unsupported(e, "layer_types", "must hold 'full_attention' only");
    }
    return 0;
}

static int read_window(struct hf_config *c, const json_t *o, struct err *e)
{
    bool on = c->family == HF_MISTRAL;
    bool qwen = c->family == HF_QWEN2 || c->family == HF_QWEN3;
    if (qwen && jx_opt_bool(o, "use_sliding_window", &on, e)) return -1;
    c->sliding_window = 0;
    if (on) {
        const json_t *v = json_object_get(o, "sliding_window");
        c->sliding_window = json_is_null(v) ? 0 : families[c->family].sliding_window;
        if (jx_opt_int64(o, "sliding_window", 1, 1 << 26, &c->sliding_window, e)) return -1;
    }
    return check_layer_types(c, o, e);
}

static int read_tokens(struct hf_config *c, const json_t *o, struct err *e)
{
    const json_t *eos = json_object_get(o, "eos_token_id");
    c->bos = -1;
    if (jx_opt_int64(o, "bos_token_id", 0, c->vocab_size - 1, &c->bos, e)) return -1;
    if (!json_is_array(eos)) {
        if (!given(o, "eos_token_id")) return 0;
        c->neos = 1;
        return jx_int64(o, "eos_token_id", 0, c->vocab_size - 1, &c->eos[0], e);
    }
    if (json_array_size(eos) > HF_EOS_MAX)
        return wrong(e, "eos_token_id", "must not have more than 16 entries");
    for (size_t i = 0; i < json_array_size(eos); i++) {
        const json_t *v = json_array_get(eos, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) >= c->vocab_size)
            return wrong(e, "eos_token_id", "must hold integers between 0 and 'vocab_size' - 1");
        c->eos[c->neos++] = json_integer_value(v);
    }
    return 0;
}

static int read_dtype(struct hf_config *c, const json_t *o, struct err *e)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"float32", DT_F32}, {"bfloat16", DT_BF16}, {"float16", DT_F16}};
    const char *key = given(o, "dtype") ? "dtype" : "torch_dtype", *name = "float32";
    if (jx_opt_str(o, key, &name, e)) return -1;
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(names[i].name, name) != 0) continue;
        c->dtype = names[i].dtype;
        return 0;
    }
    return unsupported(e, key, "must be float32, bfloat16 or float16");
}

/* *sum += a * b */
static bool add_product(int64_t *sum, int64_t a, int64_t b)
{
    int64_t p;
    return mul_ok(&p, a, b) && add_ok(sum, *sum, p);
}

static int count_parameters(struct hf_config *c, struct err *e)
{
    int64_t d = c->hidden_size, f = c->intermediate_size, layer = 0, total = 0;
    int64_t q = c->num_attention_heads * c->head_dim, kv = c->num_key_value_heads * c->head_dim;
    bool ok = add_product(&layer, d, 2 * q + 2 * kv) && add_product(&layer, 3 * d, f) &&
              add_product(&layer, 2, d) && add_product(&layer, c->qkv_bias, q + 2 * kv) &&
              add_product(&layer, c->o_bias, d) && add_product(&layer, c->mlp_bias, 2 * f + d) &&
              add_product(&layer, c->qk_norm ? 2 : 0, c->head_dim);
    ok = ok && add_product(&total, layer, c->num_hidden_layers) && add_product(&total, 1, d) &&
         add_product(&total, c->tie_word_embeddings ? c->vocab_size : 2 * c->vocab_size, d);
    int64_t bytes;
    if (!ok || !mul_ok(&bytes, total, 8))
        return err_set(e, E_RANGE, "the sizes multiply to more than any machine holds");
    c->parameters = total;
    return 0;
}

int hfconfig_parse(struct hf_config *out, const json_t *o, struct err *e)
{
    struct hf_config c = {0};
    c.rms_norm_eps = 1e-6;
    if (!json_is_object(o)) return err_set(e, E_FORMAT, "not a JSON object");
    if (read_family(&c, o, e) || read_numbers(&c, o, e) || check_heads(&c, e) ||
        read_flags(&c, o, e) || jx_opt_real(o, "rms_norm_eps", 0, 1, &c.rms_norm_eps, e) ||
        read_rope(&c, o, e) || read_window(&c, o, e) || read_tokens(&c, o, e) ||
        read_dtype(&c, o, e) || count_parameters(&c, e))
        return -1;
    c.json = json_incref((json_t *)(uintptr_t)o);
    *out = c;
    return 0;
}

int hfconfig_load(struct hf_config *c, const char *dir, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, "config.json", e)) return -1;
    json_t *o = jx_load_file(path, CONFIG_BYTES, e);
    if (!o) return -1;
    int rc = hfconfig_parse(c, o, e);
    json_decref(o);
    return rc ? err_wrap(e, "%s", path) : 0;
}

void hfconfig_clear(struct hf_config *c)
{
    json_decref(c->json);
    *c = (struct hf_config){0};
}

const char *hfconfig_family_name(enum hf_family f)
{
    return families[f].type;
}

int64_t hfconfig_max_length(const struct hf_config *c)
{
    bool slides = c->sliding_window && c->sliding_window < c->max_position_embeddings;
    return slides ? c->sliding_window : c->max_position_embeddings;
}
