"""Every text family against transformers and PEFT, on tiny random models: passes, generation, jobs.

Bars: logits relative L2 1e-5, gradients 1e-4, greedy answers the same ids; adapters and merged
weights 1e-5 in transformers' hands."""
import json
import os
import subprocess

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GRAFT = os.path.join(ROOT, "build/graft")
MODEL = os.path.join(ROOT, "build/tests/ecosystem/parity_model")
DUMP = os.path.join(ROOT, "build/tests/ecosystem/parity_dump")

torch.set_num_threads(1)
LLAMA = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
             bos_token_id=256, eos_token_id=257, pad_token_id=0, initializer_range=0.2)
GPT2 = dict(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=256,
            eos_token_id=257, initializer_range=0.2)
OPT = dict(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=64,
           max_position_embeddings=128, pad_token_id=1, bos_token_id=256, eos_token_id=257,
           init_std=0.2)
ROBERTA = dict(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
               intermediate_size=64, max_position_embeddings=130, pad_token_id=1, bos_token_id=256,
               eos_token_id=257, initializer_range=0.2, type_vocab_size=1)
ROPE = dict(rope_theta=10000.0)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, **ROPE)
CASES = {
    "llama": (tf.LlamaConfig, LLAMA, {}),
    "llama-linear": (tf.LlamaConfig, LLAMA, dict(
        rope_parameters=dict(rope_type="linear", factor=2.5, **ROPE), tie_word_embeddings=True)),
    "llama3": (tf.LlamaConfig, LLAMA, dict(rope_parameters=LLAMA3, attention_bias=True)),
    "llama-yarn": (tf.LlamaConfig, LLAMA, dict(rope_parameters=YARN, head_dim=16)),
    "llama-yarn-mscale": (tf.LlamaConfig, LLAMA, dict(rope_parameters=dict(
        YARN, mscale=0.7, mscale_all_dim=1.3, beta_fast=16.0, beta_slow=2.0, truncate=False),
        head_dim=32)),
    "smollm2": (tf.LlamaConfig, LLAMA, dict(num_attention_heads=3, num_key_value_heads=1,
                                            hidden_size=24, tie_word_embeddings=True)),
    "mistral": (tf.MistralConfig, LLAMA, dict(sliding_window=None, head_dim=12)),
    "mistral-window": (tf.MistralConfig, LLAMA, dict(sliding_window=11)),
    "qwen2": (tf.Qwen2Config, LLAMA, dict(tie_word_embeddings=True)),
    "qwen2-window": (tf.Qwen2Config, LLAMA, dict(use_sliding_window=True, sliding_window=9,
                                                 max_window_layers=1)),
    "qwen3": (tf.Qwen3Config, LLAMA, dict(head_dim=12)),
    "qwen3-yarn": (tf.Qwen3Config, LLAMA, dict(head_dim=16, rope_parameters=YARN)),
    "gpt2": (tf.GPT2Config, GPT2, {}),
    "gpt2-untied": (tf.GPT2Config, GPT2, dict(tie_word_embeddings=False, n_inner=40)),
    "gpt2-scales": (tf.GPT2Config, GPT2, dict(scale_attn_by_inverse_layer_idx=True,
                                              reorder_and_upcast_attn=True,
                                              activation_function="gelu")),
    "gpt2-unscaled": (tf.GPT2Config, GPT2, dict(scale_attn_weights=False, layer_norm_epsilon=1e-3,
                                                activation_function="gelu_fast")),
    "opt": (tf.OPTConfig, OPT, {}),
    "opt-350m": (tf.OPTConfig, OPT, dict(do_layer_norm_before=False, word_embed_proj_dim=16)),
    "opt-old": (tf.OPTConfig, OPT, dict(_remove_final_layer_norm=True, tie_word_embeddings=False,
                                        activation_function="gelu_new")),
    "opt-plain": (tf.OPTConfig, OPT, dict(enable_bias=False, layer_norm_elementwise_affine=False)),
    "roberta": (tf.RobertaConfig, ROBERTA, dict(num_labels=5)),
    "roberta-types": (tf.RobertaConfig, ROBERTA, dict(type_vocab_size=2, layer_norm_eps=1e-5,
                                                      hidden_act="gelu_new")),
}
LANGUAGE = [c for c in CASES if "roberta" not in c]


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def run(*command, ok=0):
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == ok, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def built():
    run("make", "-s", "-j2", "build/graft", "build/tests/ecosystem/parity_model",
        "build/tests/ecosystem/parity_dump")


