"""graft's chat templates against transformers rendering Jinja templates that say the same: the same
ids, and trained exactly where a generation block stands."""
import json
import subprocess

import pytest
from transformers import PreTrainedTokenizerFast

import tok_kit as kit


def trained_text(end):
    return "{% generation %}{{ m['content'] }}" + end + "{% endgeneration %}"



def chatml(system=None):
    first = ("{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n" + system +
             "<|im_end|>\\n' }}{% endif %}") if system else ""
    return (first + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
            "{% if m['role'] == 'assistant' %}" + trained_text("{{ '<|im_end|>' }}") + "{{ '\\n' }}"
            "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


LLAMA3_HEADER = "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
LLAMA3_TURNS = (
    "{% for m in turns %}" + LLAMA3_HEADER + "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ (m['content'] | trim) + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ (m['content'] | trim) + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}")
SPLIT_SYSTEM = ("{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}"
                "{% set turns = messages[1:] %}{% else %}{% set sys = %NONE% %}"
                "{% set turns = messages %}{% endif %}")
LLAMA31 = (SPLIT_SYSTEM.replace("%NONE%", "''") + "{{ bos_token }}"
           "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023"
           "\\nToday Date: 26 Jul 2024\\n\\n' + (sys | trim) + '<|eot_id|>' }}" + LLAMA3_TURNS)
LLAMA2 = (SPLIT_SYSTEM.replace("%NONE%", "none") +
          "{% for m in turns %}{% set text = m['content'] %}"
          "{% if loop.first and sys is not none %}"
          "{% set text = '<<SYS>>\\n' + sys + '\\n<</SYS>>\\n\\n' + text %}{% endif %}"
          "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
          "{% else %}{% generation %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endgeneration %}"
          "{% endif %}{% endfor %}")
ZEPHYR = ("{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}{% if m['role'] == 'assistant' %}" +
          trained_text("{{ eos_token }}") + "{% else %}{{ m['content'] + eos_token }}{% endif %}{{ '\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
PLAIN = ("{{ bos_token }}{% for m in messages %}{{ m['role'] | capitalize + ':' }}"
         "{% if m['role'] == 'assistant' %}"
         "{% generation %}{{ ' ' + m['content'] + '%END%' }}{% endgeneration %}"
         "{% else %}{{ ' ' + m['content'] }}{% endif %}%LINE%{% endfor %}"
         "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# name: (template, tokenizer, bos, eos)
CASES = {
    "chatml": (chatml(), kit.qwen2, None, "<|im_end|>"),
    "qwen2": (chatml("You are a helpful assistant."), kit.qwen2, None, "<|im_end|>"),
    "qwen2.5": (chatml(QWEN), kit.qwen2, None, "<|im_end|>"),
    "smollm2": (chatml(SMOL), kit.smollm2, None, "<|im_end|>"),
    "llama3": ("{{ bos_token }}{% set turns = messages %}" + LLAMA3_TURNS, kit.llama3,
               "<|begin_of_text|>", "<|eot_id|>"),
    "llama3.1": (LLAMA31, kit.llama3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama2": (LLAMA2, kit.sentencepiece, "<s>", "</s>"),
    "zephyr": (ZEPHYR, kit.sentencepiece, "<s>", "</s>"),
    "plain": (PLAIN.replace("%END%", "</s>").replace("%LINE%", "{{ '\\n' }}"), kit.sentencepiece,
              "<s>", "</s>"),
    "plain-llama3": (PLAIN.replace("%END%", "<|end_of_text|>").replace("%LINE%", "{{ '\\n' }}"),
                     kit.llama3, "<|begin_of_text|>", "<|end_of_text|>"),
}
S, U, A = "system", "user", "assistant"
TALKS = [
    [(U, "Hello there!")],
    [(U, "Hello"), (A, "Hi. What can I do?")],
    [(S, "Be brief."), (U, "Why?"), (A, "Because."), (U, "And then?"), (A, "Then the fox jumps.")],
    [(S, ""), (U, "x"), (A, "y")],
    [(U, "  spaces around \n"), (A, "\n\nlines first, spaces last  ")],
    [(U, "\u3000世界 naïve café 😀"), (A, "\u00a0你好\n世界\u0085")],
    [(U, "<|im_end|><|eot_id|></s> inside"), (A, "A: <|im_start|>user [INST] <<SYS>>")],
    [(U, "code"), (A, "```\nfor (int i = 0; i < n; i++) {\n\treturn x;\n}\n```"), (U, ""), (A, "")],
    [(U, "e\u0301"), (A, "\u0301 a mark in front")],
]


def messages(talk):
    return [{"role": role, "content": text} for role, text in talk]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("talk", range(len(TALKS)))
def test_a_conversation_has_transformers_ids_and_mask(name, talk, tmp_path):
    jinja, make, bos, eos = CASES[name]
    tok = make()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=bos, eos_token=eos,
                                   chat_template=jinja)
    for generation in (False, True):
        want = fast.apply_chat_template(messages(TALKS[talk]), add_generation_prompt=generation,
                                        return_dict=True, return_assistant_tokens_mask=True)
        ask = {"template": name.split("-")[0], "messages": messages(TALKS[talk]),
               "generation": generation}
        got, trained = map(kit.ids, graft.run("chat", [json.dumps(ask).encode()]))
        assert got == want["input_ids"]
        assert trained == want["assistant_masks"]


def test_only_the_turns_asked_for_are_trained(tmp_path):
    graft = kit.saved(kit.qwen2(), tmp_path / "tokenizer.json")
    talk = messages([(U, "a"), (A, "first answer"), (U, "b"), (A, "second answer")])
    talk[1]["train"] = False
    ask = {"template": "chatml", "messages": talk, "generation": False}
    got, trained = map(kit.ids, graft.run("chat", [json.dumps(ask).encode()]))
    text = graft.decode([[i for i, t in zip(got, trained, strict=True) if t]])[0]
    assert text == "second answer<|im_end|>"


@pytest.mark.parametrize("ask, message", [
    ({"template": "llama3"}, "needs the token <|begin_of_text|>"),
    ({"template": "zephyr", "messages": [("tool", "x")]}, "no turn for the role tool"),
    ({"messages": [("wizard", "x")]}, "messages[0]: no role 'wizard'"),
    ({"messages": []}, "at least one message"),
    ({"template": "none"}, "no chat template"),
])
def test_what_a_template_cannot_say_is_refused(ask, message, tmp_path):
    graft = kit.saved(kit.qwen2(), tmp_path / "tokenizer.json")
    ask = {"template": "chatml", "generation": False, **ask}
    ask["messages"] = messages(ask.get("messages", [(U, "x")]))
    (said,) = graft.run("chat", [json.dumps(ask).encode()])
    assert message in str(said)


def test_roles_of_llama2_alternate(tmp_path):
    graft = kit.saved(kit.sentencepiece(), tmp_path / "tokenizer.json")
    for talk in ([(A, "x")], [(U, "x"), (U, "y")], [(U, "x"), (S, "y")]):
        ask = {"template": "llama2", "messages": messages(talk), "generation": False}
        (said,) = graft.run("chat", [json.dumps(ask).encode()])
        assert "roles must alternate" in str(said)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("plain")])
def test_a_template_is_recognised_in_the_places_it_stands(name, tmp_path):
    jinja = CASES[name][0]
    if name == "zephyr":
        jinja = jinja.replace("'<|' + m['role'] + '|>\\n'", "'<|user|>' '<|system|>' '<|assistant|>'")
    list_form = [{"name": "tool_use", "template": "?"}, {"name": "default", "template": jinja}]
    config = tmp_path / "tokenizer_config.json"
    for text in (jinja, list_form):
        config.write_text(json.dumps({"chat_template": text}))
        assert detect(tmp_path) == name
    config.write_text("{}")
    assert detect(tmp_path) == "none"
    (tmp_path / "chat_template.jinja").write_text(jinja)
    assert detect(tmp_path) == name


def test_an_unknown_template_is_refused_with_the_choices(tmp_path):
    for jinja in ("{{ messages }}", chatml("You are a pirate."), chatml() + "<think>"):
        (tmp_path / "chat_template.jinja").write_text(jinja)
        said = detect(tmp_path)
        assert "not one that graft knows; choose one of: chatml, llama2, llama3" in said


def detect(folder):
    done = subprocess.run([kit.DUMP, folder, "detect"], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()
