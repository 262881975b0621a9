/* http.h: the HTTP server: libmicrohttpd behind a guard, a watchdog and the route table.
 *
 * Event loops (epoll, a pool of threads) read requests and spool bodies: JSON into memory, form
 * files into blobs. Handlers run on the loop when they are quick and on a lane of threads when
 * their route says ROUTE_SLOW, so that no slow call delays another connection. Every reply, also
 * an error, carries x-request-id and leaves one line in the log. Limits: reliability, section 6.
 */
#ifndef GRAFT_HTTP_H
#define GRAFT_HTTP_H

#include "engine/base/err.h"
#include "service/auth.h"
#include "service/conns.h"
#include "service/router.h"
#include "service/service.h"

#include <stdint.h>

struct http_options {
    int listener; /* by http_listen; http_start takes it in every case */
    int threads, slow_threads;
    int connections, per_address;
    int64_t json_max, file_max; /* bytes of a JSON body, of one file of a form */
    struct conns_limits limits;
    struct auth auth;
    const struct route *routes;
    int nroutes;
    struct service *service;
};

/* The limits of reliability 6.2; the rest is zero. */
void http_options_default(struct http_options *o);

/* A listening socket, or -1. address is numeric or a name; port 0: any free one. Clients that
 * connect are kept waiting until http_start: what handlers need may be started in between. */
int http_listen(const char *address, int port, struct err *e);

struct http;
/* Copies *o, borrows what it points to. */
struct http *http_start(const struct http_options *o, struct err *e);
int http_port(const struct http *h);
/* No new connections at once; requests under way get up to drain_ms; then everything is closed.
 * -1 with E_TIMEOUT if a handler is still running after that: h is then left as it is, and the
 * process should exit without touching what handlers use. Frees h otherwise. NULL is fine. */
int http_stop(struct http *h, int64_t drain_ms, struct err *e);

#endif
