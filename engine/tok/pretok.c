#include "engine/tok/pretok.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/edit.h"

#include <string.h>

static struct pretok_step *new_step(struct pretok *m, enum pretok_kind kind, struct err *e)
{
    if (m->n == PRETOK_STEPS) {
        err_set(e, E_LIMIT, "more than %d steps of pre-tokenisers", PRETOK_STEPS);
        return NULL;
    }
    m->step[m->n] = (struct pretok_step){.kind = kind, .behavior = PRETOK_ISOLATED};
    return &m->step[m->n++];
}

static int add_prefix(struct pretok *m, const char *text, bool first_only, struct err *e)
{
    struct pretok_step *s = new_step(m, PRETOK_PREFIX, e);
    if (!s) return -1;
    s->first_only = first_only;
    s->text = mem_strdup(text, e);
    return s->text ? 0 : -1;
}

/* rx is taken, and may be NULL with *e set. */
static int add_split(struct pretok *m, struct rx *rx, enum pretok_behavior behavior, bool invert,
                     struct err *e)
{
    struct pretok_step *s = rx ? new_step(m, PRETOK_SPLIT, e) : NULL;
    if (!s) {
        rx_free(rx);
        return -1;
    }
    s->rx = rx;
    s->behavior = behavior;
    s->invert = invert;
    return 0;
}

static int read_behavior(const json_t *o, enum pretok_behavior *out, struct err *e)
{
    static const char *const names[] = {
        [PRETOK_REMOVED] = "Removed",
        [PRETOK_ISOLATED] = "Isolated",
        [PRETOK_WITH_PREVIOUS] = "MergedWithPrevious",
        [PRETOK_WITH_NEXT] = "MergedWithNext",
        [PRETOK_CONTIGUOUS] = "Contiguous",
    };
    const char *s;
    if (jx_str(o, "behavior", &s, e)) return -1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_eq(s, names[i])) {
            *out = (enum pretok_behavior)i;
            return 0;
        }
    return err_set(e, E_UNSUPPORTED, "'behavior' is '%.40s', which is none", s);
}

static int add_byte_level(struct pretok *m, const json_t *o, struct err *e)
{
    bool prefix, use_regex = true;
    if (jx_bool(o, "add_prefix_space", &prefix, e) || jx_opt_bool(o, "use_regex", &use_regex, e))
        return -1;
    if (prefix && add_prefix(m, " ", false, e)) return -1;
    if (use_regex && add_split(m, rx_gpt2(e), PRETOK_ISOLATED, false, e)) return -1;
    return new_step(m, PRETOK_BYTES, e) ? 0 : -1;
}

static int add_metaspace(struct pretok *m, const json_t *o, struct err *e)
{
    const char *with, *scheme = "always";
    bool split = true, prefix = true;
    uint32_t cp;
    if (jx_str(o, "replacement", &with, e) || jx_opt_str(o, "prepend_scheme", &scheme, e) ||
        jx_opt_bool(o, "split", &split, e) || jx_opt_bool(o, "add_prefix_space", &prefix, e))
        return -1;
    size_t n = strlen(with);
    if (!n || (size_t)str_utf8_next(with, n, &cp) != n)
        return err_set(e, E_FORMAT, "'replacement' must be one character");
    bool never = str_eq(scheme, "never"), first = str_eq(scheme, "first");
    if (!never && !first && !str_eq(scheme, "always"))
        return err_set(e, E_UNSUPPORTED, "'prepend_scheme' is '%.40s'; it must be always, first or "
                       "never", scheme);
    /* The older field, and the check that the library makes when both are there. */
    if (!prefix && json_object_get(o, "prepend_scheme") && !never)
        return err_set(e, E_FORMAT, "'add_prefix_space' is false but 'prepend_scheme' is '%s'",
                       scheme);
    struct pretok_step *s = new_step(m, PRETOK_META, e);
    if (!s) return -1;
    s->text = mem_strdup(with, e);
    s->rx = s->text ? rx_literal(" ", e) : NULL;
    if (!s->rx) return -1;
    if (prefix && !never && add_prefix(m, with, first, e)) return -1;
    return split ? add_split(m, rx_literal(with, e), PRETOK_WITH_NEXT, false, e) : 0;
}

