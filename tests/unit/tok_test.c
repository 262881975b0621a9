/* engine/tok: the library's ids and text on golden files, and what is refused, and how. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/pool.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "engine/tok/tok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/unit/golden/"

static const char *const families[] = {"gpt2", "llama2", "metaspace", "llama3", "qwen2", "o200k"};
enum { FAMILIES = 6 };

static json_t *load(const char *name, const char *ending)
{
    struct err e = ERR_INIT;
    char path[128];
    snprintf(path, sizeof path, GOLDEN "tok_%s%s", name, ending);
    json_t *v = jx_load_file(path, 1 << 20, &e);
    if (!v) fail_msg("%s", e.msg);
    return v;
}

static struct tok *open_golden(const char *name)
{
    struct err e = ERR_INIT;
    char path[128];
    snprintf(path, sizeof path, GOLDEN "tok_%s.json", name);
    struct tok *t = tok_open(path, &e);
    if (!t) fail_msg("%s", e.msg);
    return t;
}

static void assert_ids(const struct ids *got, const json_t *want, const char *name, size_t text)
{
    bool same = got->n == (int64_t)json_array_size(want);
    for (int64_t i = 0; same && i < got->n; i++)
        same = got->v[i] == json_integer_value(json_array_get(want, (size_t)i));
    if (!same) fail_msg("%s: other ids for text %zu", name, text);
}

/* The golden decoding of text k: the text itself unless the file says otherwise. */
static const char *wanted_text(const json_t *golden, const char *key, size_t k, const char *text)
{
    char number[24];
    snprintf(number, sizeof number, "%zu", k);
    const char *s = json_string_value(json_object_get(json_object_get(golden, key), number));
    return s ? s : text;
}

static void check_text(const struct tok *t, const json_t *golden, const char *name, size_t k,
                       const char *text)
{
    struct err e = ERR_INIT;
    struct ids out = {0};
    struct buf back;
    size_t n = strlen(text);
    buf_init(&back, 1 << 20);
    assert_int_equal(tok_encode(t, text, n, false, &out, &e), 0);
    assert_ids(&out, json_array_get(json_object_get(golden, "ids"), k), name, k);
    for (int skip = 0; skip < 2; skip++) {
        back.len = 0;
        buf_puts(&back, "");
        assert_int_equal(tok_decode(t, out.v, out.n, skip, &back, &e), 0);
        const char *want = wanted_text(golden, skip ? "skip" : "text", k, text);
        if (back.len != strlen(want) || memcmp(buf_str(&back), want, back.len) != 0)
            fail_msg("%s: text %zu decodes to '%.*s', not '%s'", name, k, (int)back.len,
                     buf_str(&back), want);
    }
    out.n = 0;
    const json_t *special = json_array_get(json_object_get(golden, "special"), k);
    assert_int_equal(tok_encode(t, text, n, true, &out, &e), 0);
    if (special) assert_ids(&out, special, name, k);
    ids_clear(&out);
    buf_clear(&back);
}

static void golden_texts_have_the_librarys_ids_and_decode_to_its_text(void **state)
{
    (void)state;
    json_t *texts = load("texts", ".json");
    for (int f = 0; f < FAMILIES; f++) {
        struct tok *t = open_golden(families[f]);
        json_t *golden = load(families[f], ".ids");
        for (size_t k = 0; k < json_array_size(texts); k++)
            check_text(t, golden, families[f], k, json_string_value(json_array_get(texts, k)));
        json_decref(golden);
        tok_free(t);
    }
    json_decref(texts);
}

static void tokens_and_ids_find_each_other(void **state)
{
    (void)state;
    struct tok *t = open_golden("llama3");
    assert_int_equal(tok_size(t), 420);
    for (int32_t id = 0; id < tok_size(t); id++) assert_int_equal(tok_id(t, tok_token(t, id)), id);
    assert_string_equal(tok_token(t, 0), "<|begin_of_text|>");
    assert_int_equal(tok_id(t, "no such token"), -1);
    assert_null(tok_token(t, -1));
    assert_null(tok_token(t, 420));
    assert_true(tok_is_special(t, 0));
    assert_false(tok_is_special(t, 100));
    assert_false(tok_is_special(t, -1));
    tok_free(t);
}

