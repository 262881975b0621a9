#include "engine/tok/dec.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/edit.h"

#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

static int one_char(const json_t *o, const char *key, uint32_t *cp, struct err *e)
{
    const char *s;
    if (jx_str(o, key, &s, e)) return -1;
    size_t n = strlen(s);
    if (!n || (size_t)str_utf8_next(s, n, cp) != n)
        return err_set(e, E_FORMAT, "'%s' must be one character", key);
    return 0;
}

static int add_replace(struct dec_step *s, const json_t *o, struct err *e)
{
    const char *text;
    if (jx_str(o, "content", &text, e)) return -1;
    s->text = mem_strdup(text, e);
    s->rx = s->text ? rx_pattern(o, "pattern", e) : NULL;
    return s->rx ? 0 : -1;
}

static int add_strip(struct dec_step *s, const json_t *o, struct err *e)
{
    return one_char(o, "content", &s->cp, e) || jx_int64(o, "start", 0, 1 << 20, &s->start, e) ||
                   jx_int64(o, "stop", 0, 1 << 20, &s->stop, e)
               ? -1
               : 0;
}

static int add_meta(struct dec_step *s, const json_t *o, struct err *e)
{
    const char *scheme = "always";
    bool prefix = true;
    if (one_char(o, "replacement", &s->cp, e) || jx_opt_str(o, "prepend_scheme", &scheme, e) ||
        jx_opt_bool(o, "add_prefix_space", &prefix, e))
        return -1;
    s->drop_first = prefix && !str_eq(scheme, "never");
    return 0;
}

static const struct {
    const char *type;
    enum dec_kind kind;
    int (*add)(struct dec_step *s, const json_t *o, struct err *e); /* NULL: no settings */
} known[] = {
    {"ByteLevel", DEC_BYTE_LEVEL, NULL}, {"Replace", DEC_REPLACE, add_replace},
    {"ByteFallback", DEC_BYTE_FALLBACK, NULL}, {"Fuse", DEC_FUSE, NULL},
    {"Strip", DEC_STRIP, add_strip}, {"Metaspace", DEC_META, add_meta},
};

static int add(struct dec *d, const json_t *o, struct err *e)
{
    const char *type;
    if (jx_str(o, "type", &type, e)) return -1;
    if (str_eq(type, "Sequence")) {
        json_t *list;
        if (jx_array(o, "decoders", &list, e)) return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (add(d, json_array_get(list, i), e)) return err_wrap(e, "decoders[%zu]", i);
        return 0;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!str_eq(type, known[i].type)) continue;
        if (d->n == DEC_STEPS) return err_set(e, E_LIMIT, "more than %d decoders", DEC_STEPS);
        struct dec_step *s = &d->step[d->n++];
        s->kind = known[i].kind;
        return known[i].add ? known[i].add(s, o, e) : 0;
    }
    return err_set(e, E_UNSUPPORTED, "graft does not have the decoder '%.40s'", type);
}

int dec_build(struct dec *d, const json_t *v, struct err *e)
{
    *d = (struct dec){.none = !v || json_is_null(v)};
    if (d->none || !add(d, v, e)) return 0;
    dec_clear(d);
    return -1;
}

void dec_clear(struct dec *d)
{
    for (int i = 0; i < d->n; i++) {
        mem_free(d->step[i].text);
        rx_free(d->step[i].rx);
    }
    *d = (struct dec){0};
}

/* How many bytes at s begin a well-formed sequence that does not end; 1 if they begin none. */
static size_t broken(const unsigned char *s, size_t n)
{
    size_t len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4, k = 2;
    unsigned lo = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned hi = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n < 2 || s[1] < lo || s[1] > hi) return 1;
    while (k < len && k < n && (s[k] & 0xc0) == 0x80) k++;
    return k;
}

/* Appends bytes as UTF-8, a broken sequence as one U+FFFD (as Rust's from_utf8_lossy). */
static int put_lossy(struct pieces *out, const char *s, size_t n, struct err *e)
{
    for (size_t i = 0; i < n;) {
        size_t good = str_utf8_bad(s + i, n - i);
        if (pieces_fill(out, s + i, 0, good, e)) return -1;
        i += good;
        if (i == n) break;
        if (pieces_fill(out, REPLACEMENT, 0, 3, e)) return -1;
        i += broken((const unsigned char *)s + i, n - i);
    }
    return 0;
}

/* All tokens in one: characters of the byte-level alphabet become bytes; a token with any other
 * character stays as it is. */
