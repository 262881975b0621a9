#include "service/wire.h"

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The address of the socket in `dir`. A Unix address holds 107 bytes, a path of ours may be longer:
 * so it goes through a descriptor of the folder, which the caller closes afterwards. */
static int address(const char *dir, struct sockaddr_un *a, struct err *e)
{
    int fd = fs_open(dir, O_PATH | O_DIRECTORY, 0, e);
    if (fd < 0) return -1;
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(a->sun_path, sizeof a->sun_path, "/proc/self/fd/%d/control.sock", fd);
    return fd;
}

static int new_socket(struct err *e)
{
    int fd = fault_hit(FAULT_SOCK)
                 ? -1
                 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 ? err_sys(e, "cannot make a socket") : fd;
}

int wire_listen(const char *attempt_dir, struct err *e)
{
    struct sockaddr_un a;
    int dir = address(attempt_dir, &a, e);
    if (dir < 0) return -1;
    int fd = fs_unlink(a.sun_path, e) ? -1 : new_socket(e);
    if (fd >= 0 && (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4))) {
        err_sys(e, "cannot listen in %s", attempt_dir);
        fs_close(fd);
        fd = -1;
    }
    fs_close(dir);
    return fd;
}

int wire_connect(const char *attempt_dir, struct err *e)
{
    struct sockaddr_un a;
    int dir = address(attempt_dir, &a, e);
    if (dir < 0) return -1;
    int fd = new_socket(e);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a)) {
        err_sys(e, "cannot reach the worker in %s", attempt_dir);
        fs_close(fd);
        fd = -1;
    }
    fs_close(dir);
    return fd;
}

void wire_open(struct wire *w, int fd)
{
    w->fd = fd;
    w->len = 0;
}

void wire_close(struct wire *w)
{
    fs_close(w->fd);
    wire_open(w, -1);
}

/* A whole line that has been received, parsed. */
static int take_line(struct wire *w, json_t **v, struct err *e)
{
    char *nl = memchr(w->line, '\n', w->len);
    if (!nl) return 0;
    size_t n = (size_t)(nl - w->line);
    json_t *o = jx_parse(w->line, n, e);
    w->len -= n + 1;
    memmove(w->line, nl + 1, w->len);
    if (o && !json_is_object(o)) {
        json_decref(o);
        o = NULL;
        err_set(e, E_FORMAT, "not an object");
    }
    *v = o;
    return o ? 1 : -1;
}

int wire_receive(struct wire *w, json_t **v, struct err *e)
{
    for (;;) {
        int rc = take_line(w, v, e);
        if (rc) return rc;
        if (w->len == WIRE_LINE_MAX) return err_set(e, E_LIMIT, "a line is too long");
        ssize_t n = fault_hit(FAULT_SOCK)
                        ? -1
                        : recv(w->fd, w->line + w->len, WIRE_LINE_MAX - w->len, 0);
        if (n == 0) return err_set(e, E_IO, "the other side closed the channel");
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
        if (n < 0) return err_sys(e, "channel");
        w->len += (size_t)n;
    }
}

int wire_send(struct wire *w, const json_t *v, struct err *e)
{
    char *text = jx_dump(v, e);
    if (!text) return -1;
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the NUL: one send, one line */
    ssize_t k = fault_hit(FAULT_SOCK) ? -1 : send(w->fd, text, n + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    int rc = 0;
    if (k < 0)
        rc = err_sys(e, "channel");
    else if ((size_t)k != n + 1) /* a peer that reads nothing: a torn line would confuse it */
        rc = err_set(e, E_IO, "the channel is full");
    mem_free(text);
    return rc;
}
