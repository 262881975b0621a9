"""graft's tokeniser against the `tokenizers` library: the same ids, the same text, to the byte."""
import json
import os
import pathlib
import random
import subprocess
import time
import unicodedata

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

import tok_kit as kit

FAMILIES = {
    "gpt2": kit.gpt2,
    "gpt2-prefix": lambda: kit.gpt2(prefix=True),
    "llama2": kit.sentencepiece,
    "llama2-metaspace-first": lambda: kit.sentencepiece(kit.meta("first", False)),
    "llama2-metaspace-always": lambda: kit.sentencepiece(kit.meta("always", True)),
    "llama2-metaspace-never": lambda: kit.sentencepiece(kit.meta("never", True)),
    "llama3": kit.llama3,
    "qwen2": kit.qwen2,
    "o200k": kit.o200k,
    "smollm2": kit.smollm2,
    "deepseek": kit.deepseek,
}
LINES = {"gpt2": 10000, "llama2": 10000, "llama3": 10000, "qwen2": 10000}


def compare(tok, graft, texts):
    """Ids with and without special tokens, and both decodings of them."""
    want = tok.encode_batch_fast(texts, add_special_tokens=False)
    got = graft.encode(texts)
    for text, a, b in zip(texts, want, got, strict=True):
        assert a.ids == b, text
    want_special = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=True)]
    assert want_special == graft.encode(texts, special=True)
    for skip in (False, True):
        lists = [e.ids for e in want] + want_special[:500]
        text = tok.decode_batch(lists, skip_special_tokens=skip)
        assert text == graft.decode(lists, skip)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_text_are_the_librarys(family, tmp_path):
    tok = FAMILIES[family]()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    compare(tok, graft, kit.lines(7, LINES.get(family, 2000)))


@pytest.mark.parametrize("family", FAMILIES)
def test_added_tokens_are_found_as_the_library_finds_them(family, tmp_path):
    tok = kit.with_added(FAMILIES[family]())
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    compare(tok, graft, kit.added_lines(3, 2000) + kit.lines(5, 300))


@pytest.mark.parametrize("family", ["gpt2", "llama2", "llama3"])
def test_any_ids_decode_to_the_librarys_text(family, tmp_path):
    tok = kit.with_added(FAMILIES[family]())
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    rng = random.Random(4)
    size = tok.get_vocab_size()
    lists = [[rng.randrange(size + 3) for _ in range(rng.randrange(30))] for _ in range(3000)]
    for skip in (False, True):
        assert tok.decode_batch(lists, skip_special_tokens=skip) == graft.decode(lists, skip)


