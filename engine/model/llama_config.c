#include "engine/model/llama_config.h"

#include "engine/base/jx.h"
#include "engine/base/str.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct family {
    const char *type;
    bool takes_bias;     /* attention_bias is an option */
    bool qkv_bias;       /* there is one whatever the config says */
    bool qk_norm;
    int64_t head_dim;    /* default, 0: hidden_size / num_attention_heads */
    int64_t window;      /* default of sliding_window, 0: the family has none */
    bool window_is_flag; /* use_sliding_window switches it on, for the layers that say so */
} families[] = {
    {"llama", .takes_bias = true},
    {"mistral", .window = 4096},
    {"qwen2", .qkv_bias = true, .window = 4096, .window_is_flag = true},
    {"qwen3", .takes_bias = true, .qk_norm = true, .head_dim = 128, .window = 4096,
     .window_is_flag = true},
};

#define AT(field) offsetof(struct llama_config, field)
static const struct hf_number numbers[] = {
    {"hidden_size", AT(hidden_size), 1, 1 << 17, HF_REQUIRED},
    {"intermediate_size", AT(intermediate_size), 1, 1 << 20, HF_REQUIRED},
    {"num_hidden_layers", AT(num_hidden_layers), 1, LLAMA_LAYERS, HF_REQUIRED},
    {"num_attention_heads", AT(num_attention_heads), 1, 1024, HF_REQUIRED},
    {"vocab_size", AT(vocab_size), 1, 1 << 22, HF_REQUIRED},
    {"max_position_embeddings", AT(max_position_embeddings), 1, 1 << 26, HF_REQUIRED},
    {"head_dim", AT(head_dim), 1, 1024, 0},
    {"num_key_value_heads", AT(num_key_value_heads), 1, 1024, 0},
};

static const struct family *family_of(const struct hf_config *base)
{
    size_t i = sizeof families / sizeof *families - 1;
    while (i > 0 && strcmp(families[i].type, base->model_type) != 0) i--;
    return &families[i];
}

static int check_heads(struct llama_config *c, const struct family *f, struct err *e)
{
    /* A missing count has another default in each family; only Llama's cannot mislead. */
    if (!c->num_key_value_heads && f != families)
        return hfconfig_wrong(e, "num_key_value_heads", "is required");
    if (!c->num_key_value_heads) c->num_key_value_heads = c->num_attention_heads;
    if (c->num_attention_heads % c->num_key_value_heads)
        return hfconfig_wrong(e, "num_key_value_heads", "must divide 'num_attention_heads'");
    if (!c->head_dim) c->head_dim = f->head_dim;
    if (!c->head_dim) {
        if (c->hidden_size % c->num_attention_heads)
            return hfconfig_wrong(e, "num_attention_heads", "must divide 'hidden_size'");
        c->head_dim = c->hidden_size / c->num_attention_heads;
    }
    if (c->head_dim % 2)
        return hfconfig_wrong(e, "head_dim", "must be even: rotary embeddings turn pairs");
    return 0;
}

static int read_flags(struct llama_config *c, const struct family *f, const json_t *o,
                      struct err *e)
{
    bool bias = false;
    const char *act = "silu";
    if (jx_opt_str(o, "hidden_act", &act, e) ||
        jx_opt_bool(o, "tie_word_embeddings", &c->tie_word_embeddings, e) ||
        jx_opt_bool(o, "attention_bias", &bias, e) ||
        jx_opt_bool(o, "mlp_bias", &c->mlp_bias, e) ||
        jx_opt_real(o, "rms_norm_eps", 0, 1, &c->rms_norm_eps, e) ||
        jx_opt_real(o, "initializer_range", 0, 10, &c->initializer_range, e))
        return -1;
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return hfconfig_unsupported(e, "hidden_act", "must be 'silu'");
    if (bias && !f->takes_bias) return hfconfig_unsupported(e, "attention_bias", "must be false");
    if (c->mlp_bias && f != families)
        return hfconfig_unsupported(e, "mlp_bias", "must be false");
    c->qkv_bias = bias || f->qkv_bias;
    c->o_bias = bias;
    c->qk_norm = f->qk_norm;
    return 0;
}

