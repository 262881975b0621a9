/* workload.h: the training jobs that benchmarks run, of random weights. */
#ifndef GRAFT_WORKLOAD_H
#define GRAFT_WORKLOAD_H

#include "tests/bench/trial.h"

struct workload {
    const char *name, *unit;
    const char *formula;     /* of useful FLOPs */
    const char *peer_option; /* what makes PyTorch fastest (peer_torch.py); NULL: none */
    double per_step;         /* units in one step */
    bool causal;             /* half of the attention is useful */
    struct trial_options graft;
};

extern const struct workload workload_list[];
extern const int workload_count;

/* Useful FLOPs of step i, or of all steps, of the bound plan: those of the operations, half of them
 * where attention is causal. */
double workload_step_flops(const struct workload *w, const struct exec *x, int i);
double workload_flops(const struct workload *w, const struct exec *x);

#endif
