#include "service/results.h"

#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/files.h"
#include "service/log.h"
#include "service/modeldir.h"

#include <fcntl.h>
#include <stdio.h>

static int load_row(struct service *s, struct results *r, struct err *e)
{
    struct store_rows *q;
    int rc = store_one(s->store, &q, e, "SELECT model, result_id FROM jobs WHERE id = ?", "t",
                       r->job_id);
    if (rc < 1) return rc < 0 ? -1 : err_set(e, E_NOTFOUND, "there is no job %s", r->job_id);
    const char *model = store_text(q, 0), *id = store_text(q, 1);
    rc = -1;
    if (model && id && str_copy(r->merged_id, sizeof r->merged_id, id) &&
        (r->parent = mem_strdup(model, e)))
        rc = 0;
    store_rows_end(q);
    if (rc && !r->parent) err_set(e, E_NOMEM, "out of memory");
    snprintf(r->adapter_id, sizeof r->adapter_id, "%s-adapter", r->merged_id);
    return rc;
}

/* An absent part is fine: full fine-tuning has no adapter. */
static int load_part(const char *dir, const char *sub, json_t **out, struct err *e)
{
    struct err bad = ERR_INIT;
    *out = modeldir_result(dir, sub, &bad);
    if (*out || bad.code == E_NOTFOUND) return 0;
    *e = bad;
    return -1;
}

static int spool_csv(struct service *s, const char *dir, struct results *r, struct err *e)
{
    char path[FS_PATH_MAX], chunk[16384];
    int64_t n;
    if (fs_join(path, dir, "metrics.csv", e)) return -1;
    if (!fs_exists(path)) return 0;
    int fd = fs_open(path, O_RDONLY | O_NOFOLLOW, 0, e);
    if (fd < 0) return -1;
    int rc = -1;
    r->csv = blob_writer_new(s->blobs, INT64_MAX, e);
    if (!r->csv) goto out;
    while ((n = fs_read(fd, chunk, sizeof chunk, e)) > 0)
        if (blob_writer_put(r->csv, chunk, (size_t)n, e)) goto out;
    if (n == 0) rc = blob_writer_end(r->csv, NULL, e);
out:
    fs_close(fd);
    return rc;
}

static int load(struct service *s, const char *dir, struct results *r, struct err *e)
{
    char merged[FS_PATH_MAX];
    struct err ignored = ERR_INIT;
    if (fs_check_dir(dir, false, e) || load_part(dir, "merged", &r->merged, e) ||
        load_part(dir, "adapter", &r->adapter, e))
        return -1;
    if (!r->merged && !r->adapter)
        return err_set(e, E_CORRUPT, "the result has neither a merged model nor an adapter");
    if (r->merged) {
        if (fs_join(merged, dir, "merged", e)) return -1;
        /* Only a description: weights that were checked when written are not lost for it. */
        r->info = s->engine->check_model(merged, &ignored);
        if (!r->info) log_err(LOG_WARN, NULL, "a result cannot be described", &ignored, NULL);
    }
    if (!r->info && !(r->info = json_object())) return err_set(e, E_NOMEM, "out of memory");
    return spool_csv(s, dir, r, e);
}

int results_load(struct service *s, const char *job_id, struct results *r, struct err *e)
{
    char job[FS_PATH_MAX], dir[FS_PATH_MAX];
    *r = (struct results){0};
    str_copy(r->job_id, sizeof r->job_id, job_id);
    int rc = service_new_id(r->csv_id, sizeof r->csv_id, "file-", e) || load_row(s, r, e) ||
                     service_job_dir(s, job_id, job, e) || fs_join(dir, job, "result", e)
                 ? -1
                 : 0;
    snprintf(r->merged_dir, sizeof r->merged_dir, "jobs/%s/result/merged", job_id);
    snprintf(r->adapter_dir, sizeof r->adapter_dir, "jobs/%s/result/adapter", job_id);
    if (rc == 0 && load(s, dir, r, e)) {
        rc = -1;
        /* Missing or senseless is the worker's failure; the rest is this moment's. */
        if (e->code == E_NOTFOUND || e->code == E_FORMAT || e->code == E_ARG ||
            e->code == E_RANGE)
            e->code = E_CORRUPT;
    }
    if (rc == 0 && CRASHPOINT("results.loaded")) rc = err_set(e, E_IO, "injected failure");
    if (rc) results_clear(r);
    return rc;
}

int results_register(struct service *s, struct results *r, struct err *e)
{
    json_t *empty = json_object();
    struct models_new merged = {.id = r->merged_id, .kind = "merged", .parent = r->parent,
                                .job_id = r->job_id, .dir = r->merged_dir, .info = r->info,
                                .files = r->merged};
    struct models_new adapter = {.id = r->adapter_id, .kind = "adapter", .parent = r->parent,
                                 .job_id = r->job_id, .dir = r->adapter_dir, .info = empty,
                                 .files = r->adapter};
    struct files_new csv = {.filename = "metrics.csv", .purpose = "fine-tune-results"};
    int rc = empty ? 0 : err_set(e, E_NOMEM, "out of memory");
    if (rc == 0 && r->merged) rc = models_insert(s, &merged, e);
    if (rc == 0 && r->adapter) rc = models_insert(s, &adapter, e);
    if (rc == 0 && r->csv) rc = files_insert(s, r->csv, r->csv_id, &csv, true, e);
    if (rc == 0 && CRASHPOINT("results.registered")) rc = err_set(e, E_IO, "injected failure");
    json_decref(empty);
    return rc;
}

const char *results_model(const struct results *r)
{
    return r->merged ? r->merged_id : r->adapter_id;
}

json_t *results_files(const struct results *r, struct err *e)
{
    return r->csv ? jx_pack(e, "[s]", r->csv_id) : jx_pack(e, "[]");
}

void results_clear(struct results *r)
{
    mem_free(r->parent);
    json_decref(r->merged);
    json_decref(r->adapter);
    json_decref(r->info);
    blob_writer_abort(r->csv);
    *r = (struct results){0};
}