static void what_is_not_utf8_is_refused_with_its_offset(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n, at;
    } rows[] = {{"abc\xff", 4, 3}, {"\x80", 1, 0}, {"a\xc3", 2, 1}, {"ab\xed\xa0\x80", 5, 2},
                {"\xf4\x90\x80\x80", 4, 0}, {"\xc0\x80", 2, 0}};
    struct tok *t = open_golden("gpt2");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct ids out = {0};
        char want[64];
        snprintf(want, sizeof want, "not UTF-8 at byte %zu", rows[i].at);
        assert_int_equal(ids_push(&out, 5, &e), 0);
        assert_int_equal(tok_encode(t, rows[i].text, rows[i].n, true, &out, &e), -1);
        assert_int_equal(e.code, E_FORMAT);
        assert_string_equal(e.msg, want);
        assert_int_equal(out.n, 1);
        ids_clear(&out);
    }
    tok_free(t);
}

/* Every id stands for the bytes it says: in a byte-level tokenizer without a normaliser the ranges
 * follow each other without a gap, character by character. */
static void spans_cover_the_text(void **state)
{
    (void)state;
    struct tok *t = open_golden("llama3");
    json_t *texts = load("texts", ".json");
    for (size_t k = 0; k < json_array_size(texts); k++) {
        struct err e = ERR_INIT;
        struct ids out = {0};
        struct tok_spans spans = {0};
        const char *s = json_string_value(json_array_get(texts, k));
        assert_int_equal(tok_encode_spans(t, s, strlen(s), true, &out, &spans, &e), 0);
        assert_int_equal(spans.first.n, out.n);
        assert_int_equal(spans.last.n, out.n);
        assert_int_equal(spans.first.v[0], -1); /* <|begin_of_text|> */
        size_t covered = 0;
        for (int64_t i = 1; i < out.n; i++) {
            uint32_t cp;
            assert_in_range(spans.first.v[i], 0, covered);
            assert_true(spans.last.v[i] >= spans.first.v[i]);
            size_t end = (size_t)spans.last.v[i];
            covered = end + (size_t)str_utf8_next(s + end, strlen(s) - end, &cp);
        }
        assert_int_equal(covered, strlen(s));
        ids_clear(&out);
        tok_spans_clear(&spans);
    }
    json_decref(texts);
    tok_free(t);
}

/* A tokenizer.json in a few words: %s stands for what a row puts in. */
static struct tok *parse(const char *pre, const char *norm, const char *model, struct err *e)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_printf(&b, "{\"normalizer\":%s,\"pre_tokenizer\":%s,\"model\":%s}", norm, pre, model);
    struct tok *t = tok_parse(buf_str(&b), b.len, e);
    buf_clear(&b);
    return t;
}

#define MODEL "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define SPLIT(pattern)                                                                          \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern "\"},\"behavior\":\"Isolated\","    \
    "\"invert\":false}"

static void bad_files_are_refused_by_naming_the_place(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *norm, *model, *says;
        enum errc code;
    } rows[] = {
        {"null", "null", "{\"vocab\":{\"a\":0},\"merges\":[\"a c\"]}",
         "model: merges[0]: 'c' is not in the vocabulary", E_FORMAT},
        {"null", "null", "{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}",
         "model: merges[0]: 'ab' is not in the vocabulary", E_FORMAT},
        {"null", "null", "{\"vocab\":{\"a\":0,\"b\":2},\"merges\":[]}",
         "model: vocab: 'b' has id 2, but there are 2 tokens: ids must go from 0 to 1 without gaps",
         E_FORMAT},
        {"null", "null", "{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}",
         "model: vocab: 'a' and 'b' both have id 0", E_FORMAT},
        {"null", "null", "{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}", "duplicate object key",
         E_FORMAT},
        {"null", "null", "{\"type\":\"WordPiece\"}",
         "model: graft does not have the model 'WordPiece'", E_UNSUPPORTED},
        {"null", "null", "{\"vocab\":{},\"merges\":[]}", "model.vocab: 0 tokens", E_LIMIT},
        {"null", "null", "7", "model: 'vocab' is required", E_FORMAT},
        {"null", "{\"type\":\"Nmt\"}", MODEL,
         "normalizer: graft does not have the normaliser 'Nmt'", E_UNSUPPORTED},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"}]}", "null", MODEL,
         "pre_tokenizer: pretokenizers[0]: 'individual_digits' is required", E_FORMAT},
        {SPLIT("(a"), "null", MODEL, "the regular expression '(a' cannot be used: missing closing",
         E_FORMAT},
        {SPLIT("\\\\bx"), "null", MODEL, "uses \\b at byte 0, which graft does not do",
         E_UNSUPPORTED},
        {SPLIT("[[:alpha:]]"), "null", MODEL, "uses a class inside a class at byte 1",
         E_UNSUPPORTED},
        {SPLIT("[a"), "null", MODEL, "uses a class without an end", E_UNSUPPORTED},
        {SPLIT("\\\\p{Greek}"), "null", MODEL, "uses an unknown property", E_UNSUPPORTED},
        {SPLIT("a{1,2}+"), "null", MODEL, "uses a quantified interval", E_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        assert_null(parse(rows[i].pre, rows[i].norm, rows[i].model, &e));
        if (!strstr(e.msg, rows[i].says)) fail_msg("row %zu says: %s", i, e.msg);
        assert_int_equal(e.code, rows[i].code);
    }
}

