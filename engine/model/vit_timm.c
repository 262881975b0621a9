/* The config.json of timm: an architecture by name, what its user set, and what the weights say. */
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "engine/model/parts.h"
#include "engine/model/vit_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The word after the family. Ratios as timm has them: the width of the MLP is rounded down. */
static const struct size {
    const char *name;
    int64_t width, depth, heads;
    double mlp_ratio;
} sizes[] = {
    {"tiny", 192, 12, 3, 4},     {"xsmall", 256, 10, 4, 4},
    {"small", 384, 12, 6, 4},    {"medium", 512, 12, 8, 4},
    {"betwixt", 640, 12, 10, 4}, {"base", 768, 12, 12, 4},
    {"large", 1024, 24, 16, 4},  {"huge", 1280, 32, 16, 4},
    {"giant", 1408, 40, 16, 48.0 / 11}, {"gigantic", 1664, 48, 16, 64.0 / 13},
};

enum { WORD = 32 };

/* The next word of a name, cut at '_'; false at the end. */
static bool next(const char **p, char word[WORD])
{
    size_t n = strcspn(*p, "_");
    if (!n || n >= WORD) return false;
    memcpy(word, *p, n);
    word[n] = 0;
    *p += n;
    if (**p == '_') ++*p;
    return true;
}

static int unknown(const char *name, struct err *e)
{
    err_set(e, E_UNSUPPORTED,
            "'architecture' is '%.60s'; of timm's, graft adapts {vit,deit}_SIZE_patchN_PIXELS, and "
            "of these the distilled and the clip ones", name);
    return err_param(e, "architecture");
}

/* {vit,deit}_SIZE[_distilled]_patchN[_clip[_quickgelu]]_PIXELS, and nothing else: every other word
 * stands for a variant. What follows a '.' tells where the weights come from. */
static int read_name(struct vit_config *c, const char *name, struct err *e)
{
    const struct size *s = NULL;
    char word[WORD], plain[128];
    int64_t pixels;
    const char *p = plain;
    if (!str_copy(plain, sizeof plain, name)) return unknown(name, e);
    plain[strcspn(plain, ".")] = 0;
    bool ok = next(&p, word);
    bool deit = ok && str_eq(word, "deit");
    ok = ok && (deit || str_eq(word, "vit")) && next(&p, word);
    for (size_t i = 0; ok && i < sizeof sizes / sizeof *sizes; i++)
        if (str_eq(sizes[i].name, word)) s = &sizes[i];
    ok = ok && s && next(&p, word);
    c->distilled = ok && deit && str_eq(word, "distilled");
    if (c->distilled) ok = next(&p, word);
    ok = ok && str_starts(word, "patch") && str_int64(word + strlen("patch"), &c->patch_size) &&
         c->patch_size > 0 && c->patch_size <= 1 << 10 && next(&p, word);
    c->eps = 1e-6;
    c->act = ACT_GELU;
    if (ok && !deit && str_eq(word, "clip")) {
        c->pre_norm = true;
        c->eps = 1e-5;
        ok = next(&p, word);
        if (ok && str_eq(word, "quickgelu")) {
            c->act = ACT_QUICK_GELU;
            ok = next(&p, word);
        }
    }
    if (!ok || *p || !str_int64(word, &pixels) || pixels < 1 || pixels > 1 << 14)
        return unknown(name, e);
    c->hidden_size = s->width;
    c->intermediate_size = (int64_t)((double)s->width * s->mlp_ratio);
    c->num_hidden_layers = s->depth;
    c->num_attention_heads = s->heads;
    c->image[0] = c->image[1] = pixels;
    c->num_channels = 3;
    c->labels = 1000;
    c->qkv_bias = true;
    c->initializer_range = 0.02;
    return 0;
}

