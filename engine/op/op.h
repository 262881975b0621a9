/* op.h: the registry made from ops.def, and one recording function per operation.
 *
 * Per op, op_<family>.c provides shape_<name>, cost_<name> and, with F_GRAD, grad_<name>;
 * engine/cpu provides cpu_<name>; the test build provides ref_<name> and sample_<name>
 * (op/ref/). A missing one does not link: an op without a reference and a sample does not build.
 *
 * Calling convention of gradients: grad rules receive the node, the ids of the cotangents of its
 * outputs (-1: zero), and which inputs want a gradient; they record backward nodes on the tape and
 * return the gradient's id per input (-1: none). Accumulation over several uses is the tape's job.
 * Gradients flow through output 0 only: dout[0] is never -1, the other outputs are by-products.
 *
 * Tensors are handed to rules and kernels in arrays of NODE_IN and NODE_OUT entries, NULL where
 * an input is left out or an output is not wanted.
 */
#ifndef GRAFT_OP_H
#define GRAFT_OP_H

#include "engine/core/exec.h"
#include "engine/core/tape.h"
#include "engine/op/attrs.h"

enum op_flags {
    F_GRAD = 1, F_ACCUM = 2, F_RANDOM = 4, F_EXACT = 8, F_STATE = 16, F_NEGINF = 32, F_CHEAP = 64
};

enum op_id {
#define OP(ID, name, attrs, least, most, outs, inplace, flags) OP_##ID,
#include "engine/op/ops.def"
#undef OP
    OP_COUNT
};

/* Shape rule: looks at inputs (NULL where left out) and attrs, fills dtype, rank and shape of
 * each output; the only place that refuses wrong shapes. */
typedef int (*op_shape_fn)(const void *attrs, const struct tensor *const *in,
                           struct tensor *out, struct err *e);

struct op_cost {
    int64_t flops;           /* multiply-add counts 2 */
    int64_t bytes;           /* read + written once each */
    int64_t ws_bytes;        /* workspace wanted for `threads` threads */
};
typedef void (*op_cost_fn)(const void *attrs, const struct tensor *const *in,
                           const struct tensor *const *out, int threads, struct op_cost *c);

/* want[i]: a gradient of input i is needed. din[i] = id or -1 (pre-set to -1). */
typedef void (*op_grad_fn)(struct tape *t, const struct node *n, const int *dout,
                           const bool *want, int *din);

struct op_info {
    const char *name;
    uint8_t least_in, most_in, nout;
    int8_t inplace;
    unsigned flags;
    size_t attr_bytes;
    const char *signature; /* types and shapes of inputs and outputs, as in op_rules.h */
    op_shape_fn shape;
    op_cost_fn cost;
    op_grad_fn grad; /* NULL without F_GRAD */
};

extern const struct op_info op_table[OP_COUNT];
extern const op_run_fn cpu_table[OP_COUNT]; /* engine/cpu/cpu_table.c */

/* The dtype that an operation with these inputs and outputs computes in: F32 or BF16. */
enum dtype op_compute(int op, const struct tensor *const *in, const struct tensor *const *out);

/* Recording functions: shapes as in ops.def. Ids in, id (or ids by pointer) out; -1 for an
 * optional input left out and for every result after a failure (tape_ok). */
int op_embed(struct tape *t, int ids, int table);
int op_linear(struct tape *t, int x, int w, int bias, int add, float alpha);
int op_linear_wt(struct tape *t, int x, int w, int bias, int add, const struct attrs_linear *a);
int op_rmsnorm(struct tape *t, int x, int w, float eps);
int op_layernorm(struct tape *t, int x, int w, int b, float eps);
int op_rope(struct tape *t, int x, int pos, int freq);
int op_attn(struct tape *t, int q, int k, int v, int range, float scale);
int op_attn_bias(struct tape *t, const int qkv[3], int range, int bias, float scale);
int op_swiglu(struct tape *t, int g, int u);
int op_act(struct tape *t, int x, enum act_kind kind);
int op_add(struct tape *t, int a, int b);
int op_scale(struct tape *t, int x, int s, float alpha); /* s = -1: y = alpha x */
int op_dropout(struct tape *t, int x, float p, uint32_t salt); /* p = 0: returns x */
int op_rows(struct tape *t, int x, int idx);
int op_slice(struct tape *t, int x, int64_t at, int64_t width);
int op_patches(struct tape *t, int image, int64_t size);
int op_prefix(struct tape *t, int prefix, int x);
int op_linear_ce(struct tape *t, int x, int w, int target, int weight, int *hits); /* or NULL */
int op_ce(struct tape *t, int logits, int target, int weight, int *hits); /* or NULL */
int op_kv_store(struct tape *t, int cache, int x, int pos);
int op_sumsq(struct tape *t, int x, int acc);
int op_clip(struct tape *t, int sumsq, float max_norm, int *norm); /* norm may be NULL */
int op_adamw(struct tape *t, struct param *p, int hyper, int scale,
             const struct attrs_adamw *a);

#endif
