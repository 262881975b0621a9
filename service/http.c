#include "service/http.h"

#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/lane.h"
#include "service/log.h"
#include "service/reply.h"
#include "service/request.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum {
    POOL_BYTES = 65536,         /* of a connection: headers and read buffer */
    TICK_MS = 250,              /* of the watchdog */
    CUT_MS = 2000,              /* for cut connections to notice, at the end */
    IGNORED_BODY_MAX = 65536,   /* where a route takes no body */
    URLENCODED_MAX = 1 << 20,
    FORM_OVERHEAD = 4 << 20,    /* fields and delimiters beside the file */
    DISCARD_MAX = 64 << 20,     /* read and thrown away so that the client sees our error */
    STREAM_MAX = 1 << 20,       /* events waiting for one slow reader */
    STREAMS_MAX = 256,
    LANE_QUEUE = 256,
    BACKLOG = 511
};

/* HEAD: the headers are not judged yet. BODY, DISCARD: reading. READY: the body is over; when the
 * library calls next, the reply is there to be sent. */
enum exchange_state { X_HEAD, X_BODY, X_DISCARD, X_READY };

struct exchange {
    struct http *h;
    struct MHD_Connection *mhd;
    struct conn *conn;
    struct request r;
    struct reply out;
    enum exchange_state state;
    struct err target_err; /* the target could not be decoded: told once headers are there */
    bool counted, close;
    enum body_kind kind; /* of the route, or JSON where a form route accepts both */
    struct buf body;     /* JSON */
    int64_t received, limit, started_ns;
    int sent_status;
    int64_t sent_bytes;
    struct lane_task task;
    struct buf pending; /* of a stream */
    size_t pending_at;
    bool streaming, stream_end;
    struct exchange *next_parked;
};

struct http {
    struct http_options o;
    struct MHD_Daemon *daemon;
    struct conns *conns;
    struct lane *lane;
    int port;
    atomic_int active, streams;
    atomic_bool draining, stopping;
    pthread_t watchdog;
    bool watching;
    pthread_mutex_t park_lock;
    struct exchange *parked; /* streams that had nothing to send */
};

void http_options_default(struct http_options *o)
{
    *o = (struct http_options){
        .listener = -1,
        .threads = 4,
        .slow_threads = 4,
        .connections = 1024,
        .per_address = 64,
        .json_max = 1 << 20,
        .file_max = 512 << 20,
        .limits = {.header_ms = 10000,
                   .idle_ms = 30000,
                   .body_window_ms = 30000,
                   .body_window_bytes = 30 * 4096,
                   .body_base_ms = 60000,
                   .body_bytes_per_s = 16384},
        .auth = {.key = "", .hosts = ""},
    };
}

/* ---- one exchange ---- */

static void exchange_free(struct exchange *x)
{
    if (x->counted) atomic_fetch_sub(&x->h->active, 1);
    if (x->streaming) atomic_fetch_sub(&x->h->streams, 1);
    buf_clear(&x->body);
    buf_clear(&x->pending);
    reply_clear(&x->out);
    request_clear(&x->r);
    mem_free(x);
}

static void set_peer(struct exchange *x)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(x->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    char text[INET6_ADDRSTRLEN] = "";
    struct err ignored;
    if (i && i->client_addr->sa_family == AF_INET)
        inet_ntop(AF_INET, &((struct sockaddr_in *)i->client_addr)->sin_addr, text, sizeof text);
    else if (i && i->client_addr->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)i->client_addr)->sin6_addr, text,
                  sizeof text);
    char *s = arena_strdup(&x->r.arena, text, &ignored);
    x->r.peer = s ? s : "";
}

static struct conn *conn_of(struct MHD_Connection *m)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(m, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return i ? i->socket_context : NULL;
}

/* The request line was read: `uri` is the raw target. Without memory the request is dropped. */
static void *on_target(void *cls, const char *uri, struct MHD_Connection *m)
{
    struct http *h = cls;
    struct err e = ERR_INIT;
    struct conn *k = conn_of(m);
    struct exchange *x = k ? mem_zalloc(sizeof *x, &e) : NULL;
    if (!x) return NULL;
    x->h = h;
    x->mhd = m;
    x->conn = k;
    x->started_ns = clock_mono_ns();
    request_init(&x->r);
    reply_init(&x->out, &x->r.arena);
    x->r.service = h->o.service;
    if (request_set_target(&x->r, uri, &e)) x->target_err = e;
    set_peer(x);
    conn_set_user(k, x);
    conn_phase(k, CONN_HEADERS, 0);
    return x;
}

