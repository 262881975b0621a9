#include "service/log.h"

#include "engine/base/clock.h"
#include "engine/base/str.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Atomic int threshold = LOG_INFO;
static const char *const names[] = {"debug", "info", "warn", "error", "off"};

void log_set_level(enum log_level level)
{
    atomic_store(&threshold, (int)level);
}

int log_parse_level(const char *name, enum log_level *level, struct err *e)
{
    for (int i = 0; i <= LOG_OFF; i++) {
        if (!str_eq(name, names[i])) continue;
        *level = (enum log_level)i;
        return 0;
    }
    return err_set(e, E_ARG, "log level '%.20s' is not one of debug, info, warn, error, off", name);
}

/* A line under construction. `full` stops every further byte, so that the tail always fits. */
struct line {
    char *at, *end;
    bool full;
};

static void put(struct line *l, const char *s, size_t n)
{
    if (l->full || n > (size_t)(l->end - l->at)) {
        l->full = true;
        return;
    }
    memcpy(l->at, s, n);
    l->at += n;
}

static void put_text(struct line *l, const char *s)
{
    size_t left = strlen(s);
    put(l, "\"", 1);
    while (left && !l->full) {
        char esc[8];
        unsigned char c = (unsigned char)*s;
        uint32_t cp;
        int n = 1;
        if (c == '"' || c == '\\') {
            put(l, (char[]){'\\', (char)c}, 2);
        } else if (c < 0x20 || c == 0x7f) {
            snprintf(esc, sizeof esc, "\\u%04x", c);
            put(l, esc, 6);
        } else if (c < 0x80) {
            put(l, s, 1);
        } else if (str_utf8_bad(s, left < 4 ? left : 4) == 0) {
            put(l, "\\ufffd", 6);
        } else {
            n = str_utf8_next(s, left, &cp);
            /* C1 controls, and the two separators that some viewers take for a new line. */
            if (cp < 0xa0 || cp == 0x2028 || cp == 0x2029) {
                snprintf(esc, sizeof esc, "\\u%04x", (unsigned)cp);
                put(l, esc, 6);
            } else {
                put(l, s, (size_t)n);
            }
        }
        s += n;
        left -= (size_t)n;
    }
    put(l, "\"", 1);
}

static void put_key(struct line *l, const char *key)
{
    put(l, ",", 1);
    put_text(l, key);
    put(l, ":", 1);
}

size_t log_format(char *out, size_t cap, enum log_level level, const char *request_id,
                  const char *msg, const struct log_field *fields)
{
    static const char cut[] = ",\"cut\":true}\n", end[] = "}\n";
    char ts[32], number[24];
    struct line l = {out, out + cap - sizeof cut, false};
    char *keep;
    clock_iso8601(clock_unix_ms(), ts);
    put(&l, "{\"ts\":", 6);
    put_text(&l, ts);
    put_key(&l, "level");
    put_text(&l, names[level]);
    keep = l.at; /* the end of the last whole member */
    put_key(&l, "msg");
    put_text(&l, msg);
    if (!l.full) keep = l.at;
    if (request_id) {
        put_key(&l, "request_id");
        put_text(&l, request_id);
        if (!l.full) keep = l.at;
    }
    for (; fields && fields->key && !l.full; fields++) {
        put_key(&l, fields->key);
        if (fields->text) {
            put_text(&l, fields->text);
        } else {
            snprintf(number, sizeof number, "%lld", (long long)fields->number);
            put(&l, number, strlen(number));
        }
        if (!l.full) keep = l.at;
    }
    const char *tail = l.full ? cut : end;
    memcpy(keep, tail, strlen(tail) + 1);
    return (size_t)(keep - out) + strlen(tail);
}

void log_event(enum log_level level, const char *request_id, const char *msg,
               const struct log_field *fields)
{
    char line[LOG_LINE_MAX];
    if ((int)level < atomic_load_explicit(&threshold, memory_order_relaxed)) return;
    size_t n = log_format(line, sizeof line, level, request_id, msg, fields);
    /* A log that cannot be written must not stop the service. */
    if (write(STDERR_FILENO, line, n) < 0) return;
}

void log_err(enum log_level level, const char *request_id, const char *msg, const struct err *err,
             const struct log_field *fields)
{
    struct log_field all[16];
    size_t n = 0;
    all[n++] = LOG_S("error", err_name(err->code));
    all[n++] = LOG_S("detail", err->msg);
    all[n++] = LOG_S("where", err->where);
    for (; fields && fields->key && n < 15; fields++) all[n++] = *fields;
    all[n] = (struct log_field){NULL, NULL, 0};
    log_event(level, request_id, msg, all);
}
