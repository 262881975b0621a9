"""graft's reader and writer against the safetensors library: same verdicts, same bytes."""
import hashlib
import json
import random
import struct

import pytest
import safetensors
import safetensors.torch
import torch

import st_dump

torch.manual_seed(0)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64,
          torch.uint8]
# Those that graft reads but does not compute with.
OTHERS = [torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64, torch.bool,
          torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
SHAPES = [(), (1,), (7,), (0,), (3, 0, 2), (2, 3), (5, 1, 3), (1, 2, 3, 1), (2,) * 8]


@pytest.fixture(scope="module", autouse=True)
def helper():
    st_dump.build()


def random_tensor(dtype, shape):
    width = torch.empty(0, dtype=dtype).element_size()
    n = 1
    for d in shape:
        n *= d
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    raw = torch.randint(0, 256, (n * width,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def tensor_bytes(t):
    return bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist()) if t.numel() else b""


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and a[k].shape == b[k].shape, k
        assert tensor_bytes(a[k]) == tensor_bytes(b[k]), k


def check_listing(listing, tensors):
    names = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bfloat16": "BF16",
             "bool": "BOOL", "complex64": "C64"}
    assert listing.keys() == tensors.keys()
    for k, t in tensors.items():
        word = str(t.dtype).removeprefix("torch.")
        short = names.get(word) or word
        for long, letter in ("float", "F"), ("uint", "U"), ("int", "I"):
            short = short.replace(long, letter)
        assert listing[k]["dtype"] == short
        assert listing[k]["shape"] == list(t.shape)
        assert listing[k]["sha256"] == hashlib.sha256(tensor_bytes(t)).hexdigest()


def test_files_of_the_library_are_read_byte_for_byte(tmp_path):
    tensors = {f"t.{i}.{j}": random_tensor(d, s)
               for i, d in enumerate(DTYPES + OTHERS) for j, s in enumerate(SHAPES)}
    tensors["é 漢字 😀"] = random_tensor(torch.float32, (4,))
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "x": "é"})
    got = st_dump.loads("list", tmp_path / "a.safetensors")
    assert got["format"] == "pt"
    check_listing(got["tensors"], tensors)


@pytest.mark.parametrize("shard_bytes", [0, 1, 100, 1000])
def test_files_of_graft_are_read_by_the_library(tmp_path, shard_bytes):
    tensors = {f"t.{i}.{j}": random_tensor(d, s)
               for i, d in enumerate(DTYPES) for j, s in enumerate(SHAPES)}
    tensors["é 漢字 😀 \" \\ /"] = random_tensor(torch.bfloat16, (3,))
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    st_dump.ok("rewrite", tmp_path / "a.safetensors", tmp_path / "to", shard_bytes)
    files = sorted((tmp_path / "to").glob("*.safetensors"))
    got = {}
    for f in files:
        with safetensors.safe_open(f, "pt") as o:
            assert o.metadata() == {"format": "pt"}
            for k in o.keys():
                assert k not in got
                got[k] = o.get_tensor(k)
    same(got, tensors)
    check_listing(st_dump.loads("list", tmp_path / "to")["tensors"], tensors)
    index = tmp_path / "to/model.safetensors.index.json"
    assert index.exists() == (len(files) > 1) == (shard_bytes > 0)
    if index.exists():
        index = json.loads(index.read_text())
        assert index["weight_map"].keys() == tensors.keys()
        total = sum(len(tensor_bytes(t)) for t in tensors.values())
        assert index["metadata"]["total_size"] == total


def test_shards_of_transformers_are_read_and_written_for_it(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=64)).eval()
    model.save_pretrained(tmp_path / "from", max_shard_size="20KB")
    assert len(list((tmp_path / "from").glob("*.safetensors"))) > 2
    weights = dict(model.state_dict())
    check_listing(st_dump.loads("list", tmp_path / "from")["tensors"], weights)
    for shard_bytes in (0, 30000):
        to = tmp_path / f"to{shard_bytes}"
        st_dump.ok("rewrite", tmp_path / "from", to, shard_bytes)
        (to / "config.json").write_bytes((tmp_path / "from/config.json").read_bytes())
        again = AutoModelForCausalLM.from_pretrained(to).eval()
        same(dict(again.state_dict()), weights)


# Where graft is stricter than the library (safetensors.h); nothing else may differ.
STRICTER = [
    "does not start with '{'",            # but with a blank
    "must have 'dtype', 'shape' and 'data_offsets', no more",
    "dimensions; at most",
    "control character",
    "longer than 512 bytes",
    "duplicate",
    "'__metadata__' must be an object",   # null
    "nested deeper than 32",              # in a field that the library skips
    "NUL byte in object key", "\\u0000 is not allowed",
    "too big integer",                    # beyond 63 bits, in a shape that also has a zero
    "the product of 'shape' overflows",   # the same
]


def base_files(rng):
    """Valid (header, data length) pairs."""
    for _ in range(60):
        header, at = {}, 0
        if rng.random() < 0.5:
            header["__metadata__"] = {rng.choice("abc"): "x" for _ in range(rng.randrange(3))}
        for i in range(rng.randrange(5)):
            dtype, bits = rng.choice([("F32", 32), ("BF16", 16), ("U8", 8), ("I64", 64), ("F4", 4)])
            shape = [rng.choice([0, 1, 2, 3, 8]) for _ in range(rng.randrange(4))]
            if dtype == "F4":
                shape.append(2)
            n = bits
            for d in shape:
                n *= d
            name = rng.choice(["w", "layer.weight", "é", "a b", ""]) + str(i)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n // 8]}
            at += n // 8
        items = list(header.items())
        rng.shuffle(items)
        yield dict(items), at


