"""Makes the folders beside this file: tiny random models of each family, with the logits and the
gradients of all weights that transformers computes for one padded batch.

usage: python3 make_golden.py [NAME...]    needs torch, transformers, safetensors (tests/ecosystem)
NAME/config.json, model.safetensors: as transformers saves them
NAME/reference.safetensors: ids [B,T], lengths [B], labels [B,T] (-1: none; a classifier's: [B]),
logits [B,T,V] f32 (a classifier's: [B,classes]), loss [1] (mean over labels), grad.<weight>, named
as in the class with the head
"""
import os
import sys

import safetensors.torch
import torch
import transformers as tf

LLAMA = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, initializer_range=0.25)
SMALL = {**LLAMA, "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12,
         "num_attention_heads": 2, "num_key_value_heads": 1}
GPT2 = dict(vocab_size=32, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
            eos_token_id=2, initializer_range=0.25)
OPT = dict(vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=12,
           max_position_embeddings=32, pad_token_id=1, bos_token_id=2, eos_token_id=2,
           init_std=0.25)
ROBERTA = dict(vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
               intermediate_size=12, max_position_embeddings=28, pad_token_id=1, bos_token_id=0,
               eos_token_id=2, initializer_range=0.25)
MODELS = {
    "llama": (tf.LlamaConfig, LLAMA, dict(tie_word_embeddings=True)),
    "llama3": (tf.LlamaConfig, LLAMA, dict(
        tie_word_embeddings=False, head_dim=8, num_key_value_heads=4, attention_bias=True,
        mlp_bias=True,
        rope_scaling=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0,
                          low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=16))),
    "llama-yarn": (tf.LlamaConfig, SMALL, dict(
        tie_word_embeddings=True, num_hidden_layers=1, head_dim=16,
        rope_scaling=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                          original_max_position_embeddings=16))),
    "mistral-bf16": (tf.MistralConfig, LLAMA, dict(tie_word_embeddings=False,
                                                   num_key_value_heads=1)),
    "mistral-window": (tf.MistralConfig, SMALL, dict(tie_word_embeddings=True, sliding_window=6)),
    "qwen2": (tf.Qwen2Config, LLAMA, dict(
        tie_word_embeddings=True,
        rope_scaling=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    "qwen2-window": (tf.Qwen2Config, SMALL, dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen3": (tf.Qwen3Config, LLAMA, dict(tie_word_embeddings=False, head_dim=6)),
    "gpt2": (tf.GPT2Config, GPT2, {}),  # as on the hub: no prefix, tables of the mask
    "gpt2-untied": (tf.GPT2Config, GPT2, dict(
        tie_word_embeddings=False, n_inner=12, scale_attn_by_inverse_layer_idx=True,
        activation_function="relu")),
    "opt": (tf.OPTConfig, OPT, {}),
    "opt-postnorm": (tf.OPTConfig, OPT, dict(do_layer_norm_before=False, word_embed_proj_dim=4)),
    "opt-plain": (tf.OPTConfig, OPT, dict(  # as OPTModel saves it: no prefix
        enable_bias=False, layer_norm_elementwise_affine=False, num_hidden_layers=1,
        activation_function="gelu")),
    "roberta": (tf.RobertaConfig, ROBERTA, dict(num_labels=3)),
}
LENGTHS = [21, 9, 24]


def save(name, model, here):
    if name == "opt-plain":
        model.model.save_pretrained(here)
    elif name == "gpt2":
        weights = {k: v.contiguous() for k, v in model.transformer.state_dict().items()}
        for i in range(2):
            weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        model.config.architectures = ["GPT2LMHeadModel"]
        model.config.save_pretrained(here)
        safetensors.torch.save_file(weights, os.path.join(here, "model.safetensors"),
                                    metadata={"format": "pt"})
    else:
        model.save_pretrained(here)
    path = os.path.join(here, "generation_config.json")
    if os.path.exists(path):
        os.unlink(path)


def make(name, config_class, base, extra):
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    os.makedirs(here, exist_ok=True)
    torch.manual_seed(len(name))
    classifier = name == "roberta"
    auto = tf.AutoModelForSequenceClassification if classifier else tf.AutoModelForCausalLM
    model = auto.from_config(config_class(**{**base, **extra}), attn_implementation="eager")
    for p in model.parameters():  # norms and biases that are not 1 and 0
        if p.ndim == 1:
            p.data += 0.3 * torch.randn_like(p)
    model = model.to(torch.bfloat16 if "bf16" in name else torch.float32)
    save(name, model, here)
    # Read back: .to() has rounded the table of rotary frequencies too.
    model = auto.from_pretrained(here, dtype=torch.float32, attn_implementation="eager").eval()
    rows, width = len(LENGTHS), max(LENGTHS)
    pad = base.get("pad_token_id", 0)
    ids = torch.full((rows, width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.tensor([2, 0, 1]) if classifier else torch.full_like(ids, -1)
    for i, n in enumerate(LENGTHS):
        ids[i, :n] = torch.randint(3, base["vocab_size"], (n,))
        mask[i, :n] = 1
        if not classifier:
            labels[i, n // 3:n] = ids[i, n // 3:n]
    logits = model(input_ids=ids, attention_mask=mask).logits
    if classifier:
        loss = torch.nn.functional.cross_entropy(logits, labels)
    else:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1),
                                                 labels[:, 1:].flatten(), ignore_index=-1)
    loss.backward()
    kept = logits.detach() if classifier else logits.detach() * mask[..., None]
    out = {"ids": ids.int(), "lengths": torch.tensor(LENGTHS).int(), "labels": labels.int(),
           "logits": kept, "loss": loss.detach().reshape(1)}
    for key, p in model.named_parameters():
        out["grad." + key] = p.grad
    safetensors.torch.save_file(out, os.path.join(here, "reference.safetensors"))


for name, (config_class, base, extra) in MODELS.items():
    if not sys.argv[1:] or name in sys.argv[1:]:
        make(name, config_class, base, extra)
