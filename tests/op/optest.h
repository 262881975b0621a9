/* optest.h: the checks that every operation of ops.def passes, and planted faults that show that
 * the checks see.
 *
 * Nothing here knows an operation: all comes from op_table, the kernel tables, ref_table and
 * sample_table. A check returns 0, or -1 with the sample's failure in *e. With a mutant a check
 * distorts what it is about to judge, sets mutant->applied if there was something to distort, and
 * is then expected to fail.
 */
#ifndef GRAFT_OPTEST_H
#define GRAFT_OPTEST_H

#include "engine/op/ref/ref.h"

enum mutant_kind {
    MUTANT_NONE,
    /* the gradient of input `at` ... */
    GRAD_SCALED,     /* ... is 1.01 times what it is */
    GRAD_NEGATED,
    GRAD_DROPPED,    /* ... is zero */
    GRAD_ROW,        /* ... is zero in its last row */
    GRAD_TRANSPOSED,
    GRAD_OVERWRITTEN, /* of two uses of the input only one counts */
    /* output `at` of the kernel ... */
    OUT_SCALED,
    OUT_NEGATED,
    OUT_ROW,         /* ... keeps what was in its last row */
    OUT_BF16,        /* ... is rounded to bf16 */
    OUT_OVERRUN,     /* ... is one byte longer */
    OUT_UNDERRUN,    /* ... begins one byte early */
    OUT_THREADS,     /* ... differs in its last bit with several threads */
    OUT_RANDOM,      /* ... or from run to run */
    OUT_SHARED,      /* ... or when it is computed in place */
    OUT_ALONE,       /* ... or when another output is not wanted */
    OUT_SHIFTED,     /* ... or when inputs are not aligned */
    OUT_WORKSPACE,   /* ... or depends on what was in the workspace */
    OUT_OVERWRITTEN, /* = instead of += */
    /* input `at` of the kernel ... */
    IN_TRANSPOSED,
    IN_WRITTEN,      /* ... is changed by it */
    /* and */
    ATTR_IGNORED,    /* attribute `at` (optest_mutant.c) has a fixed value */
    WS_OVERRUN,
    MUTANT_KINDS
};

struct mutant {
    enum mutant_kind kind;
    int at;
    bool applied;
    int calls;      /* of the kernel */
};

/* ---- gradients (optest_grad.c): the backward nodes that grad_<name> records, executed by the
 * references, against finite differences of ref_<name>. */

int grad_check(int op, const struct op_sample *s, struct mutant *m, struct err *e);

/* A tape that uses the op `uses` times on the sample's inputs and adds the results up, with the
 * gradients of the inputs in `mask` for a given cotangent. */
struct recording {
    struct tape *tape;
    int in[NODE_IN]; /* tensor ids, -1: left out */
    int y, dy;
    int dx[NODE_IN]; /* -1: not in the mask */
    int other;       /* an input that y does not depend on */
};
int recording_make(struct recording *r, int op, const struct op_sample *s, unsigned mask, int uses,
                   struct err *e);
void recording_clear(struct recording *r);
/* The cotangent used for a sample: count values. */
void recording_cotangent(const struct op_sample *s, double *cot, int64_t count);

/* ---- kernels (optest_kernel.c) ---- */

enum { OPTEST_EXECS = 4 };

struct kernels {
    const char *name;                /* of the table */
    const op_run_fn *table;
    struct exec *exec[OPTEST_EXECS]; /* of 1, 2, 3 and 7 threads; borrowed */
    enum dtype compute;              /* what compute tensors are made of: F32 or BF16 */
    const struct kernels *peer;      /* whose bytes F_EXACT operations must give, or NULL */
    /* On a device with memory of its own: */
    bool watched;                    /* somebody sees strays: buffers there have no guard bands */
    void (*order)(uint64_t seed);    /* told before each run, with a number per exec; or NULL */
};

int kernel_check(const struct kernels *k, int op, const struct op_sample *s, struct mutant *m,
                 struct err *e);
/* Forward and backward as planned and run by exec.h, against the references. */
int plan_check(const struct kernels *k, int op, const struct op_sample *s, struct err *e);

/* Whether this kernel mutant makes sense for the sample: run the others for nothing. */
bool mutant_fits(const struct mutant *m, int op, const struct op_sample *s);
/* The one place that runs a kernel; here kernel mutants act. */
int mutant_run(op_run_fn fn, int op, const struct step *s, struct exec *x, struct mutant *m,
               struct err *e);
/* Distorts the gradient of input `at` (optest_grad.c). */
void mutant_gradient(struct mutant *m, int at, struct ref_tensor *g);
/* Gives *m its next value; false past the last. Start from {0}. */
bool mutant_next(struct mutant *m, bool gradients);
const char *mutant_name(enum mutant_kind k);

/* ---- shared ---- */

/* |got - want| / |want| in the L2 norm. Infinities and NaN must be in the same places (else
 * infinity); 0 if both are all zero. */
double optest_distance(const double *got, const double *want, int64_t n);
/* Doubles into the bytes of a dtype, and back. Values must be representable. */
void optest_encode(enum dtype t, const double *from, int64_t n, void *to);
void optest_decode(enum dtype t, const void *from, int64_t n, double *to);
/* Names of up to NODE_IN inputs for messages: "[5,7] [3,7] ...". */
const char *optest_shapes(const struct op_sample *s, char out[200]);

#endif
