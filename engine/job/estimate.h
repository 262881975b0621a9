/* estimate.h: what a job will take, found by planning it before any of it runs.
 *
 * The peak is that of the whole process as the kernel counts it (VmHWM), so weights that are mapped
 * from a file count once training has read them. Nothing here needs a device or allocates
 * parameters.
 */
#ifndef GRAFT_ESTIMATE_H
#define GRAFT_ESTIMATE_H

#include "engine/base/machine.h"
#include "engine/job/run.h"

enum estimate_part {
    PART_PROCESS,     /* the program, tokeniser, rows, recordings */
    PART_WEIGHTS,     /* frozen */
    PART_TRAINABLE,   /* f32 masters */
    PART_GRADIENTS,
    PART_MOMENTS,
    PART_ACTIVATIONS, /* the step buffer without ... */
    PART_WORKSPACE,   /* ... the largest workspace */
    PART_FINISH,      /* what samples and the result take beyond all that */
    PART_COUNT
};
extern const char *const estimate_names[PART_COUNT];

struct estimate {
    enum recompute recompute;
    int64_t part[PART_COUNT];
    int64_t peak;               /* their sum */
    int64_t flops;              /* of a full window at the largest shape */
    int64_t adapter, merged, checkpoint; /* bytes on disk; adapter 0: the method has none */
};

struct estimate_fit {
    struct estimate e;
    struct machine_memory memory;
    bool fits;          /* what is missing to the peak is free */
    int64_t missing;    /* bytes, if it does not */
    char advice[320];   /* and then: which settings would fit, each planned; "" if none would */
};

/* Picks the recompute policy: the setting, or (auto) the first of none, cheap and block that fits
 * into what is free. Leaves it in r->session.graphs. Environment GRAFT_MEMORY (MiB) lowers what
 * this process may use. */
int estimate_fit(struct run *r, struct estimate_fit *out, struct err *e);
/* E_DEVMEM if it cannot fit this machine, E_NOMEM if it does not now; 0 if it fits. */
int estimate_refuse(const struct estimate_fit *f, struct err *e);

/* Seconds of the mean step, and of the whole job without samples and export. */
struct estimate_time {
    double step, job;
};
int estimate_seconds(struct run *r, const struct plan_rates *rates, struct estimate_time *out,
                     struct err *e);

#endif
