/* exec.h: runs plans on one device.
 *
 * An exec owns the device's resources (thread pool, step buffer). Several plans may be bound to
 * it in turn and share the step buffer, which only grows. The engine above this line never names
 * a device: it binds, writes inputs, runs phases, reads outputs.
 */
#ifndef GRAFT_EXEC_H
#define GRAFT_EXEC_H

#include "engine/base/pool.h"
#include "engine/core/plan.h"

#include <stdbool.h>
#include <stdint.h>

struct exec;
struct step;

/* A kernel: computes one step, or returns -1 with *e set (never for bad shapes: those were
 * refused while recording). */
typedef int (*op_run_fn)(const struct step *s, struct exec *x, struct err *e);

/* What a kernel sees of its node. */
struct step {
    const void *attrs;
    const struct tensor *tin[NODE_IN], *tout[NODE_OUT]; /* NULL where left out */
    const void *in[NODE_IN];                            /* device pointers */
    void *out[NODE_OUT];                                /* NULL: not wanted */
    unsigned accum;                                     /* bit i: out[i] += */
    void *ws;                                           /* workspace, 256-aligned, uninitialised */
    int64_t ws_bytes;
};

struct exec {
    const char *device;      /* "cpu" */
    const op_run_fn *table;  /* [OP_COUNT] */
    unsigned dtypes;         /* bit per dtype that the kernels compute in; F32 unless added to */
    struct pool *pool;       /* owned */
    void *buffer;            /* the step buffer, owned */
    int64_t buffer_bytes;
    const struct plan *plan; /* bound */
    struct step *steps;      /* resolved steps of the bound plan, owned */
    uint64_t seed;           /* key of all random ops */
    uint32_t rng_step;       /* set by the trainer: number of the micro-batch since the start */
    bool check;              /* debug: look for NaN after each step and name the op */
    bool poison;             /* tests: before each step fill its workspace, and every output
                                that it overwrites, with signalling NaN */
};

/* device: borrowed, a literal. table: [OP_COUNT], borrowed; NULL where there is no kernel. */
struct exec *exec_new(const char *device, const op_run_fn *table, int threads, struct err *e);
struct exec *exec_new_cpu(int threads, struct err *e); /* engine/cpu */
void exec_free(struct exec *x);
/* Afterwards the contents of the step buffer are undefined. On failure nothing is bound. */
int exec_bind(struct exec *x, const struct plan *p, struct err *e);
/* Copies between the host and a tensor of the bound plan. bytes must be the tensor's size. An
 * input for which the plan has no use may be written all the same: it is dropped. */
int exec_write(struct exec *x, int tensor, const void *from, size_t bytes, struct err *e);
int exec_read(struct exec *x, int tensor, void *to, size_t bytes, struct err *e);
/* micro: number of the micro-batch inside this optimiser step; 0 overwrites, later ones add. */
int exec_run(struct exec *x, enum phase phase, int micro, struct err *e);

#endif
