/* uclass.h: character classes as the `tokenizers` library sees them.
 *
 * The library's parts carry different Unicode versions: Oniguruma 16.0 (regular expressions),
 * Rust's standard library 17.0 (numeric, lower case), an old table for punctuation and an older
 * one for the normal forms. utf8proc (15.0 on Debian 12) answers first; uclass_data.h, made by
 * uclass_gen.py, lists the differences. Everything here is pure and thread-safe.
 */
#ifndef GRAFT_UCLASS_H
#define GRAFT_UCLASS_H

#include "engine/base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum uclass {
    UC_OTHER,
    UC_LETTER, /* \p{L} */
    UC_NUMBER, /* \p{N} */
    UC_SPACE   /* \s */
};

typedef bool (*uclass_fn)(uint32_t cp);

enum uclass uclass_of(uint32_t cp);
bool uclass_space(uint32_t cp);   /* White_Space: Oniguruma and Rust agree */
bool uclass_word(uint32_t cp);    /* \w of Rust's regex crate */
bool uclass_numeric(uint32_t cp); /* char::is_numeric */
bool uclass_punct(uint32_t cp);   /* the Punctuation pre-tokeniser */
bool uclass_inert(uint32_t cp);   /* left alone by the library's normal forms */
/* Lower case, one or two code points; returns how many. */
int uclass_lower(uint32_t cp, uint32_t out[2]);

/* Appends "\x{a}-\x{b}..." for what the general category `name` ("L", "Nd", ...) has gained since
 * Unicode 14, for the inside of a PCRE2 class. False if there is no such category. */
bool uclass_put_new(struct buf *b, const char *name);

#endif
