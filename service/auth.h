/* auth.h: who may call: the API key, and what a browser must not be talked into.
 *
 * - With a key set, every route but the open ones wants `Authorization: Bearer KEY`.
 * - A browser that visits a hostile page can be made to send requests here. An Origin header must
 *   therefore name this very host. Without a key the Host header must be an address, localhost or
 *   a configured name, which defeats DNS rebinding; with a key the page lacks the key anyway.
 */
#ifndef GRAFT_AUTH_H
#define GRAFT_AUTH_H

#include "engine/base/err.h"
#include "service/reply.h"
#include "service/request.h"

#include <stdbool.h>

struct auth {
    const char *key;   /* "": none */
    const char *hosts; /* further names of this server, ','-separated */
};

/* -1 with *e and the reply's status and code set: 401, 403 or 421. */
int auth_check(const struct auth *a, const struct request *r, bool open, struct reply *o,
               struct err *e);
/* True for 127.0.0.0/8, ::1 and "localhost". */
bool auth_is_loopback(const char *address);

#endif
