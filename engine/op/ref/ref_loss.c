#include "engine/op/ref/ref.h"

#include <math.h>

static double logit(const struct ref_tensor *x, const struct ref_tensor *w, int64_t n, int64_t v)
{
    int64_t width = x->shape[1];
    double s = 0;
    for (int64_t i = 0; i < width; i++) s += x->d[n * width + i] * w->d[v * width + i];
    return s;
}

/* dx[n] += d w[v], dw[v] += d x[n] */
static void spread(const struct ref_call *c, int64_t n, int64_t v, double d)
{
    const struct ref_tensor *x = c->in[0], *w = c->in[1];
    int64_t width = x->shape[1];
    for (int64_t i = 0; i < width; i++) {
        ref_put(c, 1, n * width + i, d * w->d[v * width + i]);
        ref_put(c, 2, v * width + i, d * x->d[n * width + i]);
    }
}

void ref_linear_ce(struct ref_call *c)
{
    const struct ref_tensor *x = c->in[0], *w = c->in[1], *target = c->in[2];
    int64_t rows = x->shape[0], V = w->shape[0];
    double weight = c->in[3]->d[0];
    bool gradients = c->out[1] || c->out[2];
    struct ref_call sum = ref_adding(c);
    for (int64_t n = 0; n < rows; n++) {
        int64_t t = (int64_t)target->d[n], best = 0;
        double total = 0;
        if (t < 0) continue;
        for (int64_t v = 1; v < V; v++)
            if (logit(x, w, n, v) > logit(x, w, n, best)) best = v;
        double top = logit(x, w, n, best);
        for (int64_t v = 0; v < V; v++) total += exp(logit(x, w, n, v) - top);
        double lse = top + log(total);
        for (int64_t v = 0; gradients && v < V; v++)
            spread(&sum, n, v, weight * (exp(logit(x, w, n, v) - lse) - (v == t)));
        ref_put(&sum, 0, 0, weight * (lse - logit(x, w, n, t)));
        ref_put(&sum, 3, 0, best == t);
    }
}

/* Which rows have a target. */
enum masked { NONE, SOME, ALL };

static const struct {
    int64_t n, width, vocab;
    enum dtype w;
    enum masked masked;
    double weight;
} cases[] = {
    {1, 1, 1, DT_F32, NONE, 1},        {1, 8, 16, DT_F32, NONE, 0.5},
    {5, 7, 11, DT_F32, SOME, 0.2},     {8, 16, 64, DT_F32, NONE, 0.125},
    {13, 5, 3, DT_F32, SOME, 1},       {4, 33, 19, DT_BF16, SOME, 2},
    {6, 12, 40, DT_F16, NONE, 0.3},    {7, 9, 21, DT_F32, ALL, 1},
    {0, 4, 6, DT_F32, NONE, 1},        {65, 24, 131, DT_F32, SOME, 0.015},
    {3, 40, 1030, DT_BF16, NONE, 0.3}, {130, 8, 67, DT_F16, SOME, 0.01},
    {17, 64, 300, DT_F32, SOME, -0.1}, {2, 3, 2, DT_F32, NONE, 0},
};

bool sample_linear_ce(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    sample_normal(s, 0, DT_F32, DIMS(cases[k].n, cases[k].width));
    struct ref_tensor *w = sample_normal(s, 1, cases[k].w, DIMS(cases[k].vocab, cases[k].width));
    struct ref_tensor *target = sample_ints(s, 2, 0, (int)cases[k].vocab, DIMS(cases[k].n));
    sample_scalar(s, 3, cases[k].weight);
    if (s->err.code) return true;
    for (int64_t n = 0; n < target->count; n++) {
        double best = -INFINITY;
        /* Every third row is a hit, whatever the chance. */
        for (int64_t v = 0; n % 3 == 0 && v < cases[k].vocab; v++) {
            double z = logit(&s->in[0], w, n, v);
            if (z > best) target->d[n] = (double)v;
            best = fmax(best, z);
        }
        if (cases[k].masked == ALL || (cases[k].masked == SOME && n % 4 == 1)) target->d[n] = -1;
    }
    s->diff = cases[k].w == DT_F32 ? 3 : 1;
    s->k_red = cases[k].width + cases[k].vocab + cases[k].n;
    return true;
}

/* ---- CE ---- */

void ref_ce(struct ref_call *c)
{
    const struct ref_tensor *z = c->in[0], *target = c->in[1];
    int64_t rows = z->shape[0], V = z->shape[1];
    double weight = c->in[2]->d[0];
    struct ref_call sum = ref_adding(c);
    for (int64_t n = 0; n < rows; n++) {
        const double *l = z->d + n * V;
        int64_t t = (int64_t)target->d[n], best = 0;
        double total = 0;
        if (t < 0) continue;
        for (int64_t v = 1; v < V; v++)
            if (l[v] > l[best]) best = v;
        for (int64_t v = 0; v < V; v++) total += exp(l[v] - l[best]);
        double lse = l[best] + log(total);
        for (int64_t v = 0; v < V; v++)
            ref_put(&sum, 1, n * V + v, weight * (exp(l[v] - lse) - (v == t)));
        ref_put(&sum, 0, 0, weight * (lse - l[t]));
        ref_put(&sum, 2, 0, best == t);
    }
}

bool sample_ce(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    int64_t V = cases[k].vocab;
    struct ref_tensor *z = sample_normal(s, 0, DT_F32, DIMS(cases[k].n, V));
    struct ref_tensor *target = sample_ints(s, 1, 0, (int)V, DIMS(cases[k].n));
    sample_scalar(s, 2, cases[k].weight);
    if (s->err.code) return true;
    for (int64_t i = 0; i < z->count; i++) z->d[i] = ref_round(DT_F32, 3 * z->d[i]);
    for (int64_t n = 0; n < target->count; n++) {
        double *l = z->d + n * V;
        int64_t best = 0;
        for (int64_t v = 1; v < V; v++) best = l[v] > l[best] ? v : best;
        if (n % 3 == 0) target->d[n] = (double)best;
        if (cases[k].masked == ALL || (cases[k].masked == SOME && n % 4 == 1)) target->d[n] = -1;
    }
    s->diff = 1;
    s->k_red = V + cases[k].n;
    return true;
}