static void a_regular_expression_that_explodes_is_stopped(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct ids out = {0};
    char text[64];
    memset(text, 'a', sizeof text);
    struct tok *t = parse(SPLIT("(a|aa)+[bc]"), "null", MODEL, &e);
    assert_non_null(t);
    assert_int_equal(tok_encode(t, text, sizeof text, false, &out, &e), -1);
    assert_int_equal(e.code, E_LIMIT);
    assert_non_null(strstr(e.msg, "gave up on the text at byte 0"));
    assert_int_equal(out.n, 0);
    ids_clear(&out);
    tok_free(t);
}

static void an_unknown_character_without_an_unknown_token_is_an_error_or_dropped(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct ids out = {0};
    struct tok *t = parse("null", "null", MODEL, &e);
    assert_int_equal(tok_encode(t, "xabx", 4, false, &out, &e), 0);
    assert_int_equal(out.n, 1); /* as the library: without unk_token it vanishes */
    assert_int_equal(out.v[0], 2);
    tok_free(t);
    t = parse("null", "null", "{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"<unk>\"}", &e);
    assert_int_equal(tok_encode(t, "ax", 2, false, &out, &e), -1);
    assert_int_equal(e.code, E_FORMAT);
    tok_free(t);
    t = parse("{\"type\":\"WhitespaceSplit\"}", "null",
              "{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"<unk>\"}", &e);
    assert_int_equal(tok_encode(t, "a a x", 5, false, &out, &e), -1);
    assert_int_equal(out.n, 1); /* as before: what came before the error is taken back */
    tok_free(t);
    ids_clear(&out);
}

/* One model, one text, its ids. */
#define VOCAB(tokens, merges, more) "{\"vocab\":{" tokens "},\"merges\":[" merges "]" more "}"
#define UNK(more)                                                                               \
    VOCAB("\"?\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3", "", ",\"unk_token\":\"?\"" more)
#define CLASSES "\\\\p{L}\\\\p{N}"
#define LLAMA3                                                                                  \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n" CLASSES "]?\\\\p{L}+|\\\\p{N}{1,3}"             \
    "| ?[^\\\\s" CLASSES "]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define ONES VOCAB("\"1\":0,\"11\":1,\"111\":2,\"1111\":3", "\"1 1\",\"11 1\",\"11 11\"", "")

