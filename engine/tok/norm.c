#include "engine/tok/norm.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/edit.h"

#include <string.h>
#include <utf8proc.h>

static int add_form(struct norm_step *s, const json_t *o, struct err *e)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    (void)e;
    s->kind = NORM_FORM;
    s->form = UTF8PROC_STABLE;
    s->form |= type[strlen(type) - 1] == 'C' ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (type[2] == 'K') s->form |= UTF8PROC_COMPAT;
    return 0;
}

static int add_lower(struct norm_step *s, const json_t *o, struct err *e)
{
    (void)o;
    (void)e;
    s->kind = NORM_LOWER;
    return 0;
}

static int add_bytes(struct norm_step *s, const json_t *o, struct err *e)
{
    (void)o;
    (void)e;
    s->kind = NORM_BYTES;
    return 0;
}

static int add_strip(struct norm_step *s, const json_t *o, struct err *e)
{
    s->kind = NORM_STRIP;
    if (jx_bool(o, "strip_left", &s->left, e)) return -1;
    return jx_bool(o, "strip_right", &s->right, e);
}

static int add_prepend(struct norm_step *s, const json_t *o, struct err *e)
{
    const char *text;
    s->kind = NORM_PREPEND;
    if (jx_str(o, "prepend", &text, e)) return -1;
    s->text = mem_strdup(text, e);
    return s->text ? 0 : -1;
}

static int add_replace(struct norm_step *s, const json_t *o, struct err *e)
{
    const char *text;
    s->kind = NORM_REPLACE;
    if (jx_str(o, "content", &text, e)) return -1;
    s->text = mem_strdup(text, e);
    if (!s->text) return -1;
    s->rx = rx_pattern(o, "pattern", e);
    return s->rx ? 0 : -1;
}

static const struct {
    const char *type;
    int (*add)(struct norm_step *s, const json_t *o, struct err *e);
} known[] = {
    {"NFC", add_form}, {"NFD", add_form}, {"NFKC", add_form}, {"NFKD", add_form},
    {"Lowercase", add_lower}, {"Strip", add_strip}, {"Prepend", add_prepend},
    {"Replace", add_replace}, {"ByteLevel", add_bytes},
};

static int add(struct norm *m, const json_t *o, struct err *e)
{
    const char *type;
    if (jx_str(o, "type", &type, e)) return -1;
    if (str_eq(type, "Sequence")) {
        json_t *list;
        if (jx_array(o, "normalizers", &list, e)) return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (add(m, json_array_get(list, i), e)) return err_wrap(e, "normalizers[%zu]", i);
        return 0;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!str_eq(type, known[i].type)) continue;
        if (m->n == NORM_STEPS)
            return err_set(e, E_LIMIT, "more than %d normalisers", NORM_STEPS);
        return known[i].add(&m->step[m->n++], o, e);
    }
    return err_set(e, E_UNSUPPORTED, "graft does not have the normaliser '%.40s'", type);
}

int norm_build(struct norm *m, const json_t *v, struct err *e)
{
    *m = (struct norm){0};
    if (!v || json_is_null(v) || !add(m, v, e)) return 0;
    norm_clear(m);
    return -1;
}

void norm_clear(struct norm *m)
{
    for (int i = 0; i < m->n; i++) {
        mem_free(m->step[i].text);
        rx_free(m->step[i].rx);
    }
    *m = (struct norm){0};
}

/* Writes the code points of a normalised segment. The origin of each is that of the character from
 * which the first code point of its own decomposition came: from[k] is the origin of the k-th of
 * all decomposed code points, total of them. */
static int put_form(struct pieces *out, const utf8proc_int32_t *cp, utf8proc_ssize_t n, int form,
                    const uint32_t *from, utf8proc_ssize_t total, struct err *e)
{
    utf8proc_ssize_t k = 0;
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        char s[4];
        int bound = 0;
        int len = str_utf8_put((uint32_t)cp[i], s);
        if (pieces_fill(out, s, from[k < total ? k : total - 1], (size_t)len, e)) return -1;
        k += utf8proc_decompose_char(cp[i], NULL, 0, form, &bound);
    }
    return 0;
}

/* Normalises one segment that nothing outside of it can touch. */
static int form_segment(struct pieces *out, const char *s, const uint32_t *at, size_t n, int form,
                        struct err *e)
{
    const utf8proc_uint8_t *u = (const utf8proc_uint8_t *)s;
    utf8proc_ssize_t total = utf8proc_decompose(u, (utf8proc_ssize_t)n, NULL, 0, form);
    int rc = -1;
    if (total <= 0) return err_set(e, E_BUG, "utf8proc: %s", utf8proc_errmsg(total));
    utf8proc_int32_t *cp = mem_array(total + 1, sizeof *cp, e);
    uint32_t *from = cp ? mem_array(total, sizeof *from, e) : NULL;
    if (!from) goto out;
    utf8proc_ssize_t k = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int bound = 0;
        size_t start = i;
        i += (size_t)str_utf8_next(s + i, n - i, &c);
        utf8proc_ssize_t end = k + utf8proc_decompose_char((utf8proc_int32_t)c, NULL, 0, form,
                                                           &bound);
        for (; k < end && k < total; k++) from[k] = at[start];
    }
    utf8proc_decompose(u, (utf8proc_ssize_t)n, cp, total, form);
    utf8proc_ssize_t m = utf8proc_normalize_utf32(cp, total, form);
    if (m < 0) {
        err_set(e, E_BUG, "utf8proc: %s", utf8proc_errmsg(m));
        goto out;
    }
    rc = put_form(out, cp, m, form, from, total, e);
