#include "engine/op/ref/ref.h"

/* sum_k a[i][k] b[j][k], with strides of rows and columns. */
static double dot(const double *a, int64_t step_a, const double *b, int64_t step_b, int64_t n)
{
    double s = 0;
    for (int64_t k = 0; k < n; k++) s += a[k * step_a] * b[k * step_b];
    return s;
}

/* Where the weight from input k to output j lies. */
static int64_t weight_at(const struct attrs_linear *a, int64_t m, int64_t k_all, int64_t j,
                         int64_t k)
{
    return a->wt ? k * m + j : j * k_all + k;
}

void ref_linear(struct ref_call *c)
{
    const struct attrs_linear *a = c->attrs;
    const struct ref_tensor *x = c->in[0], *w = c->in[1], *bias = c->in[2], *add = c->in[3];
    int64_t n = x->shape[0], k = x->shape[1], m = w->shape[a->wt ? 1 : 0];
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < m; j++) {
            const double *row = w->d + weight_at(a, m, k, j, 0);
            double y = (double)a->alpha * dot(x->d + i * k, 1, row, a->wt ? m : 1, k);
            if (bias) y += bias->d[j];
            if (add) y += add->d[i * m + j];
            ref_put(c, 0, i * m + j, y);
        }
    }
}

void ref_linear_dx(struct ref_call *c)
{
    const struct attrs_linear *a = c->attrs;
    const struct ref_tensor *dy = c->in[0], *w = c->in[1];
    int64_t n = dy->shape[0], m = dy->shape[1], k = w->shape[a->wt ? 0 : 1];
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < k; j++) {
            const double *column = w->d + weight_at(a, m, k, 0, j);
            ref_put(c, 0, i * k + j,
                    (double)a->alpha * dot(dy->d + i * m, 1, column, a->wt ? 1 : k, m));
        }
    }
}

void ref_linear_dw(struct ref_call *c)
{
    const struct attrs_linear *a = c->attrs;
    const struct ref_tensor *dy = c->in[0], *x = c->in[1];
    int64_t n = dy->shape[0], m = dy->shape[1], k = x->shape[1];
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++)
            ref_put(c, 0, weight_at(a, m, k, i, j),
                    (double)a->alpha * dot(dy->d + i, m, x->d + j, k, n));
}

void ref_colsum(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0];
    int64_t n = dy->shape[0], m = dy->shape[1];
    for (int64_t j = 0; j < m; j++) {
        double s = 0;
        for (int64_t i = 0; i < n; i++) s += dy->d[i * m + j];
        ref_put(c, 0, j, s);
    }
}

/* One matrix of cases serves the product and its two gradients. */
enum { BIAS = 1, ADD = 2, WT = 4 };
static const struct {
    int64_t n, k, m;
    enum dtype w, bias;
    unsigned has;
    float alpha;
} cases[] = {
    {1, 1, 1, DT_F32, DT_F32, 0, 1},
    {5, 7, 3, DT_F32, DT_F32, BIAS | ADD, 0.5f},
    {8, 16, 24, DT_F32, DT_F32, BIAS, 1},
    {13, 31, 17, DT_F32, DT_F32, ADD, -2},
    {3, 64, 40, DT_BF16, DT_F32, 0, 1},
    {4, 33, 19, DT_F16, DT_F32, ADD, 1.5f},
    {2, 24, 9, DT_BF16, DT_BF16, BIAS | ADD, 1},
    {7, 11, 5, DT_F16, DT_F16, BIAS, 0.25f},
    {0, 6, 4, DT_F32, DT_F32, BIAS | ADD, 1},
    {4, 0, 3, DT_F32, DT_F32, BIAS | ADD, 1},
    {4, 3, 0, DT_F32, DT_F32, 0, 1},
    {1, 67, 130, DT_BF16, DT_F32, 0, 1},
    {70, 37, 1, DT_F32, DT_F32, BIAS, 2},
    {37, 129, 65, DT_F32, DT_F32, 0, 0.125f},
    {16, 130, 131, DT_BF16, DT_F16, BIAS | ADD, 3},
    {96, 8, 72, DT_F16, DT_F32, ADD, 1},
    {6, 200, 300, DT_BF16, DT_F32, 0, 1},
    {1, 9, 5, DT_F32, DT_F32, WT, 1},
    {6, 7, 13, DT_F32, DT_F32, WT | BIAS | ADD, -0.5f},
    {9, 40, 3, DT_BF16, DT_BF16, WT | BIAS, 1},
    {2, 130, 67, DT_F16, DT_F32, WT | ADD, 2},
    {0, 4, 6, DT_F32, DT_F32, WT | BIAS, 1},
    {3, 0, 8, DT_F32, DT_F32, WT | ADD, 1},
    {5, 3, 0, DT_F32, DT_F32, WT, 1},
    {40, 24, 96, DT_F32, DT_F32, WT | BIAS, 1},
    {97, 65, 33, DT_BF16, DT_F32, WT, 0.25f},
    {16, 300, 70, DT_F16, DT_F16, WT | BIAS | ADD, 1},
};

static void attributes(int i, struct op_sample *s)
{
    struct attrs_linear a = {cases[i].alpha, !!(cases[i].has & WT)};
    sample_attrs(s, &a, sizeof a);
}

static void weight(int i, struct op_sample *s)
{
    int64_t m = cases[i].m, k = cases[i].k;
    if (cases[i].has & WT) sample_normal(s, 1, cases[i].w, DIMS(k, m));
    else sample_normal(s, 1, cases[i].w, DIMS(m, k));
}

bool sample_linear(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    int64_t n = cases[k].n, kk = cases[k].k, m = cases[k].m;
    attributes(k, s);
    sample_normal(s, 0, DT_F32, DIMS(n, kk));
    weight(k, s);
    if (cases[k].has & BIAS) sample_normal(s, 2, cases[k].bias, DIMS(m));
    if (cases[k].has & ADD) sample_normal(s, 3, DT_F32, DIMS(n, m));
    for (int i = 0; i < s->nin; i++)
        if (s->in[i].d && s->in[i].dtype == DT_F32) s->diff |= 1u << i;
    s->k_red = kk + 2;
    return true;
}

bool sample_linear_dx(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    attributes(k, s);
    sample_normal(s, 0, DT_F32, DIMS(cases[k].n, cases[k].m));
    weight(k, s);
    s->k_red = cases[k].m;
    return true;
}

bool sample_linear_dw(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    attributes(k, s);
    sample_normal(s, 0, DT_F32, DIMS(cases[k].n, cases[k].m));
    sample_normal(s, 1, DT_F32, DIMS(cases[k].n, cases[k].k));
    s->k_red = cases[k].n;
    return true;
}

bool sample_colsum(int k, struct op_sample *s)
{
    static const int64_t shapes[][2] = {{1, 1}, {1, 5}, {5, 1}, {7, 13}, {8, 16}, {64, 64},
                                        {65, 3}, {300, 17}, {3, 257}, {0, 4}, {4, 0}, {129, 40},
                                        {1000, 9}};
    if (k >= REF_LEN(shapes)) return false;
    sample_normal(s, 0, DT_F32, DIMS(shapes[k][0], shapes[k][1]));
    s->k_red = shapes[k][0];
    return true;
}
