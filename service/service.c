#include "service/service.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/config.h"
#include "service/jobs.h"
#include "service/log.h"
#include "service/models.h"
#include "service/queue.h"
#include "service/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

enum { LOCK_WAIT_MS = 1000 };

/* One server per data folder: two would both believe that they own its jobs. */
static int lock_data(struct service *s, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, s->data_dir, "lock", e)) return -1;
    s->lock_fd = fs_open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600, e);
    if (s->lock_fd < 0) return -1;
    /* A server that was killed while it started a worker leaves a child that holds its descriptors
     * until exec, a moment later. */
    for (int64_t until = clock_boot_ms() + LOCK_WAIT_MS; clock_boot_ms() < until;) {
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0) return 0;
        if (errno != EWOULDBLOCK) return err_sys(e, "cannot lock %s", path);
        clock_sleep_ms(10);
    }
    return err_set(e, E_CONFLICT, "another graft server uses the data folder %s", s->data_dir);
}

static int open_parts(struct service *s, struct err *e)
{
    const struct config *c = s->config;
    char path[FS_PATH_MAX], real[PATH_MAX];
    if (fs_mkdirs(c->data_dir, e)) return err_wrap(e, "data folder");
    if (!realpath(c->data_dir, real)) return err_sys(e, "cannot resolve %s", c->data_dir);
    if (!str_copy(s->data_dir, sizeof s->data_dir, real))
        return err_set(e, E_LIMIT, "path too long: %.80s...", real);
    if (lock_data(s, e)) return -1;
    if (fs_join(path, s->data_dir, "graft.db", e)) return -1;
    if (!(s->store = store_open(path, e)) || !(s->blobs = blob_open(s->data_dir, s->store, e)))
        return -1;
    if (!(s->queue = mem_zalloc(sizeof *s->queue, e)) || queue_init(s->queue, s->store, e))
        return -1;
    s->queue->lease_ms = c->lease_s * 1000;
    s->queue->retry_ms = c->retry_ms;
    s->queue->max_attempts = c->job_attempts;
    if (CRASHPOINT("service.before_sweep")) return err_set(e, E_IO, "injected failure");
    if (blob_sweep(s->blobs, e) || models_sweep(s, e) || jobs_sweep(s, e)) return -1;
    return CRASHPOINT("service.swept") ? err_set(e, E_IO, "injected failure") : 0;
}

struct service *service_open(const struct config *config, const struct engine_calls *engine,
                             struct err *e)
{
    struct service *s = mem_zalloc(sizeof *s, e);
    if (!s) return NULL;
    s->config = config;
    s->engine = engine;
    s->lock_fd = -1;
    umask(077); /* whatever this process writes is for nobody else, the database included */
    s->started_ms = clock_boot_ms();
    if (open_parts(s, e)) {
        service_close(s);
        return NULL;
    }
    return s;
}

int service_start(struct service *s, struct err *e)
{
    s->supervisor = supervisor_start(s, &runner_local, e);
    return s->supervisor ? 0 : -1;
}

void service_close(struct service *s)
{
    if (!s) return;
    supervisor_stop(s->supervisor);
    mem_free(s->queue);
    blob_close(s->blobs);
    store_close(s->store);
    fs_close(s->lock_fd);
    mem_free(s);
}

static json_t *count_jobs(struct service *s, struct err *e)
{
    int rc;
    json_t *counts = jx_pack(e, "{s:i, s:i, s:i, s:i}", "validating", 0, "queued", 0, "running", 0,
                             "paused", 0);
    struct store_rows *r = !counts ? NULL
                                   : store_query(s->store, e,
                                                 "SELECT state, count(*) FROM jobs WHERE state NOT "
                                                 "IN ('succeeded', 'failed', 'cancelled') "
                                                 "GROUP BY state",
                                                 "");
    rc = r ? 0 : -1;
    while (rc == 0 && (rc = store_next(r, e)) == 1) {
        const char *state = store_text(r, 0);
        if (str_eq(state, "retrying")) state = "queued";
        json_int_t n = json_integer_value(json_object_get(counts, state)) + store_int(r, 1);
        rc = jx_set(counts, state, json_integer(n), e);
    }
    store_rows_end(r);
    if (rc == 0) return counts;
    json_decref(counts);
    return NULL;
}

json_t *service_health(struct service *s, struct err *e)
{
    json_t *jobs = count_jobs(s, e);
    if (!jobs) return NULL;
    return jx_pack(e, "{s:s, s:s, s:I, s:o}", "status", "ok", "version", GRAFT_VERSION, "uptime_s",
                   (json_int_t)((clock_boot_ms() - s->started_ms) / 1000), "jobs", jobs);
}

int service_new_id(char *out, size_t cap, const char *prefix, struct err *e)
{
    static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    unsigned char random[24];
    char text[25];
    /* 256 is not a multiple of 36: the bias costs less than a tenth of a bit per character. */
    if (hash_random(random, sizeof random, e)) return -1;
    for (int i = 0; i < 24; i++) text[i] = alphabet[random[i] % 36];
    text[24] = 0;
    if (snprintf(out, cap, "%s%s", prefix, text) >= (int)cap)
        return err_set(e, E_BUG, "no room for an id");
    return 0;
}

int service_append(json_t *list, json_t *v, struct err *e)
{
    if (!v) return -1;
    return json_array_append_new(list, v) ? err_set(e, E_NOMEM, "out of memory") : 0;
}

json_t *service_list(json_t *data, bool more, struct err *e)
{
    if (!data) return NULL;
    size_t n = json_array_size(data);
    const json_t *first = json_object_get(json_array_get(data, 0), "id");
    const json_t *last = json_object_get(json_array_get(data, n - 1), "id");
    return jx_pack(e, "{s:s, s:o, s:s?, s:s?, s:b}", "object", "list", "data", data, "first_id",
                   n ? json_string_value(first) : NULL, "last_id",
                   n ? json_string_value(last) : NULL, "has_more", more);
}

int service_job_dir(const struct service *s, const char *job_id, char out[FS_PATH_MAX],
                    struct err *e)
{
    char jobs[FS_PATH_MAX];
    if (!fs_safe_name(job_id)) return err_set(e, E_NOTFOUND, "there is no job '%.80s'", job_id);
    return fs_join(jobs, s->data_dir, "jobs", e) || fs_join(out, jobs, job_id, e) ? -1 : 0;
}
