/* recompute.h: from a tape to one that computes the same and keeps less of its forward pass.
 *
 * Nodes of a recompute segment (tape.h) whose values the backward pass reads are recorded a second
 * time, just before the first backward node that needs them, and the backward pass reads the second
 * copy; the first one dies early. A copy is the same operation on the same bytes, and random ones
 * count from the same numbers: results do not change by one bit.
 *
 *   none   everything that the backward pass reads is kept
 *   cheap  F_CHEAP operations run again, where what they read is there anyway
 *   block  everything runs again from what enters the segment
 *
 * What updates state, reads state that is updated, or is read by the host is never run again.
 */
#ifndef GRAFT_RECOMPUTE_H
#define GRAFT_RECOMPUTE_H

#include "engine/core/tape.h"

enum recompute { RECOMPUTE_NONE, RECOMPUTE_CHEAP, RECOMPUTE_BLOCK, RECOMPUTE_COUNT };

extern const char *const recompute_names[RECOMPUTE_COUNT];

/* A new tape. Tensors of t keep their ids; those of second runs have new ones. */
struct tape *recompute_tape(const struct tape *t, enum recompute policy, struct err *e);

#endif
