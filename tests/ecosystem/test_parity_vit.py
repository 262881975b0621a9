"""graft against transformers, timm and PEFT on Vision Transformers with random weights, f32.

Bars: logits relative L2 1e-5, gradients 1e-4, one step of AdamW on LoRA and head 1e-5."""
import copy
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import timm
from timm.models import save_for_hf

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/model/golden"))
import vit_layouts  # noqa: E402

DUMP = os.path.join(ROOT, "build/tests/ecosystem/vit_dump")
GRAFT = os.path.join(ROOT, "build/graft")
LABELS = 6
HF = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
          image_size=32, patch_size=8, num_labels=LABELS)
TIMM = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=LABELS)


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def scramble(model):
    """Nothing at 0 or 1, where a forgotten bias or norm would not show."""
    torch.manual_seed(11)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((0.3 if p.ndim == 1 else 0.1) * torch.randn_like(p))
    return model.eval()


def batch(tmp_path, extra=None, size=(32, 32), n=4):
    torch.manual_seed(5)
    data = {"image": torch.randn(n, 3, *size), "labels": torch.arange(n) % LABELS}
    stored = {**data, "labels": data["labels"].int(), **(extra or {})}
    safetensors.torch.save_file(stored, tmp_path / "batch.safetensors")
    return data


def dump(tmp_path, what, folder, *more):
    out = tmp_path / "out.safetensors"
    subprocess.run([DUMP, what, folder, tmp_path / "batch.safetensors", out, *more], check=True)
    return safetensors.torch.load_file(out)


def logits_of(model, image):
    out = model(image)
    return out if isinstance(out, torch.Tensor) else out.logits


def compare(tmp_path, folder, model, names, size=(32, 32)):
    """Logits and all gradients. names: parameter of the model -> name in the file."""
    data = batch(tmp_path, size=size)
    logits = logits_of(model, data["image"])
    got = dump(tmp_path, "logits", folder)["logits"]
    assert relative(got, logits.detach()) < 1e-5
    loss = torch.nn.functional.cross_entropy(logits, data["labels"])
    loss.backward()
    got = dump(tmp_path, "gradients", folder)
    assert abs(float(got["loss"]) - loss.item()) < 1e-5
    seen, scale = 0, max(float(p.grad.norm()) for p in model.parameters())
    for name, p in model.named_parameters():
        mine = got["grad." + names[name]]
        seen += 1
        if float(p.grad.norm()) < 1e-6 * scale:  # the bias of keys: 0 but for rounding
            assert float(mine.norm()) < 1e-6 * scale, name
        else:
            assert relative(mine, p.grad) < 1e-4, name
    assert seen == len(got) - 1


def hf_model(**config):
    return scramble(transformers.ViTForImageClassification(
        transformers.ViTConfig(**{**HF, **config})))


@pytest.mark.parametrize("config", [
    {}, {"qkv_bias": False}, {"hidden_act": "gelu_new"}, {"hidden_act": "relu"},
    {"layer_norm_eps": 1e-3}, {"num_channels": 3, "image_size": [24, 40]},
    {"patch_size": 16, "num_attention_heads": 3}], ids=str)
def test_transformers(tmp_path, config):
    model = hf_model(**config)
    model.save_pretrained(tmp_path / "model")
    size = config.get("image_size", (32, 32))
    compare(tmp_path, tmp_path / "model", model, vit_layouts.stored_names(model), size)


def timm_model(folder, name, **args):
    args = {**TIMM, **args}
    model = scramble(timm.create_model(name, **args))
    save_for_hf(model, folder, safe_serialization=True, model_args=args)
    return model


