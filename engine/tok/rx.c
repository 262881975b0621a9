#define PCRE2_CODE_UNIT_WIDTH 8

#include "engine/tok/rx.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <pcre2.h>
#include <string.h>

enum {
    /* A match of a sane pattern backtracks at most a few times per byte of its run. */
    RX_MATCH_LIMIT = 10 * 1000 * 1000,
    RX_HEAP_KIB = 64 * 1024,
    RX_PATTERN_MAX = 64 * 1024
};

enum rx_kind { RX_LITERAL, RX_CLASS, RX_WORDS, RX_GPT2, RX_CL100K, RX_PCRE };

struct rx {
    enum rx_kind kind;
    int digits; /* RX_CL100K: the longest run of numbers in one match */
    uclass_fn in;
    char *literal;
    size_t nliteral;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *code;
};

static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#define CL100K(numbers)                                                                         \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers                       \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static void *pcre_alloc(size_t n, void *tag)
{
    struct err e;
    (void)tag;
    return mem_alloc(n, &e);
}

static void pcre_free(void *p, void *tag)
{
    (void)tag;
    mem_free(p);
}

static struct rx *rx_new(enum rx_kind kind, struct err *e)
{
    struct rx *r = mem_zalloc(sizeof *r, e);
    if (r) r->kind = kind;
    return r;
}

static int compile(struct rx *r, const char *pattern, struct err *e)
{
    struct buf b;
    int rc = -1, code = 0;
    PCRE2_SIZE at = 0;
    pcre2_compile_context *cc = NULL;
    buf_init(&b, 4 * RX_PATTERN_MAX);
    r->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    if (r->memory) cc = pcre2_compile_context_create(r->memory);
    if (cc) r->limits = pcre2_match_context_create(r->memory);
    if (!r->limits) {
        err_set(e, E_NOMEM, "out of memory for a regular expression");
        goto out;
    }
    if (rx_translate(pattern, &b, e)) goto out;
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(cc, 50);
    r->code = pcre2_compile((PCRE2_SPTR)buf_str(&b), b.len,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, cc);
    if (!r->code) {
        char why[128];
        if (pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why) < 0) why[0] = 0;
        err_set(e, code == PCRE2_ERROR_HEAP_FAILED ? E_NOMEM : E_FORMAT,
                "the regular expression '%.100s' cannot be used: %s", pattern, why);
        goto out;
    }
    /* Where that cannot be had, the interpreter does the same at a fifth of the speed. */
    pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
    pcre2_set_match_limit(r->limits, RX_MATCH_LIMIT);
    pcre2_set_depth_limit(r->limits, RX_MATCH_LIMIT);
    pcre2_set_heap_limit(r->limits, RX_HEAP_KIB);
    rc = 0;
out:
    pcre2_compile_context_free(cc);
    buf_clear(&b);
    return rc;
}

struct rx *rx_gpt2(struct err *e)
{
    return rx_new(RX_GPT2, e);
}

struct rx *rx_regex(const char *pattern, struct err *e)
{
    if (str_eq(pattern, gpt2_pattern)) return rx_gpt2(e);
    if (strlen(pattern) > RX_PATTERN_MAX) {
        err_set(e, E_LIMIT, "the regular expression is longer than %d bytes", RX_PATTERN_MAX);
        return NULL;
    }
    struct rx *r = rx_new(RX_CL100K, e);
    if (!r) return NULL;
    if (str_eq(pattern, CL100K("\\p{N}{1,3}"))) {
        r->digits = 3;
    } else if (str_eq(pattern, CL100K("\\p{N}"))) {
        r->digits = 1;
    } else {
        r->kind = RX_PCRE;
        if (compile(r, pattern, e)) {
            rx_free(r);
            return NULL;
        }
    }
    return r;
}

struct rx *rx_literal(const char *text, struct err *e)
{
    struct rx *r = rx_new(RX_LITERAL, e);
    if (!r) return NULL;
    r->literal = mem_strdup(text, e);
    r->nliteral = strlen(text);
    if (!r->literal) {
        rx_free(r);
        return NULL;
    }
    return r;
}

struct rx *rx_class(uclass_fn in, struct err *e)
{
    struct rx *r = rx_new(RX_CLASS, e);
    if (r) r->in = in;
    return r;
}

struct rx *rx_words(struct err *e)
{
    return rx_new(RX_WORDS, e);
}

