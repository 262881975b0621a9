#include "engine/core/param.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <string.h>

enum { ALIGN = 64 };

/* The header is padded so that storage after it starts aligned. */
struct params_slab {
    struct params_slab *next;
    _Alignas(ALIGN) char data[];
};

void params_init(struct params *ps)
{
    *ps = (struct params){0};
}

void params_clear(struct params *ps)
{
    for (struct params_slab *s = ps->slabs, *next; s; s = next) {
        next = s->next;
        mem_free(s);
    }
    for (int i = 0; i < ps->n; i++) mem_free(ps->items[i]);
    mem_free(ps->items);
    params_init(ps);
}

struct param *params_find(const struct params *ps, const char *name)
{
    for (int i = 0; i < ps->n; i++)
        if (strcmp(ps->items[i]->name, name) == 0) return ps->items[i];
    return NULL;
}

static int set_shape(struct param *p, int rank, const int64_t *shape, struct err *e)
{
    if (rank < 0 || rank > TENSOR_RANK)
        return err_set(e, E_ARG, "%s has %d dimensions; at most %d are possible", p->name, rank,
                       TENSOR_RANK);
    p->rank = rank;
    p->count = 1;
    for (int i = 0; i < rank; i++) {
        p->shape[i] = shape[i];
        if (!mul_ok(&p->count, p->count, shape[i]) || p->count > TENSOR_COUNT)
            return err_set(e, E_LIMIT, "%s: dimension %d is %lld, which is impossible", p->name,
                           i, (long long)shape[i]);
    }
    return 0;
}

static int grow(struct params *ps, struct err *e)
{
    if (ps->n < ps->cap) return 0;
    int cap = ps->cap ? 2 * ps->cap : 64;
    void *items = mem_realloc(ps->items, (size_t)cap * sizeof *ps->items, e);
    if (!items) return -1;
    ps->items = items;
    ps->cap = cap;
    return 0;
}

struct param *params_add(struct params *ps, const char *name, enum param_kind kind, int rank,
                         const int64_t *shape, struct err *e)
{
    if (params_find(ps, name)) {
        err_set(e, E_CONFLICT, "there are two parameters named %.160s", name);
        return NULL;
    }
    if (grow(ps, e)) return NULL;
    struct param *p = mem_zalloc(sizeof *p, e);
    if (!p) return NULL;
    if (!str_copy(p->name, sizeof p->name, name)) {
        err_set(e, E_LIMIT, "a parameter's name is longer than %d bytes: %.160s...",
                PARAM_NAME - 1, name);
        goto fail;
    }
    p->kind = kind;
    p->index = ps->n;
    if (set_shape(p, rank, shape, e)) goto fail;
    ps->items[ps->n++] = p;
    return p;
fail:
    mem_free(p);
    return NULL;
}

enum dtype param_dtype(const struct param *p)
{
    return p->kind == PARAM_FROZEN && p->source ? p->dtype0 : DT_F32;
}

static bool borrows(const struct param *p)
{
    return p->kind == PARAM_FROZEN && p->source;
}

static float from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* IEEE 754 binary16, exactly: subnormals, infinities and NaN included. */
static float from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, frac = h & 1023, bits;
    if (exp == 31) {
        bits = 0x7f800000u | frac << 13;
    } else if (exp) {
        bits = (exp + 112) << 23 | frac << 13;
    } else {
        float f = (float)frac * 0x1p-24f;
        memcpy(&bits, &f, sizeof bits);
    }
    bits |= sign;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Sources lie anywhere in a file: no alignment is assumed. */
static void convert(float *to, const struct param *p)
{
    const char *from = p->source;
    uint16_t h;
    double d;
    for (int64_t i = 0; i < p->count && p->dtype0 != DT_F32; i++) {
        if (p->dtype0 == DT_F64) {
            memcpy(&d, from + 8 * i, sizeof d);
            to[i] = (float)d;
        } else {
            memcpy(&h, from + 2 * i, sizeof h);
            to[i] = p->dtype0 == DT_BF16 ? from_bf16(h) : from_f16(h);
        }
    }
    if (p->dtype0 == DT_F32) memcpy(to, from, (size_t)p->count * sizeof *to);
}

/* Never 0, so that an empty parameter has an address too. */
static size_t array_bytes(const struct param *p)
{
    return ((size_t)p->count * sizeof(float) + ALIGN) & ~(size_t)(ALIGN - 1);
}

static int arrays_of(const struct param *p)
{
    if (p->data || borrows(p)) return 0;
    return p->kind == PARAM_TRAINABLE ? 4 : 1;
}

/* Takes the parameter's arrays from the zeroed slab; returns what follows them. */
static char *carve(struct param *p, char *at)
{
    void *array[4] = {0};
    for (int i = 0, n = arrays_of(p); i < n; i++) {
        array[i] = at;
        at += array_bytes(p);
    }
    p->data = array[0];
    p->grad = array[1];
    p->m = array[2];
    p->v = array[3];
    p->dtype = DT_F32;
    if (p->source) convert(p->data, p);
    return at;
}

static int check_sources(const struct params *ps, struct err *e)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        bool weight = p->dtype0 == DT_F32 || p->dtype0 == DT_BF16 || p->dtype0 == DT_F16;
        if (!p->source || p->data || weight) continue;
        if (p->dtype0 == DT_F64 && !borrows(p)) continue;
        return err_set(e, E_UNSUPPORTED, "%s is stored as %s, which cannot be read as a weight",
                       p->name, dtype_name(p->dtype0));
    }
    return 0;
}

int params_alloc(struct params *ps, struct err *e)
{
    size_t bytes = 0;
    if (check_sources(ps, e)) return -1;
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        bytes += (size_t)arrays_of(p) * array_bytes(p);
    }
    struct params_slab *slab = bytes ? mem_aligned(sizeof *slab + bytes, ALIGN, e) : NULL;
    if (bytes && !slab) return -1;
    char *at = slab ? slab->data : NULL;
    if (slab) {
        memset(slab->data, 0, bytes);
        slab->next = ps->slabs;
        ps->slabs = slab;
        ps->slab_bytes += bytes;
    }
    for (int i = 0; i < ps->n; i++) {
        struct param *p = ps->items[i];
        if (arrays_of(p)) {
            at = carve(p, at);
        } else if (borrows(p)) {
            p->data = (void *)(uintptr_t)p->source;
            p->dtype = p->dtype0;
        }
    }
    return 0;
}

int64_t params_count(const struct params *ps, enum param_kind kind)
{
    int64_t n = 0;
    for (int i = 0; i < ps->n; i++)
        if (ps->items[i]->kind == kind) n += ps->items[i]->count;
    return n;
}
