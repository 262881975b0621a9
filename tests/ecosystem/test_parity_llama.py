"""graft against PyTorch, transformers and PEFT on a real model: same data, order, initial values and
settings, f32. Needs the model babyllama-105 below $GRAFT_TEST_DATA/models.

Bars: logits and exports relative L2 1e-5, gradients 1e-4, 50 losses within 1e-4."""
import csv
import json
import os
import random
import re
import subprocess
import sys

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from peft import PeftModel

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/method/golden"))
import philox  # noqa: E402
import torch_train  # noqa: E402

DATA = os.environ.get("GRAFT_TEST_DATA", "")
MODEL = os.path.join(DATA, "models/babyllama-105")
GRAFT = os.path.join(ROOT, "build/graft")
DUMP = os.path.join(ROOT, "build/tests/ecosystem/parity_dump")
SENTENCE = ("Once upon a time, there was a little girl named Lily. "
            "She loved to play outside in the park.")
SEED = 7
SETTINGS = {"r": 8, "lora_alpha": 16, "learning_rate": 1e-3, "batch_size": 4,
            "gradient_accumulation_steps": 2, "warmup_steps": 5, "weight_decay": 0.01,
            "max_steps": 50, "max_grad_norm": 1.0}

pytestmark = pytest.mark.skipif(not os.path.isdir(MODEL),
                                reason="GRAFT_TEST_DATA/models/babyllama-105 is not there")


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def run(*command, ok=0):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == ok, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def built():
    run("make", "-s", "-j2", "build/graft", "build/tests/ecosystem/parity_dump")


def stories(n):
    """Rows that the model's 105 characters can spell; loss on the completion only."""
    rng = random.Random(3)
    who, what = ["Tom", "Mia", "the old dog", "Lily", "a frog"], ["ran", "sat", "sang", "slept"]
    where = ["in the park", "by the sea", "on a big red box", "under the tree", "at home"]
    rows = []
    for _ in range(n):
        parts = [f"{rng.choice(who)} {rng.choice(what)} {rng.choice(where)}."
                 for _ in range(rng.randint(1, 4))]
        rows.append({"prompt": parts[0], "completion": " ".join([""] + parts[1:] + ["The end."])})
    return rows


def encode(rows):
    t = tokenizers.Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    out = []
    for r in rows:
        p = t.encode(r["prompt"]).ids
        c = t.encode(r["completion"], add_special_tokens=False).ids + [2]
        out.append((p + c, [False] * len(p) + [True] * len(c)))
    return out


def write_job(folder, rows, method="lora", settings=None, model=MODEL):
    os.makedirs(folder, exist_ok=True)
    data = os.path.join(folder, "data.jsonl")
    with open(data, "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)
    path = os.path.join(folder, "job.json")
    with open(path, "w") as f:
        json.dump({"seed": SEED, "model": {"id": "test/base", "path": model}, "method": method,
                   "settings": settings or SETTINGS, "training_file": data}, f)
    return path


def train(folder, *args, **kw):
    run(GRAFT, "run", write_job(str(folder), *args, **kw), "--dir", str(folder / "job"))
    return folder / "job/result"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    rows = stories(60)
    return rows, train(tmp_path_factory.mktemp("lora"), rows)


def graft_logits(folder, model, adapter, ids):
    source, out = os.path.join(folder, "ids.safetensors"), os.path.join(folder, "out.safetensors")
    safetensors.torch.save_file({"ids": torch.tensor(ids, dtype=torch.int32)}, source)
    run(DUMP, "logits", str(model), str(adapter or "-"), source, out)
    return safetensors.torch.load_file(out)["logits"]


def load(path=MODEL, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype).eval()


@torch.no_grad()
def torch_logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].float()


def sentence_ids():
    t = tokenizers.Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    return t.encode(SENTENCE).ids


def test_the_sentence_has_its_known_likelihood():
    out = run(GRAFT, "score", MODEL, "--text", SENTENCE)
    nll = float(out.split()[0])
    assert abs(nll - 0.0715517) < 2e-6
    ids = sentence_ids()
    want = torch.nn.functional.cross_entropy(torch_logits(load(), ids)[:-1], torch.tensor(ids[1:]))
    assert abs(nll - want.item()) < 1e-6


