#include "engine/base/buf.h"

#include "engine/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void buf_init(struct buf *b, size_t max_bytes)
{
    *b = (struct buf){.max = max_bytes};
}

char *buf_room(struct buf *b, size_t n)
{
    if (b->err.code) return NULL;
    if (n > b->max - b->len) {
        err_set(&b->err, E_LIMIT, "more than the allowed %zu bytes", b->max);
        return NULL;
    }
    if (b->len + n + 1 > b->cap) {
        size_t cap = b->cap ? b->cap : 128;
        while (cap < b->len + n + 1) cap *= 2;
        char *p = mem_realloc(b->data, cap, &b->err);
        if (!p) return NULL;
        b->data = p;
        b->cap = cap;
    }
    b->data[b->len + n] = 0;
    return b->data + b->len;
}

void buf_put(struct buf *b, const void *p, size_t n)
{
    char *to = buf_room(b, n);
    if (!to) return;
    if (n) memcpy(to, p, n);
    b->len += n;
}

void buf_puts(struct buf *b, const char *s)
{
    buf_put(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c)
{
    buf_put(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *to = n < 0 ? NULL : buf_room(b, (size_t)n);
    if (to) {
        vsnprintf(to, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

const char *buf_str(const struct buf *b)
{
    return b->data ? b->data : "";
}

int buf_ok(const struct buf *b, struct err *e)
{
    if (!b->err.code) return 0;
    *e = b->err;
    return -1;
}

char *buf_take(struct buf *b)
{
    if (!buf_room(b, 0)) return NULL;
    char *p = b->data;
    b->data = NULL;
    b->len = b->cap = 0;
    return p;
}

void buf_clear(struct buf *b)
{
    mem_free(b->data);
    buf_init(b, b->max);
}
