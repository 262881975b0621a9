"""Makes model/, data.jsonl and reference.safetensors beside this file: what PyTorch, transformers
and PEFT get when they train a tiny Llama on a few rows, in graft's order.

usage: python3 make_golden.py        needs torch, transformers, peft, tokenizers, safetensors
reference.safetensors:
  lora.loss, lora.norm [STEPS] f64    LoRA run: loss and gradient norm before clipping
  full.loss, full.norm [STEPS] f64    the same, all weights trained
  grad.<site>.lora_A/B.weight         gradients of step 1 with B = uniform(-0.1, 0.1)
"""
import json
import os
import shutil

import safetensors.torch
import tokenizers
import torch
import transformers

import philox
import torch_train

SEED, STEPS, BATCH, ACCUMULATE = 11, 50, 4, 2
B_STREAM = 99
HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "model")


def make_tokenizer():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate(alphabet)}}
    t = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return t


def make_model(vocab):
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True, initializer_range=0.15, bos_token_id=1, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(MODEL)
    os.unlink(os.path.join(MODEL, "generation_config.json"))


def make_rows():
    colours = ["red", "blue", "green", "grey", "white", "black", "pink", "brown", "gold", "teal",
               "plum"]
    things = ["cat", "hat", "kite", "boat", "bell", "leaf", "door", "moon", "lamp", "fish", "shoe"]
    rows = []
    for i in range(22):
        c, t = colours[i % 11], things[(3 * i + i // 11) % 11]
        rows.append({"prompt": f"A {c} {t}: colour?", "completion": " " + c})
    return rows


def load():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32,
                                                             attn_implementation="eager")


def tokens(t, rows):
    out = []
    for r in rows:
        p = t.encode(r["prompt"]).ids
        c = t.encode(r["completion"], add_special_tokens=False).ids + [2]
        out.append((p + c, [False] * len(p) + [True] * len(c)))
    return out


def lora(model):
    # Checkpoint tensors and the table of rotary frequencies come before the adapters.
    first = len(list(model.parameters())) + 1
    return torch_train.wrap_lora(model, r=4, alpha=8, targets=torch_train.LORA_SITES, seed=SEED,
                                 first_index=first)


def site_of(name):
    return name.removeprefix("base_model.model.").replace(".default", "")


def step_one_gradients(rows):
    model = lora(load())
    out = {}
    n = 0
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            n += 1
            seed_step = int(name.split("layers.")[1].split(".")[0]) * 7 + next(
                i for i, s in enumerate(torch_train.LORA_SITES) if f".{s}." in name)
            b = philox.uniform(p.numel(), -0.1, 0.1, SEED, B_STREAM, seed_step)
            p.data.copy_(torch.from_numpy(b).view(p.shape))
    take = philox.rows_of_step(SEED, 0, len(rows), BATCH * ACCUMULATE)
    total = sum(sum(rows[i][1][1:]) for i in take)
    for at in range(0, len(take), BATCH):
        (torch_train.summed_loss(model, [rows[i] for i in take[at:at + BATCH]]) / total).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            out["grad." + site_of(name)] = p.grad.contiguous()
    assert len(out) == 2 * n
    return out


def main():
    shutil.rmtree(MODEL, ignore_errors=True)
    os.makedirs(MODEL)
    tokenizer = make_tokenizer()
    tokenizer.save(os.path.join(MODEL, "tokenizer.json"))
    make_model(tokenizer.get_vocab_size())
    rows = make_rows()
    with open(os.path.join(HERE, "data.jsonl"), "w") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n")
    rows = tokens(tokenizer, rows)
    out = step_one_gradients(rows)
    for name, wrap, lr, decay in [("lora", lora, 0.005, 0.01), ("full", lambda m: m, 0.005, 0.1)]:
        losses, norms = torch_train.train(wrap(load()), rows, SEED, STEPS, BATCH, ACCUMULATE, lr,
                                          warmup=5, weight_decay=decay, clip=1.0)
        out[name + ".loss"] = torch.tensor(losses, dtype=torch.float64)
        out[name + ".norm"] = torch.tensor(norms, dtype=torch.float64)
        print(name, losses[0], losses[-1], norms[:3])
    safetensors.torch.save_file(out, os.path.join(HERE, "reference.safetensors"))


main()
