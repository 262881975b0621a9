/* Cross entropy: fused with the output layer, where logits exist only tile by tile, or of given
 * logits. */
#include "engine/op/op_rules.h"

/* Rows of logits (half of it for large vocabularies) and bytes of scratch per thread; tiles of rows
 * come by EVEN. */
enum { TILE = 256, LARGE_V = 65536, EVEN = 4, SCRATCH = 1 << 20 };

RULES_SHAPE(linear_ce, "c:NC a:VC i:N f:1 > f:1 c:NC f:VC f:1")

void cost_linear_ce(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    int64_t N = in[0]->shape[0], V = in[1]->shape[0];
    double products = 1 + !!out[1] + !!out[2], C = (double)in[0]->shape[1];
    rules_cost((double)N * (double)V * (2 * C * products + 4), in, out, c);
    /* Per thread its scratch, the logits of a tile, its gathered rows of x and of dx; then a
     * loss and a count per tile, and the list of rows that have a target. */
    int64_t most = V > LARGE_V ? TILE / 2 : TILE, rows = N < most ? N : most;
    int64_t slot = SCRATCH + rows * (V + 2 * in[0]->shape[1]) * (int64_t)sizeof(float);
    c->ws_bytes = threads * ((slot + 255) & ~(int64_t)255) +
                  16 * (N / most + EVEN) + 4 * N;
}

static int times(struct tape *t, int x, int dy)
{
    return t->tensors[dy].param == &t->one ? x : op_scale(t, x, dy, 1.0f);
}

/* Outputs 1 and 2 are the gradients for a cotangent of 1, made by the forward pass. */
void grad_linear_ce(struct tape *t, const struct node *n, const int *dout, const bool *want,
                    int *din)
{
    if (want[0]) din[0] = times(t, n->out[1], dout[0]);
    if (want[1]) din[1] = times(t, n->out[2], dout[0]);
}

RULES_SHAPE(ce, "c:NV i:N f:1 > f:1 c:NV f:1")

/* Workspace: a row of probabilities per thread, a loss and a count per tile. */
void cost_ce(const void *attrs, const struct tensor *const *in, const struct tensor *const *out,
             int threads, struct op_cost *c)
{
    (void)attrs;
    int64_t N = in[0]->shape[0], V = in[0]->shape[1];
    rules_cost((out[1] ? 6 : 4) * (double)in[0]->count, in, out, c);
    c->ws_bytes = threads * ((V * (int64_t)sizeof(float) + 255) & ~(int64_t)255) +
                  16 * (N / TILE + 1);
}

void grad_ce(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    if (want[0]) din[0] = times(t, n->out[1], dout[0]);
}
