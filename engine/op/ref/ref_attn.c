#include "engine/op/ref/ref.h"

#include "engine/base/rng.h"

#include <math.h>

/* Offsets: q[B,T,H,D], k[B,S,G,D], range[B,T,2]. One (b, t, h) is one query. */
struct query {
    int64_t q;      /* of its row in q, o and dq */
    int64_t scalar; /* of its element in lse[B,T,H] */
    int64_t k;      /* of row s = 0 of its head in k and v */
    int64_t step;   /* from one key to the next */
    int64_t width;
    int64_t lo, hi; /* attended keys */
    int64_t bias;   /* of its row in bias[H,T,S] */
};

/* Fills query number i of B*T*H; false past the last. */
static bool query(int64_t i, const struct ref_tensor *q, const struct ref_tensor *k,
                  const struct ref_tensor *range, struct query *u)
{
    int64_t T = q->shape[1], H = q->shape[2], D = q->shape[3], S = k->shape[1], G = k->shape[2];
    if (i >= q->shape[0] * T * H) return false;
    int64_t bt = i / H, h = i % H, b = bt / T;
    u->q = i * D;
    u->scalar = i;
    u->k = (b * S * G + h / (H / G)) * D;
    u->step = G * D;
    u->width = D;
    u->lo = (int64_t)range->d[2 * bt];
    u->hi = (int64_t)range->d[2 * bt + 1];
    u->bias = (h * T + bt % T) * S;
    return true;
}

/* scale q.k + bias */
static double score(const struct ref_call *c, const struct query *u, int first, int64_t s)
{
    const struct attrs_attn *a = c->attrs;
    const double *q = c->in[first]->d + u->q, *k = c->in[first + 1]->d + u->k + s * u->step;
    const struct ref_tensor *bias = c->in[first ? 7 : 4];
    double sum = 0;
    for (int64_t i = 0; i < u->width; i++) sum += q[i] * k[i];
    return (double)a->scale * sum + (bias ? bias->d[u->bias + s] : 0);
}

void ref_attn(struct ref_call *c)
{
    const struct ref_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2], *range = c->in[3];
    struct ref_call sum = ref_adding(c);
    struct query u;
    for (int64_t i = 0; query(i, q, k, range, &u); i++) {
        double top = -INFINITY, total = 0;
        for (int64_t s = u.lo; s < u.hi; s++)
            top = fmax(top, score(c, &u, 0, s));
        for (int64_t s = u.lo; s < u.hi; s++)
            total += exp(score(c, &u, 0, s) - top);
        double lse = u.lo < u.hi ? top + log(total) : -INFINITY;
        for (int64_t s = u.lo; s < u.hi; s++) {
            double p = exp(score(c, &u, 0, s) - lse);
            for (int64_t d = 0; d < u.width; d++)
                ref_put(&sum, 0, u.q + d, p * v->d[u.k + s * u.step + d]);
        }
        ref_put(c, 1, u.scalar, lse);
    }
}

/* p = exp(scale q.k + bias - lse), dp = do.v, ds = p (dp - do.o):
 * dq = scale sum ds k, dk = scale sum ds q, dv = sum p do, dbias = sum ds. */
void ref_attn_bwd(struct ref_call *c)
{
    const struct attrs_attn *a = c->attrs;
    const struct ref_tensor *dout = c->in[0], *q = c->in[1], *k = c->in[2], *v = c->in[3];
    const struct ref_tensor *range = c->in[4], *o = c->in[5], *lse = c->in[6];
    double scale = (double)a->scale;
    struct ref_call sum = ref_adding(c);
    struct query u;
    for (int64_t i = 0; query(i, q, k, range, &u); i++) {
        const double *g = dout->d + u.q, *y = o->d + u.q;
        double gy = 0;
        for (int64_t d = 0; d < u.width; d++) gy += g[d] * y[d];
        for (int64_t s = u.lo; s < u.hi; s++) {
            int64_t row = u.k + s * u.step;
            double p = exp(score(c, &u, 1, s) - lse->d[u.scalar]), dp = 0;
            for (int64_t d = 0; d < u.width; d++) dp += g[d] * v->d[row + d];
            double ds = p * (dp - gy);
            ref_put(&sum, 3, u.bias + s, ds);
            for (int64_t d = 0; d < u.width; d++) {
                ref_put(&sum, 0, u.q + d, scale * ds * k->d[row + d]);
                ref_put(&sum, 1, row + d, scale * ds * q->d[u.q + d]);
                ref_put(&sum, 2, row + d, p * g[d]);
            }
        }
    }
}

/* How the ranges of a case look. */
enum mask {
    FULL,   /* every key */
    CAUSAL, /* keys 0..t, with the last query seeing the last key */
    PACKED, /* several documents in one row: causal inside each */
    PADDED, /* the first keys are padding, never seen; rows of padding see nothing */
    RAGGED, /* any sub-range, some empty, some with lo > hi (empty too) */
    NOTHING /* no query sees a key */
};

