/* The one file that may call the C library's allocator. */
#include "engine/base/mem.h"

#include "engine/base/fault.h"

#include <jansson.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Atomic size_t live, peak, limit;
static _Thread_local int64_t failures;

static void note_peak(size_t now)
{
    size_t p = atomic_load_explicit(&peak, memory_order_relaxed);
    while (now > p && !atomic_compare_exchange_weak(&peak, &p, now)) {}
}

static void *account(void *p)
{
    if (!p) return NULL;
    size_t n = malloc_usable_size(p);
    size_t now = atomic_fetch_add_explicit(&live, n, memory_order_relaxed) + n;
    note_peak(now);
    return p;
}

static bool refused(size_t n)
{
    size_t lim = atomic_load_explicit(&limit, memory_order_relaxed);
    if (fault_hit(FAULT_MEM)) return true;
    return lim && (n > lim || atomic_load(&live) > lim - n);
}

static void *no_memory(size_t n, struct err *e)
{
    failures++;
    err_set(e, E_NOMEM, "out of memory: %zu bytes could not be allocated (%zu in use)", n,
            mem_live());
    return NULL;
}

void *mem_alloc(size_t n, struct err *e)
{
    void *p = refused(n) ? NULL : account(malloc(n ? n : 1));
    return p ? p : no_memory(n, e);
}

void *mem_zalloc(size_t n, struct err *e)
{
    void *p = refused(n) ? NULL : account(calloc(1, n ? n : 1));
    return p ? p : no_memory(n, e);
}

void *mem_array(int64_t count, size_t size, struct err *e)
{
    int64_t n;
    if (!mul_ok(&n, count, (int64_t)size)) {
        err_set(e, E_NOMEM, "out of memory: an array of %lld x %zu bytes", (long long)count, size);
        return NULL;
    }
    return mem_zalloc((size_t)n, e);
}

void *mem_aligned(size_t n, size_t align, struct err *e)
{
    void *p = NULL;
    if (refused(n) || posix_memalign(&p, align, n ? n : 1)) return no_memory(n, e);
    return account(p);
}

void *mem_realloc(void *p, size_t n, struct err *e)
{
    size_t old = p ? malloc_usable_size(p) : 0;
    void *q = refused(n) ? NULL : realloc(p, n ? n : 1);
    if (!q) return no_memory(n, e);
    atomic_fetch_sub_explicit(&live, old, memory_order_relaxed);
    return account(q);
}

void *mem_dup(const void *p, size_t n, struct err *e)
{
    void *q = mem_alloc(n, e);
    if (q && n) memcpy(q, p, n);
    return q;
}

char *mem_strdup(const char *s, struct err *e)
{
    return mem_dup(s, strlen(s) + 1, e);
}

char *mem_printf(struct err *e, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = n < 0 ? no_memory(0, e) : mem_alloc((size_t)n + 1, e);
    if (s) vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

void mem_free(void *p)
{
    if (!p) return;
    atomic_fetch_sub_explicit(&live, malloc_usable_size(p), memory_order_relaxed);
    free(p);
}

size_t mem_live(void)
{
    return atomic_load(&live);
}

size_t mem_peak(void)
{
    return atomic_load(&peak);
}

void mem_peak_reset(void)
{
    atomic_store(&peak, atomic_load(&live));
}

int64_t mem_failures(void)
{
    return failures;
}

void mem_limit(size_t bytes)
{
    atomic_store(&limit, bytes);
}

/* jansson 2.14 runs past its buffer when a string being read cannot grow, so a refusal is counted
 * but not carried out: jx.h asks mem_failures() and turns it into E_NOMEM. */
static void *hook_alloc(size_t n)
{
    if (refused(n)) failures++;
    return account(malloc(n ? n : 1));
}

void mem_hook_libraries(void)
{
    json_set_alloc_funcs(hook_alloc, mem_free);
}
