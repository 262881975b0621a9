"""What the tokeniser tests share: tokenizers trained on the spot, and texts to try them on."""
import collections
import json
import pathlib
import random
import struct
import subprocess

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import processors, trainers
from tokenizers.models import BPE

ROOT = pathlib.Path(__file__).resolve().parents[2]
DUMP = ROOT / "build/tests/ecosystem/tok_dump"

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])

WORDS = """the quick brown fox jumps over a lazy dog while seventeen gardeners argue about parsley
def return import struct malloc 'tis don't it's we'll THEY'RE I'VE she'd O'Brien naïve café Straße
Œuvre привет мир здравствуйте γειά σου κόσμε 你好 世界 日本語 テスト 한국어 문장 สวัสดี हिन्दी العربية עברית
ﬁligree Ångström ½ ² ³ ① ⅷ 一二三 1234567890 3.14159 0xDEADBEEF user@example.org""".split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n ", "\r", "\u00a0", "\u2003", "\u3000",
          "\u0085", "\u2028", "\u180e", "\u200b", "\u200d", "\x0b", "\x0c", "\x1c", "\ufeff"]
CODE = ["for (int i = 0; i < n; i++) {", "    return x->y[i] += 1;", "}", "def f(self, *args, **kw):",
        "\tif a != b and not c:", "#include <stdio.h>", "SELECT * FROM t WHERE a='b';",
        "<div class=\"x\">&nbsp;</div>", "x = {'a': [1, 2, 3]}  # note", "\\begin{align}", "a/b//c\n"]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏳️‍🌈", "☃", "\U0001f9ff", "✨✨"]
MARKS = ["e\u0301", "a\u0308\u0323", "n\u0303", "\u0301\u0300", "가", "ㅎㅏㄴ", "\u1112\u1161\u11ab",
         "q\u0307\u0323", "\u0345\u0301", "Å", "ſt 'ſ", "İı", "ǆ", "\u0344", "\u0f73\u0f71"]
CONTROL = [chr(c) for c in list(range(1, 32)) + [127, 128, 159, 173, 0xfff9, 0xfffd, 0xe000, 0xfdd0,
                                                 0xffff, 0x10ffff]]


def random_char(rng):
    """Any code point, new ones and unassigned ones too; NUL is left to a test of its own."""
    while True:
        top = rng.choice([0x80, 0x300, 0x800, 0x3000, 0x10000, 0x20000, 0x33000, 0x110000])
        cp = rng.randrange(1, top)
        if not 0xD800 <= cp < 0xE000:
            return chr(cp)


def line(rng):
    kind = rng.randrange(12)
    if kind == 0:
        return "".join(rng.choice(CODE) + rng.choice(SPACES) for _ in range(rng.randrange(1, 6)))
    if kind == 1:
        return "".join(random_char(rng) for _ in range(rng.randrange(0, 40)))
    if kind == 2:
        return rng.choice(["a", " ", "\n", "0", "=", "é", "中", "😀", "ab", "- ", "\u0301"]) * \
            rng.choice([1, 7, 50, 300, 3000])
    if kind == 3:
        return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 12)))
    parts = []
    for _ in range(rng.randrange(0, 24)):
        pool = rng.choice([WORDS] * 6 + [EMOJI, MARKS, CONTROL, CODE])
        parts.append(rng.choice(pool))
        parts.append(rng.choice(SPACES) if rng.random() < 0.3 else rng.choice([" ", " ", ""]))
    return "".join(parts)


def lines(seed, n):
    rng = random.Random(seed)
    return [line(rng) for _ in range(n)]


def corpus(seed=1, n=1500):
    """Text to train on: mostly plain words, so that merges are made, and some of everything."""
    rng = random.Random(seed)
    plain = [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(n)]
    return plain + lines(seed + 1, n // 5)


def common_chars(texts, most):
    """The most frequent characters. The trainer would pick among equally rare ones by chance."""
    count = collections.Counter(c for t in texts for c in t if c != " ")
    return ["▁", " "] + sorted(count, key=lambda c: (-count[c], c))[:most]


def trained(model, vocab_size, alphabet=(), special=(), **parts):
    tok = Tokenizer(model)
    for name, part in parts.items():
        setattr(tok, name, part)
    texts = corpus()
    alphabet = sorted(alphabet or common_chars(texts, 280))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet,
                                  limit_alphabet=len(alphabet), special_tokens=list(special),
                                  show_progress=False)
    tok.train_from_iterator(texts, trainer)
    return tok


def byte_level(vocab_size=1500, special=("<|endoftext|>",), **parts):
    parts.setdefault("decoder", decoders.ByteLevel())
    return trained(BPE(ignore_merges=parts.pop("ignore_merges", False)), vocab_size,
                   pre_tokenizers.ByteLevel.alphabet(), special, **parts)


def gpt2(prefix=False, **size):
    return byte_level(**size, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
                      post_processor=processors.ByteLevel(trim_offsets=False))


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                  "<|end_header_id|>", "<|eot_id|>"]