PARTS = {
    "whitespace": dict(pre_tokenizer=pre_tokenizers.Whitespace()),
    "whitespace-split": dict(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
    "digits": dict(pre_tokenizer=pre_tokenizers.Digits(False)),
    "nfd": dict(normalizer=normalizers.NFD()),
    "nfc": dict(normalizer=normalizers.NFC()),
    "nfkd": dict(normalizer=normalizers.NFKD(), pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
    "nfkc-lower": dict(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "strip-first": dict(normalizer=normalizers.Strip(), pre_tokenizer=pre_tokenizers.Metaspace(
        prepend_scheme="first")),
    "replace-regex": dict(normalizer=normalizers.Sequence([
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Replace("''", '"'),
        normalizers.Replace(Regex("x*"), "-")])),
    "first-inside": dict(pre_tokenizer=pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("removed"), pre_tokenizers.Metaspace(prepend_scheme="first")])),
    "byte-normalizer": dict(normalizer=normalizers.ByteLevel()),
    "empty-split": dict(pre_tokenizer=pre_tokenizers.Split("", "isolated")),
    "words": dict(pre_tokenizer=pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")),
    "class-escapes": dict(pre_tokenizer=pre_tokenizers.Split(
        Regex(r"[\w\-]+|[\d.]+|[^\S\n]+|\D|\S|\u00e9|\x{4e2d}|\x41"), "isolated")),
    "anchors": dict(pre_tokenizer=pre_tokenizers.Split(Regex(r"^.|.$|a{,2}b|(?<=e).(?!f)|\p{^L}|o++"),
                                                       "isolated")),
    "scripts": dict(pre_tokenizer=pre_tokenizers.Split(
        Regex(r"\p{Han}+|[\p{Hiragana}\p{Katakana}]+|\p{Hangul}+|\P{Han}"), "isolated")),
    "metaspace-decoder": dict(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()),
    "no-decoder": dict(),
    "strip-decoder": dict(decoder=decoders.Sequence([decoders.Fuse(), decoders.Strip("e", 2, 0)])),
    "roberta": dict(post_processor=processors.RobertaProcessing(("<s>", 1), ("<unk>", 0))),
    "bert": dict(post_processor=processors.BertProcessing(("<s>", 1), ("<unk>", 0))),
}
for how in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
    for flip in (False, True):
        PARTS[f"split-{how}-{flip}"] = dict(
            pre_tokenizer=pre_tokenizers.Split(Regex(r"\s|e|\p{N}"), how, invert=flip))
    PARTS[f"punctuation-{how}"] = dict(pre_tokenizer=pre_tokenizers.Punctuation(how))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_does_what_the_librarys_does(part, tmp_path):
    tok = kit.plain_bpe(len(part) % 2 == 0, **PARTS[part])
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    compare(tok, graft, kit.lines(11, 1000))


def every_char():
    """Each code point between letters, and behind an apostrophe, a mark and a space. Of the long
    ranges of one kind (ideographs, Hangul, private use, unassigned planes) every 61st, and all
    that lie near a border of two categories."""
    dull = [(0x3400, 0xA000), (0xAC00, 0xD800), (0xE000, 0xF900), (0x13000, 0x16000),
            (0x17000, 0x1AFF0), (0x20000, 0xE0000), (0xE0200, 0x110000)]
    kinds = [unicodedata.category(chr(c)) for c in range(0x110000)] + ["Cn"] * 4
    cps = []
    for c in range(1, 0x110000):
        near = kinds[c - 1] != kinds[c] or kinds[c] != kinds[c + 1] or kinds[c] != kinds[c + 4]
        if not 0xD800 <= c < 0xE000 and (near or c % 61 == 0 or not any(a <= c < b for a, b in dull)):
            cps.append(chr(c))
    return ["".join(f"a{c}b '{c}e\u0301{c}\u0316 {c}" for c in cps[i:i + 50])
            for i in range(0, len(cps), 50)]


@pytest.mark.parametrize("family", ["gpt2", "llama3", "o200k", "smollm2"])
def test_every_code_point_is_classed_as_in_the_library(family, tmp_path):
    tok = FAMILIES[family]()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    texts = every_char()
    want = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=False)]
    assert want == graft.encode(texts)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"])
def test_every_code_point_is_normalised_as_in_the_library(form, tmp_path):
    tok = kit.gpt2()
    tok.normalizer = getattr(normalizers, form)()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    rng = random.Random(2)
    marks = "\u0301\u0316\u0334\u0345\u3099\u1161\u11a8\u0338\u05b7\u093c\u0f71\U00011930"
    noise = ["".join(rng.choice(marks) if rng.random() < 0.5 else kit.random_char(rng)
                     for _ in range(60)) for _ in range(2000)]
    texts = every_char() + noise
    want = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=False)]
    assert want == graft.encode(texts)


@pytest.mark.parametrize("part", ["whitespace", "whitespace-split", "digits", "punctuation-isolated",
                                  "words", "scripts", "class-escapes"])
def test_every_code_point_is_cut_as_in_the_library(part, tmp_path):
    """Seen through a byte-level alphabet, in which no character is unknown."""
    tok = kit.gpt2()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        PARTS[part]["pre_tokenizer"], pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)])
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    texts = every_char()
    want = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=False)]
    assert want == graft.encode(texts)


