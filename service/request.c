#include "service/request.h"

#include "engine/base/str.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void request_init(struct request *r)
{
    *r = (struct request){.method = "", .version = "", .target = "", .path = "", .peer = ""};
    arena_init(&r->arena, REQUEST_ARENA_BYTES);
    str_copy(r->id, sizeof r->id, "unknown"); /* until the headers are there */
}

void request_clear(struct request *r)
{
    json_decref(r->json);
    r->json = NULL;
    form_clear(&r->form);
    arena_clear(&r->arena);
}

/* Only what the route needs is decoded here; a query that cannot be decoded is refused whole. */
static int decode_query(struct request *r, char *q, struct err *e)
{
    for (char *next; q; q = next) {
        next = strchr(q, '&');
        if (next) *next++ = 0;
        if (!*q) continue;
        if (r->nquery == REQUEST_QUERY)
            return err_set(e, E_LIMIT, "more than %d query parameters", REQUEST_QUERY);
        char *value = strchr(q, '=');
        if (value)
            *value++ = 0;
        else
            value = q + strlen(q);
        if (router_decode(q, true, e) < 0 || router_decode(value, true, e) < 0) return -1;
        r->query[r->nquery++] = (struct pair){q, value};
    }
    return 0;
}

int request_set_target(struct request *r, const char *target, struct err *e)
{
    char *path = arena_strdup(&r->arena, target, e);
    char *copy = path ? arena_strdup(&r->arena, target, e) : NULL;
    if (!copy) return -1;
    r->target = copy;
    r->path = path;
    char *q = strchr(path, '?');
    if (!q) return 0;
    *q++ = 0;
    return decode_query(r, q, e);
}

int request_add_header(struct request *r, const char *name, const char *value, struct err *e)
{
    if (r->nheader == REQUEST_HEADERS)
        return err_set(e, E_LIMIT, "more than %d header fields", REQUEST_HEADERS);
    char *n = arena_strdup(&r->arena, name, e);
    char *v = n ? arena_strdup(&r->arena, value ? value : "", e) : NULL;
    if (!v) return -1;
    for (char *p = n; *p; p++)
        if (*p >= 'A' && *p <= 'Z') *p = (char)(*p + 'a' - 'A');
    r->header[r->nheader++] = (struct pair){n, v};
    return 0;
}

const char *request_header(const struct request *r, const char *name)
{
    for (int i = 0; i < r->nheader; i++)
        if (!strcasecmp(r->header[i].name, name)) return r->header[i].value;
    return NULL;
}

int request_header_count(const struct request *r, const char *name)
{
    int n = 0;
    for (int i = 0; i < r->nheader; i++) n += !strcasecmp(r->header[i].name, name);
    return n;
}

const char *request_query(const struct request *r, const char *name)
{
    for (int i = 0; i < r->nquery; i++)
        if (str_eq(r->query[i].name, name)) return r->query[i].value;
    return NULL;
}

const char *request_param(const struct request *r, int i)
{
    return r->match.param[i];
}

int request_query_int(const struct request *r, const char *name, int64_t lo, int64_t hi,
                      int64_t *out, struct err *e)
{
    const char *s = request_query(r, name);
    int64_t v;
    if (!s) return 0;
    if (!str_int64(s, &v)) {
        err_set(e, E_ARG, "'%s' must be an integer", name);
        return err_param(e, "%s", name);
    }
    if (v < lo || v > hi) {
        err_set(e, E_RANGE, "'%s' is %lld; it must be between %lld and %lld", name, (long long)v,
                (long long)lo, (long long)hi);
        return err_param(e, "%s", name);
    }
    *out = v;
    return 0;
}

int request_query_only(const struct request *r, const char *const *known, struct err *e)
{
    for (int i = 0; i < r->nquery; i++) {
        const char *name = r->query[i].name;
        bool ok = false;
        for (int k = 0; known[k] && !ok; k++)
            ok = str_eq(name, known[k]) || (str_ends(known[k], "[") && str_starts(name, known[k]));
        if (ok) continue;
        err_set(e, E_ARG, "unknown query parameter '%.64s'", name);
        return err_param(e, "%.64s", name);
    }
    return 0;
}