static int add_split_by_pattern(struct pretok *m, const json_t *o, struct err *e)
{
    enum pretok_behavior behavior;
    bool invert;
    if (read_behavior(o, &behavior, e) || jx_bool(o, "invert", &invert, e)) return -1;
    return add_split(m, rx_pattern(o, "pattern", e), behavior, invert, e);
}

static int add_whitespace(struct pretok *m, const json_t *o, struct err *e)
{
    (void)o;
    return add_split(m, rx_words(e), PRETOK_REMOVED, true, e);
}

static int add_whitespace_split(struct pretok *m, const json_t *o, struct err *e)
{
    (void)o;
    return add_split(m, rx_class(uclass_space, e), PRETOK_REMOVED, false, e);
}

static int add_digits(struct pretok *m, const json_t *o, struct err *e)
{
    bool single;
    if (jx_bool(o, "individual_digits", &single, e)) return -1;
    return add_split(m, rx_class(uclass_numeric, e), single ? PRETOK_ISOLATED : PRETOK_CONTIGUOUS,
                     false, e);
}

static int add_punctuation(struct pretok *m, const json_t *o, struct err *e)
{
    enum pretok_behavior behavior = PRETOK_ISOLATED;
    if (json_object_get(o, "behavior") && read_behavior(o, &behavior, e)) return -1;
    return add_split(m, rx_class(uclass_punct, e), behavior, false, e);
}

static const struct {
    const char *type;
    int (*add)(struct pretok *m, const json_t *o, struct err *e);
} known[] = {
    {"ByteLevel", add_byte_level}, {"Metaspace", add_metaspace}, {"Split", add_split_by_pattern},
    {"Whitespace", add_whitespace}, {"WhitespaceSplit", add_whitespace_split},
    {"Digits", add_digits}, {"Punctuation", add_punctuation},
};