PAIRS = {
    "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
    "bert": processors.BertProcessing(("</s>", 2), ("<s>", 1)),
    "template": processors.TemplateProcessing("<s> $A", "<s> $A </s> $B:1 <s>:1",
                                              [("<s>", 1), ("</s>", 2)]),
    "none": processors.ByteLevel(trim_offsets=False),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_joined_and_cut_as_the_library_does(name, tmp_path):
    tok = kit.byte_level(special=["<unk>", "<s>", "</s>"], post_processor=PAIRS[name],
                         pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    texts = kit.lines(5, 40)
    asks = [(a, b, most) for a, b in zip(texts[:20], texts[20:], strict=True)
            for most in (5, 6, 17, 30, 1000)] + [(a, None, most) for a in texts for most in (4, 9, 1000)]
    records = [json.dumps({"a": a, "b": b, "max": most}).encode() for a, b, most in asks]
    for (a, b, most), got in zip(asks, graft.run("pair", records), strict=True):
        tok.enable_truncation(most)  # longest first
        assert kit.ids(got) == tok.encode(*([a] if b is None else [a, b])).ids, (a, b, most)


def test_nul_is_a_character(tmp_path):
    tok = kit.gpt2()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    assert graft.encode(["a\0b", "\0"]) == [tok.encode(t).ids for t in ["a\0b", "\0"]]


def broken_utf8(rng):
    """Valid text with one broken sequence; its offset."""
    head = kit.line(rng).encode()[:200].decode(errors="ignore").encode()
    bad = rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80",
                      b"\xc3", b"\xf0\x9f\x98", b"\xfe", b"\xe0\x9f\xbf", b"\xf8\x88\x80\x80\x80"])
    return head + bad + rng.choice([b"", b"x", b" tail"]), len(head)


def test_what_is_not_utf8_is_refused_with_its_offset(tmp_path):
    graft = kit.saved(kit.gpt2(), tmp_path / "tokenizer.json")
    rng = random.Random(9)
    cases = [broken_utf8(rng) for _ in range(1000)]
    for (_, at), answer in zip(cases, graft.encode([c[0] for c in cases]), strict=True):
        assert str(answer) == f"not UTF-8 at byte {at}"


def test_long_words_take_time_in_proportion(tmp_path):
    """A megabyte without a cut, in a file whose whole text is one word."""
    tok = kit.sentencepiece()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    texts = ["ab" * 500_000, "the " * 250_000, "é" * 500_000, " " * 1_000_000]
    start = time.monotonic()
    got = graft.encode(texts)
    assert time.monotonic() - start < 30
    assert got == [tok.encode(t, add_special_tokens=False).ids for t in texts]


