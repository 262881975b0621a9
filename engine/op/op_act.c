/* Element-wise operations. */
#include "engine/op/op_rules.h"

int shape_swiglu(const void *attrs, const struct tensor *const *in, struct tensor *out,
                 struct err *e)
{
    (void)attrs;
    return rules_shape("f:* f:* > f:*", in, out, e);
}

void cost_swiglu(const void *attrs, const struct tensor *const *in,
                 const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(5 * (double)in[0]->count, in, out, c);
}

void grad_swiglu(struct tape *t, const struct node *n, const int *dout, const bool *want,
                 int *din)
{
    int d[NODE_OUT] = {-1, -1, -1, -1};
    tape_record(t, OP_SWIGLU_BWD, NULL, 0, (int[]){dout[0], n->in[0], n->in[1]}, 3, d);
    for (int i = 0; i < 2; i++)
        if (want[i]) din[i] = d[i];
}

int shape_swiglu_bwd(const void *attrs, const struct tensor *const *in, struct tensor *out,
                     struct err *e)
{
    (void)attrs;
    return rules_shape("f:* f:* f:* > f:* f:*", in, out, e);
}

void cost_swiglu_bwd(const void *attrs, const struct tensor *const *in,
                     const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(11 * (double)in[0]->count, in, out, c);
}

int shape_add(const void *attrs, const struct tensor *const *in, struct tensor *out,
              struct err *e)
{
    (void)attrs;
    return rules_shape("f:* f:* > f:*", in, out, e);
}

void cost_add(const void *attrs, const struct tensor *const *in, const struct tensor *const *out,
              int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost((double)in[0]->count, in, out, c);
}

void grad_add(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    (void)t;
    (void)n;
    for (int i = 0; i < 2; i++)
        if (want[i]) din[i] = dout[0];
}

int shape_scale(const void *attrs, const struct tensor *const *in, struct tensor *out,
                struct err *e)
{
    (void)attrs;
    return rules_shape("f:* f:1 > f:*", in, out, e);
}

void cost_scale(const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost((double)in[0]->count, in, out, c);
}

/* The factor is data, not something that learns: asking for its gradient is refused. */
void grad_scale(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    if (want[0])
        din[0] = tape_record(t, OP_SCALE, n->attrs, sizeof(struct attrs_alpha),
                             (int[]){dout[0], n->in[1]}, 2, NULL);
}

int shape_dropout(const void *attrs, const struct tensor *const *in, struct tensor *out,
                  struct err *e)
{
    float p = ((const struct attrs_dropout *)attrs)->p;
    if (!(p >= 0.0f && p < 1.0f))
        return err_set(e, E_RANGE, "p is %g; it must be at least 0 and below 1", (double)p);
    return rules_shape("f:* > f:*", in, out, e);
}

void cost_dropout(const void *attrs, const struct tensor *const *in,
                  const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost((double)in[0]->count, in, out, c);
}

/* The same numbers are drawn again from the same salt: no mask is kept. */
void grad_dropout(struct tape *t, const struct node *n, const int *dout, const bool *want,
                  int *din)
{
    if (want[0])
        din[0] = tape_record(t, OP_DROPOUT, n->attrs, sizeof(struct attrs_dropout), dout, 1,
                             NULL);
}
