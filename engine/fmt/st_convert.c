/* Numbers of 16 bits and back, with integers only: every compiler gives the same bits. */
#include "engine/base/mem.h"
#include "engine/fmt/safetensors.h"

#include <string.h>

enum { CHUNK = 1024 };

static uint32_t from_bf16(uint16_t h)
{
    return (uint32_t)h << 16;
}

static uint16_t to_bf16(uint32_t x)
{
    uint32_t rounded = x + 0x7fff + (x >> 16 & 1);
    bool nan = (x & 0x7fffffff) > 0x7f800000;
    return (uint16_t)(nan ? x >> 16 | 0x40 : rounded >> 16);
}

static uint32_t from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 0x3ff;
    if (exp == 31) return sign | 0x7f800000 | man << 13;
    if (exp) return sign | (exp + 112) << 23 | man << 13;
    if (!man) return sign;
    /* Subnormal: value = man * 2^-24; shift until the leading bit is the hidden one. */
    int up = __builtin_clz(man) - 21;
    return sign | (uint32_t)(113 - up) << 23 | (man << up & 0x3ff) << 13;
}

static uint16_t to_f16(uint32_t x)
{
    uint32_t sign = x >> 16 & 0x8000, mag = x & 0x7fffffff;
    if (mag > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (mag >> 13 & 0x1ff));
    if (mag >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and up round to infinity */
    if (mag < 0x33000001) return (uint16_t)sign;             /* up to 2^-25 rounds to zero */
    uint32_t man, drop;
    if (mag < 0x38800000) { /* below 2^-14: a multiple of 2^-24 */
        drop = 126 - (mag >> 23);
        man = (mag & 0x7fffff) | 0x800000;
    } else {
        drop = 13;
        man = mag - (112u << 23);
    }
    uint32_t half = 1u << (drop - 1), rest = man & (2 * half - 1);
    man >>= drop;
    man += rest > half || (rest == half && (man & 1));
    return (uint16_t)(sign | man);
}

/* n <= CHUNK elements at p, of any alignment, as the bits of f32. */
static void load(uint32_t *x, const unsigned char *p, enum dtype dt, int64_t n)
{
    uint16_t h[CHUNK];
    if (dt == DT_F32) {
        memcpy(x, p, (size_t)n * 4);
        return;
    }
    memcpy(h, p, (size_t)n * 2);
    if (dt == DT_BF16)
        for (int64_t i = 0; i < n; i++) x[i] = from_bf16(h[i]);
    else
        for (int64_t i = 0; i < n; i++) x[i] = from_f16(h[i]);
}

static void store(unsigned char *p, const uint32_t *x, enum dtype dt, int64_t n)
{
    uint16_t h[CHUNK];
    if (dt == DT_F32) {
        memcpy(p, x, (size_t)n * 4);
        return;
    }
    if (dt == DT_BF16)
        for (int64_t i = 0; i < n; i++) h[i] = to_bf16(x[i]);
    else
        for (int64_t i = 0; i < n; i++) h[i] = to_f16(x[i]);
    memcpy(p, h, (size_t)n * 2);
}

static bool known(enum dtype dt)
{
    return dt == DT_F32 || dt == DT_BF16 || dt == DT_F16;
}

int st_convert(void *to, enum dtype dt_to, const void *from, enum dtype dt_from, int64_t n,
               struct err *e)
{
    if (!known(dt_to) || !known(dt_from))
        return err_set(e, E_UNSUPPORTED, "only F32, BF16 and F16 can be converted, not %s to %s",
                       dt_from < DT_COUNT ? dtype_name(dt_from) : "this type",
                       dt_to < DT_COUNT ? dtype_name(dt_to) : "this type");
    unsigned char *out = to;
    const unsigned char *in = from;
    size_t wide = dtype_size(dt_from), narrow = dtype_size(dt_to);
    if (dt_to == dt_from) {
        if (n) memcpy(to, from, (size_t)n * wide);
        return 0;
    }
    for (int64_t i = 0; i < n; i += CHUNK) {
        uint32_t x[CHUNK];
        int64_t k = n - i < CHUNK ? n - i : CHUNK;
        load(x, in + (size_t)i * wide, dt_from, k);
        store(out + (size_t)i * narrow, x, dt_to, k);
    }
    return 0;
}