def auto(name):
    classifier = name.startswith("roberta")
    return tf.AutoModelForSequenceClassification if classifier else tf.AutoModelForCausalLM


def make(name, folder, bare=False):
    """Saves a random model of a case; returns it as transformers reads it back."""
    config_class, base, extra = CASES[name]
    torch.manual_seed(1 + list(CASES).index(name))
    model = auto(name).from_config(config_class(**{**base, **extra}), attn_implementation="eager")
    for p in model.parameters():  # norms and biases that are not 1 and 0
        if p.ndim == 1:
            p.data += 0.3 * torch.randn_like(p)
    (model.base_model if bare else model).save_pretrained(folder)
    return load(folder, name)


def load(folder, name):
    return auto(name).from_pretrained(str(folder), dtype=torch.float32,
                                      attn_implementation="eager").eval()


def batch(model, name):
    lengths, width = [40, 17, 64], 64
    pad = getattr(model.config, "pad_token_id", None) or 0
    ids = torch.full((3, width), pad, dtype=torch.long)
    for i, n in enumerate(lengths):
        ids[i, :n] = torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n))
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(mask.bool() & (torch.arange(width)[None] > 8), ids, -1)
    if name.startswith("roberta"):
        labels = torch.tensor([1, 0, 1])
    return ids, mask, labels, torch.tensor(lengths)


def graft_pass(folder, tmp, ids, labels, lengths):
    safetensors.torch.save_file({"ids": ids.int(), "labels": labels.int(),
                                 "lengths": lengths.int()}, tmp / "ref.safetensors")
    run(MODEL, "pass", folder, tmp / "ref.safetensors", tmp / "out.safetensors")
    return safetensors.torch.load_file(tmp / "out.safetensors")


def compare(name, model, folder, tmp, prefix=""):
    ids, mask, labels, lengths = batch(model, name)
    got = graft_pass(folder, tmp, ids, labels, lengths)
    logits = model(input_ids=ids, attention_mask=mask).logits
    if name.startswith("roberta"):
        loss = torch.nn.functional.cross_entropy(logits, labels)
        off = relative(got["logits"], logits.detach())
    else:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1),
                                                 labels[:, 1:].flatten(), ignore_index=-1)
        real = mask.bool()
        off = relative(got["logits"].view(logits.shape)[real], logits.detach()[real])
    loss.backward()
    want = {n: p.grad for n, p in model.named_parameters()}
    whole = sum(float(g.double().square().sum()) for g in want.values()) ** 0.5
    names = {n: "grad." + (n.removeprefix(prefix)) for n in want}
    assert {"logits", "loss", *names.values()} == set(got)
    # The gradient of a bias of the keys is 0 but for rounding, on both sides.
    worst = max(float((got[names[n]].double() - g.double()).norm())
                / max(float(g.double().norm()), 1e-3 * whole) for n, g in want.items())
    print(f"{name}: logits {off:.2g} gradients {worst:.2g}")
    assert off < 1e-5
    assert abs(got["loss"].item() - loss.item()) < 1e-5
    assert worst < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_logits_and_all_gradients(name, tmp_path):
    model = make(name, tmp_path / "model")
    compare(name, model, tmp_path / "model", tmp_path)


@pytest.mark.parametrize("name,prefix", [("gpt2", "transformer."), ("opt", "model."),
                                         ("opt-plain", "model."), ("mistral", None)])
def test_checkpoints_of_the_base_model_alone(name, prefix, tmp_path):
    """As on the hub: no prefix, and no head where it is tied."""
    model = make(name, tmp_path / "model", bare=True)
    names = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    if prefix is None:  # untied: there is no head to take
        config = json.load(open(tmp_path / "model/config.json"))
        config["architectures"] = ["MistralForCausalLM"]
        json.dump(config, open(tmp_path / "model/config.json", "w"))
        safetensors.torch.save_file({"ids": torch.tensor([3])}, tmp_path / "ids.safetensors")
        done = subprocess.run([MODEL, "generate", tmp_path / "model", tmp_path / "ids.safetensors",
                               "1", "0", "1", tmp_path / "out"], capture_output=True, text=True)
        assert done.returncode == 1 and "lm_head.weight is missing" in done.stderr
        return
    assert not any(n.startswith(prefix) for n in names)
    compare(name, model, tmp_path / "model", tmp_path, prefix)


def graft_ids(folder, tmp, ids, n, temperature=0.0, top_p=1.0):
    safetensors.torch.save_file({"ids": torch.tensor(ids, dtype=torch.int32)},
                                tmp / "ids.safetensors")
    run(MODEL, "generate", folder, tmp / "ids.safetensors", n, temperature, top_p,
        tmp / "answer.safetensors")
    return safetensors.torch.load_file(tmp / "answer.safetensors")["ids"].tolist()


