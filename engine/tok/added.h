/* added.h: added tokens, found in the text before the model sees it.
 *
 * Two sets, as in the library: tokens with `normalized` false are looked for in the raw text, the
 * others, themselves normalised, in the normalised text. Leftmost-longest, without overlaps.
 * Immutable once built.
 */
#ifndef GRAFT_ADDED_H
#define GRAFT_ADDED_H

#include "engine/tok/norm.h"
#include "engine/tok/pieces.h"

#include <stdbool.h>

enum { ADDED_LENGTH_MAX = 1024 }; /* bytes of one: bounds the search at each byte of a text */

struct added_token {
    char *content;
    char *shown; /* normalised content if that differs: what is searched and decoded; or NULL */
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
};

/* Patterns sorted by bytes; those with first byte b are first[b] .. first[b + 1]. */
struct added_set {
    const struct added_token **v;
    int32_t n;
    int32_t first[257];
};

struct added {
    struct added_token *v; /* by position in the file */
    int32_t n;
    struct added_set raw, normal;
};

/* From the value of "added_tokens"; ids are the file's. */
int added_read(struct added *a, const json_t *list, struct err *e);
/* Normalises, and builds the two sets. */
int added_build(struct added *a, const struct norm *m, struct err *e);
void added_clear(struct added *a);
/* Cuts the tokens of a set out of every piece of `in` that is still text; appends to `out`. */
int added_run(const struct added_set *set, struct pieces *out, const struct pieces *in,
              struct err *e);

#endif
