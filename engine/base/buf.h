/* buf.h: a growing byte string with a maximum given at init. Always NUL-terminated.
 *
 * Errors stick: after a failure every further call does nothing, and buf_ok() reports it once
 * at the end. Not thread-safe.
 */
#ifndef GRAFT_BUF_H
#define GRAFT_BUF_H

#include "engine/base/err.h"

#include <stddef.h>

struct buf {
    char *data; /* NULL until the first byte; use buf_str() for a C string */
    size_t len, cap, max;
    struct err err;
};

void buf_init(struct buf *b, size_t max_bytes);
void buf_put(struct buf *b, const void *p, size_t n);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Makes room for n more bytes and returns where they go; the caller then adds to b->len.
 * NULL on failure. */
char *buf_room(struct buf *b, size_t n);
const char *buf_str(const struct buf *b);
int buf_ok(const struct buf *b, struct err *e); /* 0, or -1 with the first failure */
char *buf_take(struct buf *b);                  /* moves the bytes out (mem_free); "" if none;
                                                   NULL if the buffer failed */
void buf_clear(struct buf *b);                  /* frees the bytes, keeps max */

#endif
