"""Prints engine/tok/uclass_data.h: where the Unicode data of the `tokenizers` library differ from
those of Debian 12's utf8proc (15.0) and PCRE2 (14.0), found by asking the library itself.

usage: python3 engine/tok/uclass_gen.py > engine/tok/uclass_data.h
Needs tokenizers (written with 0.23.3), Python 3.11 (its unicodedata is 14.0) and libutf8proc.so.2.
"""
import ctypes
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", "needs Python 3.11"
U8P = ctypes.CDLL("libutf8proc.so.2")
U8P.utf8proc_unicode_version.restype = ctypes.c_char_p
U8P.utf8proc_category_string.restype = ctypes.c_char_p
U8P.utf8proc_tolower.restype = ctypes.c_int32
U8P.utf8proc_map.restype = ctypes.c_ssize_t
U8P.utf8proc_map.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t, ctypes.POINTER(ctypes.c_void_p),
                             ctypes.c_int]
LIBC = ctypes.CDLL(None)
LIBC.free.argtypes = [ctypes.c_void_p]
assert U8P.utf8proc_unicode_version() == b"15.0.0", "needs utf8proc 2.8"

ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, ALL))
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Cf".split()
STABLE, COMPAT, COMPOSE, DECOMPOSE = 2, 4, 8, 16


def runs(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] + 1 == c:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def dropped(pre_tokenizer):
    """The code points that a pre-tokeniser with behaviour `removed` removes."""
    left = set()
    for piece, _ in pre_tokenizer.pre_tokenize_str(TEXT):
        left.update(map(ord, piece))
    return set(ALL) - left


def u8p_map(text, options):
    out, raw = ctypes.c_void_p(), text.encode()
    n = U8P.utf8proc_map(raw, len(raw), ctypes.byref(out), options)
    result = ctypes.string_at(out, n).decode()
    LIBC.free(out)
    return result


def new_categories():
    for name in CATEGORIES:
        pattern = pre_tokenizers.Split(Regex(r"\p{%s}" % name), "removed")
        ours = {c for c in dropped(pattern) if unicodedata.category(chr(c)) == "Cn"}
        yield from ((a, b, name) for a, b in runs(ours))


def numeric():
    """Rust's char::is_numeric is one Unicode version ahead of the library's regular expressions."""
    spaced = "a".join(map(chr, ALL))
    found = {ord(p) for p, _ in pre_tokenizers.Digits(True).pre_tokenize_str(spaced)
             if len(p) == 1 and p != "a"}
    return found - dropped(pre_tokenizers.Split(Regex(r"\p{N}"), "removed"))


def punctuation():
    """What utf8proc calls punctuation and the library, with older data, does not."""
    found = dropped(pre_tokenizers.Punctuation("removed"))
    ours = {c for c in ALL if U8P.utf8proc_category_string(c).startswith(b"P")}
    ascii_symbols = {c for c in range(33, 127) if not chr(c).isalnum()}
    return ours - found, found - ours - ascii_symbols


def lower():
    fold = normalizers.Lowercase()
    rows = []
    for c in ALL:
        text = fold.normalize_str(chr(c))
        if len(text) == 1 and ord(text) != U8P.utf8proc_tolower(c):
            delta = ord(text) - c
            if rows and rows[-1][1] == c - 1 and rows[-1][2] == delta:
                rows[-1][1] = c
            else:
                rows.append([c, c, delta])
    return rows


def inert():
    """What utf8proc decomposes, reorders or composes and the library, with older data, does not.
    U+11935 + U+11930 compose to U+11938 since Unicode 13: both parts have to be named."""
    forms = [(normalizers.NFD(), STABLE | DECOMPOSE), (normalizers.NFC(), STABLE | COMPOSE),
             (normalizers.NFKD(), STABLE | COMPAT | DECOMPOSE),
             (normalizers.NFKC(), STABLE | COMPAT | COMPOSE)]
    bad = {0x11930}
    for c in ALL:
        for form, options in forms:
            if form.normalize_str(chr(c)) != u8p_map(chr(c), options):
                bad.add(c)
    for c in ALL:
        for probe in ("x\u0301%s\u0334", "x%s\u0316\u0334", "x\u0301\u0316%s"):
            text = probe % chr(c)
            if forms[0][0].normalize_str(text) != u8p_map(text, forms[0][1]):
                bad.add(c)
    return bad


def table(name, comment, rows, fields):
    print(f"\n/* {comment} */\nstatic const struct {fields} {name}[] = {{")
    line = "   "
    for row in rows:
        cell = " {" + ", ".join(v if isinstance(v, str) else f"{v}" if i == 2 else f"0x{v:x}"
                                for i, v in enumerate(row)) + "},"
        if len(line) + len(cell) > 99:
            print(line)
            line = "   "
        line += cell
    print(line + "\n};")


def main():
    print(f"/* uclass_data.h: made by uclass_gen.py from tokenizers {tokenizers.__version__}; "
          "do not edit. */")
    print("#ifndef GRAFT_UCLASS_DATA_H\n#define GRAFT_UCLASS_DATA_H\n")
    print("#include <stdint.h>\n#include <utf8proc.h>\n")
    print("struct uclass_run {\n    uint32_t first, last;\n};")
    print("struct uclass_new {\n    uint32_t first, last;\n    utf8proc_category_t category;\n};")
    print("struct uclass_delta {\n    uint32_t first, last;\n    int32_t delta;\n};")
    rows = sorted((a, b, f"UTF8PROC_CATEGORY_{n.upper()}") for a, b, n in new_categories())
    table("since14", "Assigned in Unicode 15.0, 15.1 and 16.0.", rows, "uclass_new")
    table("numeric17", "Numeric since Unicode 17.0.", runs(numeric()), "uclass_run")
    less, more = punctuation()
    table("not_punct", "Punctuation to utf8proc but not to the library.", runs(less),
          "uclass_run")
    table("also_punct", "Punctuation to the library but not to utf8proc.", runs(more),
          "uclass_run")
    table("lower17", "Lower case of letters that utf8proc does not map.", lower(), "uclass_delta")
    table("inert", "Code points that the library's normal forms leave alone and utf8proc's do not.",
          runs(inert()), "uclass_run")
    print("\n#endif")


if __name__ == "__main__":
    sys.exit(main())
