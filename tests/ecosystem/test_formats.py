"""Configs, adapters and cards: what transformers and PEFT write, graft reads, and the other way."""
import copy

import pytest
import torch

import st_dump

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=64, max_position_embeddings=128)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=64)
CASES = [
    ("Llama", {}),
    ("Llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ("Llama", dict(head_dim=16, rope_parameters=LLAMA3)),
    ("Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0))),
    ("Llama", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=2.0,
                                        original_max_position_embeddings=64))),
    ("Mistral", dict(sliding_window=None)),
    ("Mistral", dict(sliding_window=32, head_dim=4)),
    ("Qwen2", dict(tie_word_embeddings=True)),
    ("Qwen2", dict(use_sliding_window=True, sliding_window=16, max_window_layers=1)),
    ("Qwen3", dict(head_dim=8)),
    ("Qwen3", {}),
]


@pytest.fixture(scope="module", autouse=True)
def helper():
    st_dump.build()


@pytest.mark.parametrize("family,changes", CASES)
def test_configs_of_transformers_mean_the_same_to_graft(tmp_path, family, changes):
    import transformers
    config = getattr(transformers, family + "Config")(**{**SMALL, **copy.deepcopy(changes)})
    model = getattr(transformers, family + "ForCausalLM")(config)
    model.save_pretrained(tmp_path)
    got = st_dump.loads("config", tmp_path)
    rope = config.rope_parameters
    assert got["family"] == family.lower()
    assert got["head_dim"] == model.model.layers[0].self_attn.head_dim
    assert got["kv_heads"] == 2
    assert got["window"] == (config.sliding_window or 0 if hasattr(config, "sliding_window") else 0)
    assert got["rope"] == ["default", "linear", "llama3", "yarn"].index(rope["rope_type"])
    assert got["rope_theta"] == rope["rope_theta"]
    assert got["rope_factor"] == rope.get("factor", 1)
    assert got["rope_attention"] == model.model.rotary_emb.attention_scaling
    assert got["qkv_bias"] == (model.model.layers[0].self_attn.q_proj.bias is not None)
    assert got["qk_norm"] == hasattr(model.model.layers[0].self_attn, "q_norm")
    assert got["tied"] == config.tie_word_embeddings


def test_configs_that_need_more_are_refused(tmp_path):
    import transformers
    config = transformers.LlamaConfig(**SMALL, rope_parameters=dict(
        rope_type="dynamic", rope_theta=1e4, factor=2.0))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    done = st_dump.run("config", tmp_path)
    assert done.returncode == 1 and "rope_type" in done.stderr


@pytest.mark.parametrize("settings", [
    dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    dict(r=1, lora_alpha=3, target_modules="all-linear"),
    dict(r=3, lora_alpha=2.5, target_modules=["layers.1.mlp.up_proj", "o_proj"], use_rslora=True),
])
def test_adapters_survive_peft_to_graft_to_peft(tmp_path, settings):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(1)
    base = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    lora = LoraConfig(task_type="CAUSAL_LM", **settings)
    model = get_peft_model(copy.deepcopy(base), lora).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.3)
    ids = torch.randint(0, 64, (2, 9))
    want = model(ids).logits
    assert (want - base(ids).logits).abs().max() > 0.01
    model.save_pretrained(tmp_path / "theirs")
    st_dump.ok("peft", tmp_path / "theirs", tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    assert torch.equal(again(ids).logits, want)


def test_a_hostile_card_stays_valid(tmp_path):
    from huggingface_hub import ModelCard
    st_dump.ok("card", tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    hostile = "a: \"b\" 'c' # d\n---\n- [x](http://y) <b> | `z` \\ {%} é\x7f"
    data = card.data.to_dict()
    assert data["base_model"] == hostile and data["tags"] == [hostile, "plain"]
    assert data["license"] == "mit" and data["library_name"] == "peft"
    assert card.content.count("\n---\n") == 1  # the front matter ends once
