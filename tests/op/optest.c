#include "tests/op/optest.h"

#include "engine/base/str.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

double optest_distance(const double *got, const double *want, int64_t n)
{
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(want[i]) || isinf(want[i])) {
            if (isnan(want[i]) ? !isnan(got[i]) : got[i] != want[i]) return INFINITY;
            continue;
        }
        if (!isfinite(got[i])) return INFINITY;
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return diff == 0 ? 0 : sqrt(diff) / sqrt(norm);
}

static uint16_t encode_f16(double v)
{
    _Static_assert(sizeof(float) == 4, "");
    uint16_t sign = signbit(v) ? 0x8000 : 0;
    int exp;
    double a = fabs(v), f = frexp(a, &exp); /* a = f 2^exp, f in [0.5, 1) */
    if (a == 0) return sign;
    if (exp - 1 < -14) return (uint16_t)(sign | (uint16_t)ldexp(a, 24));
    return (uint16_t)(sign | (exp + 14) << 10 | ((uint16_t)ldexp(f, 11) & 0x3ff));
}

static double decode_f16(uint16_t h)
{
    int exp = h >> 10 & 31, frac = h & 0x3ff;
    double a = exp ? ldexp(1024 + frac, exp - 25) : ldexp(frac, -24);
    return h & 0x8000 ? -a : a;
}

void optest_encode(enum dtype t, const double *from, int64_t n, void *to)
{
    for (int64_t i = 0; i < n; i++) {
        float f = (float)from[i];
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        switch (t) {
        case DT_F32: memcpy((char *)to + 4 * i, &f, sizeof f); break;
        case DT_BF16: memcpy((char *)to + 2 * i, &(uint16_t){(uint16_t)(bits >> 16)}, 2); break;
        case DT_F16: memcpy((char *)to + 2 * i, &(uint16_t){encode_f16(from[i])}, 2); break;
        default: memcpy((char *)to + 4 * i, &(int32_t){(int32_t)from[i]}, 4); break;
        }
    }
}

void optest_decode(enum dtype t, const void *from, int64_t n, double *to)
{
    for (int64_t i = 0; i < n; i++) {
        float f;
        uint32_t bits = 0;
        memcpy(&bits, (const char *)from + (int64_t)dtype_size(t) * i, dtype_size(t));
        if (t == DT_BF16) bits <<= 16;
        memcpy(&f, &bits, sizeof f);
        to[i] = t == DT_F16 ? decode_f16((uint16_t)bits) : t == DT_I32 ? (int32_t)bits : (double)f;
    }
}

const char *optest_shapes(const struct op_sample *s, char out[200])
{
    size_t at = 0;
    out[0] = 0;
    for (int i = 0; i < s->nin && at < 150; i++) {
        at += (size_t)snprintf(out + at, 200 - at, "%s", i ? " " : "");
        if (!s->in[i].d) at += (size_t)snprintf(out + at, 200 - at, "-");
        for (int k = 0; s->in[i].d && k < s->in[i].rank; k++)
            at += (size_t)snprintf(out + at, 200 - at, "%s%lld", k ? "x" : "",
                                   (long long)s->in[i].shape[k]);
    }
    return out;
}
