"""graft's chat templates against transformers rendering Jinja templates that say the same: the same
ids, and trained exactly where a generation block stands."""
import json
import subprocess

import jinja2
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
# Questions and answers that alternate, with or without a system message, which SYSTEM places.
ALTERNATE = ("{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
             "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}")
NO_SYSTEM = ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
             "{% set turns = messages %}" + ALTERNATE)


def mistral(ask, asked, answer, system):
    """system: 'last' puts the system message into a question that ends the talk; else it is refused."""
    first = SPLIT_SYSTEM.replace("%NONE%", "none") + ALTERNATE if system else NO_SYSTEM
    said = ("{% if loop.last and sys is not none %}{{ sys + '\\n\\n' }}{% endif %}" if system else "")
    return (first + "{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}"
            "{{ '" + ask + "' }}" + said + "{{ m['content'] + '" + asked + "' }}{% else %}"
            "{% generation %}{{ " + answer + " + eos_token }}{% endgeneration %}{% endif %}{% endfor %}")


def gemma(first):
    return (first + ALTERNATE + "{{ bos_token }}{% for m in turns %}"
            "{% if m['role'] == 'user' %}{{ '<start_of_turn>user\n' + "
            "(sys + '\n\n' if loop.first and sys is defined and sys is not none else '') + (m['content'] | trim) + "
            "'<end_of_turn>\n' }}{% else %}{{ '<start_of_turn>model\n' }}"
            "{% generation %}{{ (m['content'] | trim) + '<end_of_turn>' }}{% endgeneration %}"
            "{{ '\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")


def tojson(what, indent=""):
    return "{{ " + what + " | tojson" + indent + " }}"


QWEN_TOOLS = (
    "{{ '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}"
    "{% for t in tools %}{{ '\n' }}" + tojson("t") + "{% endfor %}"
    "{{ '\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
    "\"arguments\": <args-json-object>}\n</tool_call>' }}")


