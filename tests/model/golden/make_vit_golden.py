"""Makes vit/* beside this file: one tiny Vision Transformer in the three layouts that graft reads,
and variants of timm's, with the logits and gradients that transformers and timm compute.

usage: python3 make_vit_golden.py        needs torch, transformers, timm, safetensors, numpy
vit/hf, vit/timm        the same weights as transformers and as timm save them
vit/npz                 the same weights as the authors' code saves them, with timm's config.json
vit/clip, vit/distilled other weights: patches without bias and a norm before the blocks, no bias on
                        q, k, v, quick_gelu, positions of patches only; two tokens and two heads
*/reference.safetensors image [B,I,Y,X], labels [B], logits [B,V] f32, loss [1] (mean), grad.<weight>
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../ecosystem"))
import conftest  # noqa: E402,F401  (torchvision beside a CPU torch)

import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from timm.models import save_for_hf  # noqa: E402

sys.path.insert(0, HERE)
import vit_layouts  # noqa: E402

IMAGE, PATCH, LABELS, BATCH = (12, 20), 4, 5, 3
SIZES = dict(embed_dim=16, depth=2, num_heads=4, mlp_ratio=1.5)


def scramble(model, seed):
    """Weights that no layer could hide: norms and biases that are not 1 and 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.copy_(0.25 * torch.randn_like(p))
    return model.eval()


def reference(folder, model, logits_of):
    torch.manual_seed(7)
    image = torch.randn(BATCH, 3, *IMAGE)
    labels = torch.tensor([4, 0, 2])
    logits = logits_of(model, image)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    out = {"image": image, "labels": labels.int(), "logits": logits.detach(),
           "loss": loss.detach().reshape(1)}
    names = vit_layouts.stored_names(model)
    for key, p in model.named_parameters():
        out["grad." + names[key]] = p.grad
    safetensors.torch.save_file(out, os.path.join(HERE, "vit", folder, "reference.safetensors"))


def save_timm(folder, model, **args):
    path = os.path.join(HERE, "vit", folder)
    save_for_hf(model, path, safe_serialization=True,
                model_args=dict(img_size=IMAGE, patch_size=PATCH, **SIZES, **args))
    for extra in ("README.md", "pytorch_model.bin"):
        if os.path.exists(os.path.join(path, extra)):
            os.unlink(os.path.join(path, extra))


def make_timm(folder, name, seed, **args):
    model = timm.create_model(name, img_size=IMAGE, patch_size=PATCH, num_classes=LABELS, **SIZES,
                              **args)
    save_timm(folder, scramble(model, seed), **args)
    reference(folder, model, lambda m, x: m(x))
    return model


plain = make_timm("timm", "vit_tiny_patch16_224", 1)
make_timm("clip", "vit_base_patch32_clip_quickgelu_224", 2, qkv_bias=False,
          no_embed_class=True)
make_timm("distilled", "deit_tiny_distilled_patch16_224", 3)

hf = transformers.ViTForImageClassification(transformers.ViTConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
    image_size=IMAGE, patch_size=PATCH, num_labels=LABELS, layer_norm_eps=1e-6))
weights = vit_layouts.timm_to_hf(plain.state_dict())
hf.load_state_dict({k: weights[v] for k, v in vit_layouts.stored_names(hf).items()})
hf.eval().save_pretrained(os.path.join(HERE, "vit/hf"))
reference("hf", hf, lambda m, x: m(pixel_values=x).logits)

os.makedirs(os.path.join(HERE, "vit/npz"), exist_ok=True)
vit_layouts.write_npz(os.path.join(HERE, "vit/npz/ViT.npz"), plain.state_dict(), SIZES["num_heads"])
with open(os.path.join(HERE, "vit/timm/config.json")) as f, \
        open(os.path.join(HERE, "vit/npz/config.json"), "w") as g:
    json.dump(json.load(f), g, indent=2)
