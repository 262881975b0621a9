/* llama_config.h: what config.json says about a model of the Llama family (llama, mistral, qwen2,
 * qwen3), typed, by the rules of hfconfig.h.
 *
 * Both spellings of rotary embeddings are read: rope_theta + rope_scaling (transformers 4) and
 * rope_parameters (transformers 5).
 */
#ifndef GRAFT_LLAMA_CONFIG_H
#define GRAFT_LLAMA_CONFIG_H

#include "engine/fmt/hfconfig.h"

enum { LLAMA_LAYERS = 1024 };
enum llama_rope { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct llama_config {
    int64_t hidden_size, intermediate_size, num_hidden_layers;
    int64_t num_attention_heads, num_key_value_heads, head_dim;
    int64_t vocab_size, max_position_embeddings;
    int64_t sliding_window;       /* 0: none */
    bool slides[LLAMA_LAYERS];    /* layer i attends the last sliding_window tokens only */
    double rms_norm_eps;
    enum llama_rope rope;
    double rope_theta;
    double rope_factor;                   /* linear, llama3, yarn */
    double rope_low_freq, rope_high_freq; /* llama3: factors of the wavelength bounds */
    double rope_beta_fast, rope_beta_slow; /* yarn: rotations that bound the ramp */
    bool rope_truncate;                   /* yarn: the bounds are whole dimensions */
    double rope_attention;                /* yarn: factor on queries and on keys; else 1 */
    int64_t rope_original_max;            /* llama3, yarn: original_max_position_embeddings */
    bool tie_word_embeddings;
    bool qkv_bias, o_bias, mlp_bias;      /* which linear layers carry a bias */
    bool qk_norm;                         /* RMS norm of each query and key head (qwen3) */
    double initializer_range;
};

/* base: the same file, parsed by hfconfig_parse. */
int llama_config_parse(struct llama_config *c, const struct hf_config *base, struct err *e);

#endif