out:
    mem_free(from);
    mem_free(cp);
    return rc;
}

/* Cuts the text where nothing reorders or composes across: before every character below `stable`
 * (such a character is changed only by marks behind it) and around the inert ones. */
static int form_piece(struct pieces *out, const struct pieces *in, int64_t p, int form,
                      struct err *e)
{
    const struct piece *v = &in->v[p];
    const char *s = in->text + v->off;
    const uint32_t *at = in->at + v->off;
    size_t n = v->len, start = out->len;
    uint32_t stable = form & UTF8PROC_COMPOSE && !(form & UTF8PROC_COMPAT) ? 0x300 : 0x80;
    for (size_t i = 0; i < n;) {
        size_t k = i;
        while (k < n && (unsigned char)s[k] < 0x80) k++;
        if (k < n && k > i) k--; /* a mark may follow the last one */
        if (pieces_put(out, s + i, at + i, k - i, e)) return -1;
        i = k;
        if (i == n) break;
        uint32_t first, cp;
        size_t end = i + (size_t)str_utf8_next(s + i, n - i, &first);
        bool alone = uclass_inert(first);
        while (!alone && end < n) {
            int len = str_utf8_next(s + end, n - end, &cp);
            if (cp < stable || uclass_inert(cp)) break;
            end += (size_t)len;
        }
        if (first < stable) alone |= end == i + (first < 0x80 ? 1 : 2);
        if (alone ? pieces_put(out, s + i, at + i, end - i, e)
                  : form_segment(out, s + i, at + i, end - i, form, e))
            return -1;
        i = end;
    }
    return pieces_end(out, start, v->origin, -1, e);
}

static int lower_piece(struct pieces *out, const struct pieces *in, int64_t p, struct err *e)
{
    const struct piece *v = &in->v[p];
    const char *s = in->text + v->off;
    size_t start = out->len;
    for (size_t i = 0; i < v->len;) {
        uint32_t cp, low[2];
        uint32_t origin = in->at[v->off + i];
        i += (size_t)str_utf8_next(s + i, v->len - i, &cp);
        int n = uclass_lower(cp, low);
        for (int k = 0; k < n; k++) {
            char t[4];
            if (pieces_fill(out, t, origin, (size_t)str_utf8_put(low[k], t), e)) return -1;
        }
    }
    return pieces_end(out, start, v->origin, -1, e);
}

/* Start of the character that ends at byte `end`. */
static size_t previous(const char *s, size_t end)
{
    do end--;
    while (end && ((unsigned char)s[end] & 0xc0) == 0x80);
    return end;
}

static int strip_piece(struct pieces *out, const struct pieces *in, int64_t p,
                       const struct norm_step *st, struct err *e)
{
    const struct piece *v = &in->v[p];
    const char *s = in->text + v->off;
    size_t from = 0, to = v->len, start = out->len;
    uint32_t cp;
    while (st->left && from < to) {
        int len = str_utf8_next(s + from, to - from, &cp);
        if (!uclass_space(cp)) break;
        from += (size_t)len;
    }
    while (st->right && to > from) {
        size_t k = previous(s, to);
        str_utf8_next(s + k, to - k, &cp);
        if (!uclass_space(cp)) break;
        to = k;
    }
    if (pieces_put(out, s + from, in->at + v->off + from, to - from, e)) return -1;
    return pieces_end(out, start, v->origin, -1, e);
}

static int run_step(const struct norm_step *s, struct pieces *out, const struct pieces *in,
                    int64_t i, struct rx_scan *scan, struct err *e)
{
    switch (s->kind) {
    case NORM_FORM: return form_piece(out, in, i, s->form, e);
    case NORM_LOWER: return lower_piece(out, in, i, e);
    case NORM_STRIP: return strip_piece(out, in, i, s, e);
    case NORM_PREPEND: return edit_prepend(out, in, i, s->text, e);
    case NORM_REPLACE: return edit_replace(out, in, i, s->rx, s->text, scan, e);
    case NORM_BYTES: return edit_bytes(out, in, i, e);
    }
    return err_set(e, E_BUG, "normaliser %d", (int)s->kind);
}

int norm_run(const struct norm *m, struct pieces *a, struct pieces *b, struct rx_scan *scan,
             struct err *e)
{
    for (int k = 0; k < m->n; k++) {
        pieces_reset(b);
        for (int64_t i = 0; i < a->n; i++)
            if (a->v[i].id >= 0 ? pieces_copy(b, a, i, e)
                                : run_step(&m->step[k], b, a, i, scan, e))
                return -1;
        pieces_swap(a, b);
    }
    return 0;
}