@pytest.mark.parametrize("name", LANGUAGE)
def test_greedy_answers_are_those_of_transformers(name, tmp_path):
    model = make(name, tmp_path / "model")
    for n in (3, 30):  # shorter and longer than the windows
        ids = torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist()
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, n, dtype=torch.long),
                             max_new_tokens=40, do_sample=False, pad_token_id=0)[0].tolist()[n:]
        want = out[:out.index(257)] if 257 in out else out
        assert graft_ids(tmp_path / "model", tmp_path, ids, 40) == want
        # The smallest set of tokens that holds next to nothing is the most likely one.
        assert graft_ids(tmp_path / "model", tmp_path, ids, 40, 1.0, 1e-9) == want


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_sampled_answers_follow_the_probabilities(name, tmp_path):
    """Sampled tokens are, on average, as likely as the model says they are."""
    model = make(name, tmp_path / "model")
    prompt = [5, 77, 130]
    out = graft_ids(tmp_path / "model", tmp_path, prompt, 120, 1.0, 1.0)
    again = graft_ids(tmp_path / "model", tmp_path, prompt, 120, 1.0, 1.0)
    assert out == again and len(set(out)) > 1
    with torch.no_grad():
        logp = model(torch.tensor([prompt + out])).logits[0, 2:-1].log_softmax(-1)
    surprise = -logp[torch.arange(len(out)), torch.tensor(out)]
    entropy = -(logp.exp() * logp).sum(-1)
    spread = ((logp.exp() * (logp + entropy[:, None]) ** 2).sum(-1)).sum() ** 0.5
    assert abs(float((surprise - entropy).sum())) < 4 * float(spread)


# ---- jobs ----

def byte_tokenizer(folder):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    t = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(["<s>", "</s>"])
    t.save(str(folder / "tokenizer.json"))
    return t


def job(folder, model, method, init="pretrained", ok=0, **settings):
    rows = [{"prompt": f"{w} is", "completion": f" a {c} thing, said {w}."}
            for w in ("sky", "sea", "sun", "sand") for c in ("blue", "wide", "old")]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"batch_size": 4, "max_steps": 6, "warmup_steps": 1, **settings}
    path = folder / "job.json"
    path.write_text(json.dumps({
        "seed": 7, "model": {"id": "test/base", "path": str(model), "init": init}, "method": method,
        "settings": settings, "training_file": str(data), "result_id": "test/out"}))
    run(GRAFT, "run", path, "--dir", folder / "job", ok=ok)
    return folder / "job/result"


def graft_logits(tmp, model, adapter, ids):
    safetensors.torch.save_file({"ids": torch.tensor(ids, dtype=torch.int32)},
                                tmp / "in.safetensors")
    run(DUMP, "logits", model, adapter or "-", tmp / "in.safetensors", tmp / "logits.safetensors")
    return safetensors.torch.load_file(tmp / "logits.safetensors")["logits"]


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].float()


JOBS = [("gpt2", False), ("gpt2", True), ("gpt2-untied", False), ("opt", False), ("opt", True),
        ("opt-350m", False), ("mistral-window", False), ("qwen3", False)]


