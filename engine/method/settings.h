/* settings.h: a method's settings against its schema.
 *
 * The schema is a small subset of JSON Schema: type (one or several of string, integer, number,
 * boolean, array), minimum, exclusiveMinimum, maximum, enum, items, maxItems, default,
 * description. The string "auto" stands for a property's default.
 */
#ifndef GRAFT_SETTINGS_H
#define GRAFT_SETTINGS_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdbool.h>

/* {"type": "object", "additionalProperties": false, "properties": shared + own}; `own`, a JSON
 * object as text, wins over a shared property of that name. */
json_t *settings_schema(const char *own, struct err *e);
/* A new object with every property of the schema, in its order. given may be NULL. */
json_t *settings_fill(const json_t *schema, const json_t *given, struct err *e);

/* Of a filled object: programming errors aside these cannot fail. */
double settings_real(const json_t *s, const char *key);
int64_t settings_int(const json_t *s, const char *key);
bool settings_bool(const json_t *s, const char *key);
const char *settings_str(const json_t *s, const char *key);

#endif
