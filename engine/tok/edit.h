/* edit.h: edits that normalisers and pre-tokenisers share.
 *
 * Each reads piece i of `in` and appends the edited piece to `out`; origins follow the library's
 * rules, which are said at each. Thread-safe: nothing is kept.
 */
#ifndef GRAFT_EDIT_H
#define GRAFT_EDIT_H

#include "engine/tok/pieces.h"
#include "engine/tok/rx.h"

/* Every match becomes `content`, whose origin is that of the last byte matched. */
int edit_replace(struct pieces *out, const struct pieces *in, int64_t i, const struct rx *rx,
                 const char *content, struct rx_scan *scan, struct err *e);
/* `text` in front, with the origin of the first character. */
int edit_prepend(struct pieces *out, const struct pieces *in, int64_t i, const char *text,
                 struct err *e);
/* Every byte becomes the printable character that stands for it in byte-level vocabularies. */
int edit_bytes(struct pieces *out, const struct pieces *in, int64_t i, struct err *e);

/* That alphabet: GPT-2's. The code point of a byte, and the byte of a code point or -1. */
uint32_t edit_byte_char(unsigned char byte);
int edit_char_byte(uint32_t cp);

#endif
