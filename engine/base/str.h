/* str.h: the few string helpers that the C library lacks. Nothing here allocates. */
#ifndef GRAFT_STR_H
#define GRAFT_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool str_eq(const char *a, const char *b); /* NULL equals only NULL */
bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);

/* The whole string as a decimal number, no blanks, no sign but '-'. False if it is not one. */
bool str_int64(const char *s, int64_t *out);

/* Copies at most cap-1 bytes and terminates. False if s was cut. */
bool str_copy(char *to, size_t cap, const char *s);

/* Offset of the first byte that is not well-formed UTF-8 (overlong forms, surrogates and code
 * points above U+10FFFF included), or n when all n bytes are. */
size_t str_utf8_bad(const char *s, size_t n);

/* Decodes one code point of well-formed UTF-8 at s (n bytes left, n > 0); returns its length. */
int str_utf8_next(const char *s, size_t n, uint32_t *cp);
/* Writes cp as UTF-8 (up to 4 bytes, no NUL); returns the length. */
int str_utf8_put(uint32_t cp, char out[4]);

#endif
