#include "engine/base/arena.h"

#include "engine/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct arena_block {
    struct arena_block *next;
    size_t size, used;
    _Alignas(16) char data[];
};

enum { BLOCK_BYTES = 16 * 1024 };

void arena_init(struct arena *a, size_t cap_bytes)
{
    *a = (struct arena){.cap = cap_bytes};
}

void *arena_alloc(struct arena *a, size_t n, struct err *e)
{
    size_t want = (n + 15) & ~(size_t)15;
    if (want < n || want > a->cap - a->used) {
        err_set(e, E_LIMIT, "more than the allowed %zu bytes are needed here", a->cap);
        return NULL;
    }
    struct arena_block *b = a->head;
    if (!b || b->size - b->used < want) {
        size_t size = want > BLOCK_BYTES ? want : BLOCK_BYTES;
        b = mem_zalloc(sizeof *b + size, e);
        if (!b) return NULL;
        b->size = size;
        b->next = a->head;
        a->head = b;
    }
    void *p = b->data + b->used;
    b->used += want;
    a->used += want;
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e)
{
    char *p = arena_alloc(a, n + 1, e);
    if (p) memcpy(p, s, n);
    return p;
}

char *arena_strdup(struct arena *a, const char *s, struct err *e)
{
    return arena_strndup(a, s, strlen(s), e);
}

char *arena_printf(struct arena *a, struct err *e, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1, e);
    if (p) vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

void arena_clear(struct arena *a)
{
    struct arena_block *b = a->head;
    while (b) {
        struct arena_block *next = b->next;
        mem_free(b);
        b = next;
    }
    a->head = NULL;
    a->used = 0;
}
