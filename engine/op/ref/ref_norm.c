#include "engine/op/ref/ref.h"

#include <math.h>

void ref_rmsnorm(struct ref_call *c)
{
    const struct attrs_norm *a = c->attrs;
    const struct ref_tensor *x = c->in[0], *w = c->in[1];
    int64_t n = x->shape[0], width = x->shape[1];
    for (int64_t i = 0; i < n; i++) {
        const double *row = x->d + i * width;
        double sum = 0;
        for (int64_t j = 0; j < width; j++) sum += row[j] * row[j];
        double rstd = 1 / sqrt(sum / (double)width + (double)a->eps);
        for (int64_t j = 0; j < width; j++)
            ref_put(c, 0, i * width + j, row[j] * rstd * w->d[j]);
        ref_put(c, 1, i, rstd);
    }
}

/* With n = x rstd: dx = rstd (w dy - n mean(w dy n)). */
void ref_rmsnorm_dx(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0], *x = c->in[1], *w = c->in[2], *rstd = c->in[3];
    int64_t n = x->shape[0], width = x->shape[1];
    for (int64_t i = 0; i < n; i++) {
        const double *row = x->d + i * width, *g = dy->d + i * width;
        double r = rstd->d[i], mean = 0;
        for (int64_t j = 0; j < width; j++) mean += w->d[j] * g[j] * row[j] * r;
        mean /= (double)width;
        for (int64_t j = 0; j < width; j++)
            ref_put(c, 0, i * width + j, r * (w->d[j] * g[j] - row[j] * r * mean));
    }
}

void ref_rmsnorm_dw(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0], *x = c->in[1], *rstd = c->in[2];
    int64_t n = x->shape[0], width = x->shape[1];
    for (int64_t j = 0; j < width; j++) {
        double s = 0;
        for (int64_t i = 0; i < n; i++)
            s += dy->d[i * width + j] * x->d[i * width + j] * rstd->d[i];
        ref_put(c, 0, j, s);
    }
}

static const struct {
    int64_t n, width;
    enum dtype w;
    float eps;
} cases[] = {
    {1, 1, DT_F32, 0.5f},     {1, 8, DT_F32, 1e-6f},  {5, 7, DT_F32, 0.5f},
    {8, 16, DT_F32, 1e-5f},   {3, 31, DT_BF16, 0.1f}, {4, 33, DT_F16, 1e-5f},
    {0, 6, DT_F32, 1e-5f},    {64, 1, DT_F32, 0.3f},  {65, 40, DT_F32, 0},
    {2, 259, DT_BF16, 2},     {7, 128, DT_F16, 1e-6f}, {130, 24, DT_F32, 0.2f},
    {17, 67, DT_F32, 1e-3f},  {300, 9, DT_BF16, 0.7f},
};

/* rstd as the forward op would have saved it, into input i. */
static void saved_rstd(struct op_sample *s, int x, int w, float eps, int i, int64_t n)
{
    struct attrs_norm a = {eps};
    struct ref_call c = {.attrs = &a, .in = {&s->in[x], &s->in[w]}};
    sample_zeros(s, i, DT_F32, DIMS(n));
    sample_output(s, ref_rmsnorm, &c, 1, i);
}

bool sample_rmsnorm(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    struct attrs_norm a = {cases[k].eps};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32, DIMS(cases[k].n, cases[k].width));
    sample_normal(s, 1, cases[k].w, DIMS(cases[k].width));
    s->diff = cases[k].w == DT_F32 ? 3 : 1;
    s->k_red = cases[k].width;
    return true;
}

bool sample_rmsnorm_dx(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    sample_normal(s, 0, DT_F32, DIMS(cases[k].n, cases[k].width));
    sample_normal(s, 1, DT_F32, DIMS(cases[k].n, cases[k].width));
    sample_normal(s, 2, cases[k].w, DIMS(cases[k].width));
    saved_rstd(s, 1, 2, cases[k].eps, 3, cases[k].n);
    s->k_red = cases[k].width;
    return true;
}

bool sample_rmsnorm_dw(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    sample_normal(s, 0, DT_F32, DIMS(cases[k].n, cases[k].width));
    sample_normal(s, 1, DT_F32, DIMS(cases[k].n, cases[k].width));
    /* The reference of the norm wants some weight; rstd does not depend on it. */
    saved_rstd(s, 1, 1, cases[k].eps, 2, cases[k].n);
    s->k_red = cases[k].n;
    return true;
}

/* ---- LayerNorm ---- */

void ref_layernorm(struct ref_call *c)
{
    const struct attrs_norm *a = c->attrs;
    const struct ref_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2];
    int64_t n = x->shape[0], width = x->shape[1];
    for (int64_t i = 0; i < n; i++) {
        const double *row = x->d + i * width;
        double mean = 0, var = 0;
        for (int64_t j = 0; j < width; j++) mean += row[j];
        mean /= (double)width;
        for (int64_t j = 0; j < width; j++) var += (row[j] - mean) * (row[j] - mean);
        double rstd = 1 / sqrt(var / (double)width + (double)a->eps);
        for (int64_t j = 0; j < width; j++)
            ref_put(c, 0, i * width + j, (row[j] - mean) * rstd * w->d[j] + b->d[j]);
        ref_put(c, 1, i, mean);
        ref_put(c, 2, i, rstd);
    }
}

