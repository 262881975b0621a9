#include "engine/op/ref/ref.h"

#include "engine/base/rng.h"

#include <math.h>

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

void ref_swiglu(struct ref_call *c)
{
    const struct ref_tensor *g = c->in[0], *u = c->in[1];
    for (int64_t i = 0; i < g->count; i++) ref_put(c, 0, i, g->d[i] * sigmoid(g->d[i]) * u->d[i]);
}

void ref_swiglu_bwd(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0], *g = c->in[1], *u = c->in[2];
    for (int64_t i = 0; i < g->count; i++) {
        double s = sigmoid(g->d[i]);
        ref_put(c, 0, i, dy->d[i] * u->d[i] * s * (1 + g->d[i] * (1 - s)));
        ref_put(c, 1, i, dy->d[i] * g->d[i] * s);
    }
}

static const double root_half = 0.70710678118654752440; /* sqrt(1/2) */
static const double root_2_pi = 2.50662827463100050242; /* sqrt(2 pi) */

/* f(x) and f'(x). */
static double act(int kind, double x, double *slope)
{
    double phi = erfc(-x * root_half) / 2, u = 2 / root_2_pi * (x + 0.044715 * x * x * x);
    double th = tanh(u), s = sigmoid(kind == ACT_SILU ? x : 1.702 * x);
    switch ((enum act_kind)kind) {
    case ACT_GELU: *slope = phi + x * exp(-x * x / 2) / root_2_pi; return x * phi;
    case ACT_GELU_TANH:
        *slope = (1 + th) / 2 + x / 2 * (1 - th * th) * 2 / root_2_pi * (1 + 0.134145 * x * x);
        return x / 2 * (1 + th);
    case ACT_QUICK_GELU: *slope = s * (1 + 1.702 * x * (1 - s)); return x * s;
    case ACT_RELU: *slope = x > 0; return x > 0 ? x : 0;
    case ACT_SILU: *slope = s * (1 + x * (1 - s)); return x * s;
    case ACT_TANH: *slope = 1 - tanh(x) * tanh(x); return tanh(x);
    case ACT_KINDS: break;
    }
    *slope = NAN;
    return NAN;
}

void ref_act(struct ref_call *c)
{
    const struct attrs_act *a = c->attrs;
    const struct ref_tensor *x = c->in[0];
    double slope;
    for (int64_t i = 0; i < x->count; i++) ref_put(c, 0, i, act(a->kind, x->d[i], &slope));
}

void ref_act_bwd(struct ref_call *c)
{
    const struct attrs_act *a = c->attrs;
    const struct ref_tensor *dy = c->in[0], *x = c->in[1];
    for (int64_t i = 0; i < x->count; i++) {
        double slope;
        act(a->kind, x->d[i], &slope);
        ref_put(c, 0, i, dy->d[i] * slope);
    }
}

void ref_add(struct ref_call *c)
{
    const struct ref_tensor *a = c->in[0], *b = c->in[1];
    for (int64_t i = 0; i < a->count; i++) ref_put(c, 0, i, a->d[i] + b->d[i]);
}

void ref_scale(struct ref_call *c)
{
    const struct attrs_alpha *a = c->attrs;
    const struct ref_tensor *x = c->in[0], *s = c->in[1];
    for (int64_t i = 0; i < x->count; i++) ref_put(c, 0, i, (double)a->alpha * s->d[0] * x->d[i]);
}

bool ref_keep(const struct ref_call *c, const struct attrs_dropout *a, int64_t i)
{
    uint64_t index = (uint64_t)a->salt << 40 | (uint64_t)i;
    return rng_uniform(c->seed, RNG_DROPOUT, c->rng_step, index) >= a->p;
}

void ref_dropout(struct ref_call *c)
{
    const struct attrs_dropout *a = c->attrs;
    const struct ref_tensor *x = c->in[0];
    for (int64_t i = 0; i < x->count; i++)
        ref_put(c, 0, i, ref_keep(c, a, i) ? x->d[i] / (1 - (double)a->p) : 0);
}

/* x[N,H,D]: pairs (i, i + D/2) turned by pos * freq[i]. */
void ref_rope(struct ref_call *c)
{
    const struct attrs_rope *a = c->attrs;
    const struct ref_tensor *x = c->in[0], *pos = c->in[1], *freq = c->in[2];
    int64_t heads = x->shape[1], width = x->shape[2], half = width / 2;
    for (int64_t row = 0; row < x->shape[0] * heads; row++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = pos->d[row / heads] * freq->d[i] * (double)a->sign;
            double p = x->d[row * width + i], q = x->d[row * width + half + i];
            ref_put(c, 0, row * width + i, p * cos(angle) - q * sin(angle));
            ref_put(c, 0, row * width + half + i, q * cos(angle) + p * sin(angle));
        }
    }
}