static int64_t size_at(const struct st *w, const char *name, int rank, int at, int64_t otherwise)
{
    const struct st_tensor *t = st_find(w, name);
    return t && t->rank == rank && t->shape[at] > 0 && t->shape[at] <= 1 << 20 ? t->shape[at]
                                                                              : otherwise;
}

/* Models that were made with other sizes than their name says are saved under that name. */
static void read_weights(struct vit_config *c, const struct st *w)
{
    static const char patches[] = "patch_embed.proj.weight";
    char name[64];
    int64_t n = 0;
    c->hidden_size = size_at(w, patches, 4, 0, c->hidden_size);
    c->num_channels = size_at(w, patches, 4, 1, c->num_channels);
    c->patch_size = size_at(w, patches, 4, 3, c->patch_size);
    c->intermediate_size = size_at(w, "blocks.0.mlp.fc1.weight", 2, 0, c->intermediate_size);
    for (; n < 1024; n++) {
        snprintf(name, sizeof name, "blocks.%lld.norm1.weight", (long long)n);
        if (!st_find(w, name)) break;
    }
    if (n) c->num_hidden_layers = n;
}

/* One setting of the constructor that is a variant of its own unless it has this value. */
static const struct fixed {
    const char *key;
    bool flag; /* it may be given as this; null, 0 and "" are always what timm does by itself */
} fixed[] = {
    {"qk_norm", false},         {"scale_attn_norm", false}, {"scale_mlp_norm", false},
    {"proj_bias", true},        {"init_values", false},     {"class_token", true},
    {"reg_tokens", false},      {"final_norm", true},       {"fc_norm", false},
    {"pool_include_prefix", false}, {"dynamic_img_pad", false}, {"embed_layer", false},
    {"embed_norm_layer", false}, {"norm_layer", false},     {"block_fn", false},
    {"mlp_layer", false},       {"attn_layer", false},
};