/* A setting of another type of scaling would be ignored. */
static int check_rope_keys(json_t *r, enum llama_rope rope, struct err *e)
{
    static const char *const all[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor",
                                      "factor", "original_max_position_embeddings", NULL};
    static const char *const llama3[] = {"low_freq_factor", "high_freq_factor", NULL};
    static const char *const yarn[] = {"attention_factor", "beta_fast", "beta_slow", "mscale",
                                       "mscale_all_dim", "truncate", NULL};
    const char *key;
    json_t *v;
    json_object_foreach(r, key, v) {
        if (json_is_null(v) || hfconfig_among(all, key)) continue;
        if (rope == ROPE_LLAMA3 && hfconfig_among(llama3, key)) continue;
        if (rope == ROPE_YARN && hfconfig_among(yarn, key)) continue;
        return hfconfig_unsupported(e, key, "is not known to this type of scaling");
    }
    return 0;
}

static int read_llama3(struct llama_config *c, const json_t *r, struct err *e)
{
    if (jx_real(r, "low_freq_factor", 1e-6, 1e6, &c->rope_low_freq, e) ||
        jx_real(r, "high_freq_factor", 1e-6, 1e6, &c->rope_high_freq, e) ||
        jx_int64(r, "original_max_position_embeddings", 1, 1 << 26, &c->rope_original_max, e))
        return -1;
    if (c->rope_high_freq <= c->rope_low_freq)
        return hfconfig_wrong(e, "high_freq_factor", "must be larger than 'low_freq_factor'");
    return 0;
}

