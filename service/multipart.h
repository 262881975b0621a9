/* multipart.h: a strict streaming parser of multipart/form-data (RFC 7578).
 *
 * Bytes go in as they arrive, cut anywhere; parts come out through callbacks in the order sent.
 * Memory is fixed: part headers up to MULTIPART_HEADERS_MAX, the data is never held back beyond a
 * possible delimiter. libmicrohttpd's own post processor is not used because it takes a file part
 * apart that is declared multipart/mixed, finds names by substring search (a file name can forge a
 * field name) and accepts any line that begins with the boundary as a delimiter.
 *
 * Errors stick: after a failure every call fails. Not thread-safe; owns nothing but itself.
 */
#ifndef GRAFT_MULTIPART_H
#define GRAFT_MULTIPART_H

#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    MULTIPART_BOUNDARY_MAX = 70, /* RFC 2046 */
    MULTIPART_HEADERS_MAX = 8192,
    MULTIPART_NAME_MAX = 256,
    MULTIPART_PARTS_MAX = 256
};

struct multipart_part {
    char name[MULTIPART_NAME_MAX];     /* as sent, percent-escapes of quotes undone */
    char filename[MULTIPART_NAME_MAX]; /* "" if is_file is false or the name is empty */
    bool is_file;                      /* a filename parameter was there */
};

/* A callback that returns -1 fills *e and ends the parse. */
struct multipart_sink {
    void *ctx;
    int (*begin)(void *ctx, const struct multipart_part *p, struct err *e);
    int (*data)(void *ctx, const char *s, size_t n, struct err *e);
    int (*end)(void *ctx, struct err *e);
};

struct multipart {
    struct multipart_sink sink;
    char delim[4 + MULTIPART_BOUNDARY_MAX + 1]; /* "\r\n--boundary" */
    size_t ndelim;
    int state;
    size_t matched; /* bytes of delim seen at the end of the input so far */
    char head[MULTIPART_HEADERS_MAX];
    size_t nhead;
    int parts;
};

/* content_type: the header's value. E_ARG if it is not multipart/form-data with a boundary. */
int multipart_init(struct multipart *m, const char *content_type,
                   const struct multipart_sink *sink, struct err *e);
int multipart_put(struct multipart *m, const char *s, size_t n, struct err *e);
/* The body is over: E_ARG unless the closing delimiter was seen. */
int multipart_finish(struct multipart *m, struct err *e);

#endif