def test_logits(tmp_path):
    ids = sentence_ids()
    off = relative(graft_logits(tmp_path, MODEL, None, ids), torch_logits(load(), ids))
    print(f"logits: {off:.2g}")
    assert off < 1e-5


def test_greedy_answers_are_those_of_transformers():
    t = tokenizers.Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    for prompt in ["Once upon a time", "Tom had a dog", "The"]:
        ids = t.encode(prompt).ids
        out = load().generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
                              max_new_tokens=40, do_sample=False, pad_token_id=0)[0].tolist()
        want = t.decode(out)[len(t.decode(ids)):]
        got = run(GRAFT, "generate", MODEL, "--prompt", prompt, "--max-tokens", "40")
        assert got.removesuffix("\n") == want


def lora_model():
    model = load()
    first = len(list(model.parameters())) + 1  # and the table of rotary frequencies
    return torch_train.wrap_lora(model, SETTINGS["r"], SETTINGS["lora_alpha"],
                                 torch_train.LORA_SITES, SEED, first)


def place(name):
    site = next(i for i, s in enumerate(torch_train.LORA_SITES) if f".{s}." in name)
    return int(re.search(r"layers\.(\d+)\.", name)[1]) * 7 + site


def test_all_gradients_of_the_first_step(trained, tmp_path):
    rows, result = trained
    out = str(tmp_path / "grad.safetensors")
    run(DUMP, "gradients", str(result.parent), "0.05", out)
    got = safetensors.torch.load_file(out)
    model = lora_model()
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            b = philox.uniform(p.numel(), -0.05, 0.05, SEED, 99, place(name))
            p.data.copy_(torch.from_numpy(b).view(p.shape))
    data = encode(rows)
    window = SETTINGS["batch_size"] * SETTINGS["gradient_accumulation_steps"]
    take = [data[i] for i in philox.rows_of_step(SEED, 0, len(data), window)]
    tokens = sum(sum(r[1][1:]) for r in take)
    for at in range(0, window, SETTINGS["batch_size"]):
        part = take[at:at + SETTINGS["batch_size"]]
        (torch_train.summed_loss(model, part) / tokens).backward()
    seen, worst = 0, 0.0
    for name, p in model.named_parameters():
        if p.requires_grad:
            key = name.removeprefix("base_model.model.").replace(".default", "")
            worst = max(worst, relative(got[key], p.grad))
            assert worst < 1e-4, name
            seen += 1
    assert seen == len(got) == 2 * 35
    print(f"gradients: worst {worst:.2g}")


def test_fifty_steps(trained):
    rows, result = trained
    losses, norms = torch_train.train(
        lora_model(), encode(rows), SEED, 50, SETTINGS["batch_size"],
        SETTINGS["gradient_accumulation_steps"], SETTINGS["learning_rate"],
        SETTINGS["warmup_steps"], SETTINGS["weight_decay"], SETTINGS["max_grad_norm"])
    with open(result / "metrics.csv") as f:
        got = [r for r in csv.DictReader(f) if r["train_loss"]]
    assert len(got) == 50
    assert losses[0] - losses[-1] > 0.5  # it learns, or nothing would be compared
    worst = max(abs(float(g["train_loss"]) - loss) for g, loss in zip(got, losses))
    print(f"50 losses: worst {worst:.2g}")
    for mine, loss, norm in zip(got, losses, norms):
        assert abs(float(mine["train_loss"]) - loss) < 1e-4, mine["step"]
        assert abs(float(mine["grad_norm"]) / norm - 1) < 1e-3, mine["step"]


def test_peft_loads_the_adapter(trained, tmp_path):
    _, result = trained
    ids = sentence_ids()
    base = torch_logits(load(), ids)
    model = PeftModel.from_pretrained(load(), str(result / "adapter"))
    got = torch_logits(model, ids)
    assert relative(got, base) > 1e-2  # a no-op adapter would pass everything else
    assert relative(got, graft_logits(tmp_path, MODEL, result / "adapter", ids)) < 1e-5
    merged = model.merge_and_unload().state_dict()
    mine = safetensors.torch.load_file(result / "merged/model.safetensors")
    for name, w in mine.items():
        assert relative(w, merged[name]) < 1e-6, name


