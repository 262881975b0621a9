/* jx.h: jansson with limits and with errors that name the field.
 *
 * Text is parsed with duplicate keys refused, NUL refused and a depth limit of 32 (jansson's own
 * limit is 2048, too deep for a thread's stack). Getters are strict: a wrong type is an error that
 * names the field in err.param. Borrowed strings live as long as their json_t.
 */
#ifndef GRAFT_JX_H
#define GRAFT_JX_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JX_DEPTH = 32 };

/* One JSON value and nothing after it. E_FORMAT names line and column (1-based) on failure. */
json_t *jx_parse(const char *text, size_t n, struct err *e);
json_t *jx_load_file(const char *path, size_t max_bytes, struct err *e);
/* Compact text, keys in insertion order, reals in the fewest digits that read back the
 * same; mem_free. */
char *jx_dump(const json_t *v, struct err *e);
char *jx_dump_pretty(const json_t *v, struct err *e);
/* json_pack with E_NOMEM/E_BUG instead of NULL without a word. */
json_t *jx_pack(struct err *e, const char *fmt, ...);
/* Stores a value (taken, may be NULL: then *e is already set) under key. */
int jx_set(json_t *obj, const char *key, json_t *value, struct err *e);

/* Required fields: -1 with E_ARG naming the field if absent or of another type. */
int jx_str(const json_t *o, const char *key, const char **out, struct err *e);
int jx_int64(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out,
             struct err *e);
int jx_real(const json_t *o, const char *key, double lo, double hi, double *out, struct err *e);
int jx_bool(const json_t *o, const char *key, bool *out, struct err *e);
int jx_object(const json_t *o, const char *key, json_t **out, struct err *e);
int jx_array(const json_t *o, const char *key, json_t **out, struct err *e);

/* Optional fields: absent or null leaves *out as it was; a wrong type is an error all the same. */
int jx_opt_str(const json_t *o, const char *key, const char **out, struct err *e);
int jx_opt_int64(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out,
                 struct err *e);
int jx_opt_real(const json_t *o, const char *key, double lo, double hi, double *out,
                struct err *e);
int jx_opt_bool(const json_t *o, const char *key, bool *out, struct err *e);

#endif