bool request_accepts(const struct request *r, const char *media_type)
{
    const char *a = request_header(r, "accept");
    return a && strcasestr(a, media_type);
}

static bool token(const char *s)
{
    if (!*s) return false;
    for (; *s; s++) {
        bool alnum = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') ||
                     (*s >= '0' && *s <= '9');
        if (!alnum && !strchr("!#$%&'*+-.^_`|~", *s)) return false;
    }
    return true;
}

static bool digits(const char *s)
{
    return *s && strspn(s, "0123456789") == strlen(s);
}

static int guard_headers(const struct request *r, int *status, struct err *e)
{
    size_t total = 0;
    for (int i = 0; i < r->nheader; i++) {
        const char *v = r->header[i].value;
        if (!token(r->header[i].name))
            return err_set(e, E_ARG, "a header field has a malformed name");
        for (const char *p = v; *p; p++)
            if (((unsigned char)*p < ' ' && *p != '\t') || *p == 127)
                return err_set(e, E_ARG, "the header '%.64s' contains a control character",
                               r->header[i].name);
        total += strlen(r->header[i].name) + strlen(v) + 4;
    }
    if (total <= REQUEST_HEADER_BYTES) return 0;
    *status = 431;
    return err_set(e, E_LIMIT, "the header fields are longer than %d bytes",
                   REQUEST_HEADER_BYTES);
}

static int guard_framing(const struct request *r, bool http11, struct err *e)
{
    int hosts = request_header_count(r, "host");
    int lengths = request_header_count(r, "content-length");
    int codings = request_header_count(r, "transfer-encoding");
    const char *length = request_header(r, "content-length");
    const char *coding = request_header(r, "transfer-encoding");
    if (hosts > 1 || (http11 && hosts == 0))
        return err_set(e, E_ARG, "exactly one Host header is needed");
    if (lengths > 1) return err_set(e, E_ARG, "more than one Content-Length");
    if (codings > 1) return err_set(e, E_ARG, "more than one Transfer-Encoding");
    if (lengths && codings)
        return err_set(e, E_ARG, "both Content-Length and Transfer-Encoding");
    if (length && (!digits(length) || strlen(length) > 18))
        return err_set(e, E_ARG, "Content-Length is not a number");
    if (coding && (strcasecmp(coding, "chunked") || !http11))
        return err_set(e, E_ARG, "the only Transfer-Encoding is chunked, in HTTP/1.1");
    return 0;
}

int request_guard(const struct request *r, int *status, struct err *e)
{
    bool http11 = str_eq(r->version, "HTTP/1.1");
    *status = 400;
    if (!http11 && !str_eq(r->version, "HTTP/1.0"))
        return err_set(e, E_ARG, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    if (!token(r->method) || strlen(r->method) > 32)
        return err_set(e, E_ARG, "the method is malformed");
    if (r->target[0] != '/') return err_set(e, E_ARG, "the request target must begin with '/'");
    for (const char *p = r->target; *p; p++)
        if (*p <= ' ' || *p >= 127 || *p == '#')
            return err_set(e, E_ARG, "the request target has a character that must be escaped");
    if (strlen(r->target) > REQUEST_TARGET_BYTES) {
        *status = 414;
        return err_set(e, E_LIMIT, "the request target is longer than %d bytes",
                       REQUEST_TARGET_BYTES);
    }
    if (guard_headers(r, status, e)) return -1;
    return guard_framing(r, http11, e);
}

int64_t request_declared(const struct request *r)
{
    const char *length = request_header(r, "content-length");
    if (request_header(r, "transfer-encoding")) return -1;
    return length ? strtoll(length, NULL, 10) : 0;
}
