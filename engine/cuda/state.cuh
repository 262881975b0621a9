/* state.cuh: what exec.state is on CUDA. Made by dev.cu; one stream, one thread.
 *
 * What goes to the device passes through two pinned halves in turn: while one is filled by the
 * host the other travels. A half is used again when its event has come.
 */
#ifndef GRAFT_STATE_CUH
#define GRAFT_STATE_CUH

#include "engine/cuda/lt.cuh"

enum {
    STATE_HALF = 16 << 20, /* bytes of a pinned half: copies reach full speed well below it */
    STATE_GRAPHS = 64      /* captured phases kept: more than the shapes a job cycles through */
};

/* The steps of one phase, captured. */
struct state_graph {
    uint64_t key, used;
    int runs;             /* without capture */
    cudaGraphExec_t exec; /* NULL: not captured yet */
};

struct cu_state {
    char name[256];
    cudaStream_t stream;
    struct cu_scalars *scalars, sent; /* on the device, and what it holds */
    bool sent_once;
    unsigned long long *flag;         /* on the device, for inspect */
    int32_t *fault;                   /* on the device: cu_fault */
    int32_t *fault_seen;              /* pinned copy of it, as of the last read */
    unsigned char *half[2];
    cudaEvent_t gone[2];
    int now;                          /* the half being filled */
    size_t used;                      /* of it */
    cudaError_t failed;               /* the first failure, and who met it */
    char failed_at[64];
    struct state_graph graphs[STATE_GRAPHS];
    struct state_graph *capturing;
    uint64_t clock;
    struct lt_state lt;
};

static inline struct cu_state *state_of(const struct exec *x)
{
    return (struct cu_state *)x->state;
}

/* E_DEVICE if anything has failed so far. */
int state_check(struct exec *x, struct err *e);

#endif