def test_transformers_loads_the_merged_model(trained, tmp_path):
    _, result = trained
    ids = sentence_ids()
    got = torch_logits(load(result / "merged"), ids)
    adapted = torch_logits(PeftModel.from_pretrained(load(), str(result / "adapter")), ids)
    assert relative(got, graft_logits(tmp_path, result / "merged", None, ids)) < 1e-5
    assert relative(got, adapted) < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(result / "merged"))
    assert tokenizer(SENTENCE).input_ids == ids


def test_some_layers_only_and_rank_one(tmp_path):
    settings = {**SETTINGS, "r": 1, "max_steps": 5, "learning_rate": 0.05,
                "target_modules": ["v_proj", "model.layers.2.mlp.up_proj"]}
    result = train(tmp_path, stories(20), settings=settings)
    tensors = safetensors.torch.load_file(result / "adapter/adapter_model.safetensors")
    assert len(tensors) == 2 * 6
    model = PeftModel.from_pretrained(load(), str(result / "adapter"))
    loaded = {n for n, _ in model.named_parameters() if "lora_" in n}
    assert len(loaded) == 2 * 6
    ids = sentence_ids()
    got = torch_logits(model, ids)
    assert relative(got, torch_logits(load(), ids)) > 1e-3
    assert relative(got, graft_logits(tmp_path, MODEL, result / "adapter", ids)) < 1e-5
    assert relative(torch_logits(load(result / "merged"), ids), got) < 1e-5


def test_graft_loads_what_peft_saves(tmp_path):
    model = lora_model()
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.manual_seed(place(name))
            p.data.normal_(std=0.02)
    model.save_pretrained(str(tmp_path / "saved"))
    ids = sentence_ids()
    want = torch_logits(model.eval(), ids)
    assert relative(graft_logits(tmp_path, MODEL, tmp_path / "saved", ids), want) < 1e-5


def test_all_weights_keep_their_names_and_load(tmp_path):
    settings = {"max_steps": 5, "batch_size": 4, "learning_rate": 1e-3}
    result = train(tmp_path, stories(20), method="full", settings=settings)
    assert not (result / "adapter").exists()
    base = safetensors.torch.load_file(os.path.join(MODEL, "model.safetensors"))
    mine = safetensors.torch.load_file(result / "merged/model.safetensors")
    assert base.keys() == mine.keys()
    for name in base:
        assert base[name].shape == mine[name].shape and base[name].dtype == mine[name].dtype
        assert not torch.equal(base[name], mine[name]), name
    ids = sentence_ids()
    got = torch_logits(load(result / "merged"), ids)
    assert relative(got, graft_logits(tmp_path, result / "merged", None, ids)) < 1e-5


def test_a_half_precision_base_is_read_in_place_and_merged_once_rounded(tmp_path):
    half = tmp_path / "half"
    load().to(torch.bfloat16).save_pretrained(half)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        with open(os.path.join(MODEL, name)) as f, open(half / name, "w") as g:
            g.write(f.read())
    result = train(tmp_path, stories(20), settings={**SETTINGS, "max_steps": 8},
                   model=str(half))
    ids = sentence_ids()
    wide = load(half)  # the same weights, computed in f32
    assert relative(graft_logits(tmp_path, half, None, ids), torch_logits(wide, ids)) < 1e-5
    model = PeftModel.from_pretrained(wide, str(result / "adapter"))
    adapted = graft_logits(tmp_path, half, result / "adapter", ids)
    assert relative(torch_logits(model, ids), adapted) < 1e-5
    merged = model.merge_and_unload().state_dict()
    mine = safetensors.torch.load_file(result / "merged/model.safetensors")
    for name, w in mine.items():
        assert w.dtype == torch.bfloat16
        want = merged[name].to(torch.bfloat16)
        # One rounding of sums that differ in their last f32 bits: ties may fall either way.
        assert (w != want).float().mean() < 1e-3, name
