#include "engine/tok/pieces.h"

#include "engine/base/mem.h"

#include <string.h>

void pieces_clear(struct pieces *p)
{
    mem_free(p->text);
    mem_free(p->at);
    mem_free(p->v);
    *p = (struct pieces){0};
}

void pieces_reset(struct pieces *p)
{
    p->len = 0;
    p->n = 0;
}

void pieces_swap(struct pieces *p, struct pieces *q)
{
    struct pieces t = *p;
    *p = *q;
    *q = t;
}

int pieces_room(struct pieces *p, size_t n, struct err *e)
{
    if (n <= p->cap - p->len) return 0;
    if (n > PIECES_MAX - p->len)
        return err_set(e, E_LIMIT, "the text grows beyond %d bytes while it is tokenised",
                       PIECES_MAX);
    size_t cap = p->cap ? p->cap : 256;
    while (cap < p->len + n) cap *= 2;
    char *text = mem_realloc(p->text, cap, e);
    if (!text) return -1;
    p->text = text;
    uint32_t *at = mem_realloc(p->at, cap * sizeof *at, e);
    if (!at) return -1;
    p->at = at;
    p->cap = cap;
    return 0;
}

int pieces_put(struct pieces *p, const char *s, const uint32_t *at, size_t n, struct err *e)
{
    if (pieces_room(p, n, e)) return -1;
    if (n) {
        memcpy(p->text + p->len, s, n);
        memcpy(p->at + p->len, at, n * sizeof *at);
    }
    p->len += n;
    return 0;
}

int pieces_fill(struct pieces *p, const char *s, uint32_t at, size_t n, struct err *e)
{
    if (pieces_room(p, n, e)) return -1;
    if (n) memcpy(p->text + p->len, s, n);
    for (size_t i = 0; i < n; i++) p->at[p->len + i] = at;
    p->len += n;
    return 0;
}

int pieces_end(struct pieces *p, size_t start, uint32_t origin, int32_t id, struct err *e)
{
    if (start == p->len) return 0;
    if (p->n == p->vcap) {
        int64_t cap = p->vcap ? 2 * p->vcap : 64;
        struct piece *v = mem_realloc(p->v, (size_t)cap * sizeof *v, e);
        if (!v) return -1;
        p->v = v;
        p->vcap = cap;
    }
    p->v[p->n++] = (struct piece){(uint32_t)start, (uint32_t)(p->len - start), origin, id};
    return 0;
}

int pieces_slice(struct pieces *p, const struct pieces *q, int64_t i, size_t from, size_t to,
                 int32_t id, struct err *e)
{
    size_t off = q->v[i].off + from, start = p->len;
    if (from >= to) return 0;
    if (pieces_put(p, q->text + off, q->at + off, to - from, e)) return -1;
    return pieces_end(p, start, q->at[off], id, e);
}

int pieces_copy(struct pieces *p, const struct pieces *q, int64_t i, struct err *e)
{
    const struct piece *v = &q->v[i];
    size_t start = p->len;
    if (pieces_put(p, q->text + v->off, q->at + v->off, v->len, e)) return -1;
    return pieces_end(p, start, v->origin, v->id, e);
}
