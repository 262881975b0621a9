/* Attention over key ranges, and its gradient. Scores are never stored: only lse is. */
#include "engine/op/op_rules.h"

enum { SCRATCH = 1 << 20 }; /* score tiles of one thread */

static int check_groups(const int64_t *s, struct err *e)
{
    int64_t H = s['H' - 'A'], G = s['G' - 'A'];
    if (G > 0 && H % G == 0) return 0;
    return err_set(e, E_ARG, "%lld query heads cannot share %lld key heads evenly", (long long)H,
                   (long long)G);
}

const char sign_attn[] = "c:BTHD c:BSGD c:BSGD i:BT2 a:HTS > c:BTHD f:BTH";

int shape_attn(const void *attrs, const struct tensor *const *in, struct tensor *out,
               struct err *e)
{
    (void)attrs;
    int64_t s[RULES_LETTERS];
    rules_free(s);
    if (rules_match(sign_attn, s, in, out, e)) return -1;
    return check_groups(s, e);
}

/* Sums and products of scores: a bias is added, its gradient is a sum over sequences. */
static double on_scores(const struct tensor *q, const struct tensor *bias)
{
    return bias ? (double)q->shape[0] * (double)bias->count : 0;
}

/* Multiply-adds of one [T,S] product for all heads: the full rectangle, because the ranges are
 * data. */
static double product(const struct tensor *q, const struct tensor *k)
{
    return (double)q->count * (double)k->shape[1];
}

static int64_t scratch(const struct tensor *q, int threads)
{
    return (int64_t)threads * SCRATCH + 4 * q->shape[0] * q->shape[1] * q->shape[2];
}

void cost_attn(const void *attrs, const struct tensor *const *in,
               const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    rules_cost(2 * 2 * product(in[0], in[1]) + on_scores(in[0], in[4]), in, out, c);
    c->ws_bytes = scratch(in[0], threads);
}

void grad_attn(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    int in[] = {dout[0], n->in[0], n->in[1], n->in[2], n->in[3], n->out[0], n->out[1], n->in[4]};
    int d[NODE_OUT] = {-1, -1, -1, -1};
    tape_record(t, OP_ATTN_BWD, n->attrs, sizeof(struct attrs_attn), in, 8, d);
    for (int i = 0; i < 3; i++)
        if (want[i]) din[i] = d[i];
    if (want[4]) din[4] = d[3];
}

const char sign_attn_bwd[] =
    "c:BTHD c:BTHD c:BSGD c:BSGD i:BT2 c:BTHD f:BTH a:HTS > c:BTHD c:BSGD c:BSGD f:HTS";

int shape_attn_bwd(const void *attrs, const struct tensor *const *in, struct tensor *out,
                   struct err *e)
{
    (void)attrs;
    int64_t s[RULES_LETTERS];
    rules_free(s);
    if (rules_match(sign_attn_bwd, s, in, out, e)) return -1;
    return check_groups(s, e);
}

void cost_attn_bwd(const void *attrs, const struct tensor *const *in,
                   const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    double bias = on_scores(in[1], in[7]) + on_scores(in[1], out[3]);
    rules_cost(2 * 5 * product(in[1], in[2]) + bias, in, out, c);
    c->ws_bytes = scratch(in[1], threads);
}
