#include "engine/job/journal.h"

#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int open_log(const char *dir, const char *name, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, name, e)) return -1;
    return fs_open(path, O_WRONLY | O_APPEND | O_CREAT, 0600, e);
}

int journal_open(struct journal *j, const char *job_dir, int attempt,
                 const struct engine_hooks *hooks, struct err *e)
{
    static const struct engine_hooks none;
    char name[32];
    *j = (struct journal){.attempt = attempt, .events = -1, .metrics = -1,
                          .hooks = hooks ? hooks : &none};
    snprintf(name, sizeof name, "attempts/%d", attempt);
    if (fs_join(j->dir, job_dir, name, e) || fs_mkdirs(j->dir, e)) return -1;
    if ((j->events = open_log(j->dir, "events.jsonl", e)) < 0) return -1;
    if ((j->metrics = open_log(j->dir, "metrics.jsonl", e)) < 0) {
        journal_close(j);
        return -1;
    }
    return 0;
}

void journal_close(struct journal *j)
{
    fs_close(j->events);
    fs_close(j->metrics);
    j->events = j->metrics = -1;
}

static int append(int fd, const json_t *line, struct err *e)
{
    char *text = jx_dump(line, e);
    int rc = text ? fs_append_line(fd, text, strlen(text), e) : -1;
    mem_free(text);
    return rc;
}

int journal_event(struct journal *j, const char *level, const char *type, json_t *data,
                  struct err *e, const char *fmt, ...)
{
    char message[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    json_t *line = jx_pack(e, "{s:I, s:s, s:s, s:s, s:o?}", "created_at",
                           (json_int_t)clock_unix_ms(), "level", level, "type", type, "message",
                           message, "data", data);
    if (!line) return -1;
    int rc = append(j->events, line, e);
    if (j->hooks->event)
        j->hooks->event(j->hooks->ctx, level, type, message, json_object_get(line, "data"));
    json_decref(line);
    return rc;
}

int journal_metrics(struct journal *j, json_t *line, struct err *e)
{
    int rc = line ? append(j->metrics, line, e) : -1;
    json_decref(line);
    return rc;
}

void journal_progress(struct journal *j, const struct engine_progress *p)
{
    if (j->hooks->progress) j->hooks->progress(j->hooks->ctx, p);
}

enum engine_want journal_want(struct journal *j)
{
    return j->hooks->want ? j->hooks->want(j->hooks->ctx) : WANT_NONE;
}

int journal_exit(struct journal *j, enum engine_exit code, int64_t step, int64_t tokens,
                 const struct err *why, struct err *e)
{
    char path[FS_PATH_MAX];
    bool bad = why->code != E_OK;
    json_t *o = jx_pack(e, "{s:i, s:i, s:i, s:I, s:I, s:s?, s:s?, s:s?}", "version", 1, "attempt",
                        j->attempt, "code", (int)code, "step", (json_int_t)step, "tokens",
                        (json_int_t)tokens, "error", bad ? err_name(why->code) : NULL, "message",
                        bad ? why->msg : NULL, "param", bad && why->param[0] ? why->param : NULL);
    char *text = o ? jx_dump(o, e) : NULL;
    int rc = -1;
    if (text && !fs_join(path, j->dir, "exit.json", e))
        rc = fs_write_file(path, text, strlen(text), e);
    mem_free(text);
    json_decref(o);
    return rc;
}