static void fail(struct exchange *x, const struct err *e)
{
    reply_error(&x->out, &x->r, e);
    if (x->out.status >= 500)
        log_err(LOG_ERROR, x->r.id, "request failed", e,
                LOG_FIELDS(LOG_S("method", x->r.method), LOG_S("target", x->r.target)));
}

struct header_copy {
    struct request *r;
    struct err *e;
    bool failed;
};

static enum MHD_Result copy_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                   size_t n, const char *value, size_t m)
{
    struct header_copy *c = cls;
    (void)kind;
    /* A NUL inside would end what the guard sees of it. */
    bool nul = strlen(name) != n || (value && strlen(value) != m);
    if (nul) err_set(c->e, E_ARG, "a header field contains a control character");
    c->failed = nul || request_add_header(c->r, name, value, c->e);
    return c->failed ? MHD_NO : MHD_YES;
}

/* The client's id if it is harmless, else a new one. */
static void set_request_id(struct request *r)
{
    const char *given = request_header(r, "x-request-id");
    struct err ignored;
    size_t n = given ? strlen(given) : 0;
    bool ok = n > 0 && n <= REQUEST_ID_BYTES;
    for (size_t i = 0; ok && i < n; i++)
        ok = (given[i] >= '0' && given[i] <= '9') || (given[i] >= 'a' && given[i] <= 'z') ||
             (given[i] >= 'A' && given[i] <= 'Z') || strchr("-_.", given[i]);
    if (ok)
        memcpy(r->id, given, n + 1);
    else if (service_new_id(r->id, sizeof r->id, "req_", &ignored))
        str_copy(r->id, sizeof r->id, "req_unknown");
}

/* Copies method, version and headers, and passes them through the guard. */
static int take_head(struct exchange *x, const char *method, const char *version, struct err *e)
{
    struct request *r = &x->r;
    struct header_copy c = {r, e, false};
    int status = 400;
    const char *m = arena_strdup(&r->arena, method, e);
    const char *v = m ? arena_strdup(&r->arena, version, e) : NULL;
    if (!v) return -1;
    r->method = m;
    r->version = v;
    MHD_get_connection_values_n(x->mhd, MHD_HEADER_KIND, copy_header, &c);
    set_request_id(r);
    if (c.failed) status = e->code == E_LIMIT ? 431 : 400;
    if (!c.failed && !request_guard(r, &status, e)) return 0;
    x->close = true;
    return reply_fail(&x->out, status, "bad_request");
}

/* For requests that match no row: the shape that the likely client reads. */
static enum route_shape shape_of(const char *path)
{
    return str_starts(path, "/api/") || strstr(path, "/resolve/") ? SHAPE_HUB : SHAPE_OPENAI;
}

static int route(struct exchange *x, struct err *e)
{
    struct request *r = &x->r;
    const struct http_options *o = &x->h->o;
    struct err bad;
    r->shape = shape_of(r->path);
    if (x->target_err.code) {
        *e = x->target_err;
        return -1;
    }
    if (!router_find(o->routes, o->nroutes, r->method, r->path, &r->arena, &r->match, e)) {
        r->shape = r->match.route->shape;
        return auth_check(&o->auth, r, r->match.route->flags & ROUTE_OPEN, &x->out, e);
    }
    if (e->code == E_NOTFOUND) return reply_fail(&x->out, 404, "not_found");
    if (e->code != E_UNSUPPORTED) return -1;
    reply_header(&x->out, &bad, "Allow", "%s", r->match.allow);
    return reply_fail(&x->out, 405, "method_not_allowed");
}

static bool is_json(const char *content_type)
{
    size_t n = content_type ? strcspn(content_type, "; \t") : 0;
    return n >= 4 && !strncasecmp(content_type + n - 4, "json", 4);
}