struct rx *rx_pattern(const json_t *o, const char *key, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    const char *literal = json_string_value(json_object_get(v, "String"));
    const char *pattern = json_string_value(json_object_get(v, "Regex"));
    if (!literal == !pattern) {
        err_set(e, E_FORMAT, "'%s' must be {\"String\": ...} or {\"Regex\": ...}", key);
        return NULL;
    }
    struct rx *r;
    if (literal && *literal)
        r = rx_literal(literal, e);
    else /* an empty literal matches between characters, as the empty regular expression does */
        r = rx_regex(literal ? "" : pattern, e);
    if (!r) err_wrap(e, "%s", key);
    return r;
}

void rx_free(struct rx *r)
{
    if (!r) return;
    pcre2_code_free(r->code);
    pcre2_match_context_free(r->limits);
    pcre2_general_context_free(r->memory);
    mem_free(r->literal);
    mem_free(r);
}

/* One character at p: its class and length. False at the end. */
struct look {
    const char *text;
    size_t n;
};
static enum uclass look(const struct look *l, size_t p, uint32_t *cp, int *len)
{
    *len = 0;
    *cp = 0;
    if (p >= l->n) return UC_OTHER;
    *len = str_utf8_next(l->text + p, l->n - p, cp);
    return uclass_of(*cp);
}

/* End of the run of characters of class c at p, at most `most` of them. */
static size_t run(const struct look *l, size_t p, enum uclass c, int64_t most)
{
    uint32_t cp;
    int len;
    while (most-- > 0 && look(l, p, &cp, &len) == c && len) p += (size_t)len;
    return p;
}

/* End of 's 't 're 've 'm 'll 'd at p, or p. U+017F folds to s (c5 bf in UTF-8). */
static size_t contraction(const struct look *l, size_t p, bool fold)
{
    static const char *const two[] = {"re", "ve", "ll"};
    const char *s = l->text + p + 1;
    size_t left = l->n - p - 1;
    char a = left > 0 ? s[0] : 0, b = left > 1 ? s[1] : 0;
    if (fold && a == '\xc5' && b == '\xbf') return p + 3;
    if (fold && a >= 'A' && a <= 'Z') a = (char)(a + 32);
    if (fold && b >= 'A' && b <= 'Z') b = (char)(b + 32);
    if (a && strchr("stmd", a)) return p + 2;
    for (int i = 0; i < 3; i++)
        if (a == two[i][0] && b == two[i][1]) return p + 3;
    return p;
}

/* \s+(?!\S)|\s+ at p, which is a space: all of the run at the end of the text, else all but its
 * last character, which the next match wants in front; that character alone if it is the run. */
static size_t spaces(const struct look *l, size_t p)
{
    size_t last = p, q = p;
    uint32_t cp;
    int len;
    while (look(l, q, &cp, &len) == UC_SPACE) {
        last = q;
        q += (size_t)len;
    }
    return q == l->n || last == p ? q : last;
}

static size_t gpt2_end(const struct look *l, size_t p)
{
    uint32_t cp, next;
    int len, next_len;
    enum uclass c = look(l, p, &cp, &len);
    if (cp == '\'') {
        size_t q = contraction(l, p, false);
        if (q > p) return q;
    }
    if (cp == ' ') {
        enum uclass c2 = look(l, p + 1, &next, &next_len);
        if (next_len && c2 != UC_SPACE) return run(l, p + 1, c2, INT64_MAX);
    }
    return c == UC_SPACE ? spaces(l, p) : run(l, p, c, INT64_MAX);
}

static size_t newlines(const struct look *l, size_t p)
{
    while (p < l->n && (l->text[p] == '\r' || l->text[p] == '\n')) p++;
    return p;
}

static size_t cl100k_end(const struct look *l, size_t p, int digits)
{
    uint32_t cp, next;
    int len, next_len;
    enum uclass c = look(l, p, &cp, &len);
    if (cp == '\'') {
        size_t q = contraction(l, p, true);
        if (q > p) return q;
    }
    if (c == UC_LETTER) return run(l, p, UC_LETTER, INT64_MAX);
    if (c == UC_NUMBER) return run(l, p, UC_NUMBER, digits);
    enum uclass c2 = look(l, p + (size_t)len, &next, &next_len);
    if (cp != '\r' && cp != '\n' && c2 == UC_LETTER)
        return run(l, p + (size_t)len, UC_LETTER, INT64_MAX);
    if (c == UC_OTHER) return newlines(l, run(l, p, UC_OTHER, INT64_MAX));
    if (cp == ' ' && next_len && c2 == UC_OTHER)
        return newlines(l, run(l, p + 1, UC_OTHER, INT64_MAX));
    /* \s*[\r\n]+ ends behind the last line end of the run of spaces. */
    size_t end = run(l, p, UC_SPACE, INT64_MAX);
    for (size_t q = end; q > p; q--)
        if (l->text[q - 1] == '\r' || l->text[q - 1] == '\n') return q;
    return spaces(l, p);
}