static void the_model_merges_and_falls_back_as_the_library(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *model, *text;
        int32_t n, ids[8];
    } rows[] = {
        /* "b c" goes first; what waited for "a b" is stale then, and "a bc" is what remains. */
        {"null", VOCAB("\"a\":0,\"b\":1,\"c\":2,\"bc\":3,\"ab\":4,\"abc\":5",
                       "\"b c\",\"a b\",\"a bc\"", ""), "abcab", 2, {5, 4}},
        /* Equal ranks from left to right. */
        {"null", VOCAB("\"a\":0,\"aa\":1", "\"a a\"", ""), "aaaaa", 3, {1, 1, 0}},
        /* Of a merge that is there twice the later rank counts. */
        {"null", VOCAB("\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4",
                       "\"a b\",\"b c\",[\"a\",\"b\"]", ""), "abc", 2, {0, 4}},
        {"null", VOCAB("\"a\":0,\"b\":1,\"ab\":2,\"aba\":3", "\"a b\"", ""), "aba", 2, {2, 0}},
        {"null", VOCAB("\"a\":0,\"b\":1,\"ab\":2,\"aba\":3", "\"a b\"",
                       ",\"ignore_merges\":true"), "aba", 1, {3}},
        {"null", UNK(""), "axya", 4, {1, 0, 0, 1}},
        {"null", UNK(",\"fuse_unk\":true"), "axya", 3, {1, 0, 1}},
        {"null", UNK(",\"byte_fallback\":true"), "\xc3\xa9\xc3\xa8", 3, {2, 3, 0}},
        /* As in the library, bytes overtake an unknown character that waits to be fused. */
        {"null", UNK(",\"byte_fallback\":true"), "x\xc3\xa9" "a", 4, {2, 3, 0, 1}},
        {SPLIT(LLAMA3), ONES, "1111111", 3, {2, 2, 0}},
        {"null", ONES, "1111111", 2, {3, 2}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct ids out = {0};
        struct tok *t = parse(rows[i].pre, "null", rows[i].model, &e);
        if (!t) fail_msg("row %zu: %s", i, e.msg);
        assert_int_equal(tok_encode(t, rows[i].text, strlen(rows[i].text), true, &out, &e), 0);
        if (out.n != rows[i].n || memcmp(out.v, rows[i].ids, (size_t)out.n * sizeof *out.v) != 0)
            fail_msg("row %zu has other ids", i);
        ids_clear(&out);
        tok_free(t);
    }
}

#define TO_AT                                                                                   \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"@\"}"

/* Tokens of one letter each, and one added token '@' with the flags of a row. */
static void the_flags_of_an_added_token_count(void **state)
{
    (void)state;
    static const struct {
        const char *on, *norm, *text;
        int32_t n, ids[8];
    } rows[] = {
        {"", "null", "a @ a", 5, {0, 1, 4, 1, 0}},
        {"lstrip", "null", "a @ a", 4, {0, 4, 1, 0}},
        {"rstrip", "null", "a @ a", 4, {0, 1, 4, 0}},
        {"single_word", "null", "a@ @", 4, {0, 2, 1, 4}}, /* the first belongs to a word */
        {"special", "null", "a@", 2, {0, 4}},
        {"", TO_AT, "a@", 2, {2, 4}},
        {"normalized", TO_AT, "a@", 2, {4, 4}},
        {"normalized", "{\"type\":\"Prepend\",\"prepend\":\"b\"}", "@@", 2, {4, 2}},
    };
    static const char *const flags[] = {"lstrip", "rstrip", "single_word", "normalized", "special"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct ids out = {0};
        struct buf b;
        buf_init(&b, 1 << 12);
        buf_printf(&b, "{\"normalizer\":%s,\"model\":{\"unk_token\":\"?\",\"merges\":[],"
                   "\"vocab\":{\"a\":0,\" \":1,\"?\":2,\"b\":3}},"
                   "\"added_tokens\":[{\"id\":4,\"content\":\"@\"", rows[i].norm);
        for (int k = 0; k < 5; k++)
            buf_printf(&b, ",\"%s\":%s", flags[k], str_eq(flags[k], rows[i].on) ? "true" : "false");
        buf_puts(&b, "}]}");
        struct tok *t = tok_parse(buf_str(&b), b.len, &e);
        if (!t) fail_msg("row %zu: %s", i, e.msg);
        assert_int_equal(tok_encode(t, rows[i].text, strlen(rows[i].text), true, &out, &e), 0);
        if (out.n != rows[i].n || memcmp(out.v, rows[i].ids, (size_t)out.n * sizeof *out.v) != 0)
            fail_msg("row %zu has other ids", i);
        buf_clear(&b);
        ids_clear(&out);
        tok_free(t);
    }
}

