"""Makes the folders beside this file: tiny random models of each family, with the logits and the
gradients of all weights that transformers computes for one padded batch.

usage: python3 make_golden.py        needs torch, transformers, safetensors (tests/ecosystem)
NAME/config.json, model.safetensors: as transformers saves them
NAME/reference.safetensors: ids [B,T], lengths [B], labels [B,T] (-1: none), logits [B,T,V] f32,
loss [1] (mean over labels), grad.<weight>
"""
import json
import os

import safetensors.torch
import torch
import transformers

BASE = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, initializer_range=0.25)
MODELS = {
    "llama": (transformers.LlamaConfig, dict(tie_word_embeddings=True)),
    "llama3": (transformers.LlamaConfig, dict(
        tie_word_embeddings=False, head_dim=8, num_key_value_heads=4, attention_bias=True,
        mlp_bias=True,
        rope_scaling=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0,
                          low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=16))),
    "mistral-bf16": (transformers.MistralConfig, dict(tie_word_embeddings=False,
                                                      num_key_value_heads=1)),
    "qwen2": (transformers.Qwen2Config, dict(
        tie_word_embeddings=True,
        rope_scaling=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    "qwen3": (transformers.Qwen3Config, dict(tie_word_embeddings=False, head_dim=6)),
}
LENGTHS = [21, 9, 24]


def make(name, config_class, extra):
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config_class(**{**BASE, **extra}),
                                                          attn_implementation="eager")
    for p in model.parameters():  # norms and biases that are not 1 and 0
        if p.ndim == 1:
            p.data += 0.3 * torch.randn_like(p)
    model = model.to(torch.bfloat16 if "bf16" in name else torch.float32)
    model.save_pretrained(here)
    for extra_file in ("generation_config.json",):
        path = os.path.join(here, extra_file)
        if os.path.exists(path):
            os.unlink(path)
    # Read back: .to() has rounded the table of rotary frequencies too.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        here, dtype=torch.float32, attn_implementation="eager").eval()
    width = max(LENGTHS)
    ids = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -1)
    for i, n in enumerate(LENGTHS):
        ids[i, :n] = torch.randint(3, BASE["vocab_size"], (n,))
        mask[i, :n] = 1
        labels[i, n // 3:n] = ids[i, n // 3:n]
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1),
                                             labels[:, 1:].flatten(), ignore_index=-1)
    loss.backward()
    out = {"ids": ids.int(), "lengths": torch.tensor(LENGTHS).int(), "labels": labels.int(),
           "logits": logits.detach() * mask[..., None], "loss": loss.detach().reshape(1)}
    for key, p in model.named_parameters():
        out["grad." + key] = p.grad
    safetensors.torch.save_file(out, os.path.join(here, "reference.safetensors"))
    with open(os.path.join(here, "config.json")) as f:
        assert json.load(f)["vocab_size"] == BASE["vocab_size"]


for name, (config_class, extra) in MODELS.items():
    make(name, config_class, extra)