/* The factor on cosine and sine that transformers infers. */
static double mscale_of(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static int read_yarn(struct llama_config *c, const json_t *r, struct err *e)
{
    double mscale = 0, all = 0;
    c->rope_original_max = c->max_position_embeddings;
    c->rope_beta_fast = 32;
    c->rope_beta_slow = 1;
    c->rope_truncate = true;
    if (jx_opt_int64(r, "original_max_position_embeddings", 1, 1 << 26, &c->rope_original_max,
                     e) ||
        jx_opt_real(r, "beta_fast", 1e-6, 1e6, &c->rope_beta_fast, e) ||
        jx_opt_real(r, "beta_slow", 1e-6, 1e6, &c->rope_beta_slow, e) ||
        jx_opt_bool(r, "truncate", &c->rope_truncate, e) ||
        jx_opt_real(r, "mscale", 0, 1e6, &mscale, e) ||
        jx_opt_real(r, "mscale_all_dim", 0, 1e6, &all, e))
        return -1;
    if (c->rope_beta_fast < c->rope_beta_slow)
        return hfconfig_wrong(e, "beta_fast", "must not be smaller than 'beta_slow'");
    if (c->rope_theta <= 1) return hfconfig_wrong(e, "rope_theta", "must be larger than 1");
    c->rope_attention = mscale_of(c->rope_factor, 1);
    if (mscale > 0 && all > 0)
        c->rope_attention = mscale_of(c->rope_factor, mscale) / mscale_of(c->rope_factor, all);
    return jx_opt_real(r, "attention_factor", 0, 1e6, &c->rope_attention, e);
}

static int read_rope_object(struct llama_config *c, json_t *r, struct err *e)
{
    static const char *const types[] = {
        [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3",
        [ROPE_YARN] = "yarn"};
    const char *type = "default";
    double part = 1;
    int k = ROPE_YARN;
    if (jx_opt_str(r, "type", &type, e) || jx_opt_str(r, "rope_type", &type, e)) return -1;
    while (k >= 0 && strcmp(types[k], type) != 0) k--;
    if (k < 0)
        return hfconfig_unsupported(e, "rope_type",
                                    "must be 'default', 'linear', 'llama3' or 'yarn'");
    c->rope = (enum llama_rope)k;
    if (check_rope_keys(r, c->rope, e) ||
        jx_opt_real(r, "rope_theta", 1, 1e12, &c->rope_theta, e) ||
        jx_opt_real(r, "partial_rotary_factor", 0, 1, &part, e))
        return -1;
    if (part < 1) return hfconfig_unsupported(e, "partial_rotary_factor", "must be 1");
    if (c->rope == ROPE_DEFAULT) return 0;
    if (jx_real(r, "factor", 1, 1e6, &c->rope_factor, e)) return -1;
    if (c->rope == ROPE_LLAMA3) return read_llama3(c, r, e);
    return c->rope == ROPE_YARN ? read_yarn(c, r, e) : 0;
}

static int read_rope(struct llama_config *c, const json_t *o, struct err *e)
{
    /* Where both are given, transformers lets the older name win. */
    const char *outer = hfconfig_given(o, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    double part = 1;
    json_t *r;
    c->rope_theta = 10000;
    c->rope_factor = c->rope_attention = 1;
    if (jx_opt_real(o, "rope_theta", 1, 1e12, &c->rope_theta, e) ||
        jx_opt_real(o, "partial_rotary_factor", 0, 1, &part, e))
        return -1;
    if (part < 1) return hfconfig_unsupported(e, "partial_rotary_factor", "must be 1");
    if (!hfconfig_given(o, outer)) return 0;
    if (jx_object(o, outer, &r, e)) return -1;
    return read_rope_object(c, r, e) ? hfconfig_inside(e, outer) : 0;
}

/* What each layer says, where the config has a list of it. */
static int read_layer_types(struct llama_config *c, const struct family *f, const json_t *o,
                            struct err *e)
{
    const json_t *list = json_object_get(o, "layer_types");
    if (!hfconfig_given(o, "layer_types")) return 0;
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->num_hidden_layers)
        return hfconfig_wrong(e, "layer_types", "must be a list with one entry per layer");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        bool slides = str_eq(s, "sliding_attention");
        if (!slides && !str_eq(s, "full_attention"))
            return hfconfig_unsupported(e, "layer_types",
                                        "must hold 'full_attention' and 'sliding_attention'");
        if (slides && !c->sliding_window)
            return hfconfig_unsupported(e, "layer_types",
                                        "has 'sliding_attention', but there is no window");
        /* Where the window is no flag it is every layer's, whatever the list says. */
        if (!f->window_is_flag && slides != c->slides[i])
            return hfconfig_unsupported(e, "layer_types", "contradicts 'sliding_window'");
        c->slides[i] = slides;
    }
    return 0;
}

static int read_window(struct llama_config *c, const struct family *f, const json_t *o,
                       struct err *e)
{
    bool on = f->window && !f->window_is_flag;
    int64_t first = f->window_is_flag ? 28 : 0; /* transformers' max_window_layers */
    if (f->window_is_flag && (jx_opt_bool(o, "use_sliding_window", &on, e) ||
                              jx_opt_int64(o, "max_window_layers", 0, 1 << 20, &first, e)))
        return -1;
    if (on) {
        c->sliding_window = json_is_null(json_object_get(o, "sliding_window")) ? 0 : f->window;
        if (jx_opt_int64(o, "sliding_window", 1, 1 << 26, &c->sliding_window, e)) return -1;
    }
    for (int64_t i = first; c->sliding_window && i < c->num_hidden_layers; i++)
        c->slides[i] = true;
    return read_layer_types(c, f, o, e);
}

int llama_config_parse(struct llama_config *out, const struct hf_config *base, struct err *e)
{
    const struct family *f = family_of(base);
    const json_t *o = base->json;
    struct llama_config c = {.rms_norm_eps = 1e-6, .initializer_range = 0.02};
    if (hfconfig_numbers(o, numbers, sizeof numbers / sizeof *numbers, &c, e) ||
        check_heads(&c, f, e) || read_flags(&c, f, o, e) || read_rope(&c, o, e) ||
        read_window(&c, f, o, e))
        return -1;
    *out = c;
    return 0;
}
