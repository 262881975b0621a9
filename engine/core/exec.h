/* exec.h: runs plans on one device.
 *
 * An exec owns the device's resources (thread pool, step buffer). Several plans may be bound to
 * it in turn and share the step buffer, which only grows. The engine above this line never names
 * a device: it binds, writes inputs, runs phases, reads outputs.
 *
 * On a device with memory of its own an exec keeps a copy of each parameter array that a bound
 * plan has used, made when it is first needed. From then on that copy is the valid one: before the
 * host reads a parameter that steps may have changed it calls exec_pull(), after it has written
 * one exec_push(), and before a parameter goes away exec_forget(). Where memory is the host's
 * these do nothing.
 */
#ifndef GRAFT_EXEC_H
#define GRAFT_EXEC_H

#include "engine/base/pool.h"
#include "engine/core/device.h"
#include "engine/core/plan.h"

#include <stdbool.h>
#include <stdint.h>

struct mirrors;

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
    const struct device *device; /* borrowed */
    void *state;             /* of the device, owned */
    struct pool *pool;       /* owned */
    struct mirrors *mirrors; /* owned */
    void *buffer;            /* the step buffer, owned, on the device */
    int64_t buffer_bytes;
    const struct plan *plan; /* bound */
    struct step *steps;      /* resolved steps of the bound plan, owned */
    uint64_t hash;           /* of all that the bound steps depend on */
    uint64_t seed;           /* key of all random ops */
    uint32_t rng_step;       /* set by the trainer: number of the micro-batch since the start */
    bool check;              /* debug: look for NaN after each step and name the op */
    bool poison;             /* tests: before each step fill its workspace, and every output
                                that it overwrites, with signalling NaN */
    bool trace;              /* debug: wait for each step, so that a failure names its op */
};

/* d: borrowed. */
struct exec *exec_new(const struct device *d, int threads, struct err *e);
struct exec *exec_new_cpu(int threads, struct err *e); /* engine/cpu */
/* engine/cuda: on the first GPU that the driver shows. E_DEVICE, with the reason, where there is no
 * CUDA library, no driver or no GPU that can be used. */
struct exec *exec_new_cuda(int threads, struct err *e);
void exec_free(struct exec *x);
/* Afterwards the contents of the step buffer are undefined. On failure nothing is bound. */
int exec_bind(struct exec *x, const struct plan *p, struct err *e);
/* Copies between the host and a tensor of the bound plan. bytes must be the tensor's size, or, to
 * read a bf16 tensor as f32, twice that. An input for which the plan has no use may be written all
 * the same: it is dropped. */
int exec_write(struct exec *x, int tensor, const void *from, size_t bytes, struct err *e);
int exec_read(struct exec *x, int tensor, void *to, size_t bytes, struct err *e);
/* micro: number of the micro-batch inside this optimiser step; 0 overwrites, later ones add. */
int exec_run(struct exec *x, enum phase phase, int micro, struct err *e);

/* Parameters between the device and their arrays on the host (see above). Pull: values and
 * moments of what is not frozen, not gradients. Push: whatever the device has a copy of. */
int exec_pull(struct exec *x, const struct params *ps, struct err *e);
int exec_push(struct exec *x, const struct params *ps, struct err *e);
void exec_forget(struct exec *x, const struct params *ps);
int64_t exec_mirror_bytes(const struct exec *x); /* of all copies on the device */

/* One kernel by itself, with no plan bound any more, and memory for it (tests). Addresses in *s are
 * the device's, and it is done when this returns. */
int exec_call(struct exec *x, int op, const struct step *s, struct err *e);
int exec_alloc(struct exec *x, size_t bytes, void **p, struct err *e);
void exec_release(struct exec *x, void *p);
int exec_put(struct exec *x, void *to, const void *from, size_t bytes, struct err *e);
int exec_get(struct exec *x, void *to, const void *from, size_t bytes, struct err *e);

#endif
