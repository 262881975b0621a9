/* reply.h: what a handler answers, and the two shapes of an error.
 *
 * A handler fills one reply and returns 0, or returns -1 with *e filled: the error reply is then
 * written from *e by reply_error, in the shape of the route. reply_fail adds what an err cannot
 * say: the exact status and the stable code word.
 * A reply owns its bytes, descriptor or stream until http.c takes them over.
 */
#ifndef GRAFT_REPLY_H
#define GRAFT_REPLY_H

#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "service/request.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum { REPLY_HEADERS = 20 };

enum reply_kind { REPLY_BYTES, REPLY_FILE, REPLY_STREAM };

/* Called again and again: appends what there is to b (nothing: asked again within half a second),
 * sets *end after the last byte. -1 cuts the connection. `close` is called once, at the end. */
struct reply_stream {
    void *ctx;
    int (*next)(void *ctx, struct buf *b, bool *end, struct err *e);
    void (*close)(void *ctx);
};

struct reply {
    struct arena *arena; /* the request's: header values */
    int status;
    enum reply_kind kind;
    char *bytes; /* REPLY_BYTES: mem_*, may be NULL if n is 0 */
    size_t n;
    int fd; /* REPLY_FILE: bytes [offset, offset + size) of fd */
    int64_t offset, size;
    struct reply_stream stream;
    struct pair header[REPLY_HEADERS];
    int nheader;
    int fail_status;       /* 0: by err.code */
    const char *fail_code; /* NULL: by err.code; a literal */
    json_t *fail_details;
};

void reply_init(struct reply *o, struct arena *a);
void reply_clear(struct reply *o);

/* The value is copied. A header that does not fit (REPLY_HEADERS) is an error. */
int reply_header(struct reply *o, struct err *e, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* 200 (or o->status, if set) with v as JSON. Takes v; NULL: *e is set already. */
int reply_json(struct reply *o, json_t *v, struct err *e);
/* Copies n bytes. */
int reply_bytes(struct reply *o, const char *type, const void *p, size_t n, struct err *e);
int reply_empty(struct reply *o, int status);
/* Takes s. Sends "text/event-stream" with the headers that keep proxies from buffering it. */
int reply_events(struct reply *o, struct reply_stream s, struct err *e);

struct reply_file {
    int fd; /* taken, also on failure */
    int64_t size;
    const char *type, *etag; /* etag without quotes */
};
/* The file, or the part that Range and If-Range ask for (206, 416), or 304 by If-None-Match. */
int reply_file(struct reply *o, const struct request *r, const struct reply_file *f,
               struct err *e);

/* Names status and code of the failure that *e describes. Returns -1. */
int reply_fail(struct reply *o, int status, const char *code);
/* Throws away what the reply holds and makes it the error reply for *e. Never fails: without
 * memory the reply has no body. */
void reply_error(struct reply *o, const struct request *r, const struct err *e);

#endif
