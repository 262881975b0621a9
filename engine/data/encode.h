/* encode.h: one row as token ids, with a mark for each that is trained, by dataset.h's rules. */
#ifndef GRAFT_ENCODE_H
#define GRAFT_ENCODE_H

#include "engine/data/dataset.h"
#include "engine/data/rows.h"

struct encoding {
    struct ids ids, trained; /* of the same length; zero-initialised is empty */
};

/* Replaces what x holds. Not cut: max_length is the reader's. */
int encode_row(struct encoding *x, const struct tok *t, const struct row *row,
               const struct dataset_options *o, struct err *e);
void encode_clear(struct encoding *x);

#endif
