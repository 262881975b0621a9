#include "service/events.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/log.h"
#include "service/store.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGE_MAX = 4096, DATA_MAX = 16384, TAIL_BYTES = 256 << 10 };

/* The length of s cut at max bytes, never inside a UTF-8 sequence. */
static size_t cut(const char *s, size_t max)
{
    size_t n = strnlen(s, max + 1);
    if (n <= max) return n;
    n = max;
    while (n && ((unsigned char)s[n] & 0xc0) == 0x80) n--;
    return n;
}

int events_append(struct store *store, int64_t job_seq, const struct events_new *n, struct err *e)
{
    char *message = mem_printf(e, "%.*s", (int)cut(n->message, MESSAGE_MAX), n->message);
    if (!message) return -1;
    int rc = store_run(store, e,
                       "INSERT INTO events (job, n, created_at, level, type, message, data, state) "
                       "VALUES (?1, (SELECT coalesce(max(n), 0) + 1 FROM events WHERE job = ?1), "
                       "?2, ?3, ?4, ?5, ?6, ?7)",
                       "iitttjt", job_seq, n->created_at ? n->created_at : clock_unix_ms(),
                       n->level, n->type, message, n->data, n->state);
    mem_free(message);
    return rc < 0 ? -1 : 0;
}

/* --- reading -------------------------------------------------------------------------------- */

static const char *bare(const char *job_id)
{
    return str_starts(job_id, "ftjob-") ? job_id + 6 : job_id;
}

static int find_job(struct store *store, const char *id, int64_t *seq, bool *final,
                    struct err *e)
{
    struct store_rows *r;
    int rc = store_one(store, &r, e, "SELECT seq, finished_at IS NOT NULL FROM jobs WHERE id = ?",
                       "t", id);
    if (rc < 0) return -1;
    if (rc == 0) return err_set(e, E_NOTFOUND, "there is no job '%.80s'", id);
    *seq = store_int(r, 0);
    *final = store_int(r, 1) != 0;
    store_rows_end(r);
    return 0;
}

/* "ftevent-<job>-<n>" of this job -> n. */
static int number_of(const char *event_id, const char *job_id, int64_t *n, struct err *e)
{
    char prefix[96];
    snprintf(prefix, sizeof prefix, "ftevent-%s-", bare(job_id));
    if (str_starts(event_id, prefix) && str_int64(event_id + strlen(prefix), n) && *n > 0)
        return 0;
    err_set(e, E_NOTFOUND, "job '%.80s' has no event '%.80s'", job_id, event_id);
    return err_param(e, "after");
}

/* Columns: n, created_at, level, type, message, data. */
static json_t *event_json(struct store_rows *r, const char *job_id, struct err *e)
{
    char id[128];
    json_t *data = store_json(r, 5, e);
    if (!data) return NULL;
    snprintf(id, sizeof id, "ftevent-%s-%lld", bare(job_id), (long long)store_int(r, 0));
    return jx_pack(e, "{s:s, s:s, s:I, s:s, s:s, s:s, s:o, s:I}", "id", id, "object",
                   "fine_tuning.job.event", "created_at", (json_int_t)(store_int(r, 1) / 1000),
                   "level", store_text(r, 2), "type", store_text(r, 3), "message",
                   store_text(r, 4), "data", data, "n", (json_int_t)store_int(r, 0));
}

/* At most limit rows of q as an array; *more: there was at least one further row. */
static json_t *collect(struct store_rows *q, const char *job_id, int64_t limit, bool *more,
                       struct err *e)
{
    json_t *list = json_array();
    int rc = list ? 0 : err_set(e, E_NOMEM, "out of memory");
    *more = false;
    while (rc == 0 && (rc = store_next(q, e)) == 1) {
        if ((int64_t)json_array_size(list) == limit) {
            *more = true;
            rc = 0;
            break;
        }
        rc = service_append(list, event_json(q, job_id, e), e);
    }
    store_rows_end(q);
    if (rc == 0) return list;
    json_decref(list);
    return NULL;
}

json_t *events_list(struct service *s, const char *job_id, const struct page *p, struct err *e)
{
    int64_t seq, at = p->ascending ? 0 : INT64_MAX;
    bool final, more;
    if (find_job(s->store, job_id, &seq, &final, e)) return NULL;
    if (p->after && number_of(p->after, job_id, &at, e)) return NULL;
    struct store_rows *q =
        p->ascending
            ? store_query(s->store, e,
                          "SELECT n, created_at, level, type, message, data FROM events "
                          "WHERE job = ? AND n > ? ORDER BY n LIMIT ?",
                          "iii", seq, at, p->limit + 1)
            : store_query(s->store, e,
                          "SELECT n, created_at, level, type, message, data FROM events "
                          "WHERE job = ? AND n < ? ORDER BY n DESC LIMIT ?",
                          "iii", seq, at, p->limit + 1);
    if (!q) return NULL;
    json_t *list = collect(q, job_id, p->limit, &more, e);
    if (!list) return NULL;
    return jx_pack(e, "{s:s, s:o, s:b}", "object", "list", "data", list, "has_more", more);
}

