/* RMSNorm: y = x rstd w, rstd = 1/sqrt(mean(x^2) + eps) per row. */
#include "engine/op/op_rules.h"

int shape_rmsnorm(const void *attrs, const struct tensor *const *in, struct tensor *out,
                  struct err *e)
{
    (void)attrs;
    return rules_shape("f:NC a:C > f:NC f:N", in, out, e);
}

void cost_rmsnorm(const void *attrs, const struct tensor *const *in,
                  const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(4 * (double)in[0]->count, in, out, c);
}

void grad_rmsnorm(struct tape *t, const struct node *n, const int *dout, const bool *want,
                  int *din)
{
    int dy = dout[0], x = n->in[0], w = n->in[1], rstd = n->out[1];
    if (want[0])
        din[0] = tape_record(t, OP_RMSNORM_DX, NULL, 0, (int[]){dy, x, w, rstd}, 4, NULL);
    if (want[1]) din[1] = tape_record(t, OP_RMSNORM_DW, NULL, 0, (int[]){dy, x, rstd}, 3, NULL);
}

int shape_rmsnorm_dx(const void *attrs, const struct tensor *const *in, struct tensor *out,
                     struct err *e)
{
    (void)attrs;
    return rules_shape("f:NC f:NC a:C f:N > f:NC", in, out, e);
}

void cost_rmsnorm_dx(const void *attrs, const struct tensor *const *in,
                     const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(8 * (double)in[0]->count, in, out, c);
}

int shape_rmsnorm_dw(const void *attrs, const struct tensor *const *in, struct tensor *out,
                     struct err *e)
{
    (void)attrs;
    return rules_shape("f:NC f:NC f:N > f:C", in, out, e);
}

void cost_rmsnorm_dw(const void *attrs, const struct tensor *const *in,
                     const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(3 * (double)in[0]->count, in, out, c);
    c->ws_bytes = rules_partials(in[0]->shape[1]);
}
