/* Rotary positions: pair (i, i + D/2) of a head turns by pos freq[i]. */
#include "engine/op/op_rules.h"

const char sign_rope[] = "c:NHD i:N f:E > c:NHD";

int shape_rope(const void *attrs, const struct tensor *const *in, struct tensor *out,
               struct err *e)
{
    (void)attrs;
    int64_t s[RULES_LETTERS];
    rules_free(s);
    if (rules_match(sign_rope, s, in, out, e)) return -1;
    if (s['D' - 'A'] == 2 * s['E' - 'A']) return 0;
    return err_set(e, E_ARG, "a head of %lld needs %g frequencies, not %lld",
                   (long long)s['D' - 'A'], (double)s['D' - 'A'] / 2, (long long)s['E' - 'A']);
}

void cost_rope(const void *attrs, const struct tensor *const *in,
               const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(3 * (double)in[0]->count, in, out, c);
}

void grad_rope(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    struct attrs_rope a = *(const struct attrs_rope *)(const void *)n->attrs;
    a.sign = -a.sign;
    if (want[0])
        din[0] = tape_record(t, OP_ROPE, &a, sizeof a, (int[]){dout[0], n->in[1], n->in[2]}, 3,
                             NULL);
}
