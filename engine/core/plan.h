/* plan.h: from a tape to a fixed list of steps with every buffer placed.
 *
 * Invariants:
 *  (1) A node whose outputs nobody needs is dropped; an output nobody needs has no place (its
 *      first is -1), and its kernel gets NULL.
 *  (2) Two tensors share bytes only if their lifetimes are disjoint, or one is a view of the
 *      other, or an op writes in place over an input that dies there (op_info.inplace).
 *  (3) Offsets are multiples of 256 and follow from the tape alone: same tape, same plan.
 *  (4) A plan needs no device: its sizes, FLOPs and peak are known before anything runs.
 */
#ifndef GRAFT_PLAN_H
#define GRAFT_PLAN_H

#include "engine/core/device.h"
#include "engine/core/tape.h"

enum { PLAN_THREADS = 1024 };

struct plan_step {
    int node;           /* index in tape->nodes */
    enum phase phase;
    int64_t ws_offset;  /* workspace of this step inside the step buffer, -1: none */
    int64_t ws_bytes;
};

struct plan_place {     /* one per tensor id; a view has the place of its root */
    int64_t offset;     /* in the step buffer; -1: persistent, or never live */
    int first, last;    /* lifetime in steps, inclusive; -1: never live */
};

struct plan_report {
    int64_t step_bytes;      /* size of the step buffer = activations + workspace, as placed */
    int64_t lower_bound;     /* max over time of live bytes: no placement can be smaller */
    int64_t workspace_bytes; /* the largest workspace */
    int64_t weight_bytes;    /* frozen and state parameters */
    int64_t trainable_bytes; /* masters */
    int64_t grad_bytes;
    int64_t moment_bytes;
    int64_t flops[PHASE_COUNT]; /* of one run of the phase */
    int64_t traffic[PHASE_COUNT]; /* bytes read and written */
};

struct plan {
    const struct tape *tape; /* borrowed, must outlive the plan, must not change */
    struct plan_step *steps;
    int nsteps;
    struct plan_place *places; /* [tape->ntensors] */
    int threads;               /* workspaces are sized for this many */
    struct plan_report report;
};

struct plan_options {
    int threads;           /* workspace is sized for this many; >= 1 */
    op_ws_fn ws;           /* of the device that is to run the plan; NULL: as the ops ask */
};

/* What a device does in a second, measured (engine/job/profile.h). */
struct plan_rates {
    double products;  /* operations of matrix products */
    double attention; /* operations of attention, masked ones counted too */
    double bytes;     /* read and written */
};

/* Steps are in execution order: all of PHASE_STEP, then all of PHASE_UPDATE. An input lives from
 * the start to its last use; an output at least to the end of the phase that writes it. */
struct plan *plan_make(const struct tape *t, const struct plan_options *o, struct err *e);
void plan_free(struct plan *p);

/* Expected time of one run of a phase: each step takes as long as its operations or its bytes. */
double plan_seconds(const struct plan *p, enum phase phase, const struct plan_rates *r);

#endif
