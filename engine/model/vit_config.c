#include "engine/model/vit_config.h"

#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "engine/model/parts.h"

static const struct hf_number numbers[] = {
    {"hidden_size", offsetof(struct vit_config, hidden_size), 1, 1 << 17, 768},
    {"intermediate_size", offsetof(struct vit_config, intermediate_size), 1, 1 << 20, 3072},
    {"num_hidden_layers", offsetof(struct vit_config, num_hidden_layers), 1, 1024, 12},
    {"num_attention_heads", offsetof(struct vit_config, num_attention_heads), 1, 1024, 12},
    {"num_channels", offsetof(struct vit_config, num_channels), 1, 1024, 3},
};

int64_t vit_patches(const struct vit_config *c)
{
    return (c->image[0] / c->patch_size) * (c->image[1] / c->patch_size);
}

int64_t vit_prefixes(const struct vit_config *c)
{
    return c->distilled ? 2 : 1;
}

int vit_config_pair(const json_t *o, const char *key, int64_t most, int64_t out[2], struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_array(v)) {
        if (jx_opt_int64(o, key, 1, most, &out[0], e)) return -1;
        if (hfconfig_given(o, key)) out[1] = out[0];
        return 0;
    }
    if (json_array_size(v) != 2) return hfconfig_wrong(e, key, "must have two entries");
    for (int i = 0; i < 2; i++) {
        const json_t *n = json_array_get(v, (size_t)i);
        if (!json_is_integer(n) || json_integer_value(n) < 1 || json_integer_value(n) > most)
            return hfconfig_wrong(e, key, "is out of range");
        out[i] = json_integer_value(n);
    }
    return 0;
}

int vit_config_check(const struct vit_config *c, const char *image_key, struct err *e)
{
    if (c->hidden_size % c->num_attention_heads)
        return hfconfig_wrong(e, "num_attention_heads", "must divide the width of the model");
    if (c->image[0] % c->patch_size || c->image[1] % c->patch_size)
        return hfconfig_unsupported(e, image_key, "must be a multiple of 'patch_size'");
    return 0;
}

/* As transformers counts them: the names, or a number of its own in old files, or two. */
static int read_labels(struct vit_config *c, const json_t *o, struct err *e)
{
    const char *problem = "single_label_classification";
    json_t *names;
    c->labels = 2;
    if (jx_opt_str(o, "problem_type", &problem, e)) return -1;
    if (!str_eq(problem, "single_label_classification"))
        return hfconfig_unsupported(e, "problem_type", "must be single_label_classification");
    if (!hfconfig_given(o, "id2label"))
        return jx_opt_int64(o, "num_labels", 0, 1 << 22, &c->labels, e);
    if (jx_object(o, "id2label", &names, e)) return -1;
    c->labels = (int64_t)json_object_size(names);
    return 0;
}

static int read_rest(struct vit_config *c, const json_t *o, struct err *e)
{
    int64_t patch[2] = {16, 16}, width = 0;
    c->image[0] = c->image[1] = 224;
    c->qkv_bias = true;
    c->eps = 1e-12;
    c->initializer_range = 0.02;
    if (vit_config_pair(o, "image_size", 1 << 14, c->image, e) ||
        vit_config_pair(o, "patch_size", 1 << 10, patch, e) ||
        jx_opt_bool(o, "qkv_bias", &c->qkv_bias, e) ||
        parts_activation(o, "hidden_act", &c->act, e) ||
        jx_opt_real(o, "layer_norm_eps", 0, 1, &c->eps, e) ||
        jx_opt_real(o, "initializer_range", 0, 10, &c->initializer_range, e) ||
        jx_opt_int64(o, "head_dim", 1, 1 << 17, &width, e))
        return -1;
    if (patch[0] != patch[1]) return hfconfig_unsupported(e, "patch_size", "must be square");
    c->patch_size = patch[0];
    if (width && width * c->num_attention_heads != c->hidden_size)
        return hfconfig_unsupported(e, "head_dim", "must be the width by the number of heads");
    return 0;
}

int vit_config_parse(struct vit_config *out, const struct hf_config *base, struct err *e)
{
    const json_t *o = base->json;
    struct vit_config c = {0};
    if (hfconfig_numbers(o, numbers, sizeof numbers / sizeof *numbers, &c, e) ||
        read_rest(&c, o, e) || read_labels(&c, o, e) || vit_config_check(&c, "image_size", e))
        return -1;
    *out = c;
    return 0;
}
