#include "tests/bench/workload.h"

#include "engine/op/op.h"

#define LLAMA_REST "\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\"," \
    " \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-5, \"initializer_range\": 0.02," \
    " \"bos_token_id\": 1, \"eos_token_id\": 2, \"torch_dtype\": \"float32\"}"

const struct workload workload_list[] = {
    {"smollm_lora", "tokens", "4 N + 6 N_adapter + 6 L C T per token, attention causal", NULL,
     4 * 512, true,
     {"{\"hidden_size\": 576, \"intermediate_size\": 1536, \"num_hidden_layers\": 30,"
      " \"num_attention_heads\": 9, \"num_key_value_heads\": 3, \"vocab_size\": 49152,"
      " \"max_position_embeddings\": 2048, \"rope_theta\": 100000.0,"
      " \"tie_word_embeddings\": true, " LLAMA_REST, "lora", "{\"r\": 16}", 4, 512, NULL, NULL}},
    {"gpt2_full", "tokens", "6 N + 6 L C T per token, attention causal", NULL, 4 * 256, true,
     {"{\"architectures\": [\"GPT2LMHeadModel\"], \"model_type\": \"gpt2\", \"n_embd\": 768,"
      " \"n_layer\": 12, \"n_head\": 12, \"n_positions\": 1024, \"vocab_size\": 50257,"
      " \"layer_norm_epsilon\": 1e-5, \"activation_function\": \"gelu_new\","
      " \"bos_token_id\": 50256, \"eos_token_id\": 50256, \"torch_dtype\": \"float32\"}",
      "full", NULL, 4, 256, NULL, NULL}},
    {"vit_lora", "images", "4 N + 6 N_adapter + 12 L C T per patch", NULL, 16, false,
     {"{\"architectures\": [\"ViTForImageClassification\"], \"model_type\": \"vit\","
      " \"hidden_act\": \"gelu\", \"hidden_size\": 768, \"intermediate_size\": 3072,"
      " \"image_size\": 224, \"patch_size\": 16, \"num_attention_heads\": 12,"
      " \"num_channels\": 3, \"num_hidden_layers\": 12, \"num_labels\": 100,"
      " \"layer_norm_eps\": 1e-12, \"qkv_bias\": true, \"torch_dtype\": \"float32\"}",
      "lora", "{\"r\": 8}", 16, 0, NULL, "classifier."}},
};
const int workload_count = sizeof workload_list / sizeof *workload_list;

double workload_step_flops(const struct workload *w, const struct exec *x, int i)
{
    const struct node *n = &x->plan->tape->nodes[x->plan->steps[i].node];
    struct op_cost c = {0};
    op_table[n->op].cost(x->steps[i].attrs, x->steps[i].tin, x->steps[i].tout, 1, &c);
    bool half = w->causal && (n->op == OP_ATTN || n->op == OP_ATTN_BWD);
    return half ? 0.5 * (double)c.flops : (double)c.flops;
}

double workload_flops(const struct workload *w, const struct exec *x)
{
    double sum = 0;
    for (int i = 0; i < x->plan->nsteps; i++) sum += workload_step_flops(w, x, i);
    return sum;
}