/* With n = (x - mean) rstd: dx = rstd (w dy - mean(w dy) - n mean(w dy n)). */
void ref_layernorm_dx(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0], *x = c->in[1], *w = c->in[2];
    int64_t n = x->shape[0], width = x->shape[1];
    for (int64_t i = 0; i < n; i++) {
        const double *row = x->d + i * width, *g = dy->d + i * width;
        double mean = c->in[3]->d[i], r = c->in[4]->d[i], plain = 0, with_n = 0;
        for (int64_t j = 0; j < width; j++) {
            plain += w->d[j] * g[j];
            with_n += w->d[j] * g[j] * ((row[j] - mean) * r);
        }
        plain /= (double)width;
        with_n /= (double)width;
        for (int64_t j = 0; j < width; j++)
            ref_put(c, 0, i * width + j,
                    r * (w->d[j] * g[j] - plain - (row[j] - mean) * r * with_n));
    }
}

void ref_layernorm_dw(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0], *x = c->in[1], *mean = c->in[2], *rstd = c->in[3];
    int64_t n = x->shape[0], width = x->shape[1];
    for (int64_t j = 0; j < width; j++) {
        double s = 0;
        for (int64_t i = 0; i < n; i++)
            s += dy->d[i * width + j] * (x->d[i * width + j] - mean->d[i]) * rstd->d[i];
        ref_put(c, 0, j, s);
    }
}

static const struct {
    int64_t n, width;
    enum dtype w, b;
    float eps;
    double shift; /* of x: what the mean takes away again */
} layers[] = {
    {1, 1, DT_F32, DT_F32, 0.5f, 0},      {1, 8, DT_F32, DT_F32, 1e-6f, 0},
    {5, 7, DT_F32, DT_F32, 0.5f, 2},      {8, 16, DT_F32, DT_F32, 1e-5f, 0},
    {3, 31, DT_BF16, DT_BF16, 0.1f, -3},  {4, 33, DT_F16, DT_F16, 1e-5f, 0},
    {0, 6, DT_F32, DT_F32, 1e-5f, 0},     {64, 1, DT_F32, DT_F32, 0.3f, 1},
    {65, 40, DT_F32, DT_F32, 0, 0.5},     {2, 259, DT_BF16, DT_F32, 2, 0},
    {7, 128, DT_F16, DT_BF16, 1e-6f, -1}, {130, 24, DT_F32, DT_F32, 0.2f, 0},
    {17, 67, DT_F32, DT_F16, 1e-3f, 4},   {300, 9, DT_BF16, DT_F32, 0.7f, 0},
    {4, 6, DT_F32, DT_F32, 1e-12f, 0},
};

static void layer_x(int k, struct op_sample *s, int i)
{
    struct ref_tensor *x = sample_normal(s, i, DT_F32, DIMS(layers[k].n, layers[k].width));
    for (int64_t j = 0; j < x->count; j++) x->d[j] = ref_round(DT_F32, x->d[j] + layers[k].shift);
}

/* Mean and rstd of input x as the forward op would have saved them, into inputs i and i + 1. */
static void saved_moments(int k, struct op_sample *s, int x, int i)
{
    struct attrs_norm a = {layers[k].eps};
    /* The reference wants some weight and bias; the moments do not depend on them. */
    struct ref_call c = {.attrs = &a, .in = {&s->in[x], &s->in[x], &s->in[x]}};
    sample_zeros(s, i, DT_F32, DIMS(layers[k].n));
    sample_zeros(s, i + 1, DT_F32, DIMS(layers[k].n));
    sample_output(s, ref_layernorm, &c, 1, i);
    sample_output(s, ref_layernorm, &c, 2, i + 1);
}

bool sample_layernorm(int k, struct op_sample *s)
{
    if (k >= REF_LEN(layers)) return false;
    struct attrs_norm a = {layers[k].eps};
    sample_attrs(s, &a, sizeof a);
    layer_x(k, s, 0);
    sample_normal(s, 1, layers[k].w, DIMS(layers[k].width));
    sample_normal(s, 2, layers[k].b, DIMS(layers[k].width));
    s->diff = 1u | (layers[k].w == DT_F32) << 1 | (layers[k].b == DT_F32) << 2;
    s->k_red = layers[k].width;
    return true;
}

bool sample_layernorm_dx(int k, struct op_sample *s)
{
    if (k >= REF_LEN(layers)) return false;
    sample_normal(s, 0, DT_F32, DIMS(layers[k].n, layers[k].width));
    layer_x(k, s, 1);
    sample_normal(s, 2, layers[k].w, DIMS(layers[k].width));
    saved_moments(k, s, 1, 3);
    s->k_red = layers[k].width;
    return true;
}

bool sample_layernorm_dw(int k, struct op_sample *s)
{
    if (k >= REF_LEN(layers)) return false;
    sample_normal(s, 0, DT_F32, DIMS(layers[k].n, layers[k].width));
    layer_x(k, s, 1);
    saved_moments(k, s, 1, 2);
    s->k_red = layers[k].n;
    return true;
}