def qwen25():
    """The turns of Qwen2.5 with everything about tools."""
    return (
        "{{ '<|im_start|>system\n' + (messages[0]['content'] if messages[0]['role'] == 'system' else '" +
        QWEN + "') }}{% if tools %}" + QWEN_TOOLS + "{% endif %}{{ '<|im_end|>\n' }}"
        "{% for m in messages %}{% if m['role'] == 'user' or (m['role'] == 'system' and not loop.first) %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% elif m['role'] == 'assistant' and not m['tool_calls'] %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
        "{{ m['content'] }}{% for c in m['tool_calls'] %}{% if m['content'] or not loop.first %}"
        "{{ '\n' }}{% endif %}{{ '<tool_call>\n{\"name\": \"' + c['function']['name'] + "
        "'\", \"arguments\": ' }}" + tojson("c['function']['arguments']") +
        "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% elif m['role'] == 'tool' %}{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}"
        "{{ '<|im_start|>user' }}{% endif %}{{ '\n<tool_response>\n' + m['content'] + "
        "'\n</tool_response>' }}"
        "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def llama31():
    """Llama 3.1 with everything about tools."""
    head = "{{ '<|start_header_id|>%s<|end_header_id|>\n\n' }}"
    return (
        SPLIT_SYSTEM.replace("%NONE%", "''") + "{{ bos_token }}" + head % "system" +
        "{% if tools is not none %}{{ 'Environment: ipython\n' }}{% endif %}"
        "{{ 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + (sys | trim) + "
        "'<|eot_id|>' }}{% if tools is not none %}" + head % "user" +
        "{{ 'Given the following functions, please respond with a JSON for a function call with its "
        "proper arguments that best answers the given prompt.\n\nRespond in the format {\"name\": "
        "function name, \"parameters\": dictionary of argument name and its value}.Do not use "
        "variables.\n\n' }}{% for t in tools %}" + tojson("t", "(indent=4)") + "{{ '\n\n' }}{% endfor %}"
        "{{ (turns[0]['content'] | trim) + '<|eot_id|>' }}{% set turns = turns[1:] %}{% endif %}"
        "{% for m in turns %}{% if m['tool_calls'] %}" + head % "assistant" + "{% generation %}"
        "{% set c = m['tool_calls'][0]['function'] %}"
        "{{ '{\"name\": \"' + c['name'] + '\", \"parameters\": ' }}" + tojson("c['arguments']") +
        "{{ '}<|eot_id|>' }}{% endgeneration %}{% elif m['role'] == 'tool' %}" + head % "ipython" +
        tojson("m['content']") + "{{ '<|eot_id|>' }}{% elif m['role'] == 'assistant' %}" +
        head % "assistant" + "{% generation %}{{ (m['content'] | trim) + '<|eot_id|>' }}"
        "{% endgeneration %}{% else %}" + LLAMA3_HEADER + "{{ (m['content'] | trim) + '<|eot_id|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}" + head % "assistant" + "{% endif %}")


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
    "mistral": (mistral("[INST] ", " [/INST]", "m['content']", None), kit.sentencepiece, "<s>", "</s>"),
    "mistral-v3": (mistral("[INST] ", "[/INST]", "' ' + (m['content'] | trim)", "last"),
                   kit.sentencepiece, "<s>", "</s>"),
    "mistral-nemo": (mistral("[INST]", "[/INST]", "m['content']", "last"), kit.sentencepiece,
                     "<s>", "</s>"),
    "gemma": (gemma(NO_SYSTEM), kit.gemma, "<bos>", "<eos>"),
    "gemma3": (gemma(SPLIT_SYSTEM.replace("%NONE%", "none")), kit.gemma, "<bos>", "<eos>"),
    "qwen2.5-tools": (qwen25(), kit.qwen2, None, "<|im_end|>"),
    "llama3.1-tools": (llama31(), kit.llama3, "<|begin_of_text|>", "<|eot_id|>"),
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


TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Say the \"weather\" at ü/ß",
     "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "\u2028"]},
      "days": {"type": "integer", "minimum": 1, "maximum": 1e16, "default": 1.0, "x": [0.1, 1e-5, -2.5e-7, 123456.789]},
      "on": {"type": ["boolean", "null"], "default": None, "const": True}}, "required": []}}},
    {"type": "function", "function": {"name": "noop", "parameters": {}}}]


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_TALKS = [
    [{"role": U, "content": " How is it? "}, {"role": A, "content": "", "tool_calls": [
        call("weather", city="Köln\n\t\"\x7f", days=2, on=[1.5, {"a": {}}, 1e22])]},
     {"role": "tool", "content": "{\"sun\": \"\u00e9\"}"}, {"role": A, "content": " Sunny. "}],
    [{"role": S, "content": " s "}, {"role": U, "content": "x"},
     {"role": A, "content": "", "tool_calls": [call("noop")]}, {"role": "tool", "content": ""}],
    [{"role": U, "content": "no call"}, {"role": A, "content": "right"}],
]
QWEN_TALKS = [
    [{"role": U, "content": "two"}, {"role": A, "content": "I look.", "tool_calls": [
        call("noop"), call("weather", city="x")]},
     {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, {"role": A, "content": "3"}],
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
        answers = ask_graft(graft, name, messages(TALKS[talk]), generation)
        if isinstance(answers[0], Exception):
            assert refuses(fast, name, messages(TALKS[talk]))
            continue
        want = fast.apply_chat_template(messages(TALKS[talk]), add_generation_prompt=generation,
                                        return_dict=True, return_assistant_tokens_mask=True)
        assert answers == [want["input_ids"], want["assistant_masks"]]


def ask_graft(graft, name, talk, generation, tools=None):
    template = name.removesuffix("-llama3").removesuffix("-tools")
    ask = {"template": template, "messages": talk, "generation": generation, "tools": tools}
    return list(map(kit.ids, graft.run("chat", [json.dumps(ask).encode()])))


def refuses(fast, name, talk):
    """The template raises, or would leave the system message out in silence."""
    try:
        text = fast.apply_chat_template(talk, tokenize=False)
    except jinja2.TemplateError:
        return True
    told = any(m["content"] + "\n\n" in text for m in talk if m["role"] == S)
    return name.startswith("mistral-") and talk[0]["role"] == S and not told


@pytest.mark.parametrize("name", ["qwen2.5-tools", "llama3.1-tools"])
def test_tools_and_calls_have_transformers_ids_and_mask(name, tmp_path):
    jinja, make, bos, eos = CASES[name]
    tok = make()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=bos, eos_token=eos,
                                   chat_template=jinja)
    for talk in TOOL_TALKS + (QWEN_TALKS if name.startswith("qwen") else []):
        for tools in (TOOLS, None):
            want = fast.apply_chat_template(talk, tools=tools, return_dict=True,
                                            return_assistant_tokens_mask=True)
            got = ask_graft(graft, name, talk, False, tools)
            assert got == [want["input_ids"], want["assistant_masks"]]


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


RECOGNISED = ["chatml", "qwen2", "qwen2.5", "smollm2", "llama2", "llama3", "llama3.1", "zephyr"]


@pytest.mark.parametrize("name", RECOGNISED)
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
