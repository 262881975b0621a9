#include "engine/tok/vocab.h"

#include "engine/base/mem.h"

#include <string.h>

/* Multiply and fold, eight bytes at a time: the strings are short and looked up by the million. */
static uint32_t hash(const char *s, size_t n)
{
    uint64_t h = n * 0x9e3779b97f4a7c15ull, w;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
    }
    w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * 0xff51afd7ed558ccdull;
    return (uint32_t)(h >> 32 ^ h >> 7);
}

int vocab_build(struct vocab *v, const char *const *strings, int32_t n, struct err *e)
{
    size_t bytes = 0, slots = 8;
    *v = (struct vocab){.n = n};
    for (int32_t i = 0; i < n; i++) bytes += strlen(strings[i]) + 1;
    if (bytes > UINT32_MAX) return err_set(e, E_LIMIT, "the vocabulary is too large");
    while (slots < 2 * (size_t)n) slots *= 2;
    v->mask = (uint32_t)slots - 1;
    v->text = mem_alloc(bytes, e);
    if (!v->text) goto fail;
    v->off = mem_array(n + 1, sizeof *v->off, e);
    if (!v->off) goto fail;
    v->slot = mem_array((int64_t)slots, sizeof *v->slot, e);
    if (!v->slot) goto fail;
    memset(v->slot, -1, slots * sizeof *v->slot);
    for (int32_t i = 0; i < n; i++) {
        size_t len = strlen(strings[i]);
        memcpy(v->text + v->off[i], strings[i], len + 1);
        v->off[i + 1] = v->off[i] + (uint32_t)len + 1;
        uint32_t at = hash(strings[i], len) & v->mask;
        while (v->slot[at] >= 0) at = (at + 1) & v->mask;
        v->slot[at] = i;
    }
    return 0;
fail:
    vocab_clear(v);
    return -1;
}

void vocab_clear(struct vocab *v)
{
    mem_free(v->text);
    mem_free(v->off);
    mem_free(v->slot);
    *v = (struct vocab){0};
}

const char *vocab_str(const struct vocab *v, int32_t id, size_t *n)
{
    if (n) *n = v->off[id + 1] - v->off[id] - 1;
    return v->text + v->off[id];
}

int32_t vocab_find(const struct vocab *v, const char *s, size_t n)
{
    if (!v->slot) return -1;
    for (uint32_t at = hash(s, n) & v->mask; v->slot[at] >= 0; at = (at + 1) & v->mask) {
        size_t len;
        const char *t = vocab_str(v, v->slot[at], &len);
        if (len == n && memcmp(s, t, n) == 0) return v->slot[at];
    }
    return -1;
}
