/* tape.h: a recording of coarse operations, and its own backward pass.
 *
 * A builder calls the op_* functions of op.h; each appends one node. tape_backward() appends the
 * gradient nodes to the same tape. plan.h turns the tape into a list that exec.h replays.
 * Nothing is computed while recording, and no device is involved.
 *
 * Tensors are named by small integers (ids), -1 meaning "none". They are contiguous, row-major.
 * Errors stick: after a failed call every further call returns -1 and does nothing, so a builder
 * checks tape_ok() once at its end. A tape belongs to one thread.
 */
#ifndef GRAFT_TAPE_H
#define GRAFT_TAPE_H

#include "engine/base/err.h"
#include "engine/core/dtype.h"
#include "engine/core/param.h"

#include <stdbool.h>
#include <stdint.h>

enum { NODE_IN = 8, NODE_OUT = 4, NODE_ATTRS = 96, TENSOR_TEXT = 160, NODE_TEXT = 320 };

enum tensor_flags {
    TENSOR_INPUT = 1,  /* written by the host before every run that uses it (exec_write) */
    TENSOR_OUTPUT = 2, /* kept until the end of the phase so that the host may read it */
};

/* Which array of its parameter a tensor stands for. */
enum param_slot { SLOT_NONE, SLOT_DATA, SLOT_GRAD, SLOT_M, SLOT_V };

struct tensor {
    char name[48];
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK];
    int64_t count;
    unsigned flags;
    struct param *param; /* persistent storage, or NULL */
    enum param_slot slot;
    int view_of;         /* id of the tensor whose bytes these are (never a view itself), or -1 */
    int producer;        /* node that first writes it, or -1 */
};

/* A recording has two parts: what every micro-batch does, and what ends a step. */
enum phase { PHASE_STEP, PHASE_UPDATE, PHASE_COUNT };

struct node {
    int op;                     /* enum op_id */
    enum phase phase;
    uint8_t nin, nout;
    int in[NODE_IN];            /* -1: optional input left out */
    int out[NODE_OUT];          /* -1: output that nobody wants; the kernel gets NULL */
    uint8_t accum;              /* bit i: out[i] += instead of = */
    uint8_t accum_later;        /* bit i: out[i] = in the first micro-batch, += in later ones */
    bool backward;              /* appended by tape_backward */
    int segment;                /* recompute segment, 0: outside of any; of a backward node that
                                   of the node it is the gradient of */
    _Alignas(8) unsigned char attrs[NODE_ATTRS];
};

struct tape {
    struct node *nodes; /* moves as it grows: hold indices, not pointers, while recording */
    int nnodes, cap_nodes;
    struct tensor *tensors; /* the same */
    int ntensors, cap_tensors;
    enum phase phase;
    int segment, nsegments;
    enum dtype compute; /* dtype of activations: what EMBED and PATCHES make; F32 unless changed */
    struct err err;
    struct param one; /* the constant 1.0, f32 [1] */
};

struct tape *tape_new(struct err *e);
void tape_free(struct tape *t);
int tape_ok(const struct tape *t, struct err *e); /* 0, or -1 with the first failure */

int tape_input(struct tape *t, const char *name, enum dtype dtype, int rank,
               const int64_t *shape);
int tape_param(struct tape *t, struct param *p, enum param_slot slot); /* same id each time */
int tape_reshape(struct tape *t, int x, int rank, const int64_t *shape);
void tape_output(struct tape *t, int x); /* the host wants to read x */
void tape_name(struct tape *t, int x, const char *name);
int tape_one(struct tape *t); /* the constant 1.0, f32 [1] */

/* The tensor whose storage x uses: x itself unless x is a view. -1 for -1. */
int tape_root(const struct tape *t, int x);
/* "F32[4,8]"; "none" for NULL. Returns out. */
const char *tape_text(const struct tensor *x, char out[TENSOR_TEXT]);

/* Where a node stands, for messages: "linear (forward, block 2 of 4,
 * model.layers.1.mlp.up_proj.weight)": operation, pass, segment, and the first parameter it reads
 * or, failing that, writes. Returns out. */
const char *tape_where(const struct tape *t, int node, char out[NODE_TEXT]);

/* One block of a model: the unit of recomputation. */
void tape_segment_begin(struct tape *t);
void tape_segment_end(struct tape *t);
void tape_set_phase(struct tape *t, enum phase p);

/* The general recorder behind op_*: validates by the op's shape rule, creates the outputs.
 * out receives nout ids. attrs may be NULL. Returns out[0] or -1. */
int tape_record(struct tape *t, int op, const void *attrs, size_t attr_bytes, const int *in,
                int nin, int *out);

/* Appends d loss / d (every trainable parameter that loss depends on), into their grad slots, and
 * nothing else. loss: f32 [1]. The cotangent of loss is 1. At most once per tape: several losses
 * are added up first. The first writer of a grad slot in execution order has its accum_later bit
 * set, every other writer its accum bit. */
int tape_backward(struct tape *t, int loss, struct err *e);

/* The same for chosen tensors, with a given cotangent dy of y (op tests, layer-wise methods):
 * dx[i] receives the id of the gradient of x[i], or -1 if y does not depend on it. dy and
 * earlier gradients are never written to. */
int tape_grad(struct tape *t, int y, int dy, const int *x, int nx, int *dx, struct err *e);

#endif
