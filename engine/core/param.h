/* param.h: tensors that outlive a step: weights, adapters, optimiser moments, caches.
 *
 * A frozen weight is read in place from its mapped file (f32, bf16 or f16); it has no gradient
 * and no moments; without a source (a table that its maker fills) it owns f32 data. A trainable
 * parameter owns an f32 master, an f32 gradient and its moments.
 * A state parameter (a KV cache, a running average) owns f32 data that steps may write.
 * Storage is allocated by params_alloc(), one slab per call, never during training. What has
 * storage keeps it until params_clear(): addresses are stable.
 */
#ifndef GRAFT_PARAM_H
#define GRAFT_PARAM_H

#include "engine/base/err.h"
#include "engine/core/dtype.h"

#include <stdint.h>

enum { TENSOR_RANK = 6, PARAM_NAME = 160 };

/* The most elements of one tensor: sums and products of sizes below stay far from overflow. */
#define TENSOR_COUNT ((int64_t)1 << 40)

enum param_kind { PARAM_FROZEN, PARAM_TRAINABLE, PARAM_STATE };

struct param {
    char name[PARAM_NAME]; /* the tensor's name in its file, e.g. model.norm.weight */
    enum param_kind kind;
    enum dtype dtype;      /* of data, set by params_alloc; F32 for TRAINABLE and STATE */
    int rank;
    int64_t shape[TENSOR_RANK];
    int64_t count;         /* product of shape */
    const void *source;    /* borrowed initial bytes in `dtype0` (a mapped file), or NULL: zeros */
    enum dtype dtype0;     /* dtype of source */
    void *data;            /* what a step reads: source itself if FROZEN, owned f32 otherwise */
    float *grad, *m, *v;   /* [count] f32, TRAINABLE only; moments of AdamW */
    int group;             /* index of the optimiser group (learning rate, weight decay) */
    int index;             /* position in its set: the `step` of RNG_INIT */
};

struct params_slab;
struct params {
    struct param **items;
    int n, cap;
    struct params_slab *slabs; /* owned storage behind data, grad, m, v of all items */
    size_t slab_bytes;         /* sum of all slabs */
};

void params_init(struct params *ps);
/* Appends a parameter (owned by ps, address stable). shape is copied. NULL on failure; a name
 * that exists already is E_CONFLICT. The caller then sets source, dtype0 and group. */
struct param *params_add(struct params *ps, const char *name, enum param_kind kind, int rank,
                         const int64_t *shape, struct err *e);
struct param *params_find(const struct params *ps, const char *name); /* NULL if absent */
/* Allocates data, gradients and moments of every item that owns some and has none yet, copies
 * `source` into owned data (converted to f32), zeroes the rest. */
int params_alloc(struct params *ps, struct err *e);
int64_t params_count(const struct params *ps, enum param_kind kind); /* elements */
void params_clear(struct params *ps);

/* The dtype a step reads, known before anything is allocated. */
enum dtype param_dtype(const struct param *p);

#endif