/* Element-wise cases: sizes on both sides of every vector and tile width, and every rank. */
static const struct {
    int rank;
    int64_t shape[4];
    double spread; /* standard deviation of the first input */
} sizes[] = {
    {1, {1}, 1},          {2, {3, 7}, 1},     {1, {8}, 4},         {3, {5, 3, 2}, 1},
    {2, {0, 4}, 1},       {2, {13, 65}, 30},  {4, {2, 3, 5, 7}, 1}, {2, {1, 129}, 1},
    {2, {1024, 3}, 0.01}, {2, {257, 17}, 1},  {2, {64, 64}, 5},    {1, {100003}, 1},
};

/* n f32 inputs of the shape of case k; input `wide` has its spread. */
static bool alike(int k, struct op_sample *s, int n, int wide)
{
    if (k >= REF_LEN(sizes)) return false;
    for (int i = 0; i < n; i++) {
        struct ref_tensor *x = sample_normal(s, i, DT_F32, sizes[k].rank, sizes[k].shape);
        for (int64_t j = 0; i == wide && j < x->count; j++)
            x->d[j] = ref_round(DT_F32, x->d[j] * sizes[k].spread);
    }
    return true;
}

bool sample_swiglu(int k, struct op_sample *s)
{
    s->diff = 3;
    return alike(k, s, 2, 0);
}

bool sample_swiglu_bwd(int k, struct op_sample *s)
{
    return alike(k, s, 3, 1);
}

/* Two samples of each kind in each round over the shapes, in the second with others. */
static bool act_case(int k, struct op_sample *s, int n, int x)
{
    if (k >= 24) return false;
    struct attrs_act a = {k % ACT_KINDS};
    sample_attrs(s, &a, sizeof a);
    alike(k < 12 ? k : (k + 7) % 12, s, n, x);
    /* Away from the kink of relu, further than finite differences reach. */
    for (int64_t i = 0; a.kind == ACT_RELU && i < s->in[x].count; i++)
        s->in[x].d[i] = ref_round(DT_F32, s->in[x].d[i] + copysign(0.05, s->in[x].d[i]));
    return true;
}

bool sample_act(int k, struct op_sample *s)
{
    s->diff = 1;
    return act_case(k, s, 1, 0);
}

bool sample_act_bwd(int k, struct op_sample *s)
{
    return act_case(k, s, 2, 1);
}

bool sample_add(int k, struct op_sample *s)
{
    s->diff = 3;
    return alike(k, s, 2, 0);
}

bool sample_scale(int k, struct op_sample *s)
{
    static const float alphas[] = {1, 0.5f, -3, 2};
    static const double factors[] = {1, -0.75, 2.5};
    struct attrs_alpha a = {alphas[k % 4]};
    sample_attrs(s, &a, sizeof a);
    s->diff = 1; /* the factor is data of the run, not of the model: it has no gradient */
    if (!alike(k, s, 1, 0)) return false;
    sample_scalar(s, 1, factors[k % 3]);
    return true;
}

bool sample_dropout(int k, struct op_sample *s)
{
    static const float rates[] = {0.1f, 0.5f, 0.9f, 0};
    struct attrs_dropout a = {rates[k % 4], (uint32_t)k * 977u};
    sample_attrs(s, &a, sizeof a);
    s->diff = 1;
    return alike(k, s, 1, 0);
}

bool sample_rope(int k, struct op_sample *s)
{
    static const struct { int64_t N, H, D; int pos; float sign; } cases[] = {
        {1, 1, 2, 1, 1},     {5, 3, 4, 10, 1},    {7, 2, 8, 2000, -1}, {8, 4, 16, 100, 1},
        {0, 2, 4, 5, 1},     {3, 0, 4, 5, 1},     {13, 5, 6, 1000, 1}, {2, 1, 64, 4000, 1},
        {65, 3, 10, 64, -1}, {1, 9, 24, 2048, 1}, {40, 2, 32, 40, 1},  {130, 1, 14, 300, -1},
    };
    if (k >= REF_LEN(cases)) return false;
    struct attrs_rope a = {cases[k].sign};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32, DIMS(cases[k].N, cases[k].H, cases[k].D));
    sample_ints(s, 1, 0, cases[k].pos, DIMS(cases[k].N)); /* out of order, with repetitions */
    struct ref_tensor *freq = sample_zeros(s, 2, DT_F32, DIMS(cases[k].D / 2));
    /* Few bits, so that pos * freq is exact in f32: whoever rounds it rounds nothing. */
    for (int64_t i = 0; i < freq->count; i++)
        freq->d[i] = ldexp(1 + (double)(i % 8) / 8, -(int)i / 3);
    s->diff = 1;
    s->k_red = 2;
    return true;
}
