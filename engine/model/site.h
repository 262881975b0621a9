/* site.h: a linear layer of a model, and the place where a method hooks in.
 *
 * A builder records every linear layer through site_apply(). A method that adapts layers puts its
 * own function into `apply`; the model never learns which. A site borrows its parameters from the
 * model's set and belongs to the model; `adapter` belongs to whoever set it.
 */
#ifndef GRAFT_SITE_H
#define GRAFT_SITE_H

#include "engine/core/tape.h"

enum { SITE_PATH = 128 };

struct site {
    char path[SITE_PATH]; /* module path in the class of transformers with the head, e.g.
                             model.layers.0.self_attn.q_proj */
    struct param *w;      /* [out, in], or [in, out] with wt */
    bool wt;
    struct param *bias;   /* [out] or NULL */
    int64_t in, out;
    int index;            /* position in the model */
    bool train;           /* set while a training step is recorded: dropout is on */
    void *adapter;        /* what apply needs */
    /* Records y[N,out] for x[N,in], plus add[N,out] unless it is -1. NULL: the plain layer. */
    int (*apply)(struct tape *t, struct site *s, int x, int add);
};

int site_linear(struct tape *t, const struct site *s, int x, int add); /* the plain layer */
int site_apply(struct tape *t, struct site *s, int x, int add);

#endif