NUMBERS = [0, 1, -1, 2, 3, 7, 8, 9, 255, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
           2**64, 1.0, 0.5, 1e3, -0.0, "1", None, True, [], [1], {}]


def mutate_tree(rng, header):
    """One change of meaning: a number, a name, a field, a list."""
    names = [k for k in header if k != "__metadata__"]
    what = rng.randrange(12)
    if what == 0 or not names:
        header["__metadata__"] = rng.choice(
            [None, [], {}, {"a": "b"}, {"a": 1}, {"a": None}, "x", 3])
        return
    entry = header[rng.choice(names)]
    if what == 1:
        entry["dtype"] = rng.choice(
            ["F32", "F16", "I8", "BOOL", "F8_E4M3", "F6_E2M3", "F33", "", None, 1])
    elif what == 2:
        entry["shape"] = rng.choice(
            [[], [0], [1] * 8, [1] * 9, [2**32, 2**32], [0, 2**63], None, 3, {}])
    elif what == 3 and entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(NUMBERS)
    elif what in (4, 5):
        entry["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
    elif what == 6:
        i, d = rng.randrange(2), rng.choice([-4, -2, -1, 1, 2, 4])
        entry["data_offsets"][i] += d
    elif what == 7:
        entry["data_offsets"] = rng.choice(
            [[], [0], [0, 0, 0], None, {}, "00", entry["data_offsets"][::-1]])
    elif what == 8:
        entry.pop(rng.choice(["dtype", "shape", "data_offsets"]))
    elif what == 9:
        entry[rng.choice(["x", "Dtype", ""])] = rng.choice(NUMBERS)
    elif what == 10:
        header[rng.choice(["new", "a\nb", "\x00", "\x7f", "\x85", "n" * 513])] = dict(
            dtype="U8", shape=[0], data_offsets=[0, 0])
    else:
        header[rng.choice(names)] = rng.choice([None, 1, [], {}, "x", [entry]])


def mutate_text(rng, text):
    """One change of bytes."""
    i = rng.randrange(len(text) + 1)
    c = bytes([rng.choice(b'{}[]",:\\0123456789-+.eE \n\t\x00\x7f\x80\xc3\xff/untfals')])
    again = text[max(0, i - rng.randrange(12)):]
    return rng.choice([text[:i] + c + text[i:], text[:i] + text[i + 1:], text[:i] + again,
                       text[:i] + c + text[i + 1:], text[:i], text + c, c + text])


def mutants(seed, count):
    rng = random.Random(seed)
    bases = list(base_files(rng))
    for n in range(count):
        header, size = rng.choice(bases)
        header = json.loads(json.dumps(header))
        kind = n % 4
        if kind < 2:
            mutate_tree(rng, header)
            if rng.random() < 0.3:
                try:
                    mutate_tree(rng, header)
                except (TypeError, KeyError, AttributeError, IndexError):
                    pass  # the first change left nothing of the field
        text = json.dumps(header, ensure_ascii=rng.random() < 0.5,
                          separators=rng.choice([(",", ":"), (", ", ": ")])).encode()
        if kind == 2:
            for _ in range(rng.choice([1, 1, 2, 4])):
                text = mutate_text(rng, text)
        length = len(text)
        if kind == 3:
            how = rng.randrange(6)
            if how == 0:
                length += rng.choice([-8, -2, -1, 1, 2, 8, size, 1 << 31, 1 << 62])
            elif how == 1:
                size = max(0, size + rng.choice([-8, -1, 1, 8]))
            elif how == 2:
                text += b" " * rng.randrange(1, 9)
                length = len(text)
            elif how == 3:
                text = rng.choice([b" ", b"\n", b"\xef\xbb\xbf", b"\x00"]) + text
                length = len(text)
        data = bytes(rng.randrange(256) for _ in range(size))
        blob = struct.pack("<Q", length % 2**64) + text + data
        yield blob[:rng.randrange(12)] if kind == 3 and rng.random() < 0.03 else blob


def test_verdicts_differ_only_by_the_listed_stricter_rules(tmp_path):
    count, refused, accepted, stricter = 6000, 0, 0, {}
    blobs = list(mutants(1, count))
    paths = []
    for i, blob in enumerate(blobs):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(blob)
    verdicts = st_dump.ok("verdicts", input="".join(f"{p}\n" for p in paths)).split("\n")[:-1]
    assert len(verdicts) == count
    for blob, verdict in zip(blobs, verdicts):
        try:
            safetensors.deserialize(blob)
            theirs = "ok"
        except safetensors.SafetensorError as e:
            theirs = str(e)
        if verdict == "ok":
            assert theirs == "ok", (blob, theirs)
            accepted += 1
        elif theirs == "ok":
            rule = [r for r in STRICTER if r in verdict]
            assert rule, (blob, verdict)
            stricter[rule[0]] = stricter.get(rule[0], 0) + 1
        else:
            refused += 1
    print(f"{accepted} accepted, {refused} refused by both, stricter: {stricter}")
    assert accepted > count // 10 and refused > count // 3 and sum(stricter.values()) > 20