/* Decides how much body may come and where it goes. */
static int open_body(struct exchange *x, struct err *e)
{
    const struct http_options *o = &x->h->o;
    int64_t declared = request_declared(&x->r);
    const char *type = request_header(&x->r, "content-type");
    bool json = is_json(type);
    x->kind = x->r.match.route->body;
    if (x->kind == BODY_URLENCODED && json) x->kind = BODY_JSON;
    switch (x->kind) {
    case BODY_NONE: x->limit = IGNORED_BODY_MAX; break;
    case BODY_JSON: x->limit = o->json_max; break;
    case BODY_URLENCODED: x->limit = URLENCODED_MAX; break;
    case BODY_FORM: x->limit = o->file_max + FORM_OVERHEAD; break;
    }
    if (declared > x->limit)
        return err_set(e, E_LIMIT, "the body has %lld bytes; at most %lld are allowed here",
                       (long long)declared, (long long)x->limit);
    const char *expect = request_header(&x->r, "expect");
    if (expect && strcasecmp(expect, "100-continue")) {
        err_set(e, E_ARG, "the expectation '%.64s' cannot be met", expect);
        return reply_fail(&x->out, 417, "expectation_failed");
    }
    if (x->kind == BODY_NONE) return 0;
    if (x->kind == BODY_JSON) {
        buf_init(&x->body, (size_t)x->limit);
        if (json || declared == 0) return 0;
        err_set(e, E_ARG, "the body must be JSON: set Content-Type: application/json");
        return reply_fail(&x->out, 415, "unsupported_media_type");
    }
    if (form_init(&x->r.form, type, o->service->blobs, o->file_max, &x->r.arena, e))
        return reply_fail(&x->out, 415, "unsupported_media_type");
    return 0;
}

/* All headers are there. What is refused now is answered at once if the client waits for
 * "100 Continue" or would send more than is worth reading; otherwise its body is read first,
 * because closing a socket with unread bytes may cost the client our reply. */
static void begin(struct exchange *x, const char *method, const char *version)
{
    struct err e = ERR_INIT;
    atomic_fetch_add(&x->h->active, 1);
    x->counted = true;
    x->state = X_BODY;
    int rc = take_head(x, method, version, &e);
    if (!rc) rc = route(x, &e);
    if (!rc) rc = open_body(x, &e);
    if (rc) x->limit = DISCARD_MAX;
    conn_phase(x->conn, CONN_BODY, x->limit);
    if (!rc) return;
    fail(x, &e);
    bool now = x->close || request_header(&x->r, "expect") ||
               request_declared(&x->r) > DISCARD_MAX;
    x->close = x->close || (now && request_declared(&x->r) != 0);
    x->state = now ? X_READY : X_DISCARD;
}

static int take_body(struct exchange *x, const char *p, size_t n, struct err *e)
{
    if (x->received > x->limit)
        return err_set(e, E_LIMIT, "the body is longer than the %lld bytes allowed here",
                       (long long)x->limit);
    switch (x->kind) {
    case BODY_NONE: return 0;
    case BODY_JSON:
        buf_put(&x->body, p, n);
        return buf_ok(&x->body, e);
    case BODY_FORM:
    case BODY_URLENCODED: return form_put(&x->r.form, p, n, e);
    }
    return 0;
}

/* False: enough of a refused body was read, the connection is cut. */
static bool on_bytes(struct exchange *x, const char *p, size_t n)
{
    struct err e = ERR_INIT;
    x->received += (int64_t)n;
    conn_received(x->conn, (int64_t)n);
    if (x->state == X_BODY && take_body(x, p, n, &e)) {
        fail(x, &e);
        form_clear(&x->r.form);
        buf_clear(&x->body);
        x->state = X_DISCARD;
        x->limit = x->received + DISCARD_MAX;
    }
    return x->state == X_BODY || x->received <= x->limit;
}

static int parse_json(struct exchange *x, struct err *e)
{
    if (x->body.len == 0) {
        x->r.json = json_object();
        return x->r.json ? 0 : err_set(e, E_NOMEM, "out of memory");
    }
    x->r.json = jx_parse(buf_str(&x->body), x->body.len, e);
    buf_clear(&x->body);
    if (json_is_object(x->r.json)) return 0;
    if (x->r.json)
        err_set(e, E_FORMAT, "the body must be a JSON object");
    else if (e->code != E_NOMEM)
        err_wrap(e, "the body is not valid JSON");
    return e->code == E_NOMEM ? -1 : reply_fail(&x->out, 400, "invalid_json");
}

