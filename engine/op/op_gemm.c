/* Linear layers. The gradient of the weight is a node of its own: a frozen weight costs nothing. */
#include "engine/op/op_rules.h"

enum { SCRATCH = 1 << 20 }; /* packed panels of one thread */

int shape_linear(const void *attrs, const struct tensor *const *in, struct tensor *out,
                 struct err *e)
{
    (void)attrs;
    return rules_shape("f:NK a:MK a:M f:NM > f:NM", in, out, e);
}

void cost_linear(const void *attrs, const struct tensor *const *in,
                 const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    double N = (double)in[0]->shape[0], K = (double)in[0]->shape[1], M = (double)in[1]->shape[0];
    rules_cost(N * M * (2 * K + !!in[2] + !!in[3]), in, out, c);
    c->ws_bytes = (int64_t)threads * SCRATCH;
}

void grad_linear(struct tape *t, const struct node *n, const int *dout, const bool *want,
                 int *din)
{
    int dy = dout[0], x = n->in[0], w = n->in[1];
    size_t bytes = sizeof(struct attrs_alpha);
    if (want[0]) din[0] = tape_record(t, OP_LINEAR_DX, n->attrs, bytes, (int[]){dy, w}, 2, NULL);
    if (want[1]) din[1] = tape_record(t, OP_LINEAR_DW, n->attrs, bytes, (int[]){dy, x}, 2, NULL);
    if (want[2]) din[2] = tape_record(t, OP_COLSUM, NULL, 0, &dy, 1, NULL);
    if (want[3]) din[3] = dy;
}

int shape_linear_dx(const void *attrs, const struct tensor *const *in, struct tensor *out,
                    struct err *e)
{
    (void)attrs;
    return rules_shape("f:NM a:MK > f:NK", in, out, e);
}

void cost_linear_dx(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    double N = (double)in[0]->shape[0], M = (double)in[0]->shape[1], K = (double)in[1]->shape[1];
    rules_cost(2 * N * M * K, in, out, c);
    c->ws_bytes = (int64_t)threads * SCRATCH;
}

int shape_linear_dw(const void *attrs, const struct tensor *const *in, struct tensor *out,
                    struct err *e)
{
    (void)attrs;
    return rules_shape("f:NM f:NK > f:MK", in, out, e);
}

void cost_linear_dw(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    double N = (double)in[0]->shape[0], M = (double)in[0]->shape[1], K = (double)in[1]->shape[1];
    rules_cost(2 * N * M * K, in, out, c);
    c->ws_bytes = (int64_t)threads * SCRATCH;
}

int shape_colsum(const void *attrs, const struct tensor *const *in, struct tensor *out,
                 struct err *e)
{
    (void)attrs;
    return rules_shape("f:NM > f:M", in, out, e);
}

void cost_colsum(const void *attrs, const struct tensor *const *in,
                 const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost((double)in[0]->count, in, out, c);
    c->ws_bytes = rules_partials(in[0]->shape[1]);
}
