/* toy_llama.h: a Llama-like recording of any size, for tests of the tape, the planner and exec.
 *
 * Full fine-tuning if rank is 0, else LoRA of that rank on every matrix of every layer. With
 * `train` the tape also has its backward pass and an AdamW update with clipping.
 */
#ifndef GRAFT_TOY_LLAMA_H
#define GRAFT_TOY_LLAMA_H

#include "engine/core/tape.h"

struct toy_config {
    int layers, width, heads, kv_heads, ffn, vocab, batch, time;
    int rank;      /* of LoRA, 0: all weights train */
    bool tied;     /* output layer = embedding */
    bool train;
    float dropout;
};

struct toy_llama {
    struct params params;
    struct tape *tape;
    int ids, pos, range, target, weight; /* inputs of a step */
    int hyper, acc;                      /* inputs of the update */
    int freq;                            /* state parameter [D/2] */
    int loss, hits, norm;
};

/* 0, or -1 with everything freed. */
int toy_llama_record(struct toy_llama *m, const struct toy_config *c, struct err *e);
void toy_llama_clear(struct toy_llama *m);

#endif
