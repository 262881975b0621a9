#include "engine/op/ref/ref.h"

#include <math.h>

void ref_sumsq(struct ref_call *c)
{
    const struct ref_tensor *x = c->in[0], *acc = c->in[1];
    double s = 0;
    for (int64_t i = 0; i < x->count; i++) s += x->d[i] * x->d[i];
    ref_put(c, 0, 0, acc->d[0] + s);
}

void ref_clip(struct ref_call *c)
{
    const struct attrs_clip *a = c->attrs;
    double norm = sqrt(c->in[0]->d[0]), scale = 1;
    if (a->max_norm > 0) scale = fmin(1, (double)a->max_norm / (norm + 1e-6));
    ref_put(c, 0, 0, isfinite(norm) ? scale : NAN);
    ref_put(c, 1, 0, norm);
}

void ref_adamw(struct ref_call *c)
{
    const struct attrs_adamw *a = c->attrs;
    const struct ref_tensor *w = c->in[0], *g = c->in[1];
    struct ref_tensor *m = c->in[2], *v = c->in[3];
    const double *hyper = c->in[4]->d;
    double lr = hyper[0], decay = hyper[1], c1 = (double)a->c1, c2 = (double)a->c2;
    double scale = c->in[5] ? c->in[5]->d[0] : 1;
    for (int64_t i = 0; i < w->count; i++) {
        double x = w->d[i], gi = scale * g->d[i];
        if (!isnan(scale)) {
            m->d[i] += c1 * (gi - m->d[i]);
            v->d[i] = (double)a->beta2 * v->d[i] + c2 * gi * gi;
            x -= lr * decay * x;
            x -= lr * (m->d[i] / hyper[2]) / (sqrt(v->d[i] / hyper[3]) + (double)a->eps);
        }
        ref_put(c, 0, i, x);
    }
}

bool sample_sumsq(int k, struct op_sample *s)
{
    static const int64_t sizes[] = {1, 3, 8, 0, 31, 64, 127, 1000, 4096, 5003, 65537, 100001};
    if (k >= REF_LEN(sizes)) return false;
    sample_normal(s, 0, DT_F32, DIMS(sizes[k]));
    sample_scalar(s, 1, k % 3 ? 0 : 2.5 * k);
    s->state = 2;
    return true;
}

bool sample_clip(int k, struct op_sample *s)
{
    static const struct { double sumsq; float max_norm; } cases[] = {
        {0, 1}, {4, 1}, {4, 3}, {0.25, 1}, {1e-20, 1}, {1e20, 2.5f}, {9, 0}, {2, 1.4f},
        {INFINITY, 1}, {NAN, 1}, {INFINITY, 0}, {1e-30, 0.5f}, {12345.678, 0.1f}, {NAN, 0},
    };
    if (k >= REF_LEN(cases)) return false;
    struct attrs_clip a = {cases[k].max_norm};
    sample_attrs(s, &a, sizeof a);
    sample_scalar(s, 0, cases[k].sumsq);
    return true;
}

bool sample_adamw(int k, struct op_sample *s)
{
    enum { NO_SCALE = 99 };
    static const struct {
        int64_t n;
        int step;
        double beta1, beta2, eps;
        double lr, decay, scale;
    } cases[] = {
        {1, 1, 0.9, 0.999, 1e-8, 1e-3, 0, NO_SCALE},
        {7, 1, 0.9, 0.999, 1e-8, 1e-1, 0.1, 1},
        {8, 2, 0.9, 0.95, 1e-6, 1e-2, 0, 0.5},
        {31, 3, 0, 0.99, 1e-8, 1e-2, 0.5, NO_SCALE},
        {64, 10, 0.8, 0.9, 0.25, 0.5, 0.01, 0.1},
        {0, 1, 0.9, 0.999, 1e-8, 1e-3, 0, 1},
        {65, 7, 0.9, 0.999, 1e-8, 0, 0.3, 1},
        {130, 5, 0.9, 0.999, 1e-8, 1e-2, 0.1, NAN},
        {1000, 100, 0.9, 0.999, 1e-8, 2e-4, 0.01, 0.3},
        {257, 2, 0.5, 0.5, 1e-3, 0.2, 0.2, 1},
        {4099, 20, 0.9, 0.98, 1e-9, 1e-2, 0, NO_SCALE},
        {70001, 3, 0.9, 0.999, 1e-8, 1e-2, 0.1, 0.7},
    };
    if (k >= REF_LEN(cases)) return false;
    struct attrs_adamw a = attrs_adamw(cases[k].beta1, cases[k].beta2, cases[k].eps, 0);
    sample_attrs(s, &a, sizeof a);
    for (int i = 0; i < 4; i++) sample_normal(s, i, DT_F32, DIMS(cases[k].n));
    for (int64_t i = 0; i < s->in[3].count; i++) s->in[3].d[i] = fabs(s->in[3].d[i]);
    struct ref_tensor *hyper = sample_zeros(s, 4, DT_F32, DIMS(8));
    if (s->err.code) return true;
    hyper->d[0] = ref_round(DT_F32, cases[k].lr);
    hyper->d[1] = ref_round(DT_F32, cases[k].decay);
    hyper->d[2] = ref_round(DT_F32, 1 - pow(cases[k].beta1, cases[k].step));
    hyper->d[3] = ref_round(DT_F32, 1 - pow(cases[k].beta2, cases[k].step));
    if (cases[k].scale != NO_SCALE) sample_scalar(s, 5, cases[k].scale);
    s->state = 1 | 4 | 8;
    return true;
}
