/* mem.h: the only door to the heap (lint forbids malloc and free elsewhere).
 *
 * Every call is counted and can be told to fail (fault.h); live and peak bytes are known; a hard
 * limit can be set. Memory from mem_* is freed by mem_free only. Libraries that allocate by
 * themselves (jansson, SQLite) are routed here by mem_hook_libraries(). Thread-safe.
 */
#ifndef GRAFT_MEM_H
#define GRAFT_MEM_H

#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NULL with E_NOMEM on failure. A size of 0 gives a unique pointer that must be freed. */
void *mem_alloc(size_t n, struct err *e) __attribute__((warn_unused_result));
void *mem_zalloc(size_t n, struct err *e) __attribute__((warn_unused_result));
/* count * size with overflow checked; zeroed. */
void *mem_array(int64_t count, size_t size, struct err *e) __attribute__((warn_unused_result));
/* `align` a power of two >= 16. */
void *mem_aligned(size_t n, size_t align, struct err *e) __attribute__((warn_unused_result));
/* On failure the old block stays valid and owned by the caller. Not for mem_aligned blocks. */
void *mem_realloc(void *p, size_t n, struct err *e) __attribute__((warn_unused_result));
void *mem_dup(const void *p, size_t n, struct err *e) __attribute__((warn_unused_result));
char *mem_strdup(const char *s, struct err *e) __attribute__((warn_unused_result));
char *mem_printf(struct err *e, const char *fmt, ...)
    __attribute__((warn_unused_result, format(printf, 2, 3)));
void mem_free(void *p);

size_t mem_live(void);         /* bytes now held through mem_* */
size_t mem_peak(void);         /* the largest mem_live() since mem_peak_reset() */
void mem_peak_reset(void);
/* Allocations of this thread that have failed so far. Libraries report a failed allocation in many
 * ways, some of them wrong; a change of this number tells. */
int64_t mem_failures(void);
void mem_limit(size_t bytes);  /* 0: none. Allocations beyond it fail with E_NOMEM. */

/* Routes jansson's allocations through the counter. Called once at start. jansson is not safe when
 * memory fails, so it gets even what a limit or fault refuses; the refusal counts as a failure. */
void mem_hook_libraries(void);

/* *out = a * b, false on overflow or a negative operand: for sizes that a file or user named. */
static inline bool mul_ok(int64_t *out, int64_t a, int64_t b)
{
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out);
}
static inline bool add_ok(int64_t *out, int64_t a, int64_t b)
{
    return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out);
}

#endif
