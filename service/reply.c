#include "service/reply.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void reply_init(struct reply *o, struct arena *a)
{
    *o = (struct reply){.arena = a, .fd = -1};
}

static void drop_body(struct reply *o)
{
    mem_free(o->bytes);
    fs_close(o->fd);
    if (o->stream.close) o->stream.close(o->stream.ctx);
    o->bytes = NULL;
    o->n = 0;
    o->fd = -1;
    o->stream = (struct reply_stream){0};
    o->kind = REPLY_BYTES;
}

void reply_clear(struct reply *o)
{
    drop_body(o);
    json_decref(o->fail_details);
    o->fail_details = NULL;
}

int reply_header(struct reply *o, struct err *e, const char *name, const char *fmt, ...)
{
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= (int)sizeof text || o->nheader == REPLY_HEADERS)
        return err_set(e, E_BUG, "the reply header '%s' does not fit", name);
    /* Header values are made of file names and messages: nothing in them may end a line. */
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) *p = ' ';
    const char *value = arena_strdup(o->arena, text, e);
    if (!value) return -1;
    o->header[o->nheader++] = (struct pair){name, value};
    return 0;
}

int reply_json(struct reply *o, json_t *v, struct err *e)
{
    if (!v) return -1;
    char *s = jx_dump(v, e);
    json_decref(v);
    if (!s) return -1;
    drop_body(o);
    o->bytes = s;
    o->n = strlen(s);
    if (!o->status) o->status = 200;
    return reply_header(o, e, "Content-Type", "application/json");
}

int reply_bytes(struct reply *o, const char *type, const void *p, size_t n, struct err *e)
{
    char *copy = n ? mem_dup(p, n, e) : NULL;
    if (n && !copy) return -1;
    drop_body(o);
    o->bytes = copy;
    o->n = n;
    if (!o->status) o->status = 200;
    return reply_header(o, e, "Content-Type", "%s", type);
}

int reply_empty(struct reply *o, int status)
{
    drop_body(o);
    o->status = status;
    return 0;
}

int reply_events(struct reply *o, struct reply_stream s, struct err *e)
{
    drop_body(o);
    o->kind = REPLY_STREAM;
    o->stream = s;
    o->status = 200;
    if (reply_header(o, e, "Content-Type", "text/event-stream; charset=utf-8")) return -1;
    if (reply_header(o, e, "Cache-Control", "no-store")) return -1;
    return reply_header(o, e, "X-Accel-Buffering", "no");
}

static bool etag_listed(const char *list, const char *etag)
{
    size_t n = strlen(etag);
    if (!list) return false;
    if (str_eq(list, "*")) return true;
    for (const char *p = list; (p = strstr(p, etag)); p += n)
        if (p > list && p[-1] == '"' && p[n] == '"') return true;
    return false;
}

/* "bytes=a-b" on a file of `size` bytes: 1 with the span, 0 to send it whole (no range, or one
 * that is not understood, as RFC 9110 wants), -1 if it cannot be satisfied. */
static int parse_range(const char *s, int64_t size, int64_t *from, int64_t *to)
{
    char *end;
    if (!s || strncmp(s, "bytes=", 6) || strchr(s, ',') || strpbrk(s, " \t+")) return 0;
    s += 6;
    if (*s == '-') {
        if (!s[1] || strspn(s + 1, "0123456789") != strlen(s + 1)) return 0;
        int64_t n = strtoll(s + 1, NULL, 10);
        if (n == 0 || size == 0) return -1;
        *from = n < size ? size - n : 0;
        *to = size;
        return 1;
    }
    if (*s < '0' || *s > '9') return 0;
    int64_t first = strtoll(s, &end, 10), last = INT64_MAX;
    if (*end != '-' || strspn(end + 1, "0123456789") != strlen(end + 1)) return 0;
    if (end[1]) last = strtoll(end + 1, NULL, 10);
    if (last < first) return 0;
    if (first >= size) return -1;
    *from = first;
    *to = last < size ? last + 1 : size;
    return 1;
}

int reply_file(struct reply *o, const struct request *r, const struct reply_file *f,
               struct err *e)
{
    int64_t from = 0, to = f->size;
    int part = 0;
    drop_body(o);
    o->kind = REPLY_FILE;
    o->fd = f->fd;
    o->status = 200;
    if (reply_header(o, e, "ETag", "\"%s\"", f->etag) ||
        reply_header(o, e, "Accept-Ranges", "bytes"))
        return -1;
    if (etag_listed(request_header(r, "if-none-match"), f->etag)) return reply_empty(o, 304);
    const char *same = request_header(r, "if-range");
    if (str_eq(r->method, "GET") && (!same || etag_listed(same, f->etag)))
        part = parse_range(request_header(r, "range"), f->size, &from, &to);
    if (part < 0) {
        reply_empty(o, 416);
        return reply_header(o, e, "Content-Range", "bytes */%lld", (long long)f->size);
    }
    if (part > 0) {
        o->status = 206;
        if (reply_header(o, e, "Content-Range", "bytes %lld-%lld/%lld", (long long)from,
                         (long long)to - 1, (long long)f->size))
            return -1;
    }
    o->offset = from;
    o->size = to - from;
    return reply_header(o, e, "Content-Type", "%s", f->type);
}