static void bytes_that_are_no_text_decode_to_the_replacement_character(void **state)
{
    (void)state;
#define BAD "\xef\xbf\xbd"
    static const struct {
        const char *decoder, *text;
        int32_t n, ids[6]; /* a, <0xE4>, <0xB8>, <0xAD>, and the same three bytes of byte level */
    } rows[] = {
        {"ByteFallback", "a\xe4\xb8\xad" "a", 5, {0, 1, 2, 3, 0}},
        {"ByteFallback", "a" BAD BAD "a", 4, {0, 1, 2, 0}},
        {"ByteFallback", BAD BAD BAD BAD, 4, {1, 2, 3, 3}},
        {"ByteLevel", "a\xe4\xb8\xad" "a", 5, {0, 4, 5, 6, 0}},
        {"ByteLevel", "a" BAD "a", 4, {0, 4, 5, 0}},
        {"ByteLevel", BAD BAD, 2, {4, 4}},
        {"ByteLevel", BAD "a", 2, {5, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct buf b, out;
        buf_init(&b, 1 << 12);
        buf_init(&out, 1 << 12);
        buf_printf(&b, "{\"decoder\":{\"type\":\"%s\"},\"model\":{\"vocab\":{\"a\":0,\"<0xE4>\":1,"
                   "\"<0xB8>\":2,\"<0xAD>\":3,\"\\u00e4\":4,\"\\u00b8\":5,\"\\u0143\":6},"
                   "\"merges\":[]}}", rows[i].decoder);
        struct tok *t = tok_parse(buf_str(&b), b.len, &e);
        if (!t) fail_msg("%s", e.msg);
        assert_int_equal(tok_decode(t, rows[i].ids, rows[i].n, false, &out, &e), 0);
        if (!str_eq(buf_str(&out), rows[i].text)) fail_msg("row %zu: '%s'", i, buf_str(&out));
        buf_clear(&b);
        buf_clear(&out);
        tok_free(t);
    }
}

static void a_word_of_a_megabyte_takes_a_moment(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    struct err e = ERR_INIT;
    struct ids out = {0};
    struct tok *t = open_golden("llama2");
    char *text = mem_alloc(N, &e);
    for (int i = 0; i < N; i++) text[i] = "the "[i % 4];
    int64_t start = clock_mono_ns();
    assert_int_equal(tok_encode(t, text, N, false, &out, &e), 0);
    /* Half a second; a quadratic merge takes minutes. */
    assert_true(clock_mono_ns() - start < 20000000000ll);
    assert_in_range(out.n, N / 5, N + 1);
    mem_free(text);
    ids_clear(&out);
    tok_free(t);
}

static void damaged_files_do_no_harm(void **state)
{
    (void)state;
    int taken = 0;
    for (uint32_t k = 0; k < 2000; k++) {
        struct err e = ERR_INIT;
        struct buf b;
        struct ids out = {0};
        char path[128];
        snprintf(path, sizeof path, GOLDEN "tok_%s.json", families[k % FAMILIES]);
        buf_init(&b, 1 << 20);
        assert_int_equal(fs_read_file(path, &b, &e), 0);
        /* Every other file is damaged in its settings only, in front of the vocabulary. */
        const char *vocab = strstr(buf_str(&b), "\"vocab\"");
        size_t room = k % 2 ? b.len : (size_t)(vocab - buf_str(&b));
        for (uint32_t n = 0; n <= k % 3; n++) {
            static const char likely[] = "{}[]\",:0129-eE.\\u tnalse\x80\xff";
            size_t at = rng_u32(11, RNG_USER, k, 2 * n) % room;
            b.data[at] = likely[rng_u32(11, RNG_USER, k, 2 * n + 1) % (sizeof likely - 1)];
        }
        struct tok *t = tok_parse(buf_str(&b), b.len, &e);
        if (!t) assert_true(e.code == E_FORMAT || e.code == E_UNSUPPORTED || e.code == E_LIMIT);
        if (t && !tok_encode(t, "Hello w\xc3\xb6rld  12345's\n\n<s>fox", 29, true, &out, &e)) {
            struct buf back;
            buf_init(&back, 1 << 16);
            assert_int_equal(tok_decode(t, out.v, out.n, false, &back, &e), 0);
            buf_clear(&back);
            taken++;
        }
        tok_free(t);
        ids_clear(&out);
        buf_clear(&b);
    }
    printf("%d of 2000 still parse\n", taken);
    assert_true(taken > 50); /* some damage hits only names: both ways are walked */
}

static const char mixed[] =
    "na\xc3\xafve fox  jumps <mask> 123 e\xcc\x81\n\xe4\xb8\xad\xf0\x9f\x98\x80";

/* Encodes and decodes; 0 or -1 with *e. */
static int there_and_back(const struct tok *t, struct err *e)
{
    struct ids out = {0};
    struct tok_spans spans = {0};
    struct buf back;
    buf_init(&back, 1 << 16);
    int rc = tok_encode_spans(t, mixed, sizeof mixed - 1, true, &out, &spans, e);
    if (rc) assert_int_equal(out.n + spans.first.n + spans.last.n, 0);
    if (!rc) rc = tok_decode(t, out.v, out.n, true, &back, e);
    buf_clear(&back);
    ids_clear(&out);
    tok_spans_clear(&spans);
    return rc;
}

/* Fails allocation number n + 1; true once that is never reached. */
static bool fail_one(const char *name, const struct tok *open, int64_t n)
{
    struct err e = ERR_INIT;
    size_t before = mem_live();
    char path[128];
    int rc = -1;
    snprintf(path, sizeof path, GOLDEN "tok_%s.json", name);
    fault_arm(FAULT_MEM, n + 1, false);
    if (open) {
        rc = there_and_back(open, &e);
    } else {
        struct tok *t = tok_open(path, &e);
        if (t) rc = 0;
        tok_free(t);
    }
    bool done = fault_count(FAULT_MEM) <= n;
    fault_arm(FAULT_MEM, 0, false);
    if (rc && e.code != E_NOMEM) fail_msg("%s: allocation %d: %s", name, (int)n, e.msg);
    if (done) assert_int_equal(rc, 0);
    assert_int_equal(mem_live(), before);
    return done;
}

static void every_failed_allocation_is_reported_and_nothing_leaks(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        struct tok *t = open_golden(families[f]);
        int64_t n = 0;
        for (; !fail_one(families[f], t, n); n++) {}
        assert_true(n > 8);
        /* Of the many allocations of the JSON parser a few are enough; then come ours. */
        for (n = 0; !fail_one(families[f], NULL, n); n += n > 20 && n < 1200 ? 37 : 1) {}
        assert_true(n > 1200);
        tok_free(t);
    }
}

struct shared {
    const struct tok *t;
    const json_t *texts, *want;
    int wrong[8];
};

static void encode_all(void *ctx, int64_t task, int thread)
{
    struct shared *s = ctx;
    (void)thread;
    for (size_t k = 0; k < json_array_size(s->texts); k++) {
        struct err e = ERR_INIT;
        struct ids out = {0};
        const char *text = json_string_value(json_array_get(s->texts, k));
        const json_t *want = json_array_get(s->want, k);
        int rc = tok_encode(s->t, text, strlen(text), false, &out, &e);
        bool same = !rc && out.n == (int64_t)json_array_size(want);
        for (int64_t i = 0; same && i < out.n; i++)
            same = out.v[i] == json_integer_value(json_array_get(want, (size_t)i));
        s->wrong[task] += !same;
        ids_clear(&out);
    }
}

static void threads_may_share_a_tokenizer(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct tok *t = open_golden("o200k"); /* the one that runs PCRE2 */
    json_t *texts = load("texts", ".json"), *golden = load("o200k", ".ids");
    struct shared s = {t, texts, json_object_get(golden, "ids"), {0}};
    struct pool *p = pool_new(4, &e);
    pool_run(p, 8, encode_all, &s);
    for (int i = 0; i < 8; i++) assert_int_equal(s.wrong[i], 0);
    pool_free(p);
    json_decref(texts);
    json_decref(golden);
    tok_free(t);
}

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_texts_have_the_librarys_ids_and_decode_to_its_text),
        cmocka_unit_test(tokens_and_ids_find_each_other),
        cmocka_unit_test(what_is_not_utf8_is_refused_with_its_offset),
        cmocka_unit_test(spans_cover_the_text),
        cmocka_unit_test(bad_files_are_refused_by_naming_the_place),
        cmocka_unit_test(a_regular_expression_that_explodes_is_stopped),
        cmocka_unit_test(an_unknown_character_without_an_unknown_token_is_an_error_or_dropped),
        cmocka_unit_test(the_model_merges_and_falls_back_as_the_library),
        cmocka_unit_test(the_flags_of_an_added_token_count),
        cmocka_unit_test(bytes_that_are_no_text_decode_to_the_replacement_character),
        cmocka_unit_test(a_word_of_a_megabyte_takes_a_moment),
        cmocka_unit_test(damaged_files_do_no_harm),
        cmocka_unit_test(every_failed_allocation_is_reported_and_nothing_leaks),
        cmocka_unit_test(threads_may_share_a_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
