/* graph.h: recorded and planned passes of one model, kept by shape.
 *
 * All graphs share the model's parameters and the exec's step buffer. graphs_bind() records and
 * plans a shape it has not seen (the least recently used one makes room), binds it and returns it;
 * the graph is valid until the next call. A pass recorded anew (it was dropped, or belongs to
 * another cache of keys) finds its plan by the digest of the recording.
 */
#ifndef GRAFT_GRAPH_H
#define GRAFT_GRAPH_H

#include "engine/core/exec.h"
#include "engine/core/plan_cache.h"
#include "engine/core/recompute.h"
#include "engine/data/dataset.h"
#include "engine/model/model.h"

enum { GRAPHS_MAX = 32 };

enum graph_kind {
    GRAPH_TRAIN,  /* loss and gradients */
    GRAPH_LOSS,   /* loss and hits alone */
    GRAPH_LOGITS, /* logits of `rows` positions */
    GRAPH_UPDATE  /* from gradients to new parameters */
};

struct graph_key {
    enum graph_kind kind;
    int64_t B, T, rows;
    struct model_cache *cache;
};

struct graph {
    struct graph_key key;
    const struct model *model; /* borrowed */
    struct tape *tape;
    struct plan *plan;
    struct model_io io;
    int hyper[2], sumsq, norm; /* GRAPH_UPDATE */
    uint64_t used;
};

/* What the update needs to know while it is recorded. */
struct graph_optimiser {
    double beta1, beta2, eps;
    float max_grad_norm;
};

struct graphs {
    struct model *model; /* borrowed */
    struct exec *exec;   /* borrowed */
    op_ws_fn ws;         /* of the device, see plan_options */
    enum dtype compute;  /* of activations */
    struct graph_optimiser optimiser;
    struct params state; /* the running sum of squares */
    enum recompute recompute; /* of GRAPH_TRAIN; set before the first is made */
    struct plan_cache plans;
    struct graph items[GRAPHS_MAX];
    int n;
    uint64_t clock;
    const struct plan *bound; /* what the exec has now, or NULL */
};

/* Plans are for the device of x; without x for the CPU, unless ws is set to another's. */
void graphs_init(struct graphs *gs, struct model *m, struct exec *x);
void graphs_clear(struct graphs *gs);
/* Records and plans without a device: exec may be NULL. The caller frees by graph_clear. */
int graph_make(struct graphs *gs, const struct graph_key *k, int threads, struct graph *g,
               struct err *e);
void graph_clear(struct graph *g);
struct graph *graphs_bind(struct graphs *gs, const struct graph_key *k, struct err *e);

/* Drops the graphs that use a cache which is about to go. */
void graphs_forget(struct graphs *gs, const struct model_cache *cache);

/* Writes what tokens a pass over text reads ([B,T] of the graph's key), where they stand, and what
 * they attend; all else that the model reads of them is derived from these. */
int graph_feed_tokens(struct exec *x, const struct graph *g, const int32_t *ids,
                      const int32_t *pos, const int32_t *range, struct err *e);

/* Writes a batch into the inputs of a bound GRAPH_TRAIN or GRAPH_LOSS. For a classifier its target
 * is [B]. */
int graph_feed(struct exec *x, const struct graph *g, const struct batch *b, float weight,
               struct err *e);

/* The same for a model of images, and for its GRAPH_LOGITS too, which need no labels:
 * images[B,I,Y,X], labels[B] (-1: counts nothing). */
int graph_feed_images(struct exec *x, const struct graph *g, const float *images,
                      const int32_t *labels, float weight, struct err *e);

#endif
