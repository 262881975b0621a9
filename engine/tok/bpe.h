/* bpe.h: the BPE model: a word becomes its characters, then pairs are merged by rank.
 *
 * The order of merges is the library's: a heap by (rank, position), whose stale entries are dropped
 * only if they would give another token. O(n log n) for a word of n characters. Immutable once
 * built; the word under work belongs to the caller.
 */
#ifndef GRAFT_BPE_H
#define GRAFT_BPE_H

#include "engine/base/buf.h"
#include "engine/tok/vocab.h"

#include <jansson.h>
#include <stdbool.h>

enum { BPE_CHARS = 0x800 };

struct bpe_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    int32_t rank, id;
};

struct bpe {
    const struct vocab *vocab;
    int32_t n;           /* tokens of the model: ids above are added tokens, not its own */
    struct bpe_merge *merge;
    uint64_t mask;
    int32_t *chars;      /* [BPE_CHARS] id of each code point of one or two bytes, or -1 */
    int32_t bytes[256];  /* id of <0x..>, or -1 */
    int32_t unk;         /* -1: none */
    bool has_unk;        /* a name is given, even if no token has it */
    bool fuse_unk, byte_fallback, ignore_merges;
};

struct bpe_symbol {
    int32_t id, prev, next;
    uint32_t len; /* bytes of the word; 0: merged into its left neighbour */
};
struct bpe_entry {
    uint64_t key; /* rank << 32 | position */
    int32_t id;
};
struct bpe_word {
    struct bpe_symbol *v; /* after bpe_encode: the n tokens */
    struct bpe_entry *heap;
    int64_t n, cap, nheap, heap_cap;
};

/* From the "model" object, once its vocabulary (whose first n ids are the model's) is built. */
int bpe_build(struct bpe *b, const struct vocab *v, int32_t n, const json_t *model,
              struct err *e);
void bpe_clear(struct bpe *b);
int bpe_encode(const struct bpe *b, const char *s, size_t n, struct bpe_word *w, struct err *e);
void bpe_word_clear(struct bpe_word *w);

#endif
