/* arena.h: memory that dies together (one request, one tape, one file header).
 *
 * Blocks come from mem_*; the sum is capped at init, so no input can grow an arena without bound.
 * Allocations are 16-byte aligned and zeroed. Not thread-safe: one owner.
 */
#ifndef GRAFT_ARENA_H
#define GRAFT_ARENA_H

#include "engine/base/err.h"

#include <stddef.h>

struct arena_block;
struct arena {
    struct arena_block *head;
    size_t used, cap; /* bytes handed out, and the most that may be */
};

void arena_init(struct arena *a, size_t cap_bytes);
void *arena_alloc(struct arena *a, size_t n, struct err *e); /* NULL: E_LIMIT or E_NOMEM */
char *arena_strdup(struct arena *a, const char *s, struct err *e);
char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e);
char *arena_printf(struct arena *a, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void arena_clear(struct arena *a); /* frees everything; the arena may be used again */

#endif
