/* parts.h: what several families are built from: inputs and heads of a pass, LayerNorm, attention
 * with a cache, activations by the names of transformers.
 *
 * Recording functions take and return ids of the tape; failures stick to it. N = B*T rows.
 */
#ifndef GRAFT_PARTS_H
#define GRAFT_PARTS_H

#include "engine/model/model.h"
#include "engine/op/op.h"

/* One pass being recorded. */
struct pass {
    struct model *m;
    struct tape *t;
    const struct model_shape *s;
    struct model_io *io;
};

/* ids, pos and range; place too for a table of learned positions. */
void parts_text_inputs(const struct pass *p, bool places);
/* ids and places looked up and added: [N, width of the tables]. For tables of one width. */
int parts_embed(const struct pass *p, const struct param *words, const struct param *places);
/* A language model's end: logits of the wanted positions, or the loss. x[N,C], head any[V,C]. */
void parts_lm_head(const struct pass *p, int x, struct param *head);
/* A classifier's end: its logits[B,classes], or the loss. */
void parts_class_head(const struct pass *p, int logits);

struct parts_affine {
    struct param *w, *b;
};
/* <path>.weight and <path>.bias, [n]. */
int parts_norm_load(struct model *m, const char *path, int64_t n, struct parts_affine *out,
                    struct err *e);
int parts_norm(const struct pass *p, int x, const struct parts_affine *n, double eps);

struct parts_heads {
    int64_t count, width; /* H, D */
    double scale;         /* on the scores */
    int64_t layer;        /* whose keys and values the cache holds */
    int range;
};
/* q[B,T,H,D], k and v [B,T,G,D] -> [N,H*D]; keys and values go through the cache if any. */
int parts_attn(const struct pass *p, const struct parts_heads *h, int q, int k, int v);
/* x[N,count*width] as [B,T,count,width] */
int parts_split(const struct pass *p, int x, int64_t count, int64_t width);

/* The kind of activation that config.json names under `key`; *kind is the default. */
int parts_activation(const json_t *o, const char *key, enum act_kind *kind, struct err *e);

/* For arch.fill: what transformers starts at 0, the row of the padding, in fresh tables. */
void parts_zero_row(const struct param *table, int64_t row);

#endif
