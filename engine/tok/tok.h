/* tok.h: a Hugging Face tokenizer.json, encoding byte-identically to the `tokenizers` library.
 *
 * Kinds: BPE, byte-level (GPT-2, Llama 3, Qwen) and SentencePiece-style with byte fallback
 * (Llama 2), with the normalisers, pre-tokenisers, added tokens, post-processors and decoders that
 * such files use. Anything else in a file is refused by name, never ignored. A regular expression
 * of a file is matched against the known ones, or run by PCRE2 under match limits.
 * A tok is immutable after tok_open: several threads may use one.
 */
#ifndef GRAFT_TOK_H
#define GRAFT_TOK_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tok;

enum {
    TOK_FILE_MAX = 64 << 20, /* bytes of a tokenizer.json */
    TOK_TEXT_MAX = 256 << 20 /* bytes of one text */
};

/* A growing list of token ids; zero-initialised is empty. */
struct ids {
    int32_t *v;
    int64_t n, cap;
};
int ids_push(struct ids *a, int32_t id, struct err *e);
int ids_append(struct ids *a, const int32_t *v, int64_t n, struct err *e);
void ids_clear(struct ids *a);

struct tok *tok_open(const char *tokenizer_json, struct err *e);
struct tok *tok_parse(const char *json, size_t n, struct err *e); /* the file's bytes */
void tok_free(struct tok *t);
/* Appends the ids of n bytes of UTF-8 (E_FORMAT with the byte offset otherwise). `special`: run the
 * post-processor, which adds <s> and the like. Added tokens inside the text are recognised, as
 * the library does. */
int tok_encode(const struct tok *t, const char *text, size_t n, bool special, struct ids *out,
               struct err *e);
/* What the post-processor makes of one text (b NULL) or two, both encoded without `special`; and
 * how many tokens it adds. */
int tok_join(const struct tok *t, const struct ids *a, const struct ids *b, struct ids *out,
             struct err *e);
int tok_join_added(const struct tok *t, bool two);
/* What of the text each id stands for: the first byte of its first character and of its last one;
 * -1 for ids that the post-processor adds. Where normalisation has moved text these are the origins
 * that the library reports. */
struct tok_spans {
    struct ids first, last;
};
/* tok_encode, and appends as many spans. */
int tok_encode_spans(const struct tok *t, const char *text, size_t n, bool special,
                     struct ids *out, struct tok_spans *spans, struct err *e);
void tok_spans_clear(struct tok_spans *s);
/* Appends the text of the ids; bytes that are not UTF-8 become U+FFFD as in the library. */
int tok_decode(const struct tok *t, const int32_t *ids, int64_t n, bool skip_special,
               struct buf *out, struct err *e);
int32_t tok_id(const struct tok *t, const char *token);       /* -1 if there is none */
const char *tok_token(const struct tok *t, int32_t id);       /* NULL if there is none; borrowed */
int32_t tok_size(const struct tok *t);                        /* largest id + 1 */
bool tok_is_special(const struct tok *t, int32_t id);

#endif