static int add(struct pretok *m, const json_t *o, struct err *e)
{
    const char *type;
    if (jx_str(o, "type", &type, e)) return -1;
    if (str_eq(type, "Sequence")) {
        json_t *list;
        if (jx_array(o, "pretokenizers", &list, e)) return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (add(m, json_array_get(list, i), e)) return err_wrap(e, "pretokenizers[%zu]", i);
        return 0;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (str_eq(type, known[i].type)) return known[i].add(m, o, e);
    return err_set(e, E_UNSUPPORTED, "graft does not have the pre-tokeniser '%.40s'", type);
}

int pretok_build(struct pretok *m, const json_t *v, struct err *e)
{
    *m = (struct pretok){0};
    if (!v || json_is_null(v) || !add(m, v, e)) return 0;
    pretok_clear(m);
    return -1;
}

void pretok_clear(struct pretok *m)
{
    for (int i = 0; i < m->n; i++) {
        mem_free(m->step[i].text);
        rx_free(m->step[i].rx);
    }
    *m = (struct pretok){0};
}

void pretok_parts_clear(struct pretok_parts *p)
{
    mem_free(p->v);
    *p = (struct pretok_parts){0};
}

static int add_part(struct pretok_parts *p, size_t start, size_t end, bool match, struct err *e)
{
    if (p->n == p->cap) {
        int64_t cap = p->cap ? 2 * p->cap : 64;
        void *v = mem_realloc(p->v, (size_t)cap * sizeof *p->v, e);
        if (!v) return -1;
        p->v = v;
        p->cap = cap;
    }
    p->v[p->n++] = (struct pretok_part){(uint32_t)start, (uint32_t)end, match};
    return 0;
}

/* The whole text as parts: matches, and what lies between them. */
static int find_parts(struct pretok_parts *p, const char *s, size_t n, const struct pretok_step *st,
                      struct rx_scan *scan, struct err *e)
{
    size_t done = 0;
    int found;
    p->n = 0;
    rx_scan_begin(scan, s, n);
    while ((found = rx_scan_next(scan, st->rx, e)) > 0) {
        if (done != scan->start && add_part(p, done, scan->start, st->invert, e)) return -1;
        if (add_part(p, scan->start, scan->end, !st->invert, e)) return -1;
        done = scan->end;
    }
    if (found < 0) return -1;
    return done != n ? add_part(p, done, n, st->invert, e) : 0;
}

/* Folds parts into their neighbours as the behaviour wants, in the given direction: a match joins
 * the part before it unless that is a match (merged), or parts of one kind join (contiguous). */
static void fold(struct pretok_parts *p, enum pretok_behavior how)
{
    bool back = how == PRETOK_WITH_NEXT, previous = false;
    int64_t kept = 0;
    for (int64_t k = 0; k < p->n; k++) {
        int64_t i = back ? p->n - 1 - k : k;
        struct pretok_part part = p->v[i];
        bool join = how == PRETOK_CONTIGUOUS ? part.match == previous : part.match && !previous;
        previous = part.match;
        if (!join || !kept)
            p->v[back ? p->n - ++kept : kept++] = part;
        else if (back)
            p->v[p->n - kept].start = part.start;
        else
            p->v[kept - 1].end = part.end;
    }
    if (back && kept) memmove(p->v, p->v + (p->n - kept), (size_t)kept * sizeof *p->v);
    p->n = kept;
}

static int split(const struct pretok_step *st, struct pieces *out, const struct pieces *in,
                 int64_t i, struct pretok_parts *parts, struct rx_scan *scan, struct err *e)
{
    const struct piece *v = &in->v[i];
    if (find_parts(parts, in->text + v->off, v->len, st, scan, e)) return -1;
    bool drop = st->behavior == PRETOK_REMOVED;
    if (!drop && st->behavior != PRETOK_ISOLATED) fold(parts, st->behavior);
    for (int64_t k = 0; k < parts->n; k++) {
        const struct pretok_part *part = &parts->v[k];
        if (drop && part->match) continue;
        if (pieces_slice(out, in, i, part->start, part->end, -1, e)) return -1;
    }
    return 0;
}

static int prefix(const struct pretok_step *st, struct pieces *out, const struct pieces *in,
                  int64_t i, struct err *e)
{
    const struct piece *v = &in->v[i];
    size_t n = strlen(st->text);
    bool has = v->len >= n && memcmp(in->text + v->off, st->text, n) == 0;
    if (has || (st->first_only && v->origin != 0)) return pieces_copy(out, in, i, e);
    return edit_prepend(out, in, i, st->text, e);
}

int pretok_run(const struct pretok *m, struct pieces *a, struct pieces *b,
               struct pretok_parts *parts, struct rx_scan *scan, struct err *e)
{
    for (int k = 0; k < m->n; k++) {
        const struct pretok_step *st = &m->step[k];
        pieces_reset(b);
        for (int64_t i = 0; i < a->n; i++) {
            int rc = 0;
            if (a->v[i].id >= 0)
                rc = pieces_copy(b, a, i, e);
            else if (st->kind == PRETOK_PREFIX)
                rc = prefix(st, b, a, i, e);
            else if (st->kind == PRETOK_META)
                rc = edit_replace(b, a, i, st->rx, st->text, scan, e);
            else if (st->kind == PRETOK_SPLIT)
                rc = split(st, b, a, i, parts, scan, e);
            else
                rc = edit_bytes(b, a, i, e);
            if (rc) return -1;
        }
        pieces_swap(a, b);
    }
    return 0;
}