/* \w+|[^\w\s]+ from p on. */
static bool next_word(const struct look *l, size_t p, size_t *start, size_t *end)
{
    uint32_t cp;
    int len;
    for (; look(l, p, &cp, &len), len && uclass_space(cp); p += (size_t)len) {}
    *start = p;
    bool word = uclass_word(cp);
    for (; look(l, p, &cp, &len), len && !uclass_space(cp) && uclass_word(cp) == word;
         p += (size_t)len) {}
    *end = p;
    return p > *start;
}

static bool next_in_class(const struct look *l, size_t p, uclass_fn in, size_t *start, size_t *end)
{
    uint32_t cp;
    int len;
    for (; look(l, p, &cp, &len), len; p += (size_t)len)
        if (in(cp)) {
            *start = p;
            *end = p + (size_t)len;
            return true;
        }
    return false;
}

static bool next_literal(const struct look *l, size_t p, const struct rx *r, size_t *start,
                         size_t *end)
{
    const char *hit = memmem(l->text + p, l->n - p, r->literal, r->nliteral);
    if (!hit) return false;
    *start = (size_t)(hit - l->text);
    *end = *start + r->nliteral;
    return true;
}

static int next_pcre(struct rx_scan *s, const struct rx *r, struct err *e)
{
    if (!s->match_data) s->match_data = pcre2_match_data_create(1, r->memory);
    if (!s->match_data) return err_set(e, E_NOMEM, "out of memory for a regular expression");
    PCRE2_SPTR text = (PCRE2_SPTR)s->text;
    uint32_t how = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(r->code, text, s->n, s->pos, how, s->match_data, r->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter has the heap */
        rc = pcre2_match(r->code, text, s->n, s->pos, how | PCRE2_NO_JIT, s->match_data, r->limits);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc == PCRE2_ERROR_NOMEMORY) return err_set(e, E_NOMEM, "out of memory while matching");
    if (rc < 0) {
        char why[128];
        if (pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why) < 0) why[0] = 0;
        return err_set(e, E_LIMIT, "a regular expression of the tokenizer gave up on the text at "
                       "byte %zu of %zu: %s", s->pos, s->n, why);
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(s->match_data);
    s->start = span[0];
    s->end = span[1];
    return 1;
}

void rx_scan_begin(struct rx_scan *s, const char *text, size_t n)
{
    s->text = text;
    s->n = n;
    s->pos = 0;
    s->last_end = -1;
}

static int find(struct rx_scan *s, const struct rx *r, struct err *e)
{
    struct look l = {s->text, s->n};
    s->start = s->pos;
    switch (r->kind) {
    case RX_LITERAL: return next_literal(&l, s->pos, r, &s->start, &s->end);
    case RX_CLASS: return next_in_class(&l, s->pos, r->in, &s->start, &s->end);
    case RX_WORDS: return next_word(&l, s->pos, &s->start, &s->end);
    case RX_GPT2: s->end = s->pos < s->n ? gpt2_end(&l, s->pos) : s->pos; break;
    case RX_CL100K: s->end = s->pos < s->n ? cl100k_end(&l, s->pos, r->digits) : s->pos; break;
    case RX_PCRE: return next_pcre(s, r, e);
    }
    return s->end > s->start;
}

int rx_scan_next(struct rx_scan *s, const struct rx *r, struct err *e)
{
    while (s->pos <= s->n) {
        int rc = find(s, r, e);
        if (rc <= 0) {
            s->pos = s->n + 1;
            return rc;
        }
        if (s->start < s->end || s->last_end != (int64_t)s->end) {
            s->pos = s->end;
            s->last_end = (int64_t)s->end;
            return 1;
        }
        uint32_t cp;
        s->pos += s->pos < s->n ? (size_t)str_utf8_next(s->text + s->pos, s->n - s->pos, &cp) : 1;
    }
    return 0;
}

void rx_scan_clear(struct rx_scan *s)
{
    pcre2_match_data_free(s->match_data);
    s->match_data = NULL;
}
