/* RMSNorm: y = x rstd w, rstd = 1/sqrt(mean(x^2) + eps) per row; LayerNorm as in ops.def. */
#include "engine/op/op_rules.h"

RULES_SHAPE(rmsnorm, "c:NC a:C > c:NC f:N")

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

RULES_SHAPE(rmsnorm_dx, "c:NC c:NC a:C f:N > c:NC")

void cost_rmsnorm_dx(const void *attrs, const struct tensor *const *in,
                     const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(8 * (double)in[0]->count, in, out, c);
}

RULES_SHAPE(rmsnorm_dw, "c:NC c:NC f:N > f:C")

void cost_rmsnorm_dw(const void *attrs, const struct tensor *const *in,
                     const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(3 * (double)in[0]->count, in, out, c);
    c->ws_bytes = rules_partials(in[0]->shape[1]);
}

/* ---- LayerNorm ---- */

RULES_SHAPE(layernorm, "c:NC a:C a:C > c:NC f:N f:N")

/* Two passes: the mean, then the squares of the differences from it. */
void cost_layernorm(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(8 * (double)in[0]->count, in, out, c);
}

void grad_layernorm(struct tape *t, const struct node *n, const int *dout, const bool *want,
                    int *din)
{
    int dy = dout[0], x = n->in[0], w = n->in[1], mean = n->out[1], rstd = n->out[2];
    if (want[0])
        din[0] = tape_record(t, OP_LAYERNORM_DX, NULL, 0, (int[]){dy, x, w, mean, rstd}, 5, NULL);
    if (want[1])
        din[1] = tape_record(t, OP_LAYERNORM_DW, NULL, 0, (int[]){dy, x, mean, rstd}, 4, NULL);
    if (want[2]) din[2] = tape_record(t, OP_COLSUM, NULL, 0, &dy, 1, NULL);
}

RULES_SHAPE(layernorm_dx, "c:NC c:NC a:C f:N f:N > c:NC")

void cost_layernorm_dx(const void *attrs, const struct tensor *const *in,
                       const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(12 * (double)in[0]->count, in, out, c);
}

RULES_SHAPE(layernorm_dw, "c:NC c:NC f:N f:N > f:C")

void cost_layernorm_dw(const void *attrs, const struct tensor *const *in,
                       const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(4 * (double)in[0]->count, in, out, c);
    c->ws_bytes = rules_partials(in[0]->shape[1]);
}
