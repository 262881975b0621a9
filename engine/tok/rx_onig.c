/* Oniguruma's syntax, as far as tokenizers use it, in PCRE2's. Both look alike, and differ in what
 * \s, \w, \v and {,n} mean, in nested and intersected classes, and in the Unicode version; so every
 * construct is read, and one that is not known here is refused instead of being passed on. */
#include "engine/tok/rx.h"

#include "engine/base/str.h"

#include <string.h>

/* The members of \s, and all else, for the inside of a class. */
#define SPACES "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" \
               "\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACES "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"      \
                   "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}"                \
                   "\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}"                \
                   "\\x{e000}-\\x{10ffff}"
/* Oniguruma's \w is L, M, Nd, Nl, Pc and the circled letters; outside of a class, where it looks
 * Latin-1 up in another table, the numbers of Latin-1 as well. */
#define CIRCLED "_\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"               \
                "\\x{1f170}-\\x{1f189}"
#define LATIN1_NUMBERS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

struct onig {
    const char *pattern, *p;
    struct buf *out;
    struct err *e;
};

static int refuse(struct onig *o, const char *what)
{
    return err_set(o->e, E_UNSUPPORTED,
                   "the regular expression '%.100s' uses %s at byte %d, which graft does not do",
                   o->pattern, what, (int)(o->p - o->pattern));
}

/* A general category, or one of the scripts that tokenizers name, with what Unicode has added to
 * it since PCRE2's tables. */
