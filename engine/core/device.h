/* device.h: what an exec needs of the place where steps run.
 *
 * A device is a table of kernels and, if it has memory of its own, the calls of device_ops. All
 * calls come from the exec's one thread. Work that a call starts is done in the order of the
 * calls; only read() and sync() wait for it. So a failure of a kernel may show up in any later
 * call: it is E_DEVICE from then on, and the exec is of no more use.
 */
#ifndef GRAFT_DEVICE_H
#define GRAFT_DEVICE_H

#include "engine/core/tape.h"

struct exec;
struct step;

/* A kernel: computes one step, or returns -1 with *e set (never for bad shapes: those were
 * refused while recording). */
typedef int (*op_run_fn)(const struct step *s, struct exec *x, struct err *e);

/* Workspace of one step in bytes, given what op_info.cost asks for. in, out: NULL: left out. */
typedef int64_t (*op_ws_fn)(int op, const void *attrs, const struct tensor *const *in,
                            const struct tensor *const *out, int64_t asked);

struct device_ops {
    int (*alloc)(struct exec *x, size_t bytes, void **p, struct err *e); /* E_DEVMEM */
    void (*free)(struct exec *x, void *p); /* waits first; NULL is fine */
    int (*write)(struct exec *x, void *to, const void *from, size_t bytes, struct err *e);
    int (*read)(struct exec *x, void *to, const void *from, size_t bytes, struct err *e);
    int (*sync)(struct exec *x, struct err *e);
    void (*memory)(struct exec *x, int64_t *free, int64_t *total); /* bytes of the device */
    /* Around the steps of one phase. key names all that they depend on besides the contents of
     * memory, the seed and rng_step; 0: runs once. *replayed: begin has already run them, as
     * recorded under the same key. end is called whenever begin has returned 0 without that;
     * failed: a step has failed. */
    int (*begin)(struct exec *x, uint64_t key, bool *replayed, struct err *e);
    int (*end)(struct exec *x, bool failed, struct err *e);
    /* exec.poison and exec.check: fills with signalling NaN; finds the first element that is
     * neither finite nor, if neginf, -inf (*at -1: none). type: f32 or bf16. */
    int (*fill)(struct exec *x, void *p, size_t bytes, struct err *e);
    int (*inspect)(struct exec *x, const void *p, const struct tensor *t, bool neginf,
                   int64_t *at, struct err *e);
    void (*close)(struct exec *x); /* gives up what exec.state holds */
};

struct device {
    const char *name;             /* "cpu", "cuda" */
    const op_run_fn *table;       /* [OP_COUNT]; NULL where there is no kernel */
    const struct device_ops *ops; /* NULL: the host's memory, and steps are done when they return */
    op_ws_fn ws;                  /* NULL: as asked */
    unsigned dtypes;              /* bit per dtype that its kernels compute in besides f32 */
};

/* engine/cuda: workspaces of its kernels, for plans without a device at hand (op_ws_fn). */
int64_t cuda_ws(int op, const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int64_t asked);

#endif
