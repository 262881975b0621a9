#include "engine/tok/added.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/vocab.h"

#include <stdlib.h>
#include <string.h>

static int read_token(struct added_token *t, const json_t *o, struct err *e)
{
    int64_t id;
    const char *content;
    if (jx_int64(o, "id", 0, VOCAB_MAX - 1, &id, e) || jx_str(o, "content", &content, e) ||
        jx_bool(o, "single_word", &t->single_word, e) || jx_bool(o, "lstrip", &t->lstrip, e) ||
        jx_bool(o, "rstrip", &t->rstrip, e) || jx_bool(o, "normalized", &t->normalized, e) ||
        jx_bool(o, "special", &t->special, e))
        return -1;
    size_t n = strlen(content);
    if (!n || n > ADDED_LENGTH_MAX)
        return err_set(e, E_FORMAT, "'content' has %zu bytes; it must have 1 to %d", n,
                       ADDED_LENGTH_MAX);
    t->id = (int32_t)id;
    t->content = mem_strdup(content, e);
    return t->content ? 0 : -1;
}

int added_read(struct added *a, const json_t *list, struct err *e)
{
    *a = (struct added){0};
    if (!list || json_is_null(list)) return 0;
    if (!json_is_array(list)) return err_set(e, E_FORMAT, "must be a list");
    if (json_array_size(list) > VOCAB_MAX)
        return err_set(e, E_LIMIT, "has more than %d entries", VOCAB_MAX);
    int32_t n = (int32_t)json_array_size(list);
    a->v = mem_array(n, sizeof *a->v, e);
    if (!a->v) return -1;
    for (a->n = 0; a->n < n; a->n++)
        if (read_token(&a->v[a->n], json_array_get(list, (size_t)a->n), e)) {
            mem_free(a->v[a->n].content);
            err_wrap(e, "[%d]", a->n);
            added_clear(a);
            return -1;
        }
    return 0;
}

void added_clear(struct added *a)
{
    for (int32_t i = 0; i < a->n; i++) {
        mem_free(a->v[i].content);
        mem_free(a->v[i].shown);
    }
    mem_free(a->v);
    mem_free(a->raw.v);
    mem_free(a->normal.v);
    *a = (struct added){0};
}

static const char *pattern(const struct added_token *t)
{
    return t->shown ? t->shown : t->content;
}

static int normalize(struct added_token *t, const struct norm *m, struct pieces *a,
                     struct pieces *b, struct rx_scan *scan, struct err *e)
{
    pieces_reset(a);
    if (pieces_fill(a, t->content, 0, strlen(t->content), e) || pieces_end(a, 0, 0, -1, e) ||
        norm_run(m, a, b, scan, e))
        return -1;
    size_t n = a->n ? a->v[0].len : 0;
    if (!n || n > ADDED_LENGTH_MAX)
        return err_set(e, E_FORMAT, "'%.40s' has %zu bytes when it is normalised; it must have "
                       "1 to %d", t->content, n, ADDED_LENGTH_MAX);
    const char *s = a->text + a->v[0].off;
    if (n == strlen(t->content) && memcmp(s, t->content, n) == 0) return 0;
    t->shown = mem_alloc(n + 1, e);
    if (!t->shown) return -1;
    memcpy(t->shown, s, n);
    t->shown[n] = 0;
    return 0;
}

static int compare(const void *a, const void *b)
{
    const struct added_token *const *s = a, *const *t = b;
    return strcmp(pattern(*s), pattern(*t));
}

static int build_set(struct added_set *set, const struct added *a, bool normalized, struct err *e)
{
    set->v = mem_array(a->n, sizeof *set->v, e);
    if (!set->v) return -1;
    for (int32_t i = 0; i < a->n; i++)
        if (a->v[i].normalized == normalized) set->v[set->n++] = &a->v[i];
    qsort(set->v, (size_t)set->n, sizeof *set->v, compare);
    for (int32_t i = 0; i < set->n; i++) {
        if (i && compare(&set->v[i - 1], &set->v[i]) == 0)
            return err_set(e, E_FORMAT, "two tokens are both '%.40s'", pattern(set->v[i]));
        set->first[(unsigned char)pattern(set->v[i])[0] + 1]++;
    }
    for (int b = 0; b < 256; b++) set->first[b + 1] += set->first[b];
    return 0;
}