static int close_body(struct exchange *x, struct err *e)
{
    switch (x->kind) {
    case BODY_JSON: return parse_json(x, e);
    case BODY_FORM:
    case BODY_URLENCODED: return form_finish(&x->r.form, e);
    case BODY_NONE: break;
    }
    return 0;
}

static void call_handler(struct exchange *x)
{
    struct err e = ERR_INIT;
    if (x->r.match.route->handle(&x->r, &x->out, &e)) fail(x, &e);
}

static void call_in_lane(void *ctx)
{
    struct exchange *x = ctx;
    struct MHD_Connection *m = x->mhd;
    call_handler(x);
    MHD_resume_connection(m);
}

/* The body is complete: runs the handler, here or on the lane. True: the reply is ready. False: the
 * exchange is a lane thread's until the library calls again, and must not be looked at. */
static bool dispatch(struct exchange *x)
{
    struct err e = ERR_INIT;
    conn_phase(x->conn, CONN_REPLY, 0);
    bool refused = x->state == X_DISCARD;
    x->state = X_READY;
    if (refused) return true;
    if (close_body(x, &e)) {
        fail(x, &e);
        return true;
    }
    if (!(x->r.match.route->flags & ROUTE_SLOW)) {
        call_handler(x);
        return true;
    }
    x->task = (struct lane_task){call_in_lane, x, NULL};
    MHD_suspend_connection(x->mhd);
    if (lane_put(x->h->lane, &x->task, &e)) {
        reply_header(&x->out, &e, "retry-after-ms", "1000");
        reply_fail(&x->out, 503, "server_busy");
        fail(x, &e);
        MHD_resume_connection(x->mhd);
    }
    return false;
}

/* ---- sending ---- */

/* Under park_lock, so that the watchdog never resumes before the suspension is complete. */
static void park(struct exchange *x)
{
    pthread_mutex_lock(&x->h->park_lock);
    x->next_parked = x->h->parked;
    x->h->parked = x;
    MHD_suspend_connection(x->mhd);
    pthread_mutex_unlock(&x->h->park_lock);
}

static void resume_parked(struct http *h)
{
    pthread_mutex_lock(&h->park_lock);
    while (h->parked) {
        struct exchange *x = h->parked;
        h->parked = x->next_parked;
        MHD_resume_connection(x->mhd);
    }
    pthread_mutex_unlock(&h->park_lock);
}

static ssize_t stream_read(void *cls, uint64_t pos, char *to, size_t max)
{
    struct exchange *x = cls;
    struct err e = ERR_INIT;
    (void)pos;
    if (x->pending_at == x->pending.len) {
        buf_clear(&x->pending);
        x->pending_at = 0;
        if (x->stream_end || atomic_load(&x->h->draining)) return MHD_CONTENT_READER_END_OF_STREAM;
        if (x->out.stream.next(x->out.stream.ctx, &x->pending, &x->stream_end, &e) ||
            buf_ok(&x->pending, &e)) {
            log_err(LOG_WARN, x->r.id, "stream failed", &e, NULL);
            return MHD_CONTENT_READER_END_WITH_ERROR;
        }
    }
    size_t n = x->pending.len - x->pending_at;
    if (n == 0) {
        if (x->stream_end) return MHD_CONTENT_READER_END_OF_STREAM;
        park(x);
        return 0;
    }
    if (n > max) n = max;
    memcpy(to, x->pending.data + x->pending_at, n);
    x->pending_at += n;
    x->sent_bytes += (int64_t)n;
    return (ssize_t)n;
}

/* The exchange is freed when the request completes, which is after the last read. */
static struct MHD_Response *stream_response(struct exchange *x)
{
    struct err e = ERR_INIT;
    if (atomic_fetch_add(&x->h->streams, 1) >= STREAMS_MAX) {
        atomic_fetch_sub(&x->h->streams, 1);
        err_set(&e, E_QUOTA, "too many open event streams");
        fail(x, &e);
        return NULL;
    }
    buf_init(&x->pending, STREAM_MAX);
    struct MHD_Response *m =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, stream_read, x, NULL);
    x->streaming = m != NULL;
    if (!m) atomic_fetch_sub(&x->h->streams, 1);
    return m;
}

