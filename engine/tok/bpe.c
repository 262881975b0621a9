#include "engine/tok/bpe.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <stdio.h>
#include <string.h>

enum { MERGES_MAX = 1 << 22 };

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static uint64_t slot_of(const struct bpe *b, uint64_t pair)
{
    uint64_t h = pair * 0x9e3779b97f4a7c15ull;
    return (h ^ h >> 32) & b->mask;
}

static const struct bpe_merge *find_merge(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = pair_of(left, right);
    for (uint64_t at = slot_of(b, pair); b->merge[at].pair != UINT64_MAX; at = (at + 1) & b->mask)
        if (b->merge[at].pair == pair) return &b->merge[at];
    return NULL;
}

static int32_t own(const struct bpe *b, const char *s, size_t n)
{
    int32_t id = vocab_find(b->vocab, s, n);
    return id < b->n ? id : -1;
}

static int no_token(struct err *e, const char *s, size_t n)
{
    return err_set(e, E_FORMAT, "'%.*s' is not in the vocabulary", n < 80 ? (int)n : 80, s);
}

static int add_merge(struct bpe *b, struct buf *joined, const char *const part[2],
                     const size_t len[2], int32_t rank, struct err *e)
{
    int32_t id[2];
    for (int i = 0; i < 2; i++) {
        id[i] = own(b, part[i], len[i]);
        if (id[i] < 0) return no_token(e, part[i], len[i]);
    }
    joined->len = 0;
    buf_put(joined, part[0], len[0]);
    buf_put(joined, part[1], len[1]);
    if (buf_ok(joined, e)) return -1;
    int32_t whole = own(b, buf_str(joined), joined->len);
    if (whole < 0) return no_token(e, buf_str(joined), joined->len);
    uint64_t pair = pair_of(id[0], id[1]), at = slot_of(b, pair);
    while (b->merge[at].pair != UINT64_MAX && b->merge[at].pair != pair) at = (at + 1) & b->mask;
    b->merge[at] = (struct bpe_merge){pair, rank, whole}; /* of two equal pairs the later counts */
    return 0;
}

/* "a b" or ["a", "b"]. Returns 1 for a "#version" line, which is no merge. */
static int parse_merge(const json_t *m, const char *part[2], size_t len[2], struct err *e)
{
    if (json_is_array(m) && json_array_size(m) == 2) {
        for (size_t i = 0; i < 2; i++) {
            part[i] = json_string_value(json_array_get(m, i));
            len[i] = json_string_length(json_array_get(m, i));
        }
        if (part[0] && part[1]) return 0;
    }
    const char *s = json_string_value(m), *space = s ? strchr(s, ' ') : NULL;
    if (s && str_starts(s, "#version")) return 1;
    if (!space || strchr(space + 1, ' '))
        return err_set(e, E_FORMAT, "must be \"a b\" or [\"a\", \"b\"]");
    part[0] = s;
    len[0] = (size_t)(space - s);
    part[1] = space + 1;
    len[1] = strlen(part[1]);
    return 0;
}

static int read_merges(struct bpe *b, const json_t *model, struct err *e)
{
    json_t *list;
    struct buf joined;
    size_t slots = 8;
    int32_t rank = 0;
    int rc = -1;
    if (jx_array(model, "merges", &list, e)) return -1;
    if (json_array_size(list) > MERGES_MAX)
        return err_set(e, E_LIMIT, "'merges' has more than %d entries", MERGES_MAX);
    while (slots < 2 * json_array_size(list)) slots *= 2;
    b->mask = slots - 1;
    b->merge = mem_array((int64_t)slots, sizeof *b->merge, e);
    if (!b->merge) return -1;
    for (size_t i = 0; i < slots; i++) b->merge[i].pair = UINT64_MAX;
    buf_init(&joined, 1 << 27);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *part[2];
        size_t len[2];
        int what = parse_merge(json_array_get(list, i), part, len, e);
        if (what < 0 || (what == 0 && add_merge(b, &joined, part, len, rank, e))) {
            err_wrap(e, "merges[%zu]", i);
            goto out;
        }
        rank += what == 0;
    }
    rc = 0;