def llama3(**size):
    tok = byte_level(**size, special=LLAMA3_SPECIAL, ignore_merges=True,
                     pre_tokenizer=split_then_bytes(CL100K % r"\p{N}{1,3}"))
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing("<|begin_of_text|> $A", None, [("<|begin_of_text|>", 0)])])
    return tok


def qwen2(**size):
    return byte_level(**size, special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                      normalizer=normalizers.NFC(),
                      pre_tokenizer=split_then_bytes(CL100K % r"\p{N}"))


def o200k(**size):
    return byte_level(**size, pre_tokenizer=split_then_bytes(O200K))


def smollm2():
    return byte_level(special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                      pre_tokenizer=pre_tokenizers.Sequence([
                          pre_tokenizers.Digits(individual_digits=True),
                          pre_tokenizers.ByteLevel(add_prefix_space=False)]))


def deepseek():
    split = pre_tokenizers.Split
    return byte_level(pre_tokenizer=pre_tokenizers.Sequence([
        split(Regex(r"\p{N}{1,3}"), "isolated"), split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        split(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def sentencepiece(metaspace=None, vocab_size=1500):
    """Llama 2's: a normaliser puts U+2581, or a Metaspace pre-tokeniser does."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tok = trained(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True), vocab_size, (), special,
                  pre_tokenizer=pre_tokenizers.Metaspace())
    tok.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                     decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if metaspace is None:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                               normalizers.Replace(" ", "▁")])
    state = json.loads(tok.to_str())
    # In real files the byte tokens are no added tokens.
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < 3]
    state["pre_tokenizer"] = metaspace
    return Tokenizer.from_str(json.dumps(state))


def gemma():
    """Gemma's: spaces become U+2581 and nothing is put in front."""
    tok = sentencepiece()
    state = json.loads(tok.to_str())
    state["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    tok = Tokenizer.from_str(json.dumps(state))
    tok.add_special_tokens(["<bos>", "<start_of_turn>", "<end_of_turn>"])
    return tok


def meta(scheme, split):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def plain_bpe(fuse_unk, **parts):
    """No byte level and no byte fallback: unknown characters stay."""
    return trained(BPE(unk_token="<unk>", fuse_unk=fuse_unk), 600, (), ["<unk>", "<s>"], **parts)


def with_added(tok):
    """Every flag of added tokens, overlapping each other and the text."""
    tok.add_tokens([
        AddedToken("<mask>", lstrip=True, special=True, normalized=False),
        AddedToken("<end>", rstrip=True, special=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("fox", single_word=True, normalized=False),
        AddedToken("fox jumps", single_word=True, normalized=True),
        AddedToken("café", normalized=True), AddedToken("CAFÉ", normalized=False),
        AddedToken("  ", normalized=False), AddedToken("    ", normalized=False),
        AddedToken("<a", normalized=False), AddedToken("<a>b", normalized=False),
        AddedToken("世界", normalized=True), AddedToken("don't", single_word=True, normalized=True)])
    return tok


def added_lines(seed, n):
    rng = random.Random(seed)
    bits = ["<mask>", "<end>", "<both>", "fox", "fox jumps", "foxes", "café", "CAFÉ", "  ", "    ",
            "<a", "<a>b", "<a>", "世界", "don't", " ", "\n", "\t", "x", "é", "\u200d", "fo", "_", "1",
            "cafe\u0301", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<unk>"]
    return ["".join(rng.choice(bits) for _ in range(rng.randrange(0, 16))) for _ in range(n)]


class Graft:
    """One tokenizer.json in graft, through tok_dump."""

    def __init__(self, path):
        self.path = str(path)

    def run(self, mode, records):
        """The answers, an Exception in the place of each refusal."""
        data = b"".join(struct.pack("<I", len(r)) + r for r in records)
        done = subprocess.run([DUMP, self.path, mode], input=data, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        out, raw, at = [], done.stdout, 0
        while at < len(raw):
            (n,) = struct.unpack_from("<i", raw, at)
            at += 4
            if n >= 0:
                out.append(raw[at:at + n])
                at += n
                continue
            (n,) = struct.unpack_from("<i", raw, at)
            out.append(Exception(raw[at + 4:at + 4 + n].decode(errors="replace")))
            at += 4 + n
        return out

    def encode(self, texts, special=False):
        records = [t if isinstance(t, bytes) else t.encode() for t in texts]
        return [ids(r) for r in self.run("special" if special else "encode", records)]

    def decode(self, lists, skip=False):
        records = [struct.pack(f"<{len(v)}i", *v) for v in lists]
        return [r if isinstance(r, Exception) else r.decode()
                for r in self.run("skip" if skip else "decode", records)]

    def refusal(self):
        """What graft says against the file, "" if it takes it."""
        done = subprocess.run([DUMP, self.path, "check"], capture_output=True, text=True)
        assert done.returncode in (0, 1)
        return done.stderr.strip()


def ids(raw):
    return raw if isinstance(raw, Exception) else list(struct.unpack(f"<{len(raw) // 4}i", raw))


def saved(tok, path):
    tok.save(str(path))
    return Graft(path)
