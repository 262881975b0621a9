/* vit_config.h: what config.json says about a Vision Transformer, by the rules of hfconfig.h.
 *
 * Two ways of writing it down are read: that of transformers (model_type vit) and that of timm
 * (architecture, model_args, pretrained_cfg; families vit_* and deit_*). timm's may leave sizes to
 * the weights and to the name of the architecture: what model_args says comes first, then what
 * the weights show, then the name. A variant that the builder lacks is E_UNSUPPORTED, and
 * err.param names the field, as in model_args.init_values.
 */
#ifndef GRAFT_VIT_CONFIG_H
#define GRAFT_VIT_CONFIG_H

#include "engine/fmt/hfconfig.h"
#include "engine/fmt/safetensors.h"
#include "engine/op/attrs.h"

struct vit_config {
    int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
    int64_t image[2]; /* height, width */
    int64_t patch_size, num_channels;
    int64_t labels;   /* 0: no head */
    double eps;       /* of all norms */
    enum act_kind act;
    bool qkv_bias;
    /* Variants of timm: */
    bool pre_norm;    /* a norm before the first block, and patches without bias (CLIP) */
    bool distilled;   /* a second token and head, whose answer is averaged with the first's */
    bool bare_places; /* the table of positions has no rows for the tokens before the patches */
    double initializer_range;
};

int vit_config_parse(struct vit_config *c, const struct hf_config *base, struct err *e);
/* weights: what the file holds, or NULL. */
int vit_config_parse_timm(struct vit_config *c, const struct hf_config *base,
                          const struct st *weights, struct err *e);

int64_t vit_patches(const struct vit_config *c);
int64_t vit_prefixes(const struct vit_config *c); /* tokens before the patches */

/* For both ways. A size: an integer, or a list [height, width]. */
int vit_config_pair(const json_t *o, const char *key, int64_t most, int64_t out[2],
                    struct err *e);
int vit_config_check(const struct vit_config *c, const char *image_key, struct err *e);

#endif