static int put_property(struct onig *o, const char *name)
{
    static const char *const scripts[][2] = {
        {"Han", "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
        {"Hiragana", "\\x{1b132}"}, {"Katakana", "\\x{1b155}"}, {"Hangul", ""},
    };
    static const struct {
        const char *name, *category;
    } words[] = {{"Letter", "L"}, {"Mark", "M"}, {"Number", "N"}, {"Punctuation", "P"},
                 {"Symbol", "S"}, {"Separator", "Z"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (str_eq(name, words[i].name)) name = words[i].category;
    size_t mark = o->out->len;
    buf_printf(o->out, "\\p{%s}", name);
    if (uclass_put_new(o->out, name)) return 0;
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++)
        if (str_eq(name, scripts[i][0])) {
            buf_puts(o->out, scripts[i][1]);
            return 0;
        }
    o->out->len = mark;
    return refuse(o, "an unknown property");
}

/* \p{Name} or \P{Name}, \p{^Name}; p stands behind the letter. */
static int property(struct onig *o, bool negative, bool in_class)
{
    char name[16];
    size_t n = 0;
    if (*o->p != '{') return refuse(o, "\\p without braces");
    if (*++o->p == '^') {
        negative = !negative;
        o->p++;
    }
    for (; *o->p && *o->p != '}'; o->p++)
        if (n + 1 < sizeof name) name[n++] = *o->p;
    name[n] = 0;
    if (!*o->p++) return refuse(o, "\\p without an end");
    if (negative && in_class) return refuse(o, "a negated property inside a class");
    if (!in_class) buf_puts(o->out, negative ? "[^" : "[");
    if (put_property(o, name)) return -1;
    if (!in_class) buf_putc(o->out, ']');
    return 0;
}

static int put_word(struct onig *o, bool in_class)
{
    static const char *const parts[] = {"L", "M", "Nd", "Nl", "Pc"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (put_property(o, parts[i])) return -1;
    buf_puts(o->out, CIRCLED);
    if (!in_class) buf_puts(o->out, LATIN1_NUMBERS);
    return 0;
}

static bool hex(char c)
{
    return c && strchr("0123456789abcdefABCDEF", c);
}

/* \xHH (a byte: below 0x80 it is a character), \x{H...}, \uHHHH. */
static int number(struct onig *o, char kind)
{
    char digits[9];
    size_t n = 0, most = kind == 'u' ? 4 : 2;
    bool braces = kind == 'x' && *o->p == '{';
    if (braces) {
        o->p++;
        most = 8;
    }
    while (n < most && hex(*o->p)) digits[n++] = *o->p++;
    digits[n] = 0;
    if (n == 0 || (kind == 'u' && n < 4) || (braces && *o->p++ != '}'))
        return refuse(o, "a broken code point");
    if (kind == 'x' && !braces && n == 2 && digits[0] > '7')
        return refuse(o, "a byte that is no character");
    buf_printf(o->out, "\\x{%s}", digits);
    return 0;
}

/* A class escape (\s \w \d and their negations) where it stands. */
static int class_escape(struct onig *o, char c, bool in_class)
{
    bool negative = c < 'a';
    if (negative && in_class && c != 'S') return refuse(o, "\\W or \\D inside a class");
    if (!in_class) buf_puts(o->out, negative ? "[^" : "[");
    if (c == 'S' && in_class)
        buf_puts(o->out, NOT_SPACES);
    else if (c == 's' || c == 'S')
        buf_puts(o->out, SPACES);
    else if (c == 'd' || c == 'D' ? put_property(o, "Nd") : put_word(o, in_class))
        return -1;
    if (!in_class) buf_putc(o->out, ']');
    return 0;
}

static int escape(struct onig *o, bool in_class)
{
    char c = *++o->p;
    if (!c) return refuse(o, "a backslash at its end");
    o->p++;
    switch (c) {
    case 's': case 'S': case 'w': case 'W': case 'd': case 'D':
        return class_escape(o, c, in_class);
    case 'p': case 'P': return property(o, c == 'P', in_class);
    case 'x': case 'u': return number(o, c);
    case 'n': case 'r': case 't': case 'f': buf_printf(o->out, "\\%c", c); return 0;
    case 'v': buf_puts(o->out, "\\x0b"); return 0;
    case 'A': case 'z':
        if (in_class) break;
        buf_printf(o->out, "\\%c", c);
        return 0;
    default: break;
    }
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c < 0) {
        char what[16] = {'\\', c < 0 ? '?' : c, 0};
        o->p -= 2;
        return refuse(o, what);
    }
    buf_printf(o->out, "\\%c", c);
    return 0;
}

static int char_class(struct onig *o)
{
    buf_putc(o->out, *o->p++);
    if (*o->p == '^') buf_putc(o->out, *o->p++);
    if (*o->p == ']') return refuse(o, "an empty class");
    while (*o->p != ']') {
        if (!*o->p) return refuse(o, "a class without an end");
        if (*o->p == '[') return refuse(o, "a class inside a class");
        if (o->p[0] == '&' && o->p[1] == '&') return refuse(o, "an intersection of classes");
        if (*o->p == '\\') {
            if (escape(o, true)) return -1;
        } else {
            buf_putc(o->out, *o->p++);
        }
    }
    buf_putc(o->out, *o->p++);
    return 0;
}

/* "(" and what makes it special. Option groups: only (?i: is the same in both. */
static int group(struct onig *o)
{
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (str_starts(o->p, known[i])) {
            buf_puts(o->out, known[i]);
            o->p += strlen(known[i]);
            return 0;
        }
    if (o->p[1] == '?' || o->p[1] == '*') return refuse(o, "an unknown group");
    buf_putc(o->out, *o->p++);
    return 0;
}

/* {n} {n,} {,n} {n,m}; a brace that starts none of them is a character. */
static int interval(struct onig *o)
{
    const char *q = o->p + 1, *low = q;
    while (*q >= '0' && *q <= '9') q++;
    bool has_low = q > low, comma = *q == ',';
    const char *high = comma ? ++q : q;
    while (*q >= '0' && *q <= '9') q++;
    if (*q != '}' || (!has_low && q == high)) {
        buf_puts(o->out, "\\{");
        o->p++;
        return 0;
    }
    /* {n}? and {n,m}+ are quantified once more in Oniguruma, lazy and possessive in PCRE2. */
    if (q[1] == '+' || (q[1] == '?' && !comma)) return refuse(o, "a quantified interval");
    buf_puts(o->out, has_low ? "{" : "{0");
    buf_put(o->out, has_low ? low : high - 1, (size_t)(q + 1 - (has_low ? low : high - 1)));
    o->p = q + 1;
    return 0;
}

int rx_translate(const char *pattern, struct buf *out, struct err *e)
{
    struct onig o = {pattern, pattern, out, e};
    while (*o.p) {
        int rc = 0;
        switch (*o.p) {
        case '\\': rc = escape(&o, false); break;
        case '[': rc = char_class(&o); break;
        case '(': rc = group(&o); break;
        case '{': rc = interval(&o); break;
        default: buf_putc(out, *o.p++); break;
        }
        if (rc) return -1;
    }
    return buf_ok(out, e);
}