@pytest.mark.parametrize("name,bare", JOBS)
def test_lora_jobs_give_what_peft_and_transformers_load(name, bare, tmp_path):
    base = tmp_path / "model"
    model = make(name, base, bare)
    tokenizer = byte_tokenizer(base)
    result = job(tmp_path, base, "lora", r=4, lora_alpha=16, learning_rate=0.02)
    ids = tokenizer.encode("sky is a blue thing").ids
    plain = graft_logits(tmp_path, base, None, ids)
    adapted = graft_logits(tmp_path, base, result / "adapter", ids)
    assert relative(plain, logits_of(model, ids)) < 1e-5
    assert relative(adapted, plain) > 1e-2  # it learnt something
    config = json.load(open(result / "adapter/adapter_config.json"))
    assert config["fan_in_fan_out"] == name.startswith("gpt2")
    assert config["task_type"] == "CAUSAL_LM"
    peft = PeftModel.from_pretrained(model, str(result / "adapter"))
    assert relative(logits_of(peft, ids), adapted) < 1e-5
    merged = load(result / "merged", name)
    assert relative(logits_of(merged, ids), adapted) < 1e-5
    assert relative(graft_logits(tmp_path, result / "merged", None, ids), adapted) < 1e-5
    # The names are the base's own.
    ours = safetensors.torch.load_file(result / "merged/model.safetensors")
    theirs = safetensors.torch.load_file(base / "model.safetensors")
    assert set(ours) == set(theirs)
    score = float(run(GRAFT, "score", result / "merged", "--text", "sky is wide").split()[0])
    ids = tokenizer.encode("sky is wide").ids
    want = torch.nn.functional.cross_entropy(logits_of(merged, ids)[:-1], torch.tensor(ids[1:]))
    assert abs(score - want.item()) < 1e-4
    answer = run(GRAFT, "generate", result / "merged", "--prompt", "sun is", "--max-tokens", 20)
    ids = tokenizer.encode("sun is").ids
    out = merged.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False,
                          pad_token_id=0)[0].tolist()
    assert answer.removesuffix("\n") == tokenizer.decode(out)[len("sun is"):]


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "opt-plain"])
def test_full_jobs_give_what_transformers_loads(name, tmp_path):
    base = tmp_path / "model"
    model = make(name, base)
    ids = byte_tokenizer(base).encode("sea is a wide thing").ids
    result = job(tmp_path, base, "full", learning_rate=0.003)
    merged = load(result / "merged", name)
    assert relative(logits_of(merged, ids), logits_of(model, ids)) > 1e-2
    assert relative(graft_logits(tmp_path, result / "merged", None, ids),
                    logits_of(merged, ids)) < 1e-5


@pytest.mark.parametrize("name", ["gpt2-untied", "opt-350m"])
def test_training_from_scratch_needs_the_config_alone(name, tmp_path):
    base = tmp_path / "model"
    make(name, base)
    os.unlink(base / "model.safetensors")
    ids = byte_tokenizer(base).encode("sun is old").ids
    result = job(tmp_path, base, "full", init="random", learning_rate=0.003)
    merged = load(result / "merged", name)
    assert relative(graft_logits(tmp_path, result / "merged", None, ids),
                    logits_of(merged, ids)) < 1e-5


def test_a_classifier_is_no_model_for_a_job_on_text(tmp_path):
    base = tmp_path / "model"
    make("roberta", base)
    byte_tokenizer(base)
    result = job(tmp_path, base, "lora", ok=10)
    said = json.load(open(tmp_path / "job/attempts/1/exit.json"))
    assert not result.exists() and "text-classification" in json.dumps(said)
    done = subprocess.run([GRAFT, "generate", base, "--prompt", "sun"], capture_output=True,
                          text=True)
    assert done.returncode != 0 and "text-generation" in done.stderr


@pytest.mark.parametrize("name,targets", [
    ("gpt2", ["c_attn"]), ("gpt2", ["attn.c_proj", "c_fc"]), ("gpt2", "all-linear"),
    ("opt-350m", "all-linear"), ("opt", ["q_proj", "v_proj", "fc1"])])
def test_adapters_of_peft_load_in_graft(name, targets, tmp_path):
    base = tmp_path / "model"
    model = make(name, base)
    ids = byte_tokenizer(base).encode("sand is old").ids
    peft = get_peft_model(model, LoraConfig(r=3, lora_alpha=9, target_modules=targets,
                                            task_type="CAUSAL_LM", init_lora_weights=False))
    peft.save_pretrained(str(tmp_path / "adapter"))
    got = graft_logits(tmp_path, base, tmp_path / "adapter", ids)
    assert relative(got, logits_of(peft.eval(), ids)) < 1e-5


def test_a_masked_language_model_becomes_a_classifier(tmp_path):
    """The head of roberta-base is left out; a classifier starts fresh."""
    torch.manual_seed(3)
    lm = tf.RobertaForMaskedLM(tf.RobertaConfig(**ROBERTA))
    lm.save_pretrained(tmp_path / "model")
    names = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert any(n.startswith("lm_head.") for n in names)
    model = load(tmp_path / "model", "roberta")
    ids, mask, labels, lengths = batch(model, "roberta")
    got = graft_pass(tmp_path / "model", tmp_path, ids, labels, lengths)
    assert got["logits"].shape == (3, 2)
    # Fresh biases are 0 and the fresh matrices small: with graft's classifier the bodies agree if
    # the gradient of the class biases, softmax - target, does.
    share = got["logits"].softmax(-1)
    want = (share - torch.nn.functional.one_hot(labels, 2)).mean(0)
    assert relative(got["grad.classifier.out_proj.bias"], want) < 1e-5
    assert got["grad.roberta.embeddings.word_embeddings.weight"].abs().sum() > 0
