/* Linear layers. The gradient of the weight is a node of its own: a frozen weight costs nothing. */
#include "engine/op/op_rules.h"

enum { SCRATCH = 1 << 20 }; /* packed panels of one thread */

static bool transposed(const void *attrs)
{
    return ((const struct attrs_linear *)attrs)->wt;
}

const char sign_linear[] = "c:NK a:MK a:M c:NM > c:NM";

int shape_linear(const void *attrs, const struct tensor *const *in, struct tensor *out,
                 struct err *e)
{
    const char *wt = "c:NK a:KM a:M c:NM > c:NM";
    return rules_shape(transposed(attrs) ? wt : sign_linear, in, out, e);
}

/* Two flops per element of x and column of y, or of dy and column of dx. */
static double product(const struct tensor *x, const struct tensor *w)
{
    return x->shape[1] ? 2 * (double)x->count * ((double)w->count / (double)x->shape[1]) : 0;
}

void cost_linear(const void *attrs, const struct tensor *const *in,
                 const struct tensor *const *out, int threads, struct op_cost *c)
{
    double M = (double)in[1]->shape[transposed(attrs)], N = (double)in[0]->shape[0];
    rules_cost(product(in[0], in[1]) + N * M * (!!in[2] + !!in[3]), in, out, c);
    c->ws_bytes = (int64_t)threads * SCRATCH;
}

void grad_linear(struct tape *t, const struct node *n, const int *dout, const bool *want,
                 int *din)
{
    int dy = dout[0], x = n->in[0], w = n->in[1];
    size_t bytes = sizeof(struct attrs_linear);
    if (want[0]) din[0] = tape_record(t, OP_LINEAR_DX, n->attrs, bytes, (int[]){dy, w}, 2, NULL);
    if (want[1]) din[1] = tape_record(t, OP_LINEAR_DW, n->attrs, bytes, (int[]){dy, x}, 2, NULL);
    if (want[2]) din[2] = tape_record(t, OP_COLSUM, NULL, 0, &dy, 1, NULL);
    if (want[3]) din[3] = dy;
}

const char sign_linear_dx[] = "c:NM a:MK > c:NK";

int shape_linear_dx(const void *attrs, const struct tensor *const *in, struct tensor *out,
                    struct err *e)
{
    return rules_shape(transposed(attrs) ? "c:NM a:KM > c:NK" : sign_linear_dx, in, out, e);
}

void cost_linear_dx(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    rules_cost(product(in[0], in[1]), in, out, c);
    c->ws_bytes = (int64_t)threads * SCRATCH;
}

const char sign_linear_dw[] = "c:NM c:NK > f:MK";

int shape_linear_dw(const void *attrs, const struct tensor *const *in, struct tensor *out,
                    struct err *e)
{
    return rules_shape(transposed(attrs) ? "c:NM c:NK > f:KM" : sign_linear_dw, in, out, e);
}

void cost_linear_dw(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    double N = (double)in[0]->shape[0], M = (double)in[0]->shape[1], K = (double)in[1]->shape[1];
    rules_cost(2 * N * M * K, in, out, c);
    c->ws_bytes = (int64_t)threads * SCRATCH;
}

RULES_SHAPE(colsum, "c:NM > f:M")

void cost_colsum(const void *attrs, const struct tensor *const *in,
                 const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost((double)in[0]->count, in, out, c);
    c->ws_bytes = rules_partials(in[0]->shape[1]);
}