enum { NONE = -1 };

static const struct {
    int64_t B, T, S, H, G, D;
    enum mask mask;
    float scale;
    int bias; /* its dtype, or NONE */
} cases[] = {
    {1, 1, 1, 1, 1, 1, FULL, 1, NONE},
    {1, 5, 5, 2, 2, 4, CAUSAL, 0.5f, NONE},
    {2, 7, 7, 4, 2, 8, CAUSAL, 0.35f, DT_F32},
    {2, 3, 11, 6, 1, 5, CAUSAL, 0.45f, NONE},
    {1, 13, 13, 3, 3, 7, PACKED, 0.4f, DT_BF16},
    {2, 9, 9, 4, 1, 16, PADDED, 0.25f, NONE},
    {3, 6, 10, 2, 1, 3, RAGGED, 0.6f, DT_F32},
    {1, 1, 17, 8, 2, 8, CAUSAL, 0.3f, DT_F16},
    {2, 4, 6, 2, 2, 2, NOTHING, 1, DT_F32},
    {0, 4, 6, 2, 2, 2, FULL, 1, DT_F32},
    {1, 0, 3, 2, 1, 4, FULL, 1, NONE},
    {1, 2, 0, 2, 1, 4, NOTHING, 1, DT_F32},
    {1, 40, 40, 2, 1, 24, CAUSAL, 0.2f, NONE},
    {1, 67, 67, 3, 1, 12, PACKED, 0.29f, NONE},
    {2, 33, 70, 4, 2, 8, RAGGED, 0.35f, NONE},
    {1, 130, 130, 1, 1, 8, CAUSAL, 3, NONE},
    {1, 19, 150, 2, 2, 64, FULL, 0.125f, NONE},
    {2, 21, 21, 4, 4, 8, FULL, 0.35f, DT_F32},
    {3, 99, 67, 2, 1, 5, RAGGED, 0.5f, DT_BF16},
    {1, 1, 70, 4, 4, 16, FULL, 0.25f, DT_F32},
};

static void set_range(struct ref_tensor *r, enum mask mask, int64_t T, int64_t S, uint64_t key)
{
    for (int64_t i = 0; i < r->count / 2; i++) {
        int64_t t = i % T, lo = 0, hi = S;
        switch (mask) {
        case FULL: break;
        case CAUSAL: hi = S - T + t + 1; break;
        case PACKED: lo = t / 5 * 5, hi = t + 1; break;
        case PADDED: lo = 3, hi = t < 3 ? 3 : t + 1; break;
        case RAGGED:
            lo = rng_u32(key, RNG_USER + 1, 0, (uint64_t)i) % (S + 1);
            hi = rng_u32(key, RNG_USER + 1, 1, (uint64_t)i) % (S + 1);
            break;
        case NOTHING: hi = 0; break;
        }
        r->d[2 * i] = (double)lo;
        r->d[2 * i + 1] = (double)hi;
    }
}

/* q, k, v, range from input `at` on, and the bias as input `bias`. */
static void inputs(int n, struct op_sample *s, int at, int bias)
{
    int64_t B = cases[n].B, T = cases[n].T, S = cases[n].S, D = cases[n].D;
    struct attrs_attn a = {cases[n].scale};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, at, DT_F32, DIMS(B, T, cases[n].H, D));
    sample_normal(s, at + 1, DT_F32, DIMS(B, S, cases[n].G, D));
    sample_normal(s, at + 2, DT_F32, DIMS(B, S, cases[n].G, D));
    set_range(sample_zeros(s, at + 3, DT_I32, DIMS(B, T, 2)), cases[n].mask, T, S, s->key);
    if (cases[n].bias != NONE)
        sample_normal(s, bias, (enum dtype)cases[n].bias, DIMS(cases[n].H, T, S));
    s->k_red = S + D;
}

bool sample_attn(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    inputs(k, s, 0, 4);
    s->diff = cases[k].bias == DT_F32 ? 7 | 16 : 7;
    return true;
}

bool sample_attn_bwd(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    int64_t B = cases[k].B, T = cases[k].T, H = cases[k].H, D = cases[k].D;
    inputs(k, s, 1, 7);
    sample_normal(s, 0, DT_F32, DIMS(B, T, H, D));
    struct ref_call c = {.attrs = s->attrs,
                         .in = {&s->in[1], &s->in[2], &s->in[3], &s->in[4],
                                s->in[7].d ? &s->in[7] : NULL}};
    sample_zeros(s, 5, DT_F32, DIMS(B, T, H, D));
    sample_zeros(s, 6, DT_F32, DIMS(B, T, H));
    sample_output(s, ref_attn, &c, 0, 5);
    sample_output(s, ref_attn, &c, 1, 6);
    s->k_red = cases[k].S + D + T * (H / cases[k].G) + B;
    return true;
}
