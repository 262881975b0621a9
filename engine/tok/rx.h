/* rx.h: patterns that cut text: literals, character classes, regular expressions.
 *
 * The `tokenizers` library runs regular expressions with Oniguruma. The well-known ones (GPT-2, and
 * the cl100k family of Llama 3 and Qwen 2) are recognised by their text and matched by hand; any
 * other is translated to PCRE2 with Oniguruma's meaning (rx_onig.c) and run under limits, so that
 * no file can make it run for ever. An rx is immutable and may be shared by threads; an rx_scan
 * belongs to one. Text is well-formed UTF-8.
 */
#ifndef GRAFT_RX_H
#define GRAFT_RX_H

#include "engine/base/buf.h"
#include "engine/tok/uclass.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct rx;

struct rx *rx_regex(const char *pattern, struct err *e); /* Oniguruma syntax */
struct rx *rx_literal(const char *text, struct err *e);
struct rx *rx_class(uclass_fn in, struct err *e);        /* each character that is in the class */
struct rx *rx_words(struct err *e);                      /* \w+|[^\w\s]+ as Rust's regex crate */
struct rx *rx_gpt2(struct err *e);                       /* the pattern of ByteLevel */
/* {"String": s} or {"Regex": r} under `key` of a tokenizer.json object. */
struct rx *rx_pattern(const json_t *o, const char *key, struct err *e);
void rx_free(struct rx *r);

/* Matches from left to right, as the library's find_iter: an empty match directly behind the match
 * before it is passed over. */
struct rx_scan {
    const char *text;
    size_t n;          /* bytes of text */
    size_t pos;        /* where the next search starts; n + 1: finished */
    int64_t last_end;  /* end of the match before, -1 if none */
    size_t start, end; /* the match found */
    void *match_data;  /* kept from scan to scan; rx_scan_clear frees */
};
void rx_scan_begin(struct rx_scan *s, const char *text, size_t n);
int rx_scan_next(struct rx_scan *s, const struct rx *r, struct err *e); /* 1 found, 0 end, -1 */
void rx_scan_clear(struct rx_scan *s);

/* rx_onig.c: the pattern in PCRE2 syntax for PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE. What cannot
 * be said with the same meaning is E_UNSUPPORTED, named. */
int rx_translate(const char *pattern, struct buf *out, struct err *e);

#endif
