"""One training run by PyTorch, transformers and PEFT, in graft's order and from its initial values.

Used by make_golden.py and by tests/ecosystem: the loop is written from the documentation of the
libraries, so that agreement means something."""
import math

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

import philox

torch.set_num_threads(1)  # tiny models: threads only wait for each other

LORA_SITES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def batch(rows):
    """Right-padded ids, mask and labels of rows of (ids, trained)."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for i, (row, trained) in enumerate(rows):
        n = len(row)
        ids[i, :n] = torch.tensor(row)
        mask[i, :n] = 1
        keep = torch.tensor(trained, dtype=torch.bool)
        labels[i, :n][keep] = ids[i, :n][keep]
    return ids, mask, labels


def summed_loss(model, rows):
    """Sum of the negative log-likelihoods of the trained tokens."""
    ids, mask, labels = batch(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1),
                                             labels[:, 1:].flatten(), reduction="sum")


def wrap_lora(model, r, alpha, targets, seed, first_index):
    """PEFT's LoRA with graft's initial A: parameter number first_index + 2 i of the i-th site."""
    model = get_peft_model(model, LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0,
                                             target_modules=targets, task_type="CAUSAL_LM"))
    found = {}
    for name, p in model.named_parameters():
        if ".lora_A." in name:
            found[name] = p
    order = {s: i for i, s in enumerate(LORA_SITES)}

    def place(name):
        parts = name.split(".")
        return int(parts[parts.index("layers") + 1]), order[parts[parts.index("lora_A") - 1]]

    for i, name in enumerate(sorted(found, key=place)):
        p = found[name]
        bound = np.float32(1.0 / math.sqrt(p.shape[1]))
        a = philox.uniform(p.numel(), -bound, bound, seed, philox.INIT, first_index + 2 * i)
        p.data.copy_(torch.from_numpy(a).view(p.shape))
    return model


def train(model, rows, seed, steps, batch_size, accumulate, lr, warmup, weight_decay, clip,
          on_first=None):
    """Returns (losses, norms) per step. on_first(model) sees the gradients of step 1, unclipped."""
    params = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for _, p in params if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for _, p in params if p.ndim < 2], "weight_decay": 0.0}]
    opt = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.999), eps=1e-8)
    sched = transformers.get_cosine_schedule_with_warmup(opt, warmup, steps)
    losses, norms = [], []
    for step in range(steps):
        take = philox.rows_of_step(seed, step, len(rows), batch_size * accumulate)
        tokens = sum(sum(rows[i][1][1:]) for i in take)
        total = 0.0
        for at in range(0, len(take), batch_size):
            loss = summed_loss(model, [rows[i] for i in take[at:at + batch_size]]) / tokens
            loss.backward()
            total += loss.item()
        if step == 0 and on_first:
            on_first(model)
        norms.append(float(torch.nn.utils.clip_grad_norm_([p for _, p in params], clip)))
        losses.append(total)
        opt.step()
        sched.step()
        opt.zero_grad()
    return losses, norms