int reply_fail(struct reply *o, int status, const char *code)
{
    o->fail_status = status;
    o->fail_code = code;
    return -1;
}

/* `text` replaces a message that speaks of the server's inside (paths, system calls): the log has
 * the original under the request id. */
static const struct {
    int status;
    const char *code, *text;
} by_errc[E_COUNT] = {
    [E_ARG] = {400, "invalid_value", NULL},
    [E_RANGE] = {400, "out_of_range", NULL},
    [E_FORMAT] = {422, "invalid_format", NULL},
    [E_NOTFOUND] = {404, "not_found", NULL},
    [E_CONFLICT] = {409, "conflict", NULL},
    [E_LIMIT] = {413, "limit_exceeded", NULL},
    [E_QUOTA] = {429, "rate_limit_exceeded", NULL},
    [E_AUTH] = {401, "invalid_api_key", NULL},
    [E_NOMEM] = {503, "out_of_memory",
               "The server is short of memory. Try again later."},
    [E_DEVMEM] = {503, "out_of_device_memory", NULL},
    [E_IO] = {500, "io_error",
               "The server failed to read or write its own data. Its log has the details."},
    [E_NOSPACE] = {507, "disk_full",
               "The server's disk is full."},
    [E_CORRUPT] = {500, "corrupt",
               "Stored data are damaged. The server's log has the details."},
    [E_UNSUPPORTED] = {422, "unsupported", NULL},
    [E_CANCELLED] = {409, "cancelled", NULL},
    [E_TIMEOUT] = {504, "timeout", NULL},
    [E_DEVICE] = {500, "device_error", NULL},
    [E_NUMERIC] = {422, "numeric_failure", NULL},
    [E_BUG] = {500, "internal_error",
               "This is a fault of the server. Its log has the details."},
};

static const char *type_of(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 408: return "timeout_error";
    case 409: return "conflict_error";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

/* JSON takes only UTF-8; a message may quote a user's bytes, or be cut inside a character. */
static void make_utf8(char *s)
{
    size_t n = strlen(s);
    for (size_t bad; (bad = str_utf8_bad(s, n)) < n;) s[bad] = '?';
}

static json_t *openai_error(const struct reply *o, const struct err *e, int status,
                            const char *code)
{
    struct err bad;
    json_t *v = jx_pack(&bad, "{s:{s:s, s:s, s:s?, s:s}}", "error", "message", e->msg, "type",
                        type_of(status), "param", e->param[0] ? e->param : NULL, "code", code);
    if (v && o->fail_details)
        json_object_set(json_object_get(v, "error"), "details", o->fail_details);
    return v;
}

static bool has_header(const struct reply *o, const char *name)
{
    for (int i = 0; i < o->nheader; i++)
        if (str_eq(o->header[i].name, name)) return true;
    return false;
}

/* Headers that a handler set before it failed stay only where they serve errors too. */
static void keep_error_headers(struct reply *o)
{
    static const char *const keep[] = {"X-Repo-Commit", "retry-after-ms", "Allow",
                                       "x-should-retry", "Connection"};
    int n = 0;
    for (int i = 0; i < o->nheader; i++)
        for (size_t k = 0; k < sizeof keep / sizeof *keep; k++)
            if (str_eq(o->header[i].name, keep[k])) o->header[n++] = o->header[i];
    o->nheader = n;
}

void reply_error(struct reply *o, const struct request *r, const struct err *cause)
{
    struct err bad = ERR_INIT, shown = *cause, *e = &shown;
    enum errc c = e->code > E_OK && e->code < E_COUNT ? e->code : E_BUG;
    if (by_errc[c].text) str_copy(e->msg, sizeof e->msg, by_errc[c].text);
    make_utf8(e->msg);
    make_utf8(e->param);
    int status = o->fail_status ? o->fail_status : by_errc[c].status;
    const char *code = o->fail_code ? o->fail_code : by_errc[c].code;
    drop_body(o);
    keep_error_headers(o);
    o->status = 0;
    json_t *v;
    if (r->shape == SHAPE_HUB) {
        v = jx_pack(&bad, "{s:s}", "error", e->msg);
        /* Only the codes that hub clients know, which are in capitals. */
        if (code[0] >= 'A' && code[0] <= 'Z') reply_header(o, &bad, "X-Error-Code", "%s", code);
        reply_header(o, &bad, "X-Error-Message", "%s", e->msg);
    } else {
        v = openai_error(o, e, status, code);
    }
    if (reply_json(o, v, &bad)) reply_empty(o, status);
    o->status = status;
    if (status == 401) reply_header(o, &bad, "WWW-Authenticate", "Bearer");
    /* SDKs resend 409 and every 5xx by themselves: say which of them will not change. */
    bool permanent = status == 409 || status == 507;
    if (permanent && !has_header(o, "retry-after-ms") && !has_header(o, "x-should-retry"))
        reply_header(o, &bad, "x-should-retry", "false");
}
