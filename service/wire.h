/* wire.h: the channel between server and worker: JSON objects, one per line, on the Unix socket
 * ATTEMPT/control.sock (mode 0700 folder: the same user only). Nothing here blocks. */
#ifndef GRAFT_WIRE_H
#define GRAFT_WIRE_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stddef.h>

enum { WIRE_LINE_MAX = 8192 };

struct wire {
    int fd; /* -1: none */
    char line[WIRE_LINE_MAX];
    size_t len;
};

int wire_listen(const char *attempt_dir, struct err *e);  /* descriptor or -1 */
int wire_connect(const char *attempt_dir, struct err *e); /* descriptor or -1 */
void wire_open(struct wire *w, int fd);                   /* takes fd; -1 for none */
void wire_close(struct wire *w);
/* 1: *v is the next object, 0: nothing yet, -1: broken, closed or not JSON. */
int wire_receive(struct wire *w, json_t **v, struct err *e);
int wire_send(struct wire *w, const json_t *v, struct err *e);

#endif