out:
    buf_clear(&joined);
    return rc;
}

/* Ids of the characters and bytes, so that the common ones need no hash. */
static int read_chars(struct bpe *b, struct err *e)
{
    b->chars = mem_array(BPE_CHARS, sizeof *b->chars, e);
    if (!b->chars) return -1;
    for (uint32_t cp = 0; cp < BPE_CHARS; cp++) {
        char s[4];
        b->chars[cp] = own(b, s, (size_t)str_utf8_put(cp, s));
    }
    for (int i = 0; i < 256; i++) {
        char s[8];
        snprintf(s, sizeof s, "<0x%02X>", (unsigned)i);
        b->bytes[i] = own(b, s, 6);
    }
    return 0;
}

/* What would change the algorithm has to be absent, null or empty. */
static int check_unused(const json_t *model, struct err *e)
{
    static const char *const names[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    double dropout = 0;
    if (jx_opt_real(model, "dropout", 0, 1, &dropout, e)) return -1;
    if (dropout != 0) return err_set(e, E_UNSUPPORTED, "'dropout' is %g; it must be 0", dropout);
    for (int i = 0; i < 2; i++) {
        const char *s = "";
        if (jx_opt_str(model, names[i], &s, e)) return -1;
        if (*s)
            return err_set(e, E_UNSUPPORTED, "'%s' is '%.40s'; graft needs it empty", names[i], s);
    }
    return 0;
}

int bpe_build(struct bpe *b, const struct vocab *v, int32_t n, const json_t *model,
              struct err *e)
{
    const char *unk = NULL;
    *b = (struct bpe){.vocab = v, .n = n, .unk = -1};
    if (check_unused(model, e) || jx_opt_bool(model, "fuse_unk", &b->fuse_unk, e) ||
        jx_opt_bool(model, "byte_fallback", &b->byte_fallback, e) ||
        jx_opt_bool(model, "ignore_merges", &b->ignore_merges, e) ||
        jx_opt_str(model, "unk_token", &unk, e) || read_merges(b, model, e) || read_chars(b, e)) {
        bpe_clear(b);
        return -1;
    }
    b->has_unk = unk != NULL;
    if (unk) b->unk = own(b, unk, strlen(unk));
    return 0;
}

void bpe_clear(struct bpe *b)
{
    mem_free(b->merge);
    mem_free(b->chars);
    *b = (struct bpe){0};
}

void bpe_word_clear(struct bpe_word *w)
{
    mem_free(w->v);
    mem_free(w->heap);
    *w = (struct bpe_word){0};
}

static int symbol_room(struct bpe_word *w, int64_t n, struct err *e)
{
    if (n <= w->cap) return 0;
    int64_t cap = n < 4096 ? 2 * n : n;
    void *v = mem_realloc(w->v, (size_t)cap * sizeof *w->v, e);
    if (!v) return -1;
    w->v = v;
    w->cap = cap;
    return 0;
}

/* n - 1 pairs at first; each of at most n - 1 merges takes one out and puts two in. */
static int heap_room(struct bpe_word *w, int64_t n, struct err *e)
{
    if (2 * n <= w->heap_cap) return 0;
    void *heap = mem_realloc(w->heap, (size_t)(2 * n) * sizeof *w->heap, e);
    if (!heap) return -1;
    w->heap = heap;
    w->heap_cap = 2 * n;
    return 0;
}

static void heap_push(struct bpe_word *w, uint64_t key, int32_t id)
{
    int64_t i = w->nheap++;
    for (; i > 0 && w->heap[(i - 1) / 2].key > key; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = (struct bpe_entry){key, id};
}

static struct bpe_entry heap_pop(struct bpe_word *w)
{
    struct bpe_entry top = w->heap[0], last = w->heap[--w->nheap];
    int64_t i = 0;
    for (;;) {
        int64_t c = 2 * i + 1;
        if (c >= w->nheap) break;
        if (c + 1 < w->nheap && w->heap[c + 1].key < w->heap[c].key) c++;
        if (w->heap[c].key >= last.key) break;
        w->heap[i] = w->heap[c];
        i = c;
    }
    w->heap[i] = last;
    return top;
}

static void push_pair(const struct bpe *b, struct bpe_word *w, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return;
    const struct bpe_merge *m = find_merge(b, w->v[left].id, w->v[right].id);
    if (m) heap_push(w, (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)left, m->id);
}

static void add_symbol(struct bpe_word *w, int32_t id, uint32_t len)
{
    int32_t i = (int32_t)w->n++;
    w->v[i] = (struct bpe_symbol){id, i - 1, -1, len};
    if (i) w->v[i - 1].next = i;
}

/* An unknown character waits in *unk (its length, 0: none), as in the library: it is written by the
 * next known character or at the end, and byte tokens in between pass it by. */
static int add_unknown(const struct bpe *b, struct bpe_word *w, const char *s, uint32_t len,
                       uint32_t *unk, struct err *e)
{
    bool all = b->byte_fallback;
    for (uint32_t i = 0; i < len && all; i++) all = b->bytes[(unsigned char)s[i]] >= 0;
    if (all) {
        for (uint32_t i = 0; i < len; i++) add_symbol(w, b->bytes[(unsigned char)s[i]], 1);
        return 0;
    }
    if (!b->has_unk) return 0; /* the library drops it without a word */
    if (b->unk < 0)
        return err_set(e, E_FORMAT, "the text has a character that is not in the vocabulary, and "
                       "model.unk_token names no token of it");
    if (*unk && !b->fuse_unk) {
        add_symbol(w, b->unk, *unk);
        *unk = 0;
    }
    *unk += len;
    return 0;
}

static int split_chars(const struct bpe *b, const char *s, size_t n, struct bpe_word *w,
                       struct err *e)
{
    uint32_t unk = 0;
    w->n = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = str_utf8_next(s + i, n - i, &cp);
        int32_t id = cp < BPE_CHARS ? b->chars[cp] : own(b, s + i, (size_t)len);
        if (id < 0) {
            if (add_unknown(b, w, s + i, (uint32_t)len, &unk, e)) return -1;
        } else {
            if (unk) add_symbol(w, b->unk, unk);
            unk = 0;
            add_symbol(w, id, (uint32_t)len);
        }
        i += (size_t)len;
    }
    if (unk) add_symbol(w, b->unk, unk);
    return 0;
}

static void merge_all(const struct bpe *b, struct bpe_word *w)
{
    struct bpe_symbol *v = w->v;
    w->nheap = 0;
    for (int32_t i = 0; i + 1 < w->n; i++) push_pair(b, w, i, i + 1);
    while (w->nheap) {
        struct bpe_entry top = heap_pop(w);
        int32_t i = (int32_t)(uint32_t)top.key, next = v[i].next;
        if (v[i].len == 0 || next < 0) continue;
        const struct bpe_merge *m = find_merge(b, v[i].id, v[next].id);
        if (!m || m->id != top.id) continue;
        v[i].id = top.id;
        v[i].len += v[next].len;
        v[i].next = v[next].next;
        v[next].len = 0;
        if (v[i].next >= 0) v[v[i].next].prev = i;
        push_pair(b, w, v[i].prev, i);
        push_pair(b, w, i, v[i].next);
    }
    int64_t n = 0;
    for (int64_t i = 0; i < w->n; i++)
        if (v[i].len) v[n++] = v[i];
    w->n = n;
}

int bpe_encode(const struct bpe *b, const char *s, size_t n, struct bpe_word *w, struct err *e)
{
    if (symbol_room(w, (int64_t)n, e)) return -1;
    int32_t whole = b->ignore_merges ? own(b, s, n) : -1;
    if (whole >= 0) {
        w->n = 0;
        add_symbol(w, whole, (uint32_t)n);
        return 0;
    }
    if (split_chars(b, s, n, w, e) || heap_room(w, w->n, e)) return -1;
    merge_all(b, w);
    return 0;
}