int added_build(struct added *a, const struct norm *m, struct err *e)
{
    struct pieces p = {0}, q = {0};
    struct rx_scan scan = {0};
    int rc = -1;
    for (int32_t i = 0; i < a->n; i++)
        if (a->v[i].normalized && normalize(&a->v[i], m, &p, &q, &scan, e)) {
            err_wrap(e, "[%d]", i);
            goto out;
        }
    rc = build_set(&a->raw, a, false, e) || build_set(&a->normal, a, true, e) ? -1 : 0;
out:
    rx_scan_clear(&scan);
    pieces_clear(&p);
    pieces_clear(&q);
    return rc;
}

/* First of v[lo, hi), which all start with the same k bytes, whose byte k is at least c. */
static int32_t lower_bound(const struct added_set *set, int32_t lo, int32_t hi, size_t k, int c)
{
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)pattern(set->v[mid])[k] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest token at s, n bytes left; *len its bytes. Of tokens that share k bytes, the one that
 * ends there comes first; a NUL of the text ends the search, as no token has one. */
static const struct added_token *longest(const struct added_set *set, const char *s, size_t n,
                                         size_t *len)
{
    const struct added_token *best = NULL;
    unsigned char c = (unsigned char)s[0];
    int32_t lo = set->first[c], hi = set->first[c + 1];
    for (size_t k = 1; lo < hi; k++) {
        if (!pattern(set->v[lo])[k]) {
            best = set->v[lo++];
            *len = k;
        }
        if (k == n) break;
        c = (unsigned char)s[k];
        if (!c) break;
        lo = lower_bound(set, lo, hi, k, c);
        hi = lower_bound(set, lo, hi, k, c + 1);
    }
    return best;
}

static uint32_t char_before(const char *s, size_t end, size_t *start)
{
    uint32_t cp;
    size_t k = end;
    do k--;
    while (k && ((unsigned char)s[k] & 0xc0) == 0x80);
    str_utf8_next(s + k, end - k, &cp);
    *start = k;
    return cp;
}

static bool stands_alone(const char *s, size_t n, size_t start, size_t end)
{
    uint32_t cp;
    size_t k;
    if (start && uclass_word(char_before(s, start, &k))) return false;
    if (end == n) return true;
    str_utf8_next(s + end, n - end, &cp);
    return !uclass_word(cp);
}

/* Takes the spaces beside a match into it, to the left not below `done`. */
static void widen(const struct added_token *t, const char *s, size_t n, size_t done, size_t *start,
                  size_t *end)
{
    size_t k;
    uint32_t cp;
    if (t->lstrip) {
        while (*start > done && uclass_space(char_before(s, *start, &k))) *start = k;
        /* The library lets a match that begins inside the spaces taken by the one before it go back
         * no further, but forward to there. */
        if (*start < done) *start = done;
    }
    while (t->rstrip && *end < n) {
        int len = str_utf8_next(s + *end, n - *end, &cp);
        if (!uclass_space(cp)) break;
        *end += (size_t)len;
    }
}

static int cut(const struct added_set *set, struct pieces *out, const struct pieces *in, int64_t i,
               struct err *e)
{
    const char *s = in->text + in->v[i].off;
    size_t n = in->v[i].len, done = 0, len = 0;
    for (size_t p = 0; p < n;) {
        const struct added_token *t = longest(set, s + p, n - p, &len);
        size_t start = p, end = p + len;
        p = t ? end : p + 1;
        if (!t || (t->single_word && !stands_alone(s, n, start, end))) continue;
        widen(t, s, n, done, &start, &end);
        if ((start > done && pieces_slice(out, in, i, done, start, -1, e)) ||
            pieces_slice(out, in, i, start, end, t->id, e))
            return -1;
        done = end;
    }
    return pieces_slice(out, in, i, done, n, -1, e);
}

int added_run(const struct added_set *set, struct pieces *out, const struct pieces *in,
              struct err *e)
{
    for (int64_t i = 0; i < in->n; i++) {
        int rc = 0;
        if (in->v[i].id >= 0)
            rc = pieces_copy(out, in, i, e);
        else if (set->n)
            rc = cut(set, out, in, i, e);
        else
            rc = pieces_slice(out, in, i, 0, in->v[i].len, -1, e);
        if (rc) return -1;
    }
    return 0;
}
