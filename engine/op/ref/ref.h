/* ref.h: what every operation means, in plain double precision, and cases to try it on.
 *
 * For the test build only. Per operation of ops.def there is
 *   ref_<name>     the definition of ops.def written as the most obvious loops, independent of
 *                  any kernel: finite differences check the gradients against it, and kernels are
 *                  compared with it;
 *   sample_<name>  fills case k with attributes and input values (false: k is past the last).
 * Both tables are made from ops.def, so an operation without either does not link.
 *
 * Every value is a double: an f32, bf16, f16 or i32 value is held exactly. Samples hold only
 * values that their dtype can represent, so the kernel and the reference see the same numbers.
 * Ownership: a sample's values live in its arena until sample_clear(). One thread.
 */
#ifndef GRAFT_REF_H
#define GRAFT_REF_H

#include "engine/base/arena.h"
#include "engine/base/err.h"
#include "engine/op/op.h"

#include <stdbool.h>
#include <stdint.h>

struct ref_tensor {
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK];
    int64_t count;
    double *d; /* NULL: an optional input left out */
};

struct ref_call {
    const void *attrs;
    struct ref_tensor *in[NODE_IN];   /* NULL: left out; an op may write inputs that are states */
    struct ref_tensor *out[NODE_OUT]; /* NULL: not wanted; out[0] of F_STATE may be its input */
    unsigned accum;                   /* bit i: out[i] += */
    uint64_t seed;
    uint32_t rng_step;
};

typedef void (*ref_fn)(struct ref_call *c);

struct op_sample {
    struct arena arena;
    struct err err;       /* sticks; looked at once by whoever asked for the sample */
    uint64_t key;         /* its random numbers */
    _Alignas(8) unsigned char attrs[NODE_ATTRS];
    int nin;
    struct ref_tensor in[NODE_IN];
    unsigned diff;        /* bit i: the op has a gradient for input i */
    unsigned state;       /* bit i: input i is storage that the op updates */
    int64_t k_red;        /* terms of the longest sum behind one output element */
};

typedef bool (*sample_fn)(int k, struct op_sample *s);

#define OP(ID, name, attrs, least, most, outs, inplace, flags) \
    void ref_##name(struct ref_call *c);                       \
    bool sample_##name(int k, struct op_sample *s);
#include "engine/op/ops.def"
#undef OP

extern const ref_fn ref_table[OP_COUNT];
extern const sample_fn sample_table[OP_COUNT];

/* out[j][i] = or += v; nothing if out[j] is not wanted. */
void ref_put(const struct ref_call *c, int j, int64_t i, double v);
/* For ops that build their outputs up term by term: sets the outputs that do not accumulate to
 * zero and returns the same call with every output accumulating. */
struct ref_call ref_adding(const struct ref_call *c);
/* The nearest value that the dtype can hold, ties to even. */
double ref_round(enum dtype t, double v);
/* Whether dropout keeps element i. */
bool ref_keep(const struct ref_call *c, const struct attrs_dropout *a, int64_t i);

/* ---- making samples ---- */

#define REF_LEN(a) ((int)(sizeof(a) / sizeof *(a)))
/* The rank and shape arguments of the functions below: DIMS(n, k). */
#define DIMS(...) REF_LEN(((const int64_t[]){__VA_ARGS__})), (const int64_t[]){__VA_ARGS__}

/* Case k of an operation. 1: filled, 0: no such case, -1: failed. Clear it if 1. */
int sample_make(struct op_sample *s, int op, int k, struct err *e);
void sample_clear(struct op_sample *s);
void sample_attrs(struct op_sample *s, const void *attrs, size_t bytes);
/* Input i, filled with zeros; the result is never NULL (a scratch cell after a failure). */
struct ref_tensor *sample_zeros(struct op_sample *s, int i, enum dtype t, int rank,
                                const int64_t *shape);
struct ref_tensor *sample_normal(struct op_sample *s, int i, enum dtype t, int rank,
                                 const int64_t *shape);
/* i32 in [lo, hi), and a choice without repetition from [0, hi) in no order. */
struct ref_tensor *sample_ints(struct op_sample *s, int i, int lo, int hi, int rank,
                               const int64_t *shape);
struct ref_tensor *sample_distinct(struct op_sample *s, int i, int hi, int64_t n);
/* One f32 value [1]. */
void sample_scalar(struct op_sample *s, int i, double v);
/* Gives input i, made by sample_zeros(), the values of output j of another op, rounded: for the
 * saved tensors that backward ops take. */
void sample_output(struct op_sample *s, ref_fn fn, struct ref_call *c, int j, int i);

/* ---- running a tape ---- */

/* Values of all tensors of one tape. */
struct ref_run {
    const struct tape *tape;
    struct ref_tensor *v; /* [tape->ntensors] */
    uint64_t seed;
    uint32_t rng_step;
    struct arena arena;
    /* Tests of the tests: called before each node. */
    void (*before)(void *ctx, const struct node *n, struct ref_call *c);
    void *ctx;
};

/* Everything is NaN until written. The tape must outlive the run and not grow. */
int ref_run_init(struct ref_run *r, const struct tape *t, struct err *e);
void ref_run_set(struct ref_run *r, int tensor, const double *from);
void ref_run_all(struct ref_run *r); /* every node of both phases, in order */
void ref_run_clear(struct ref_run *r);

#endif
