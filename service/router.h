/* router.h: from a raw request target to a row of the route table.
 *
 * Matching is on the raw, percent-encoded segments; each is decoded once, afterwards. Refused in
 * any decoded segment: NUL and other control characters, bytes that are not UTF-8, "." and "..".
 * A pattern is made of literal segments and of
 *   {name}   one segment; no '/' after decoding
 *   {name/}  one segment that may hold encoded slashes (a revision such as refs%2Fpr%2F1)
 *   {name+}  an id: "a" or "a/b", the slash sent plain or encoded
 *   {name*}  all segments that are left, at least one (only at the end of a pattern)
 * The first row that matches path and method wins, so more literal rows come first.
 */
#ifndef GRAFT_ROUTER_H
#define GRAFT_ROUTER_H

#include "engine/base/arena.h"
#include "engine/base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    ROUTER_PARAMS = 4,
    ROUTER_SEGMENTS = 32 /* longer targets match nothing */
};

/* FORM: multipart/form-data with files. URLENCODED: a form without files, or the same as JSON. */
enum body_kind { BODY_NONE, BODY_JSON, BODY_FORM, BODY_URLENCODED };
enum route_shape { SHAPE_OPENAI, SHAPE_HUB }; /* of its errors */

enum route_flags {
    ROUTE_SLOW = 1, /* may take long: runs beside the event loops */
    ROUTE_OPEN = 2  /* needs no key */
};

struct request;
struct reply;
typedef int (*route_fn)(struct request *r, struct reply *out, struct err *e);

struct route {
    const char *method, *pattern;
    route_fn handle;
    enum body_kind body;
    enum route_shape shape;
    int flags;
};

struct route_match {
    const struct route *route;         /* NULL if none */
    const char *param[ROUTER_PARAMS];  /* decoded, in the order of the pattern; in the arena */
    char allow[64];                    /* methods of the rows that match the path alone */
};

/* `path` is the raw target without its query. HEAD is served by a GET row where no HEAD row
 * exists. E_ARG: the path cannot be decoded. E_NOTFOUND: no row. E_UNSUPPORTED: rows for other
 * methods only (405), and m->allow lists them. */
int router_find(const struct route *table, int n, const char *method, const char *path,
                struct arena *a, struct route_match *m, struct err *e);

/* Percent-decodes in place (`plus`: '+' means a blank) and checks the rules above, except that of
 * '.' and '..'. Returns the length. */
int64_t router_decode(char *s, bool plus, struct err *e);

#endif