static int byte_level(struct pieces *out, const struct pieces *in, struct err *e)
{
    struct buf bytes;
    int rc = -1;
    buf_init(&bytes, PIECES_MAX);
    for (int64_t k = 0; k < in->n; k++) {
        const struct piece *v = &in->v[k];
        const char *s = in->text + v->off;
        size_t mark = bytes.len;
        for (size_t i = 0; i < v->len;) {
            uint32_t cp;
            i += (size_t)str_utf8_next(s + i, v->len - i, &cp);
            int byte = edit_char_byte(cp);
            if (byte < 0) {
                bytes.len = mark;
                buf_put(&bytes, s, v->len);
                break;
            }
            buf_putc(&bytes, (char)byte);
        }
    }
    size_t start = out->len;
    if (!buf_ok(&bytes, e) && !put_lossy(out, buf_str(&bytes), bytes.len, e))
        rc = pieces_end(out, start, 0, -1, e);
    buf_clear(&bytes);
    return rc;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of a token like <0x0A>, or -1. (Rust's parser takes "<0x+A>" for a byte, too.) */
static int byte_token(const char *s, size_t n)
{
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int high = s[3] == '+' ? 0 : hex_digit(s[3]), low = hex_digit(s[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Runs of byte tokens become their text, or one U+FFFD for each byte if they are no UTF-8. */
static int byte_fallback(struct pieces *out, const struct pieces *in, struct err *e)
{
    struct buf bytes;
    int rc = -1;
    buf_init(&bytes, PIECES_MAX);
    for (int64_t k = 0; k <= in->n; k++) {
        const struct piece *v = k < in->n ? &in->v[k] : NULL;
        int byte = v ? byte_token(in->text + v->off, v->len) : -1;
        if (byte >= 0) {
            buf_putc(&bytes, (char)byte);
            continue;
        }
        if (buf_ok(&bytes, e)) goto out;
        bool good = str_utf8_bad(buf_str(&bytes), bytes.len) == bytes.len;
        size_t start = out->len;
        if (good && (pieces_fill(out, buf_str(&bytes), 0, bytes.len, e) ||
                     pieces_end(out, start, 0, -1, e)))
            goto out;
        for (size_t i = 0; !good && i < bytes.len; i++) {
            start = out->len;
            if (pieces_fill(out, REPLACEMENT, 0, 3, e) || pieces_end(out, start, 0, -1, e))
                goto out;
        }
        bytes.len = 0;
        if (v && pieces_copy(out, in, k, e)) goto out;
    }
    rc = 0;
out:
    buf_clear(&bytes);
    return rc;
}

static int fuse(struct pieces *out, const struct pieces *in, struct err *e)
{
    for (int64_t k = 0; k < in->n; k++)
        if (pieces_fill(out, in->text + in->v[k].off, 0, in->v[k].len, e)) return -1;
    return pieces_end(out, 0, 0, -1, e);
}

static int strip(const struct dec_step *st, struct pieces *out, const struct pieces *in, int64_t k,
                 struct err *e)
{
    const char *s = in->text + in->v[k].off;
    char c[4];
    size_t n = (size_t)str_utf8_put(st->cp, c), from = 0, to = in->v[k].len;
    for (int64_t i = 0; i < st->start && to - from >= n && !memcmp(s + from, c, n); i++) from += n;
    for (int64_t i = 0; i < st->stop && to - from >= n && !memcmp(s + to - n, c, n); i++) to -= n;
    return pieces_slice(out, in, k, from, to, -1, e);
}

static int meta(const struct dec_step *st, struct pieces *out, const struct pieces *in, int64_t k,
                struct err *e)
{
    const struct piece *v = &in->v[k];
    const char *s = in->text + v->off;
    size_t start = out->len;
    for (size_t i = 0, len; i < v->len; i += len) {
        uint32_t cp;
        len = (size_t)str_utf8_next(s + i, v->len - i, &cp);
        if (cp != st->cp ? pieces_fill(out, s + i, 0, len, e)
                         : !(k == 0 && st->drop_first) && pieces_fill(out, " ", 0, 1, e))
            return -1;
    }
    return pieces_end(out, start, 0, -1, e);
}

static int run_step(const struct dec_step *st, struct pieces *out, const struct pieces *in,
                    struct rx_scan *scan, struct err *e)
{
    if (st->kind == DEC_BYTE_LEVEL) return byte_level(out, in, e);
    if (st->kind == DEC_BYTE_FALLBACK) return byte_fallback(out, in, e);
    if (st->kind == DEC_FUSE) return fuse(out, in, e);
    for (int64_t k = 0; k < in->n; k++) {
        int rc;
        if (st->kind == DEC_REPLACE)
            rc = edit_replace(out, in, k, st->rx, st->text, scan, e);
        else if (st->kind == DEC_STRIP)
            rc = strip(st, out, in, k, e);
        else
            rc = meta(st, out, in, k, e);
        if (rc) return -1;
    }
    return 0;
}

/* No decoder: the tokens with spaces between them. */
static int join(struct pieces *out, const struct pieces *in, struct err *e)
{
    for (int64_t k = 0; k < in->n; k++)
        if ((k && pieces_fill(out, " ", 0, 1, e)) ||
            pieces_fill(out, in->text + in->v[k].off, 0, in->v[k].len, e))
            return -1;
    return pieces_end(out, 0, 0, -1, e);
}

int dec_run(const struct dec *d, struct pieces *a, struct pieces *b, struct rx_scan *scan,
            struct err *e)
{
    for (int i = 0; i < d->n; i++) {
        pieces_reset(b);
        if (run_step(&d->step[i], b, a, scan, e)) return -1;
        pieces_swap(a, b);
    }
    if (!d->none) return 0;
    pieces_reset(b);
    if (join(b, a, e)) return -1;
    pieces_swap(a, b);
    return 0;
}