@pytest.mark.parametrize("name,args", [
    ("vit_tiny_patch16_224", {}), ("vit_base_patch16_224", {"qkv_bias": False, "mlp_ratio": 2.5}),
    ("vit_small_patch32_224", {"no_embed_class": True}), ("deit_tiny_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}), ("vit_base_patch16_clip_224", {}),
    ("vit_base_patch32_clip_quickgelu_224", {}), ("vit_tiny_patch16_224", {"img_size": [24, 40]}),
    ("vit_tiny_patch16_224", {"act_layer": "relu"})], ids=str)
def test_timm(tmp_path, name, args):
    model = timm_model(tmp_path / "model", name, **args)
    names = {n: n for n, _ in model.named_parameters()}
    compare(tmp_path, tmp_path / "model", model, names, args.get("img_size", (32, 32)))


def test_timm_as_its_hub_has_it(tmp_path):
    """Full size, config without model_args: all sizes from the name of the architecture."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    config = json.loads((tmp_path / "model/config.json").read_text())
    config.pop("model_args", None)
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    data = batch(tmp_path, size=(224, 224), n=2)
    with torch.no_grad():
        want = model(data["image"])
    assert relative(dump(tmp_path, "logits", tmp_path / "model")["logits"], want) < 1e-5


def test_three_files_of_the_same_weights(tmp_path):
    model = timm_model(tmp_path / "timm", "vit_tiny_patch16_224")
    hf = transformers.ViTForImageClassification(transformers.ViTConfig(
        **{**HF, "intermediate_size": 192, "layer_norm_eps": 1e-6}))
    weights = vit_layouts.timm_to_hf(model.state_dict())
    hf.load_state_dict({k: weights[v] for k, v in vit_layouts.stored_names(hf).items()})
    hf.save_pretrained(tmp_path / "hf")
    for folder, config in (("npz", "timm"), ("npz_hf", "hf")):
        (tmp_path / folder).mkdir()
        text = (tmp_path / config / "config.json").read_text()
        (tmp_path / folder / "config.json").write_text(text)
        vit_layouts.write_npz(tmp_path / folder / "ViT-B_16.npz", model.state_dict(), 4)
    # timm knows the authors' file: what is written here is one.
    other = timm.create_model("vit_tiny_patch16_224", **TIMM)
    other.load_pretrained(str(tmp_path / "npz/ViT-B_16.npz"))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())

    data = batch(tmp_path)
    want = model(data["image"]).detach()
    got = {f: dump(tmp_path, "logits", tmp_path / f)["logits"]
           for f in ("timm", "hf", "npz", "npz_hf")}
    for folder, logits in got.items():
        assert relative(logits, want) < 1e-5, folder
    assert torch.equal(got["npz"], got["timm"]) and torch.equal(got["npz_hf"], got["hf"])


def test_a_checkpoint_without_head(tmp_path):
    model = hf_model()
    base = transformers.ViTModel(model.config)
    base.load_state_dict(model.vit.state_dict(), strict=False)  # and a pooler of its own
    base.save_pretrained(tmp_path / "model")
    head = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
    data = batch(tmp_path, head)
    want = model(data["image"]).logits.detach()
    assert relative(dump(tmp_path, "logits", tmp_path / "model")["logits"], want) < 1e-5


def test_half_precision_weights_are_read_in_place(tmp_path):
    model = hf_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    wide = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "model", dtype=torch.float32).eval()
    data = batch(tmp_path)
    want = wide(data["image"]).logits.detach()
    assert relative(dump(tmp_path, "logits", tmp_path / "model")["logits"], want) < 1e-5


def lora_step(tmp_path, model, targets, head):
    """One step of AdamW with PEFT and with graft, from the same values. Returns PEFT's model."""
    torch.manual_seed(9)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets,
                                            modules_to_save=[head]))
    start = {}
    for name, p in peft.named_parameters():
        if p.requires_grad:
            if ".lora_B." in name:
                p.data.normal_(std=0.05)
            start[plain(name)] = p.detach().clone()
    data = batch(tmp_path, start)
    (tmp_path / "adapter").mkdir()
    got = dump(tmp_path, "lora", tmp_path / "model", json.dumps(targets), tmp_path / "adapter")
    decay = [p for p in peft.parameters() if p.requires_grad and p.ndim > 1]
    keep = [p for p in peft.parameters() if p.requires_grad and p.ndim == 1]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 0.01},
                                   {"params": keep, "weight_decay": 0}], lr=0.01)
    logits = peft(data["image"])
    logits = logits if isinstance(logits, torch.Tensor) else logits.logits
    loss = torch.nn.functional.cross_entropy(logits, data["labels"])
    loss.backward()
    assert abs(float(got["loss"]) - loss.item()) < 1e-5
    for name, p in peft.named_parameters():
        if p.requires_grad:
            assert relative(got["grad." + plain(name)], p.grad) < 1e-4, name
    optimiser.step()
    for name, p in peft.named_parameters():
        if p.requires_grad:
            assert relative(got["after." + plain(name)], p.detach()) < 1e-5, name
    assert len(got) == 1 + 2 * len(start)
    return peft, data


def plain(name):
    return (name.removeprefix("base_model.model.").replace(".default", "")
            .replace(".modules_to_save", ""))


def test_a_step_of_lora_is_pefts_and_peft_loads_the_adapter(tmp_path):
    model = hf_model()
    model.save_pretrained(tmp_path / "model")
    peft, data = lora_step(tmp_path, model, ["q_proj", "v_proj"], "classifier")
    want = peft(data["image"]).logits.detach()
    plain_model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "model")
    loaded = PeftModel.from_pretrained(plain_model, str(tmp_path / "adapter")).eval()
    head = peft.base_model.model.classifier.modules_to_save["default"]
    loaded.base_model.model.classifier.load_state_dict(head.state_dict())
    assert relative(loaded(data["image"]).logits.detach(), want) < 1e-5


def test_a_step_of_lora_on_fused_projections(tmp_path):
    """A target "proj" would take in the patches' convolution: the adapter has full paths."""
    model = timm_model(tmp_path / "model", "vit_tiny_patch16_224")
    again = copy.deepcopy(model)
    peft, data = lora_step(tmp_path, model, ["qkv", "attn.proj", "fc1", "fc2"], "head")
    loaded = PeftModel.from_pretrained(again, str(tmp_path / "adapter")).eval()
    assert sum(".lora_A." in n for n, _ in loaded.named_parameters()) == 4 * 3
    head = peft.base_model.model.head.modules_to_save["default"]
    loaded.base_model.model.head.load_state_dict(head.state_dict())
    assert relative(loaded(data["image"]).detach(), peft(data["image"]).detach()) < 1e-5


def test_check_describes_the_folder(tmp_path):
    hf_model().save_pretrained(tmp_path / "model")
    out = subprocess.run([GRAFT, "check", tmp_path / "model", "--json"], check=True,
                         capture_output=True, text=True).stdout
    said = json.loads(out)
    assert said["model_type"] == "vit" and said["image_size"] == [32, 32]
    assert said["labels"] == LABELS and said["architecture"] == "ViTForImageClassification"
