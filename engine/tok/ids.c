/* struct ids of tok.h. */
#include "engine/base/mem.h"
#include "engine/tok/tok.h"

#include <string.h>

static int room(struct ids *a, int64_t n, struct err *e)
{
    if (n <= a->cap - a->n) return 0;
    int64_t cap = a->cap ? a->cap : 32;
    while (cap < a->n + n) cap *= 2;
    int32_t *v = mem_realloc(a->v, (size_t)cap * sizeof *v, e);
    if (!v) return -1;
    a->v = v;
    a->cap = cap;
    return 0;
}

int ids_push(struct ids *a, int32_t id, struct err *e)
{
    if (room(a, 1, e)) return -1;
    a->v[a->n++] = id;
    return 0;
}

int ids_append(struct ids *a, const int32_t *v, int64_t n, struct err *e)
{
    if (room(a, n, e)) return -1;
    if (n) memcpy(a->v + a->n, v, (size_t)n * sizeof *v);
    a->n += n;
    return 0;
}

void ids_clear(struct ids *a)
{
    mem_free(a->v);
    *a = (struct ids){0};
}
