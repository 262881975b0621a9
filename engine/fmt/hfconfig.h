/* hfconfig.h: config.json of the Llama family (model_type llama, mistral, qwen2, qwen3), typed.
 *
 * Every number has a range and every product of sizes fits 63 bits, so a builder may multiply
 * freely. What no builder here does (another activation, dynamic rope scaling, a quantised
 * checkpoint, ...) is E_UNSUPPORTED, and err.param names the field: nothing is ignored that would
 * change a result. Both spellings are read: rope_theta + rope_scaling (transformers 4) and
 * rope_parameters (transformers 5), torch_dtype and dtype. Missing fields get transformers' default
 * where it does not depend on a particular checkpoint.
 */
#ifndef GRAFT_HFCONFIG_H
#define GRAFT_HFCONFIG_H

#include "engine/base/err.h"
#include "engine/core/dtype.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum hf_family { HF_LLAMA, HF_MISTRAL, HF_QWEN2, HF_QWEN3, HF_FAMILY_COUNT };
enum hf_rope { HF_ROPE_DEFAULT, HF_ROPE_LINEAR, HF_ROPE_LLAMA3 };
enum { HF_EOS_MAX = 16 };

struct hf_config {
    enum hf_family family;
    int64_t hidden_size, intermediate_size, num_hidden_layers;
    int64_t num_attention_heads, num_key_value_heads, head_dim;
    int64_t vocab_size, max_position_embeddings;
    int64_t sliding_window; /* 0: none; full attention is exact up to this length */
    double rms_norm_eps;
    enum hf_rope rope;
    double rope_theta;
    double rope_factor;                           /* linear, llama3 */
    double rope_low_freq, rope_high_freq;         /* llama3: factors of the wavelength bounds */
    int64_t rope_original_max;                    /* llama3: original_max_position_embeddings */
    bool tie_word_embeddings;
    bool qkv_bias, o_bias, mlp_bias;              /* which linear layers carry a bias */
    bool qk_norm;                                 /* RMS norm of each query and key head (qwen3) */
    int64_t bos;                                  /* -1: none */
    int neos;
    int64_t eos[HF_EOS_MAX];                      /* any of them ends an answer */
    enum dtype dtype;                             /* of the checkpoint; F32 if it does not say */
    int64_t parameters;                           /* elements of all weights, tied ones once */
    json_t *json;                                 /* owned: the file as parsed */
};

int hfconfig_load(struct hf_config *c, const char *dir, struct err *e); /* dir/config.json */
int hfconfig_parse(struct hf_config *c, const json_t *json, struct err *e);
void hfconfig_clear(struct hf_config *c);
const char *hfconfig_family_name(enum hf_family f); /* "llama", ... as in model_type */
/* The longest sequence the model is made for: max_position_embeddings or the sliding window. */
int64_t hfconfig_max_length(const struct hf_config *c);

#endif
