/* log.h: one JSON line per event on stderr:
 *   {"ts":"2026-11-23T20:46:00.123Z","level":"info","msg":"job claimed","request_id":"...",...}
 *
 * Control characters and invalid UTF-8 are escaped, so no input can forge a line; a line is cut at
 * 4 kB and written by one write(). Never allocates, never fails: a log must work when memory does
 * not. The level is the only global of the service. Secrets are the caller's duty: never log them.
 */
#ifndef GRAFT_LOG_H
#define GRAFT_LOG_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };
enum { LOG_LINE_MAX = 4096 };

struct log_field {
    const char *key; /* NULL ends a list */
    const char *text; /* NULL: the number counts */
    int64_t number;
};
static inline struct log_field LOG_S(const char *key, const char *text)
{
    return (struct log_field){key, text ? text : "", 0};
}
static inline struct log_field LOG_N(const char *key, int64_t number)
{
    return (struct log_field){key, NULL, number};
}
#define LOG_FIELDS(...) ((const struct log_field[]){__VA_ARGS__, {NULL, NULL, 0}})

void log_set_level(enum log_level level);
int log_parse_level(const char *name, enum log_level *level, struct err *e); /* "info" ... "off" */

/* request_id and fields may be NULL. */
void log_event(enum log_level level, const char *request_id, const char *msg,
               const struct log_field *fields);
/* The same with the error's name, message and place. */
void log_err(enum log_level level, const char *request_id, const char *msg, const struct err *err,
             const struct log_field *fields);
/* Formats without writing: a line with '\n' in out, its length returned (at most cap - 1). */
size_t log_format(char *out, size_t cap, enum log_level level, const char *request_id,
                  const char *msg, const struct log_field *fields);

#endif
