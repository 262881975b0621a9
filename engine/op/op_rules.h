/* op_rules.h: what the rule files op_<family>.c share. Private to engine/op.
 *
 * A shape rule is mostly a signature in the letters of ops.def:
 *     "c:NK a:MK a:M c:NM > c:NM"
 * One word per input (in order) and, after '>', one per output. Before the colon stands the type:
 * f = f32, i = i32, a = f32, bf16 or f16, c = the dtype that the node computes in: f32 or bf16, and
 * the same for all (f32 for outputs if no input has it). After it follows one letter or digit per
 * dimension. A letter binds to the first size it meets and must agree from then on; a digit is
 * that size; '*' stands for any shape and must agree like a letter. Inputs left out match.
 */
#ifndef GRAFT_OP_RULES_H
#define GRAFT_OP_RULES_H

#include "engine/op/op.h"

enum { RULES_LETTERS = 26 };

/* Per operation its signature, and one shape_, cost_ and (with F_GRAD) grad_ function. */
#define OP(ID, name, attrs, least, most, outs, inplace, flags)                                    \
    extern const char sign_##name[];                                                              \
    int shape_##name(const void *attrs, const struct tensor *const *in, struct tensor *out,       \
                     struct err *e);                                                              \
    void cost_##name(const void *attrs, const struct tensor *const *in,                           \
                     const struct tensor *const *out, int threads, struct op_cost *c);            \
    void grad_##name(struct tape *t, const struct node *n, const int *dout, const bool *want,     \
                     int *din);
#include "engine/op/ops.def"
#undef OP

/* The whole shape rule of an operation whose signature says all. */
#define RULES_SHAPE(name, signature)                                                              \
    const char sign_##name[] = signature;                                                         \
    int shape_##name(const void *attrs, const struct tensor *const *in, struct tensor *out,       \
                     struct err *e)                                                               \
    {                                                                                             \
        (void)attrs;                                                                              \
        return rules_shape(sign_##name, in, out, e);                                              \
    }

/* Fills dtype, rank and shape of the outputs, or says in *e what does not fit. */
int rules_shape(const char *signature, const struct tensor *const *in, struct tensor *out,
                struct err *e);
/* The same with letters given by attributes: sizes[letter - 'A'], -1 where free. In and out. */
int rules_match(const char *signature, int64_t sizes[RULES_LETTERS],
                const struct tensor *const *in, struct tensor *out, struct err *e);
void rules_free(int64_t sizes[RULES_LETTERS]); /* all -1 */
/* For operations without a compute input: makes out a compute tensor of this dtype. */
int rules_compute(int dtype, struct tensor *out, struct err *e);

/* flops as given (no shape can make it overflow), bytes of all inputs and outputs, no workspace. */
void rules_cost(double flops, const struct tensor *const *in, const struct tensor *const *out,
                struct op_cost *c);
/* Workspace of a reduction over rows into `columns` sums: per-tile partials, and some to spare. */
int64_t rules_partials(int64_t columns);

#endif
