/* conns.h: a deadline for every connection.
 *
 * libmicrohttpd's timeout counts idle time only: a peer that sends one byte per second holds a
 * connection for ever. Here each phase of a connection has an absolute deadline and a body a
 * minimum rate; conns_sweep() shuts sockets down that miss theirs. A socket is never touched after
 * conn_close(). Thread-safe.
 */
#ifndef GRAFT_CONNS_H
#define GRAFT_CONNS_H

#include "engine/base/err.h"

#include <stdint.h>

struct conns;
struct conn;

struct conns_limits {
    int64_t header_ms;     /* from the first byte (or the accept) to the end of the headers */
    int64_t idle_ms;       /* between two requests, and without progress while a reply is sent */
    int64_t body_window_ms, body_window_bytes; /* at least so many bytes per window */
    int64_t body_base_ms, body_bytes_per_s;    /* the whole body: base + size / rate */
};

enum conn_phase {
    CONN_IDLE,    /* accepted, or a reply was sent: the next request is waited for */
    CONN_HEADERS, /* the request line was read */
    CONN_BODY,
    CONN_REPLY    /* no deadline: handlers and the library's idle timeout bound it */
};

struct conns *conns_new(const struct conns_limits *l, struct err *e);
void conns_free(struct conns *c); /* every conn must be closed */
struct conn *conn_open(struct conns *c, int fd, struct err *e);
void conn_close(struct conn *k);
/* body_max: the most bytes CONN_BODY may have; ignored otherwise. */
void conn_phase(struct conn *k, enum conn_phase p, int64_t body_max);
void conn_received(struct conn *k, int64_t bytes);
/* Whatever the owner wants to find again from the connection. */
void conn_set_user(struct conn *k, void *user);
void *conn_user(const struct conn *k);
/* Shuts down what is late; returns how many. Called a few times per second. */
int conns_sweep(struct conns *c);
void conns_cut(struct conns *c); /* shuts every socket down */

#endif
