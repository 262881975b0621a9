#include "engine/op/ref/ref.h"

#include "engine/base/rng.h"

void ref_embed(struct ref_call *c)
{
    const struct ref_tensor *ids = c->in[0], *table = c->in[1];
    int64_t width = table->shape[1];
    for (int64_t i = 0; i < ids->count; i++)
        for (int64_t j = 0; j < width; j++)
            ref_put(c, 0, i * width + j, table->d[(int64_t)ids->d[i] * width + j]);
}

/* out[rows, width]: the rows of dy summed by their index. */
static void scatter(const struct ref_call *c, const struct ref_tensor *dy,
                    const struct ref_tensor *idx)
{
    struct ref_call sum = ref_adding(c);
    int64_t width = dy->shape[1];
    for (int64_t i = 0; i < idx->count; i++)
        for (int64_t j = 0; j < width; j++)
            ref_put(&sum, 0, (int64_t)idx->d[i] * width + j, dy->d[i * width + j]);
}

void ref_embed_dw(struct ref_call *c)
{
    scatter(c, c->in[1], c->in[0]);
}

void ref_rows(struct ref_call *c)
{
    const struct ref_tensor *x = c->in[0], *idx = c->in[1];
    int64_t width = x->shape[1];
    for (int64_t i = 0; i < idx->count; i++)
        for (int64_t j = 0; j < width; j++)
            ref_put(c, 0, i * width + j, x->d[(int64_t)idx->d[i] * width + j]);
}

void ref_rows_dx(struct ref_call *c)
{
    scatter(c, c->in[0], c->in[1]);
}

/* cache[B,S,G,D], x[B,T,G,D], pos[B,T] */
void ref_kv_store(struct ref_call *c)
{
    const struct ref_tensor *cache = c->in[0], *x = c->in[1], *pos = c->in[2];
    int64_t S = cache->shape[1], row = cache->shape[2] * cache->shape[3], T = x->shape[1];
    for (int64_t i = 0; i < cache->count; i++) ref_put(c, 0, i, cache->d[i]);
    for (int64_t i = 0; i < pos->count; i++) {
        int64_t to = i / T * S + (int64_t)pos->d[i];
        for (int64_t j = 0; j < row; j++) ref_put(c, 0, to * row + j, x->d[i * row + j]);
    }
}

static const struct {
    int64_t n, rows, width;
    enum dtype table;
} cases[] = {
    {1, 1, 1, DT_F32},      {5, 3, 7, DT_F32},   {8, 16, 8, DT_F32},   {13, 2, 5, DT_BF16},
    {17, 40, 33, DT_F16},   {0, 4, 6, DT_F32},   {3, 50, 0, DT_F32},   {64, 1, 24, DT_BF16},
    {100, 11, 16, DT_F32},  {31, 257, 9, DT_F16}, {2, 1000, 3, DT_BF16}, {300, 70, 13, DT_F32},
    {7, 9, 130, DT_F32},
};

bool sample_embed(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    sample_ints(s, 0, 0, (int)cases[k].rows, DIMS(cases[k].n));
    sample_normal(s, 1, cases[k].table, DIMS(cases[k].rows, cases[k].width));
    if (cases[k].table == DT_F32) s->diff = 2;
    return true;
}

bool sample_embed_dw(int k, struct op_sample *s)
{
    if (k >= REF_LEN(cases)) return false;
    struct attrs_rows a = {cases[k].rows};
    sample_attrs(s, &a, sizeof a);
    sample_ints(s, 0, 0, (int)cases[k].rows, DIMS(cases[k].n));
    sample_normal(s, 1, DT_F32, DIMS(cases[k].n, cases[k].width));
    s->k_red = cases[k].n;
    return true;
}

static const struct {
    int64_t rows, picked, width;
    bool repeated; /* forward only: the gradient wants distinct indices */
} picks[] = {
    {1, 1, 1, false},   {5, 3, 7, false},  {8, 8, 16, false},  {40, 13, 9, false},
    {4, 0, 6, false},   {4, 4, 0, false},  {0, 0, 3, false},   {3, 12, 5, true},
    {17, 17, 4, false}, {2, 64, 33, true}, {257, 1, 8, false}, {100, 61, 24, false},
    {65, 40, 131, false},
};

bool sample_rows(int k, struct op_sample *s)
{
    if (k >= REF_LEN(picks)) return false;
    int rows = (int)picks[k].rows;
    sample_normal(s, 0, DT_F32, DIMS(rows, picks[k].width));
    if (picks[k].repeated) sample_ints(s, 1, 0, rows, DIMS(picks[k].picked));
    else sample_distinct(s, 1, rows, picks[k].picked);
    s->diff = picks[k].repeated ? 0 : 1;
    return true;
}

bool sample_rows_dx(int k, struct op_sample *s)
{
    /* The repeated cases make room for as many rows as are picked. */
    if (k >= REF_LEN(picks)) return false;
    struct attrs_rows a = {picks[k].repeated ? picks[k].picked : picks[k].rows};
    sample_attrs(s, &a, sizeof a);
    sample_normal(s, 0, DT_F32, DIMS(picks[k].picked, picks[k].width));
    sample_distinct(s, 1, (int)a.rows, picks[k].picked);
    return true;
}

bool sample_kv_store(int k, struct op_sample *s)
{
    static const struct { int64_t B, S, T, G, D; } shapes[] = {
        {1, 1, 1, 1, 1}, {1, 5, 2, 1, 4},  {2, 7, 3, 2, 3}, {3, 8, 8, 2, 8}, {1, 16, 1, 4, 8},
        {2, 9, 0, 1, 2}, {0, 4, 2, 1, 2},  {1, 4, 2, 1, 0}, {2, 33, 5, 1, 7}, {4, 64, 1, 2, 24},
        {1, 40, 13, 3, 5}, {2, 130, 100, 1, 6},
    };
    if (k >= REF_LEN(shapes)) return false;
    int64_t B = shapes[k].B, S = shapes[k].S, T = shapes[k].T, G = shapes[k].G, D = shapes[k].D;
    sample_normal(s, 0, DT_F32, DIMS(B, S, G, D));
    sample_normal(s, 1, DT_F32, DIMS(B, T, G, D));
    struct ref_tensor *pos = sample_zeros(s, 2, DT_I32, DIMS(B, T));
    /* Distinct inside each sequence and in no order. */
    for (int64_t i = 0; i < pos->count; i++)
        pos->d[i] = (double)rng_permute(s->key, (uint32_t)(i / T), S, i % T);
    s->state = 1;
    return true;
}
