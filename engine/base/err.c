#include "engine/base/err.h"

#include "engine/base/str.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void set_where(struct err *e, const char *file, int line)
{
    snprintf(e->where, sizeof e->where, "%.28s:%d", file, line);
}

/* Messages quote what files and users sent, and cuts may split a character: what comes out is one
 * line of UTF-8 all the same, fit for logs and JSON. */
static void tidy(char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i], d = (unsigned char)s[i + 1];
        if (c < 0x20 || c == 0x7f) s[i] = ' ';
        if (c == 0xc2 && d >= 0x80 && d < 0xa0) s[i] = s[i + 1] = ' '; /* U+0080 .. U+009F */
    }
    for (size_t bad = 0; (bad += str_utf8_bad(s + bad, n - bad)) < n;) s[bad] = '?';
}

int err_set_at(struct err *e, enum errc code, int sys, const char *file, int line,
               const char *fmt, ...)
{
    va_list ap;
    e->code = code;
    e->sys = sys;
    e->param[0] = 0;
    set_where(e, file, line);
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    tidy(e->msg);
    return -1;
}

int err_sys_at(struct err *e, const char *file, int line, const char *fmt, ...)
{
    int sys = errno;
    va_list ap;
    e->sys = sys;
    e->code = sys == ENOSPC || sys == EDQUOT ? E_NOSPACE
              : sys == ENOMEM                ? E_NOMEM
              : sys == ENOENT                ? E_NOTFOUND
                                             : E_IO;
    e->param[0] = 0;
    set_where(e, file, line);
    va_start(ap, fmt);
    int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->msg) {
        char text[96];
        const char *s = strerror_r(sys, text, sizeof text);
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s", s);
    }
    tidy(e->msg);
    return -1;
}

int err_wrap(struct err *e, const char *fmt, ...)
{
    char head[sizeof e->msg], tail[sizeof e->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    memcpy(tail, e->msg, sizeof tail);
    /* The context is cut before the cause: the deepest message is the useful one. */
    int room = (int)(sizeof e->msg - 3) - (int)strlen(tail);
    if (room < 0) room = 0;
    snprintf(e->msg, sizeof e->msg, "%.*s: %s", room, head, tail);
    tidy(e->msg);
    return -1;
}

int err_param(struct err *e, const char *fmt, ...)
{
    if (!e->param[0]) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e->param, sizeof e->param, fmt, ap);
        va_end(ap);
        tidy(e->param);
    }
    return -1;
}

void err_clear(struct err *e)
{
    *e = ERR_INIT;
}

const char *err_name(enum errc code)
{
    static const char *const names[E_COUNT] = {
        [E_OK] = "ok",
        [E_ARG] = "invalid_argument",
        [E_RANGE] = "out_of_range",
        [E_FORMAT] = "bad_format",
        [E_NOTFOUND] = "not_found",
        [E_CONFLICT] = "conflict",
        [E_LIMIT] = "limit_exceeded",
        [E_QUOTA] = "quota_exceeded",
        [E_AUTH] = "unauthorized",
        [E_NOMEM] = "out_of_memory",
        [E_DEVMEM] = "out_of_device_memory",
        [E_IO] = "io_error",
        [E_NOSPACE] = "disk_full",
        [E_CORRUPT] = "corrupt_data",
        [E_UNSUPPORTED] = "unsupported",
        [E_CANCELLED] = "cancelled",
        [E_TIMEOUT] = "timeout",
        [E_DEVICE] = "device_error",
        [E_NUMERIC] = "numeric_error",
        [E_BUG] = "internal_error",
    };
    return code >= 0 && code < E_COUNT ? names[code] : "internal_error";
}
