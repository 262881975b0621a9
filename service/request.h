/* request.h: one HTTP request as handlers see it. No type of the HTTP library appears here.
 *
 * Everything is borrowed from the request and dies with it, in the arena where it is text. A
 * request belongs to one thread at a time.
 */
#ifndef GRAFT_REQUEST_H
#define GRAFT_REQUEST_H

#include "engine/base/arena.h"
#include "service/form.h"
#include "service/router.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    REQUEST_HEADERS = 100,
    REQUEST_HEADER_BYTES = 32768,
    REQUEST_TARGET_BYTES = 8192,
    REQUEST_QUERY = 64,
    REQUEST_ARENA_BYTES = 1 << 20,
    REQUEST_ID_BYTES = 128
};

struct pair {
    const char *name, *value;
};

struct service;
struct request {
    struct service *service;
    const char *method, *version;
    const char *target;            /* as sent: raw path and query */
    const char *path;              /* raw, without the query */
    const char *peer;              /* address of the client */
    char id[REQUEST_ID_BYTES + 1]; /* x-request-id */
    enum route_shape shape;
    struct route_match match;
    struct pair header[REQUEST_HEADERS]; /* names in lower case, in the order sent */
    int nheader;
    struct pair query[REQUEST_QUERY]; /* decoded, in the order sent */
    int nquery;
    json_t *json;      /* BODY_JSON: an object, also for an empty body */
    struct form form;  /* BODY_FORM, BODY_URLENCODED */
    struct arena arena;
};

void request_init(struct request *r);
void request_clear(struct request *r);

/* Copies the raw target and cuts it into path and query; decodes the query. */
int request_set_target(struct request *r, const char *target, struct err *e);
int request_add_header(struct request *r, const char *name, const char *value, struct err *e);

const char *request_header(const struct request *r, const char *name); /* NULL if absent */
int request_header_count(const struct request *r, const char *name);
const char *request_query(const struct request *r, const char *name); /* the first; NULL */
const char *request_param(const struct request *r, int i);

/* Query parameters that are numbers: E_ARG or E_RANGE naming the parameter. Absent: *out kept. */
int request_query_int(const struct request *r, const char *name, int64_t lo, int64_t hi,
                      int64_t *out, struct err *e);
/* -1 with the parameter named if the query holds one that `known` (a list ended by NULL) lacks;
 * a name that ends in '[' stands for every name with that beginning. */
int request_query_only(const struct request *r, const char *const *known, struct err *e);
/* True if the Accept header names this media type. */
bool request_accepts(const struct request *r, const char *media_type);

/* The guard (reliability 6.2), before anything else is looked at: framing headers at most once
 * and never both, no control characters, a plain target, HTTP/1.0 or 1.1. E_ARG (400) or E_LIMIT
 * (414 for the target, 431 for headers: *status says which). The connection must then be closed. */
int request_guard(const struct request *r, int *status, struct err *e);
/* Body bytes announced: -1 if chunked, 0 if there is none. */
int64_t request_declared(const struct request *r);

#endif
