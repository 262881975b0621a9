/* What ends a step: the norm of all gradients, clipping, AdamW. */
#include "engine/op/op_rules.h"

RULES_SHAPE(sumsq, "f:* f:1 > f:1")

void cost_sumsq(const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(2 * (double)in[0]->count, in, out, c);
    c->ws_bytes = rules_partials(1);
}

RULES_SHAPE(clip, "f:1 > f:1 f:1")

void cost_clip(const void *attrs, const struct tensor *const *in,
               const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(4, in, out, c);
}

struct attrs_adamw attrs_adamw(double beta1, double beta2, double eps, int group)
{
    return (struct attrs_adamw){(float)(1 - beta1), (float)beta2, (float)(1 - beta2), (float)eps,
                                group};
}

RULES_SHAPE(adamw, "f:* f:* f:* f:* f:8 f:1 > f:*")

/* w, m and v are read and written. */
void cost_adamw(const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(16 * (double)in[0]->count, in, out, c);
    c->bytes += 2 * in[0]->count * (int64_t)sizeof(float);
}
