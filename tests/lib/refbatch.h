/* refbatch.h: the batch of a reference (tests/model/golden/make_golden.py): ids i32 [B,T], lengths
 * i32 [B], labels i32 [B,T] (-1: none) or, of a classifier, [B]. */
#ifndef GRAFT_TEST_REFBATCH_H
#define GRAFT_TEST_REFBATCH_H

#include "engine/data/dataset.h"
#include "engine/fmt/safetensors.h"

/* As dataset.h lays batches out; a classifier's tokens see their whole row. b starts zeroed. */
int refbatch_fill(struct batch *b, const struct st *ref, struct err *e);

#endif
