/* Element-wise operations. */
#include "engine/op/op_rules.h"

RULES_SHAPE(swiglu, "c:* c:* > c:*")

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

RULES_SHAPE(swiglu_bwd, "c:* c:* c:* > c:* c:*")

void cost_swiglu_bwd(const void *attrs, const struct tensor *const *in,
                     const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(11 * (double)in[0]->count, in, out, c);
}

static int check_kind(const void *attrs, struct err *e)
{
    int kind = ((const struct attrs_act *)attrs)->kind;
    if (kind >= 0 && kind < ACT_KINDS) return 0;
    return err_set(e, E_ARG, "there is no activation %d", kind);
}

const char sign_act[] = "c:* > c:*";

int shape_act(const void *attrs, const struct tensor *const *in, struct tensor *out,
              struct err *e)
{
    return check_kind(attrs, e) ? -1 : rules_shape(sign_act, in, out, e);
}

/* Additions, products and divisions of the definition, and one for each function in it. */
void cost_act(const void *attrs, const struct tensor *const *in, const struct tensor *const *out,
              int threads, struct op_cost *c)
{
    static const int flops[ACT_KINDS] = {5, 10, 5, 1, 4, 1};
    (void)threads;
    rules_cost(flops[((const struct attrs_act *)attrs)->kind] * (double)in[0]->count, in, out, c);
}

void grad_act(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    if (want[0])
        din[0] = tape_record(t, OP_ACT_BWD, n->attrs, sizeof(struct attrs_act),
                             (int[]){dout[0], n->in[0]}, 2, NULL);
}

const char sign_act_bwd[] = "c:* c:* > c:*";

int shape_act_bwd(const void *attrs, const struct tensor *const *in, struct tensor *out,
                  struct err *e)
{
    return check_kind(attrs, e) ? -1 : rules_shape(sign_act_bwd, in, out, e);
}

void cost_act_bwd(const void *attrs, const struct tensor *const *in,
                  const struct tensor *const *out, int threads, struct op_cost *c)
{
    static const int flops[ACT_KINDS] = {12, 20, 10, 1, 8, 4};
    (void)threads;
    rules_cost(flops[((const struct attrs_act *)attrs)->kind] * (double)in[0]->count, in, out, c);
}

RULES_SHAPE(add, "c:* c:* > c:*")

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

RULES_SHAPE(scale, "c:* f:1 > c:*")

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

const char sign_dropout[] = "c:* > c:*";

int shape_dropout(const void *attrs, const struct tensor *const *in, struct tensor *out,
                  struct err *e)
{
    float p = ((const struct attrs_dropout *)attrs)->p;
    if (!(p >= 0.0f && p < 1.0f))
        return err_set(e, E_RANGE, "p is %g; it must be at least 0 and below 1", (double)p);
    return rules_shape(sign_dropout, in, out, e);
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
