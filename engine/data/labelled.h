/* labelled.h: rows of text, or two texts, with a label: what a classifier of text trains on.
 *
 * A row is what the tokenizer's post-processor makes of its texts. A row longer than max_length is
 * cut inside its texts, the longer one first, as the tokenizers library does by default: what the
 * post-processor adds stays. Classes are the places of the labels in labelled_labels(): integers in
 * order, strings by their bytes.
 */
#ifndef GRAFT_LABELLED_H
#define GRAFT_LABELLED_H

#include "engine/data/dataset.h"

struct labelled_options {
    int64_t max_length;   /* more than the post-processor adds */
    const json_t *labels; /* of the training file, for its validation file; NULL: the file's own */
};

struct labelled;
/* The whole file. Its first problem, rows without labels, or a label that is not among the given
 * ones is the error (E_FORMAT, with its line); E_ARG if there are not two labels. */
struct labelled *labelled_open(const char *path, const struct tok *t,
                               const struct labelled_options *o, struct err *e);
void labelled_free(struct labelled *d);
int64_t labelled_count(const struct labelled *d);
int64_t labelled_truncated(const struct labelled *d);
const json_t *labelled_labels(const struct labelled *d); /* borrowed: a list */
/* Ids of row i, its length into *n and its class into *label. */
const int32_t *labelled_get(const struct labelled *d, int64_t i, int64_t *n, int32_t *label);

/* Appends the ids of a text and, if it is not NULL, a second one. *cut: they were too long. */
int labelled_encode(const struct tok *t, const char *text, const char *pair, int64_t max_length,
                    struct ids *out, bool *cut, struct err *e);
/* Fills b from rows index[0..n): ids, positions from 0, and for every token of a row all keys of
 * that row. target is [B]: the class. */
int labelled_fill(struct batch *b, const struct labelled *d, const int64_t *index, int64_t n,
                  struct err *e);

#endif