def damaged():
    """(what is changed, how, what graft says)"""
    def at(*path):
        def change(state, value):
            for key in path[:-1]:
                state = state[key]
            state[path[-1]] = value
        return change
    first = {"id": 1500, "content": "x y", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}
    return [
        (at("version"), "2.0", "version: '2.0' is not known"),
        (at("model", "type"), "Unigram", "model: graft does not have the model 'Unigram'"),
        (at("model", "vocab"), {}, "model.vocab: 1 tokens"),
        (at("model", "vocab", "a"), 99999, "model: vocab: 'a' has id 99999, but there are 1500"),
        (at("model", "vocab", "a"), 7, "both have id 7"),
        (at("model", "vocab", "a"), -1, "model: vocab: the id of 'a' must be a whole number"),
        (at("model", "merges", 3), ["a", "nope!"], "model: merges[3]: 'nope!' is not in the vocabulary"),
        (at("model", "merges", 3), "a b c", 'model: merges[3]: must be "a b" or ["a", "b"]'),
        (at("model", "merges", 3), 5, "model: merges[3]: must be"),
        (at("model", "merges"), None, "model: 'merges' must be a list"),
        (at("model", "dropout"), 0.1, "model: 'dropout' is 0.1; it must be 0"),
        (at("model", "end_of_word_suffix"), "</w>", "model: 'end_of_word_suffix' is '</w>'"),
        (at("model", "continuing_subword_prefix"), "##", "model: 'continuing_subword_prefix' is '##'"),
        (at("normalizer"), {"type": "Precompiled"}, "normalizer: graft does not have the normaliser"),
        (at("normalizer"), {"type": "Sequence", "normalizers": [{"type": "Prepend"}]},
         "normalizer: normalizers[0]: 'prepend' is required"),
        (at("pre_tokenizer"), {"type": "UnicodeScripts"}, "pre_tokenizer: graft does not have the"),
        (at("pre_tokenizer"), {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated",
                               "invert": False}, "pre_tokenizer: pattern: the regular expression '(a'"),
        (at("pre_tokenizer"), {"type": "Split", "pattern": {"Regex": r"\h"}, "behavior": "Isolated",
                               "invert": False}, r"uses \h at byte 0, which graft does not do"),
        (at("pre_tokenizer"), {"type": "Split", "pattern": {"Regex": "[a&&b]"}, "behavior": "Isolated",
                               "invert": False}, "uses an intersection of classes"),
        (at("pre_tokenizer"), {"type": "Split", "pattern": {"String": "a"}, "behavior": "Odd",
                               "invert": False}, "'behavior' is 'Odd'"),
        (at("post_processor"), {"type": "TemplateProcessing", "single": [{"SpecialToken": {
            "id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": {}},
         "post_processor: single[0]: '<x>' is not in 'special_tokens'"),
        (at("decoder"), {"type": "CTC"}, "decoder: graft does not have the decoder 'CTC'"),
        (at("added_tokens", 0, "id"), 3, "added_tokens: [0]: '<|endoftext|>' has id 3"),
        (at("added_tokens"), [first, first], "added_tokens: two tokens are both 'x y'"),
        (at("added_tokens"), [dict(first, id=1502)], "[0]: 'x y' has id 1502, but by its place it is"),
        (at("added_tokens"), [dict(first, content="")], "[0]: 'content' has 0 bytes"),
        (at("added_tokens"), [{"id": 1}], "added_tokens: [0]: 'content' is required"),
    ]


@pytest.mark.parametrize("case", range(len(damaged())))
def test_a_bad_file_is_refused_by_naming_the_place(case, tmp_path):
    state = json.loads(kit.gpt2().to_str())
    change, value, message = damaged()[case]
    change(state, value)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(state))
    said = kit.Graft(path).refusal()
    assert said.startswith(str(path) + ": ") and message in said, said


def data_files():
    root = os.environ.get("GRAFT_TEST_DATA")
    if not root:
        pytest.skip("GRAFT_TEST_DATA is not set")
    root = pathlib.Path(root)
    return [p for d in ("text", "instruct") for p in sorted((root / "data" / d).iterdir())]


@pytest.mark.parametrize("family", ["gpt2", "llama2", "llama3", "qwen2", "o200k"])
def test_real_text_has_the_librarys_ids(family, tmp_path):
    tok = FAMILIES[family]()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    for path in data_files():
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
        want = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=False)]
        assert want == graft.encode(texts), path


def test_a_real_tokenizer_has_the_librarys_ids():
    texts = [t for p in data_files() for t in p.read_text(encoding="utf-8").splitlines()[:2000]]
    path = pathlib.Path(os.environ["GRAFT_TEST_DATA"]) / "models/babyllama-105/tokenizer.json"
    compare(Tokenizer.from_file(str(path)), kit.Graft(path), texts + kit.lines(13, 2000))


@pytest.mark.parametrize("family", ["gpt2", "llama2", "llama3", "o200k"])
def test_speed_beside_the_library(family, tmp_path, capsys):
    """Prints, asserts nothing. One thread each; the library's cache of words is as it comes."""
    tok = FAMILIES[family]()
    graft = kit.saved(tok, tmp_path / "tokenizer.json")
    texts = kit.corpus(21, 12000)
    records = b"".join(len(r).to_bytes(4, "little") + r for r in (t.encode() for t in texts))
    out = subprocess.run([kit.DUMP, graft.path, "bench"], input=records, capture_output=True)
    ours = float(out.stdout) / 1e6
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start = time.perf_counter()
    for text in texts:
        tok.encode(text, add_special_tokens=False)
    theirs = sum(len(t.encode()) for t in texts) / (time.perf_counter() - start) / 1e6
    with capsys.disabled():
        print(f"\n  {family}: graft {ours:.1f} MB/s, tokenizers {theirs:.1f} MB/s")
