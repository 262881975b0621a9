/* pieces.h: a text cut into pieces, and for each byte where it came from.
 *
 * The stages of a tokenizer (normalisers, pre-tokenisers, added tokens, decoders) each read one
 * list of pieces and write another. `at` holds, for each byte of `text`, the offset in the
 * original input of the first byte of the character it came from: the `first` prepend scheme and
 * the training spans of chats need it. A piece is never empty. One owner; reused between stages.
 */
#ifndef GRAFT_PIECES_H
#define GRAFT_PIECES_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

enum {
    PIECES_MAX = 1 << 30 /* bytes of text: what a hostile Replace can grow an input to */
};

struct piece {
    uint32_t off, len; /* in text */
    uint32_t origin;   /* where in the original the piece starts; can lie before at[off] when
                          a normaliser has stripped its beginning */
    int32_t id;        /* the added token it is, or -1: still text */
};

struct pieces {
    char *text;
    uint32_t *at;
    size_t len, cap;
    struct piece *v;
    int64_t n, vcap;
};

void pieces_clear(struct pieces *p); /* frees; p may be used again */
void pieces_reset(struct pieces *p); /* empties, keeps the memory */
void pieces_swap(struct pieces *p, struct pieces *q);

/* Room for n more bytes at text + len (and at + len); the caller adds to len. */
int pieces_room(struct pieces *p, size_t n, struct err *e);
/* Appends n bytes with their origins, or with one origin for all. */
int pieces_put(struct pieces *p, const char *s, const uint32_t *at, size_t n, struct err *e);
int pieces_fill(struct pieces *p, const char *s, uint32_t at, size_t n, struct err *e);
/* Makes text[start..len) a piece; nothing if that is empty. */
int pieces_end(struct pieces *p, size_t start, uint32_t origin, int32_t id, struct err *e);
/* Appends bytes [from, to) of piece i of q as one piece of p. */
int pieces_slice(struct pieces *p, const struct pieces *q, int64_t i, size_t from, size_t to,
                 int32_t id, struct err *e);
/* Appends piece i of q unchanged. */
int pieces_copy(struct pieces *p, const struct pieces *q, int64_t i, struct err *e);

#endif