static struct MHD_Response *make_response(struct exchange *x)
{
    struct reply *o = &x->out;
    struct MHD_Response *m = NULL;
    if (o->kind == REPLY_STREAM) {
        m = stream_response(x);
        if (m || o->kind == REPLY_STREAM) return m;
    }
    if (o->kind == REPLY_FILE && o->size > 0) {
        x->sent_bytes = o->size;
        m = MHD_create_response_from_fd_at_offset64((uint64_t)o->size, o->fd,
                                                    (uint64_t)o->offset);
        if (m) o->fd = -1;
        return m;
    }
    if (o->kind == REPLY_FILE || o->n == 0)
        return MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT);
    x->sent_bytes = (int64_t)o->n;
    m = MHD_create_response_from_buffer_with_free_callback(o->n, o->bytes, mem_free);
    if (m) o->bytes = NULL;
    return m;
}

static enum MHD_Result send_reply(struct exchange *x)
{
    struct reply *o = &x->out;
    struct MHD_Response *m = make_response(x);
    if (!m) return MHD_NO;
    bool ok = true;
    for (int i = 0; i < o->nheader; i++)
        ok = ok && MHD_add_response_header(m, o->header[i].name, o->header[i].value);
    ok = ok && MHD_add_response_header(m, "x-request-id", x->r.id) &&
         MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
    if (x->close || atomic_load(&x->h->draining))
        ok = ok && MHD_add_response_header(m, "Connection", "close");
    x->sent_status = o->status;
    conn_phase(x->conn, CONN_REPLY, 0);
    enum MHD_Result rc = ok ? MHD_queue_response(x->mhd, (unsigned)o->status, m) : MHD_NO;
    MHD_destroy_response(m);
    return rc;
}

/* ---- callbacks of the library ---- */

static enum MHD_Result on_request(void *cls, struct MHD_Connection *m, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *n, void **req_cls)
{
    struct exchange *x = *req_cls;
    (void)cls, (void)m, (void)url;
    if (!x) return MHD_NO;
    if (x->state == X_HEAD) {
        begin(x, method, version);
        return x->state == X_READY ? send_reply(x) : MHD_YES;
    }
    if (*n) {
        bool more = on_bytes(x, data, *n);
        *n = 0;
        return more ? MHD_YES : MHD_NO;
    }
    if (x->state != X_READY && !dispatch(x)) return MHD_YES;
    return send_reply(x);
}

static void on_completed(void *cls, struct MHD_Connection *m, void **req_cls,
                         enum MHD_RequestTerminationCode why)
{
    struct exchange *x = *req_cls;
    (void)cls, (void)m;
    if (!x) return;
    log_event(LOG_INFO, x->r.id, "request",
              LOG_FIELDS(LOG_S("method", x->r.method), LOG_S("target", x->r.target),
                         LOG_N("status", x->sent_status), LOG_N("bytes", x->sent_bytes),
                         LOG_N("body_bytes", x->received),
                         LOG_N("us", (clock_mono_ns() - x->started_ns) / 1000),
                         LOG_S("peer", x->r.peer), LOG_N("end", (int64_t)why)));
    conn_set_user(x->conn, NULL);
    conn_phase(x->conn, CONN_IDLE, 0);
    exchange_free(x);
    *req_cls = NULL;
}

static void on_connection(void *cls, struct MHD_Connection *m, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http *h = cls;
    struct err e = ERR_INIT;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *i =
            MHD_get_connection_info(m, MHD_CONNECTION_INFO_CONNECTION_FD);
        *context = i ? conn_open(h->conns, i->connect_fd, &e) : NULL;
        return;
    }
    struct conn *k = *context;
    if (!k) return;
    /* A request that never got past its headers is not reported as completed. */
    struct exchange *x = conn_user(k);
    if (x) exchange_free(x);
    conn_close(k);
    *context = NULL;
}

/* Percent-escapes are decoded by the router, one segment at a time. */
static size_t keep_escapes(void *cls, struct MHD_Connection *m, char *s)
{
    (void)cls, (void)m;
    return strlen(s);
}

