#include "engine/op/ref/ref.h"

void ref_slice(struct ref_call *c)
{
    const struct attrs_slice *a = c->attrs;
    const struct ref_tensor *x = c->in[0];
    for (int64_t i = 0; i < x->shape[0]; i++)
        for (int64_t j = 0; j < a->width; j++)
            ref_put(c, 0, i * a->width + j, x->d[i * x->shape[1] + a->at + j]);
}

void ref_slice_dx(struct ref_call *c)
{
    const struct attrs_slice *a = c->attrs;
    const struct ref_tensor *dy = c->in[0];
    struct ref_call sum = ref_adding(c);
    for (int64_t i = 0; i < dy->shape[0]; i++)
        for (int64_t j = 0; j < dy->shape[1]; j++)
            ref_put(&sum, 0, i * a->width + a->at + j, dy->d[i * dy->shape[1] + j]);
}

/* Pixel by pixel: which patch it is in, and where in that. */
void ref_patches(struct ref_call *c)
{
    const struct ref_tensor *image = c->in[0];
    int64_t I = image->shape[1], Y = image->shape[2], X = image->shape[3];
    int64_t size = ((const struct attrs_patches *)c->attrs)->size;
    for (int64_t at = 0; at < image->count; at++) {
        int64_t x = at % X, y = at / X % Y, i = at / X / Y % I, b = at / X / Y / I;
        int64_t patch = (b * (Y / size) + y / size) * (X / size) + x / size;
        int64_t inside = (i * size + y % size) * size + x % size;
        ref_put(c, 0, patch * I * size * size + inside, image->d[at]);
    }
}

void ref_prefix(struct ref_call *c)
{
    const struct ref_tensor *prefix = c->in[0], *x = c->in[1];
    int64_t P = prefix->shape[0], T = x->shape[1], width = x->shape[2];
    for (int64_t b = 0; b < x->shape[0]; b++)
        for (int64_t t = 0; t < P + T; t++)
            for (int64_t j = 0; j < width; j++)
                ref_put(c, 0, (b * (P + T) + t) * width + j,
                        t < P ? prefix->d[t * width + j] : x->d[(b * T + t - P) * width + j]);
}

void ref_prefix_dx(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0];
    int64_t P = ((const struct attrs_rows *)c->attrs)->rows, R = dy->shape[1], T = R - P;
    int64_t width = dy->shape[2];
    for (int64_t b = 0; b < dy->shape[0]; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t j = 0; j < width; j++)
                ref_put(c, 0, (b * T + t) * width + j, dy->d[(b * R + P + t) * width + j]);
}

void ref_prefix_dw(struct ref_call *c)
{
    const struct ref_tensor *dy = c->in[0];
    int64_t P = ((const struct attrs_rows *)c->attrs)->rows, R = dy->shape[1];
    int64_t width = dy->shape[2];
    for (int64_t i = 0; i < P * width; i++) {
        double s = 0;
        for (int64_t b = 0; b < dy->shape[0]; b++) s += dy->d[b * R * width + i];
        ref_put(c, 0, i, s);
    }
}

static const struct { int64_t n, width, at, cut; } slices[] = {
    {1, 1, 0, 1},   {5, 7, 2, 3},    {8, 24, 8, 8},    {13, 24, 16, 8}, {3, 9, 0, 4},
    {0, 6, 1, 2},   {4, 6, 3, 0},    {65, 33, 10, 23}, {2, 300, 41, 257}, {130, 12, 4, 5},
    {33, 17, 16, 1}, {100, 3, 1, 2}, {7, 64, 0, 64},
};

bool sample_slice(int k, struct op_sample *s)
{
    if (k >= REF_LEN(slices)) return false;
    struct attrs_slice a = {slices[k].at, slices[k].cut};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32, DIMS(slices[k].n, slices[k].width));
    s->diff = 1;
    return true;
}

bool sample_slice_dx(int k, struct op_sample *s)
{
    if (k >= REF_LEN(slices)) return false;
    struct attrs_slice a = {slices[k].at, slices[k].width};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32, DIMS(slices[k].n, slices[k].cut));
    return true;
}

bool sample_patches(int k, struct op_sample *s)
{
    static const struct { int64_t b, i, y, x, size; } images[] = {
        {1, 1, 1, 1, 1}, {1, 1, 4, 6, 2},  {2, 3, 8, 8, 4},  {3, 2, 6, 9, 3}, {1, 3, 16, 16, 16},
        {0, 3, 4, 4, 2}, {2, 0, 4, 4, 2},  {2, 3, 0, 8, 4},  {5, 1, 10, 5, 5}, {1, 4, 7, 14, 7},
        {2, 3, 32, 48, 8}, {1, 2, 5, 3, 1}, {4, 3, 28, 28, 14},
    };
    if (k >= REF_LEN(images)) return false;
    struct attrs_patches a = {images[k].size, DT_F32};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32, DIMS(images[k].b, images[k].i, images[k].y, images[k].x));
    return true;
}

static const struct {
    int64_t p, b, t, width;
    enum dtype prefix;
} prefixes[] = {
    {1, 1, 1, 1, DT_F32},    {1, 2, 5, 7, DT_F32},  {2, 3, 4, 8, DT_BF16},  {1, 5, 9, 33, DT_F16},
    {3, 1, 6, 16, DT_F32},   {0, 2, 4, 5, DT_F32},  {2, 0, 4, 5, DT_F32},   {2, 3, 0, 5, DT_F32},
    {1, 4, 2, 0, DT_F32},    {1, 40, 3, 13, DT_F32}, {2, 7, 49, 24, DT_BF16},
    {5, 2, 17, 260, DT_F16}, {13, 6, 1, 67, DT_F32},
};

bool sample_prefix(int k, struct op_sample *s)
{
    if (k >= REF_LEN(prefixes)) return false;
    int64_t width = prefixes[k].width;
    sample_normal(s, 0, prefixes[k].prefix, DIMS(prefixes[k].p, width));
    sample_normal(s, 1, DT_F32, DIMS(prefixes[k].b, prefixes[k].t, width));
    s->diff = prefixes[k].prefix == DT_F32 ? 3 : 2;
    return true;
}

static bool prefix_gradient(int k, struct op_sample *s)
{
    if (k >= REF_LEN(prefixes)) return false;
    struct attrs_rows a = {prefixes[k].p};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32,
                  DIMS(prefixes[k].b, prefixes[k].p + prefixes[k].t, prefixes[k].width));
    return true;
}

bool sample_prefix_dx(int k, struct op_sample *s)
{
    return prefix_gradient(k, s);
}

bool sample_prefix_dw(int k, struct op_sample *s)
{
    s->k_red = k < REF_LEN(prefixes) ? prefixes[k].b : 1;
    return prefix_gradient(k, s);
}