/* These change nothing once the weights are there, or drop something in training only. */
static const char *const neutral[] = {
    "weight_init", "fix_init", "dynamic_img_size", "pretrained_strict", "strict_img_size",
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", NULL};
static const char *const read_here[] = {
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth",
    "num_heads", "mlp_ratio", "qkv_bias", "no_embed_class", "pre_norm", "act_layer", "pos_embed",
    NULL};

static bool is_default(const struct fixed *f, const json_t *v)
{
    if (json_is_null(v)) return true;
    if (json_is_boolean(v)) return json_boolean_value(v) == f->flag;
    if (json_is_number(v)) return !f->flag && json_number_value(v) == 0;
    return json_is_string(v) && !f->flag && !*json_string_value(v);
}

static int check_keys(json_t *args, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach(args, key, v) {
        size_t i = 0, n = sizeof fixed / sizeof *fixed;
        if (hfconfig_among(read_here, key) || hfconfig_among(neutral, key)) continue;
        while (i < n && strcmp(fixed[i].key, key) != 0) i++;
        if (i == n) return hfconfig_unsupported(e, key, "is not known");
        if (!is_default(&fixed[i], v))
            return hfconfig_unsupported(e, key, "is set, which graft does not do");
    }
    return 0;
}

static int check_words(const json_t *args, struct err *e)
{
    const char *pool = "token", *places = "learn";
    if (jx_opt_str(args, "global_pool", &pool, e) || jx_opt_str(args, "pos_embed", &places, e))
        return -1;
    if (!str_eq(pool, "token")) return hfconfig_unsupported(e, "global_pool", "must be 'token'");
    if (!str_eq(places, "learn")) return hfconfig_unsupported(e, "pos_embed", "must be 'learn'");
    return 0;
}

static int read_args(struct vit_config *c, json_t *args, struct err *e)
{
    double ratio = (double)c->intermediate_size / (double)c->hidden_size;
    int64_t patch[2] = {c->patch_size, c->patch_size}, width = c->hidden_size;
    if (check_keys(args, e) || check_words(args, e) ||
        vit_config_pair(args, "img_size", 1 << 14, c->image, e) ||
        vit_config_pair(args, "patch_size", 1 << 10, patch, e) ||
        jx_opt_int64(args, "in_chans", 1, 1024, &c->num_channels, e) ||
        jx_opt_int64(args, "num_classes", 0, 1 << 22, &c->labels, e) ||
        jx_opt_int64(args, "embed_dim", 1, 1 << 17, &c->hidden_size, e) ||
        jx_opt_int64(args, "depth", 1, 1024, &c->num_hidden_layers, e) ||
        jx_opt_int64(args, "num_heads", 1, 1024, &c->num_attention_heads, e) ||
        jx_opt_real(args, "mlp_ratio", 1e-6, 1 << 10, &ratio, e) ||
        jx_opt_bool(args, "qkv_bias", &c->qkv_bias, e) ||
        jx_opt_bool(args, "no_embed_class", &c->bare_places, e) ||
        jx_opt_bool(args, "pre_norm", &c->pre_norm, e) ||
        parts_activation(args, "act_layer", &c->act, e))
        return -1;
    if (patch[0] != patch[1]) return hfconfig_unsupported(e, "patch_size", "must be square");
    c->patch_size = patch[0];
    if (hfconfig_given(args, "mlp_ratio") || c->hidden_size != width)
        c->intermediate_size = (int64_t)((double)c->hidden_size * ratio);
    if (c->intermediate_size < 1 || c->intermediate_size > 1 << 20)
        return hfconfig_wrong(e, "mlp_ratio", "makes an MLP of no or too great width");
    return 0;
}

/* What timm takes from here when a model is made: the classes, and the image if it is fixed. */
static int read_pretrained(struct vit_config *c, const json_t *cfg, struct err *e)
{
    bool is_fixed = false;
    const json_t *size = json_object_get(cfg, "input_size");
    const char *pool = "token";
    int64_t labels = -1;
    if (jx_opt_bool(cfg, "fixed_input_size", &is_fixed, e) ||
        jx_opt_str(cfg, "global_pool", &pool, e) ||
        jx_opt_int64(cfg, "num_classes", -1, 1 << 22, &labels, e))
        return -1;
    if (!str_eq(pool, "token")) return hfconfig_unsupported(e, "global_pool", "must be 'token'");
    if (labels >= 0) c->labels = labels;
    if (json_is_null(size) || !size) return 0;
    if (json_array_size(size) != 3)
        return hfconfig_wrong(e, "input_size", "must have three entries");
    for (size_t i = 0; i < 3; i++) {
        const json_t *v = json_array_get(size, i);
        int64_t n = json_integer_value(v);
        if (!json_is_integer(v) || n < 1 || n > 1 << 14)
            return hfconfig_wrong(e, "input_size", "must hold sizes");
        if (i == 0) c->num_channels = n;
        else if (is_fixed) c->image[i - 1] = n;
    }
    return 0;
}

int vit_config_parse_timm(struct vit_config *out, const struct hf_config *base,
                          const struct st *weights, struct err *e)
{
    const json_t *o = base->json;
    struct vit_config c = {0};
    json_t *args = NULL, *cfg = NULL;
    if (read_name(&c, base->architecture, e)) return -1;
    if (hfconfig_given(o, "pretrained_cfg") && jx_object(o, "pretrained_cfg", &cfg, e)) return -1;
    if (cfg && read_pretrained(&c, cfg, e)) return hfconfig_inside(e, "pretrained_cfg");
    if (jx_opt_int64(o, "num_classes", 0, 1 << 22, &c.labels, e) || check_words(o, e)) return -1;
    if (weights) read_weights(&c, weights);
    if (hfconfig_given(o, "model_args") && jx_object(o, "model_args", &args, e)) return -1;
    if (args && read_args(&c, args, e)) return hfconfig_inside(e, "model_args");
    if (vit_config_check(&c, "img_size", e)) return -1;
    *out = c;
    return 0;
}
