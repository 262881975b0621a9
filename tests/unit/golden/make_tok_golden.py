"""Makes tok_*.json: small tokenizers, and what the `tokenizers` library makes of some texts with them.

usage: python3 tests/unit/golden/make_tok_golden.py     (tokenizers 0.23.3)
tok_texts.json      [text, ...]
tok_<family>.json   the tokenizer.json
tok_<family>.ids    {"ids": [[id, ...] per text], "special": the same with the post-processor for the
                    first 20, "text": {"number of the text": what its ids decode to if that is
                    another text}, "skip": the same without special tokens}
"""
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "ecosystem"))
import tok_kit as kit  # noqa: E402

SIZE = dict(vocab_size=420)
FAMILIES = {
    "gpt2": lambda: kit.with_added(kit.gpt2(**SIZE)),
    "llama2": lambda: kit.sentencepiece(vocab_size=620),
    "metaspace": lambda: kit.sentencepiece(kit.meta("first", True), vocab_size=620),
    "llama3": lambda: kit.llama3(**SIZE),
    "qwen2": lambda: kit.qwen2(**SIZE),
    "o200k": lambda: kit.o200k(**SIZE),
}


def texts():
    rng = random.Random(6)
    made = [kit.line(rng) for _ in range(90)] + kit.added_lines(8, 30)
    return ["", " ", "Hello world", *[t[:200] for t in made]]


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def main():
    lines = texts()
    (HERE / "tok_texts.json").write_text(compact(lines))
    for name, make in FAMILIES.items():
        tok = make()
        state = json.loads(tok.to_str())
        if name != "gpt2":  # the older form of a merge
            state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
        (HERE / f"tok_{name}.json").write_text(compact(state))
        ids = [tok.encode(t, add_special_tokens=False).ids for t in lines]
        golden = {"ids": ids, "special": [tok.encode(t).ids for t in lines[:20]]}
        for key, skip in (("text", False), ("skip", True)):
            back = [tok.decode(i, skip_special_tokens=skip) for i in ids]
            golden[key] = {str(k): b for k, b in enumerate(back) if b != lines[k]}
        (HERE / f"tok_{name}.ids").write_text(compact(golden))


if __name__ == "__main__":
    main()
