#include "engine/op/ref/ref.h"

#include "engine/base/rng.h"

#include <math.h>
#include <string.h>

enum { SAMPLE_CAP = 256 << 20 };

/* Nearest multiple of the last place of a binary format with `bits` of precision and least
 * normal exponent `emin`; rint rounds ties to even. */
static double round_to(double v, int bits, int emin)
{
    int exp;
    if (v == 0 || !isfinite(v)) return v;
    frexp(v, &exp);
    exp = (exp - 1 < emin ? emin : exp - 1) - (bits - 1);
    return ldexp(rint(ldexp(v, -exp)), exp);
}

double ref_round(enum dtype t, double v)
{
    switch (t) {
    case DT_F32: return (double)(float)v;
    case DT_BF16: return round_to(v, 8, -126);
    case DT_F16: return round_to(v, 11, -14);
    case DT_I32:
    case DT_I64:
    case DT_U8: return rint(v);
    default: return v;
    }
}

int sample_make(struct op_sample *s, int op, int k, struct err *e)
{
    *s = (struct op_sample){.key = 1000u * (uint64_t)op + (uint64_t)k, .k_red = 1};
    arena_init(&s->arena, SAMPLE_CAP);
    bool more = sample_table[op](k, s);
    if (!s->err.code) {
        if (!more) sample_clear(s);
        return more;
    }
    *e = s->err;
    sample_clear(s);
    return -1;
}

void sample_clear(struct op_sample *s)
{
    arena_clear(&s->arena);
}

void sample_attrs(struct op_sample *s, const void *attrs, size_t bytes)
{
    memcpy(s->attrs, attrs, bytes);
}

struct ref_tensor *sample_zeros(struct op_sample *s, int i, enum dtype t, int rank,
                                const int64_t *shape)
{
    struct ref_tensor *x = &s->in[i];
    *x = (struct ref_tensor){.dtype = t, .rank = rank, .count = 1};
    for (int k = 0; k < rank; k++) x->count *= x->shape[k] = shape[k];
    x->d = s->err.code ? NULL
                       : arena_alloc(&s->arena, sizeof(double) * (size_t)(x->count + 1), &s->err);
    /* After a failure nobody looks at the sample any more: no elements, nothing to write. */
    if (!x->d) x->count = 0;
    if (i >= s->nin) s->nin = i + 1;
    return x;
}

struct ref_tensor *sample_normal(struct op_sample *s, int i, enum dtype t, int rank,
                                 const int64_t *shape)
{
    struct ref_tensor *x = sample_zeros(s, i, t, rank, shape);
    for (int64_t k = 0; k < x->count; k++) {
        /* A sum of four uniforms is bell-shaped and bounded, which is all a test needs. */
        double sum = 0;
        for (int w = 0; w < 4; w++) {
            uint32_t r = rng_u32(s->key, RNG_USER, (uint32_t)i, (uint64_t)(4 * k + w));
            sum += (double)r * 0x1p-31 - 1;
        }
        x->d[k] = ref_round(t, sum * 0.87);
    }
    return x;
}

struct ref_tensor *sample_ints(struct op_sample *s, int i, int lo, int hi, int rank,
                               const int64_t *shape)
{
    struct ref_tensor *x = sample_zeros(s, i, DT_I32, rank, shape);
    for (int64_t k = 0; k < x->count; k++) {
        uint32_t r = rng_u32(s->key, RNG_USER, (uint32_t)i, (uint64_t)k);
        x->d[k] = lo + (int)(r % (uint32_t)(hi - lo));
    }
    return x;
}

struct ref_tensor *sample_distinct(struct op_sample *s, int i, int hi, int64_t n)
{
    struct ref_tensor *x = sample_zeros(s, i, DT_I32, DIMS(n));
    for (int64_t k = 0; k < x->count; k++) x->d[k] = (double)rng_permute(s->key, 0, hi, k);
    return x;
}

void sample_scalar(struct op_sample *s, int i, double v)
{
    struct ref_tensor *x = sample_zeros(s, i, DT_F32, DIMS(1));
    if (x->count) x->d[0] = ref_round(DT_F32, v);
}

void sample_output(struct op_sample *s, ref_fn fn, struct ref_call *c, int j, int i)
{
    struct ref_tensor *x = &s->in[i];
    if (s->err.code) return;
    c->out[j] = x;
    fn(c);
    c->out[j] = NULL;
    for (int64_t k = 0; k < x->count; k++) x->d[k] = ref_round(DT_F32, x->d[k]);
}
