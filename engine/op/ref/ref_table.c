#include "engine/op/ref/ref.h"

const ref_fn ref_table[OP_COUNT] = {
#define OP(ID, name, attrs, least, most, outs, inplace, flags) [OP_##ID] = ref_##name,
#include "engine/op/ops.def"
#undef OP
};

const sample_fn sample_table[OP_COUNT] = {
#define OP(ID, name, attrs, least, most, outs, inplace, flags) [OP_##ID] = sample_##name,
#include "engine/op/ops.def"
#undef OP
};

void ref_put(const struct ref_call *c, int j, int64_t i, double v)
{
    if (!c->out[j]) return;
    double *p = &c->out[j]->d[i];
    *p = c->accum >> j & 1 ? *p + v : v;
}

struct ref_call ref_adding(const struct ref_call *c)
{
    struct ref_call all = *c;
    for (int j = 0; j < NODE_OUT; j++)
        for (int64_t i = 0; c->out[j] && i < c->out[j]->count; i++) ref_put(c, j, i, 0);
    all.accum = ~0u;
    return all;
}