static void on_library_log(void *cls, const char *fmt, va_list ap)
{
    char line[512];
    const char *text = line;
    (void)cls;
    vsnprintf(line, sizeof line, fmt, ap);
    log_event(LOG_DEBUG, NULL, "http library", LOG_FIELDS(LOG_S("text", text)));
}

static void *watch(void *cls)
{
    struct http *h = cls;
    while (!atomic_load(&h->stopping)) {
        int n = conns_sweep(h->conns);
        if (n) log_event(LOG_INFO, NULL, "slow connections cut", LOG_FIELDS(LOG_N("count", n)));
        resume_parked(h);
        clock_sleep_ms(TICK_MS);
    }
    return NULL;
}

/* ---- start and stop ---- */

int http_listen(const char *address, int port, struct err *e)
{
    char text[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    snprintf(text, sizeof text, "%d", port);
    int rc = getaddrinfo(address, text, &hints, &list);
    if (rc) return err_set(e, E_ARG, "cannot listen on '%s': %s", address, gai_strerror(rc));
    int one = 1, type = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
    int fd = fault_hit(FAULT_SOCK) ? -1 : socket(list->ai_family, type, 0);
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, BACKLOG)) {
        err_sys(e, "cannot listen on %s port %d", address, port);
        fs_close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

static int port_of(int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t n = sizeof a;
    getsockname(fd, (struct sockaddr *)&a, &n);
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static int start_daemon(struct http *h, struct err *e)
{
    const struct http_options *o = &h->o;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC |
                     MHD_USE_ERROR_LOG;
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h,
        MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, o->listener,
        MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)o->per_address,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)((o->limits.idle_ms + 999) / 1000),
        MHD_OPTION_THREAD_POOL_SIZE, o->threads > 1 ? (unsigned)o->threads : 0u,
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
        MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_END);
    return h->daemon ? 0 : err_set(e, E_IO, "the HTTP library did not start");
}

struct http *http_start(const struct http_options *o, struct err *e)
{
    struct http *h = mem_zalloc(sizeof *h, e);
    if (!h) {
        fs_close(o->listener);
        return NULL;
    }
    h->o = *o;
    h->port = port_of(o->listener);
    pthread_mutex_init(&h->park_lock, NULL);
    h->conns = conns_new(&o->limits, e);
    h->lane = h->conns ? lane_new(o->slow_threads, LANE_QUEUE, e) : NULL;
    if (!h->lane) goto fail;
    int rc = fault_hit(FAULT_THREAD) ? EAGAIN : pthread_create(&h->watchdog, NULL, watch, h);
    if (rc) {
        errno = rc;
        err_sys(e, "cannot start a thread");
        goto fail;
    }
    h->watching = true;
    if (!start_daemon(h, e)) return h;
fail:
    fs_close(o->listener);
    atomic_store(&h->stopping, true);
    if (h->watching) pthread_join(h->watchdog, NULL);
    lane_free(h->lane);
    conns_free(h->conns);
    pthread_mutex_destroy(&h->park_lock);
    mem_free(h);
    return NULL;
}

int http_port(const struct http *h)
{
    return h->port;
}

int http_stop(struct http *h, int64_t drain_ms, struct err *e)
{
    if (!h) return 0;
    int fd = MHD_quiesce_daemon(h->daemon);
    fs_close(fd);
    atomic_store(&h->draining, true);
    int64_t until = clock_boot_ms() + drain_ms;
    while (atomic_load(&h->active) > 0 && clock_boot_ms() < until) clock_sleep_ms(20);
    /* Who is still sending a body or reading a reply is cut off; a handler cannot be. */
    conns_cut(h->conns);
    until = clock_boot_ms() + CUT_MS;
    while (atomic_load(&h->active) > 0 && clock_boot_ms() < until) clock_sleep_ms(20);
    if (atomic_load(&h->active) > 0)
        return err_set(e, E_TIMEOUT, "%d requests were still running",
                       atomic_load(&h->active));
    atomic_store(&h->stopping, true);
    pthread_join(h->watchdog, NULL);
    resume_parked(h);
    MHD_stop_daemon(h->daemon);
    lane_free(h->lane);
    conns_free(h->conns);
    pthread_mutex_destroy(&h->park_lock);
    mem_free(h);
    return 0;
}