json_t *events_since(struct service *s, const char *job_id, int64_t after_n, int64_t limit,
                     bool *final, struct err *e)
{
    int64_t seq;
    bool ended, more;
    /* The state is read before the events: `final` must not be told before the last event. */
    if (find_job(s->store, job_id, &seq, &ended, e)) return NULL;
    struct store_rows *q = store_query(s->store, e,
                                       "SELECT n, created_at, level, type, message, data "
                                       "FROM events WHERE job = ? AND n > ? ORDER BY n LIMIT ?",
                                       "iii", seq, after_n, limit + 1);
    if (!q) return NULL;
    json_t *list = collect(q, job_id, limit, &more, e);
    if (list) *final = ended && !more;
    return list;
}

/* --- the worker's events.jsonl -------------------------------------------------------------- */

static bool one_of(const char *s, const char *a, const char *b, const char *c)
{
    return str_eq(s, a) || str_eq(s, b) || str_eq(s, c);
}

/* A line of the worker as a row. The worker is another process, its file a foreign one: what does
 * not read as an event is logged and skipped, never passed on. */
static int append_line(struct store *store, int64_t seq, const char *job_id, const char *line,
                       size_t len, struct err *e)
{
    struct err bad = ERR_INIT;
    const char *level = "info", *type = "message", *message = "";
    int rc = 0;
    json_t *v = str_utf8_bad(line, len) == len ? jx_parse(line, len, &bad) : NULL;
    if (!v && bad.code == E_NOMEM) {
        *e = bad;
        return -1;
    }
    bool ok = json_is_object(v) && !jx_str(v, "message", &message, &bad) &&
              !jx_opt_str(v, "level", &level, &bad) && !jx_opt_str(v, "type", &type, &bad) &&
              one_of(level, "info", "warn", "error") && one_of(type, "message", "metrics", NULL);
    if (!ok) {
        log_event(LOG_WARN, NULL, "skipped a malformed event of a worker",
                  LOG_FIELDS(LOG_S("job", job_id)));
    } else {
        json_t *data = json_object_get(v, "data");
        bool fits = data && json_dumpb(data, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY) <= DATA_MAX;
        struct events_new n = {.level = level, .type = type, .message = message,
                               .data = fits && !json_is_null(data) ? data : NULL,
                               .created_at = json_integer_value(json_object_get(v, "created_at"))};
        rc = events_append(store, seq, &n, e);
    }
    json_decref(v);
    return rc;
}

/* Reads from `offset`; *used counts the bytes of whole lines that were taken. */
static int copy_lines(struct store *store, int64_t seq, const char *job_id, const char *text,
                      size_t len, size_t *used, struct err *e)
{
    size_t at = 0;
    *used = 0;
    while (at < len) {
        const char *nl = memchr(text + at, '\n', len - at);
        if (!nl) {
            /* A line longer than a whole read is no event: drop what there is of it. */
            if (at == 0 && len == TAIL_BYTES) *used = len;
            return 0;
        }
        size_t n = (size_t)(nl - text) - at;
        if (n && append_line(store, seq, job_id, text + at, n, e)) return -1;
        at += n + 1;
        *used = at;
    }
    return 0;
}

static int read_at(const char *path, int64_t offset, char *to, size_t cap, size_t *len,
                   struct err *e)
{
    *len = 0;
    int fd = fs_open(path, O_RDONLY | O_NOFOLLOW, 0, e);
    if (fd < 0) return e->code == E_NOTFOUND ? 0 : -1;
    int rc = 0;
    if (lseek(fd, (off_t)offset, SEEK_SET) < 0) rc = err_sys(e, "cannot seek in %s", path);
    while (rc == 0 && *len < cap) {
        int64_t n = fs_read(fd, to + *len, cap - *len, e);
        if (n < 0) rc = -1;
        if (n <= 0) break;
        *len += (size_t)n;
    }
    fs_close(fd);
    return rc;
}

static int tail(struct store *store, const char *path, const char *job_id, int attempt,
                char *text, struct err *e)
{
    struct store_rows *r;
    size_t len, used;
    int rc = store_one(store, &r, e,
                       "SELECT seq, events_offset FROM jobs "
                       "WHERE id = ? AND attempt = ? AND state = 'running'",
                       "ti", job_id, (int64_t)attempt);
    if (rc < 0) return -1;
    if (rc == 0) return err_set(e, E_CONFLICT, "attempt %d of %s is stale", attempt, job_id);
    int64_t seq = store_int(r, 0), offset = store_int(r, 1);
    store_rows_end(r);
    if (read_at(path, offset, text, TAIL_BYTES, &len, e)) return -1;
    if (len == 0) return 0;
    if (copy_lines(store, seq, job_id, text, len, &used, e)) return -1;
    if (used && store_run(store, e, "UPDATE jobs SET events_offset = ? WHERE seq = ?", "ii",
                          offset + (int64_t)used, seq) < 0)
        return -1;
    if (CRASHPOINT("events.tail")) return err_set(e, E_IO, "injected failure");
    return used && len == TAIL_BYTES;
}

int events_tail(struct store *store, const char *job_dir, const char *job_id, int attempt,
                struct err *e)
{
    char path[FS_PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/attempts/%d/events.jsonl", job_dir, attempt);
    if (n >= (int)sizeof path) return err_set(e, E_LIMIT, "path too long: %.80s...", job_dir);
    char *text = mem_alloc(TAIL_BYTES, e);
    if (!text) return -1;
    if (store_begin(store, e)) {
        mem_free(text);
        return -1;
    }
    int rc = tail(store, path, job_id, attempt, text, e);
    mem_free(text);
    if (rc < 0) {
        store_rollback(store);
        return -1;
    }
    return store_commit(store, e) ? -1 : rc;
}
