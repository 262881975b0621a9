#include "engine/core/mirror.h"

#include "engine/base/mem.h"

#include <string.h>

enum { FIRST_CAP = 64 };

struct mirror {
    const void *host; /* NULL: a free place */
    size_t bytes;
    void *at;
};

/* Open addressing, at most half full. */
struct mirrors {
    struct mirror *items;
    int n, cap; /* cap: a power of two, or 0 */
    int64_t bytes;
};

static void *host_array(const struct param *p, enum param_slot slot)
{
    switch (slot) {
    case SLOT_DATA: return p->data;
    case SLOT_GRAD: return p->grad;
    case SLOT_M: return p->m;
    case SLOT_V: return p->v;
    case SLOT_NONE: break;
    }
    return NULL;
}

static size_t array_bytes(const struct param *p, enum param_slot slot)
{
    return (size_t)p->count * dtype_size(slot == SLOT_DATA ? p->dtype : DT_F32);
}

struct mirrors *mirrors_new(struct err *e)
{
    return mem_zalloc(sizeof(struct mirrors), e);
}

void mirrors_free(struct exec *x)
{
    struct mirrors *ms = x->mirrors;
    for (int i = 0; i < ms->cap; i++)
        if (ms->items[i].host) x->device->ops->free(x, ms->items[i].at);
    mem_free(ms->items);
    mem_free(ms);
    x->mirrors = NULL;
}

static struct mirror *place(struct mirror *items, int cap, const void *host, size_t bytes)
{
    uint64_t h = ((uint64_t)(uintptr_t)host + bytes) * 0x9E3779B97F4A7C15u >> 32;
    int i = (int)(h & (uint64_t)(cap - 1));
    while (items[i].host && (items[i].host != host || items[i].bytes != bytes))
        i = (i + 1) & (cap - 1);
    return &items[i];
}

static int grow(struct mirrors *ms, struct err *e)
{
    int cap = ms->cap ? 2 * ms->cap : FIRST_CAP;
    if (2 * ms->n < ms->cap) return 0;
    struct mirror *items = mem_array(cap, sizeof *items, e);
    if (!items) return -1;
    for (int i = 0; i < ms->cap; i++)
        if (ms->items[i].host)
            *place(items, cap, ms->items[i].host, ms->items[i].bytes) = ms->items[i];
    mem_free(ms->items);
    ms->items = items;
    ms->cap = cap;
    return 0;
}

int mirror_find(struct exec *x, const struct param *p, enum param_slot slot, void **at,
                struct err *e)
{
    const struct device_ops *ops = x->device->ops;
    struct mirrors *ms = x->mirrors;
    void *host = host_array(p, slot);
    size_t bytes = array_bytes(p, slot);
    *at = host;
    if (!ops || !host) return 0;
    if (grow(ms, e)) return -1;
    struct mirror *m = place(ms->items, ms->cap, host, bytes);
    if (!m->host) {
        void *copy;
        if (ops->alloc(x, bytes, &copy, e)) return err_wrap(e, "parameter %s", p->name);
        *m = (struct mirror){host, bytes, copy};
        ms->n++;
        ms->bytes += (int64_t)bytes;
        if (bytes && ops->write(x, copy, host, bytes, e)) return -1;
    }
    *at = m->at;
    return 0;
}

/* The copy of an array, or NULL. */
static struct mirror *have(const struct exec *x, const struct param *p, enum param_slot slot)
{
    struct mirrors *ms = x->mirrors;
    const void *host = host_array(p, slot);
    if (!ms->cap || !host) return NULL;
    struct mirror *m = place(ms->items, ms->cap, host, array_bytes(p, slot));
    return m->host ? m : NULL;
}

int exec_pull(struct exec *x, const struct params *ps, struct err *e)
{
    static const enum param_slot slots[] = {SLOT_DATA, SLOT_M, SLOT_V};
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        for (int k = 0; p->kind != PARAM_FROZEN && k < 3; k++) {
            const struct mirror *m = have(x, p, slots[k]);
            if (m && exec_get(x, host_array(p, slots[k]), m->at, m->bytes, e))
                return err_wrap(e, "parameter %s", p->name);
        }
    }
    return 0;
}

int exec_push(struct exec *x, const struct params *ps, struct err *e)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        for (enum param_slot slot = SLOT_DATA; slot <= SLOT_V; slot++) {
            const struct mirror *m = have(x, p, slot);
            if (m && exec_put(x, m->at, m->host, m->bytes, e))
                return err_wrap(e, "parameter %s", p->name);
        }
    }
    return 0;
}

static void drop(struct exec *x, struct mirror *m)
{
    struct mirrors *ms = x->mirrors;
    x->device->ops->free(x, m->at);
    ms->bytes -= (int64_t)m->bytes;
    ms->n--;
    *m = (struct mirror){0};
    /* Those behind it may stand there only because this place was taken. */
    for (int k = (int)(m - ms->items + 1) & (ms->cap - 1); ms->items[k].host;
         k = (k + 1) & (ms->cap - 1)) {
        struct mirror moved = ms->items[k];
        ms->items[k] = (struct mirror){0};
        *place(ms->items, ms->cap, moved.host, moved.bytes) = moved;
    }
}

void exec_forget(struct exec *x, const struct params *ps)
{
    for (int i = 0; i < ps->n; i++) {
        for (enum param_slot slot = SLOT_DATA; slot <= SLOT_V; slot++) {
            struct mirror *m = have(x, ps->items[i], slot);
            if (m) drop(x, m);
        }
    }
}

int64_t exec_mirror_bytes(const struct exec *x)
{
    return x->mirrors->bytes;
}
