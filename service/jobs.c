#include "service/jobs.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/idem.h"
#include "service/jobreq.h"
#include "service/log.h"
#include "service/queue.h"
#include "service/series.h"
#include "service/supervisor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- the job object ------------------------------------------------------------------------- */

#define JOB_COLUMNS \
    "id, created_at, finished_at, state, want, error, model, fine_tuned_model, settings, " \
    "method_echo, result_files, seed, trained_tokens, training_file, validation_file, metadata, " \
    "suffix, phase, progress, attempt, max_attempts, result_id, method, seq FROM jobs "
enum {
    C_ID, C_CREATED, C_FINISHED, C_STATE, C_WANT, C_ERROR, C_MODEL, C_TUNED, C_SETTINGS, C_ECHO,
    C_FILES, C_SEED, C_TOKENS, C_TRAINING, C_VALIDATION, C_METADATA, C_SUFFIX, C_PHASE,
    C_PROGRESS, C_ATTEMPT, C_MAX_ATTEMPTS, C_RESULT, C_METHOD, C_SEQ
};

static json_t *maybe_int(struct store_rows *r, int column, int64_t divisor)
{
    return store_is_null(r, column) ? json_null() : json_integer(store_int(r, column) / divisor);
}

/* Sets key to a stored JSON text, or to `otherwise` where the column is NULL. */
static int set_json(json_t *o, const char *key, struct store_rows *r, int column,
                    json_t *otherwise, struct err *e)
{
    if (store_is_null(r, column)) return jx_set(o, key, otherwise, e);
    json_decref(otherwise);
    return jx_set(o, key, store_json(r, column, e), e);
}

static int set_extras(json_t *o, struct store_rows *r, struct err *e)
{
    json_t *progress = store_json(r, C_PROGRESS, e);
    const json_t *eta = json_object_get(progress, "eta_s");
    bool running = str_eq(store_text(r, C_STATE), "running");
    if (!progress) return -1;
    json_t *finish = running && json_is_number(eta)
                         ? json_integer(clock_unix_ms() / 1000 +
                                        (json_int_t)ceil(json_number_value(eta)))
                         : json_null();
    json_t *graft = jx_pack(e, "{s:s?, s:o, s:i, s:i, s:s, s:s}", "phase",
                            running ? store_text(r, C_PHASE) : NULL, "progress", progress,
                            "attempt", (int)store_int(r, C_ATTEMPT), "max_attempts",
                            (int)store_int(r, C_MAX_ATTEMPTS), "method", store_text(r, C_METHOD),
                            "result_id", store_text(r, C_RESULT));
    if (jx_set(o, "estimated_finish", finish, e)) {
        json_decref(graft);
        return -1;
    }
    return jx_set(o, "graft", graft, e);
}

static json_t *job_json(struct store_rows *r, struct err *e)
{
    json_t *o = jx_pack(e, "{s:s, s:s, s:I, s:o, s:s, s:s, s:s?, s:s, s:I, s:o, s:s, s:s?, s:s?, "
                           "s:[]}",
                        "id", store_text(r, C_ID), "object", "fine_tuning.job", "created_at",
                        (json_int_t)(store_int(r, C_CREATED) / 1000), "finished_at",
                        maybe_int(r, C_FINISHED, 1000), "status",
                        queue_public_status(store_text(r, C_STATE), store_text(r, C_WANT)),
                        "model", store_text(r, C_MODEL), "fine_tuned_model",
                        store_text(r, C_TUNED), "organization_id", "org-default", "seed",
                        (json_int_t)store_int(r, C_SEED), "trained_tokens",
                        maybe_int(r, C_TOKENS, 1), "training_file", store_text(r, C_TRAINING),
                        "validation_file", store_text(r, C_VALIDATION), "user_provided_suffix",
                        store_text(r, C_SUFFIX), "integrations");
    if (!o) return NULL;
    if (set_json(o, "error", r, C_ERROR, json_null(), e) ||
        set_json(o, "hyperparameters", r, C_SETTINGS, json_null(), e) ||
        set_json(o, "method", r, C_ECHO, json_null(), e) ||
        set_json(o, "result_files", r, C_FILES, json_array(), e) ||
        set_json(o, "metadata", r, C_METADATA, json_null(), e) || set_extras(o, r, e)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

json_t *jobs_get(struct service *s, const char *id, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e, "SELECT " JOB_COLUMNS "WHERE id = ?", "t", id);
    if (rc == 0) err_set(e, E_NOTFOUND, "there is no job '%.80s'", id);
    if (rc != 1) return NULL;
    json_t *o = job_json(r, e);
    store_rows_end(r);
    return o;
}

/* ?2: only jobs without metadata; ?3: pairs that must all be there, or NULL. */
#define MATCHES \
    "(?2 = 0 OR coalesce(metadata, '{}') = '{}') AND (?3 IS NULL OR NOT EXISTS (SELECT 1 FROM " \
    "json_each(?3) f WHERE NOT EXISTS (SELECT 1 FROM json_each(coalesce(jobs.metadata, '{}')) m " \
    "WHERE m.key = f.key AND m.value = f.value))) "

json_t *jobs_list(struct service *s, const struct page *p, const json_t *metadata, struct err *e)
{
    int64_t seq = p->ascending ? 0 : INT64_MAX;
    struct store_rows *r;
    if (p->after) {
        int rc = store_one(s->store, &r, e, "SELECT seq FROM jobs WHERE id = ?", "t", p->after);
        if (rc == 0) {
            err_set(e, E_NOTFOUND, "there is no job '%.80s'", p->after);
            err_param(e, "after");
        }
        if (rc != 1) return NULL;
        seq = store_int(r, 0);
        store_rows_end(r);
    }
    json_t *data = json_array();
    if (!data) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    const json_t *pairs = json_is_object(metadata) ? metadata : NULL;
    int64_t none = json_is_null(metadata);
    r = p->ascending
            ? store_query(s->store, e,
                          "SELECT " JOB_COLUMNS "WHERE seq > ?1 AND " MATCHES
                          "ORDER BY seq LIMIT ?4",
                          "iiji", seq, none, pairs, p->limit + 1)
            : store_query(s->store, e,
                          "SELECT " JOB_COLUMNS "WHERE seq < ?1 AND " MATCHES
                          "ORDER BY seq DESC LIMIT ?4",
                          "iiji", seq, none, pairs, p->limit + 1);
    int rc = r ? 0 : -1;
    bool more = false;
    while (rc == 0 && !more && (rc = store_next(r, e)) == 1) {
        more = (int64_t)json_array_size(data) == p->limit;
        rc = more ? 0 : service_append(data, job_json(r, e), e);
    }
    store_rows_end(r);
    if (rc == 0) return service_list(data, more, e);
    json_decref(data);
    return NULL;
}

/* --- creating ------------------------------------------------------------------------------- */

static int input(struct service *s, const char *file_id, const char *to, struct err *e)
{
    char from[FS_PATH_MAX];
    struct store_rows *r;
    store_lock(s->store); /* until the link exists: from then on the bytes stay */
    int rc = store_one(s->store, &r, e, "SELECT sha256 FROM files WHERE id = ?", "t", file_id);
    if (rc == 0) rc = err_set(e, E_NOTFOUND, "there is no file '%.80s'", file_id);
    if (rc == 1) {
        const char *sha = store_text(r, 0);
        rc = !sha ? err_set(e, E_NOMEM, "out of memory") : blob_path(s->blobs, sha, from, e);
        store_rows_end(r);
        if (rc == 0) rc = fs_link(from, to, e);
    }
    store_unlock(s->store);
    return rc;
}

/* jobs/<id>/{job.json,inputs/}: everything a worker needs, on disk before the row exists. */
static int write_folder(struct service *s, const struct jobreq *q, const char *id,
                        const char *dir, struct err *e)
{
    char inputs[FS_PATH_MAX], training[FS_PATH_MAX], validation[FS_PATH_MAX], at[FS_PATH_MAX];
    char jobs[FS_PATH_MAX], *text = NULL;
    json_t *job = NULL;
    int rc = -1;
    if (fs_join(inputs, dir, "inputs", e) || fs_join(training, inputs, "training.jsonl", e) ||
        fs_join(validation, inputs, "validation.jsonl", e) || fs_join(at, dir, "job.json", e) ||
        fs_join(jobs, s->data_dir, "jobs", e))
        return -1;
    if (fs_mkdirs(inputs, e) || input(s, q->training_file, training, e) ||
        (q->validation_file && input(s, q->validation_file, validation, e)) ||
        fs_sync_dir(inputs, e))
        return -1;
    if (CRASHPOINT("jobs.inputs_linked")) return err_set(e, E_IO, "injected failure");
    job = jobreq_job(s, q, id, training, q->validation_file ? validation : NULL, e);
    text = job ? jx_dump_pretty(job, e) : NULL;
    if (text && !fs_write_file(at, text, strlen(text), e)) rc = fs_sync_dir(jobs, e);
    mem_free(text);
    json_decref(job);
    return rc;
}

/* Files and model could have been deleted since they were looked at; from here on the row keeps
 * them. */
static int still_there(struct service *s, const struct jobreq *q, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e,
                       "SELECT EXISTS (SELECT 1 FROM files WHERE id = ?1) AND (?2 IS NULL OR "
                       "EXISTS (SELECT 1 FROM files WHERE id = ?2)) AND EXISTS (SELECT 1 FROM "
                       "models WHERE id = ?3)",
                       "ttt", q->training_file, q->validation_file, q->model);
    if (rc < 1) return -1;
    bool ok = store_int(r, 0) != 0;
    store_rows_end(r);
    return ok ? 0 : err_set(e, E_NOTFOUND, "a file or the model was deleted meanwhile");
}

/* 1: replayed an earlier reply, 0: created. */
static int record(struct service *s, const struct jobreq *q, const char *id,
                  const struct idem *idem, json_t **job, struct err *e)
{
    json_t *o = NULL;
    struct queue_job row = {.id = id, .model = q->model, .training_file = q->training_file,
                            .validation_file = q->validation_file, .method = q->method,
                            .suffix = q->suffix, .result_id = q->result_id,
                            .settings = q->settings, .method_echo = q->echo,
                            .metadata = q->metadata, .seed = q->seed};
    if (store_begin(s->store, e)) return -1;
    int rc = idem_find(s->store, idem, &o, e);
    if (rc == 0 && (still_there(s, q, e) || queue_create(s->queue, &row, e) ||
                    !(o = jobs_get(s, id, e)) || idem_save(s->store, idem, o, e)))
        rc = -1;
    if (rc < 0)
        store_rollback(s->store);
    else if (store_commit(s->store, e))
        rc = -1;
    if (rc < 0) {
        json_decref(o);
        return -1;
    }
    *job = o;
    return rc;
}

static int replayed(struct service *s, const struct idem *idem, json_t **job, struct err *e)
{
    if (!idem) return 0;
    if (store_begin(s->store, e)) return -1;
    int rc = idem_find(s->store, idem, job, e);
    if (store_commit(s->store, e)) return -1;
    return rc;
}

int jobs_create(struct service *s, const json_t *body, const struct idem *idem, json_t **job,
                json_t **report, struct err *e)
{
    char id[QUEUE_ID_MAX], dir[FS_PATH_MAX];
    struct jobreq q;
    struct err late;
    /* A repeated request is answered even if its file is gone by now. */
    int rc = replayed(s, idem, job, e);
    if (rc) return rc < 0 ? -1 : 0;
    if (jobreq_parse(s, body, &q, report, e)) return -1;
    rc = service_new_id(id, sizeof id, "ftjob-", e);
    if (rc == 0) rc = service_job_dir(s, id, dir, e);
    if (rc) goto out;
    rc = write_folder(s, &q, id, dir, e);
    if (rc == 0 && CRASHPOINT("jobs.written_not_recorded"))
        rc = err_set(e, E_IO, "injected failure");
    if (rc == 0) rc = record(s, &q, id, idem, job, e);
    if (rc != 0 && fs_rmtree(dir, &late))
        log_err(LOG_WARN, NULL, "a job folder stays until the next start", &late, NULL);
    if (rc >= 0) (void)CRASHPOINT("jobs.recorded_not_answered");
    supervisor_wake(s->supervisor);
out:
    jobreq_clear(&q);
    return rc < 0 ? -1 : 0;
}

json_t *jobs_plan(struct service *s, const json_t *body, struct err *e)
{
    struct jobreq q;
    char training[FS_PATH_MAX], cache[FS_PATH_MAX], sha[65] = "";
    struct store_rows *r;
    if (jobreq_parse(s, body, &q, NULL, e)) return NULL;
    json_t *job = NULL, *plan = NULL;
    int rc = store_one(s->store, &r, e, "SELECT sha256 FROM files WHERE id = ?", "t",
                       q.training_file);
    if (rc == 1) {
        if (store_text(r, 0)) str_copy(sha, sizeof sha, store_text(r, 0));
        store_rows_end(r);
        if (blob_path(s->blobs, sha, training, e) == 0)
            job = jobreq_job(s, &q, "plan", training, NULL, e);
    } else if (rc == 0) {
        err_set(e, E_NOTFOUND, "there is no file '%.80s'", q.training_file);
    }
    if (job && !fs_join(cache, s->data_dir, "cache", e)) plan = s->engine->plan(job, cache, e);
    json_decref(job);
    jobreq_clear(&q);
    return plan;
}

/* --- wishes --------------------------------------------------------------------------------- */

static json_t *wish(struct service *s, const char *id,
                    int (*act)(struct queue *, const char *, struct err *), struct err *e)
{
    json_t *o = NULL;
    /* One transaction, so that the reply tells what this very call has decided. */
    if (store_begin(s->store, e)) return NULL;
    if (act(s->queue, id, e) || !(o = jobs_get(s, id, e))) {
        store_rollback(s->store);
        return NULL;
    }
    if (store_commit(s->store, e)) {
        json_decref(o);
        return NULL;
    }
    supervisor_wake(s->supervisor);
    return o;
}

json_t *jobs_cancel(struct service *s, const char *id, struct err *e)
{
    return wish(s, id, queue_cancel, e);
}

json_t *jobs_pause(struct service *s, const char *id, struct err *e)
{
    return wish(s, id, queue_pause, e);
}

json_t *jobs_resume(struct service *s, const char *id, struct err *e)
{
    return wish(s, id, queue_resume, e);
}

/* --- checkpoints and metrics ---------------------------------------------------------------- */

struct checkpoint {
    int64_t step, created_at;
};

static int newest_first(const void *a, const void *b)
{
    const struct checkpoint *x = a, *y = b;
    return x->step < y->step ? 1 : x->step > y->step ? -1 : 0;
}

/* Complete checkpoints (those with a manifest) of one attempt are appended to *v. */
static int scan_attempt(const char *dir, struct checkpoint **v, int *n, struct err *e)
{
    char **names = NULL;
    int count = 0, rc = -1;
    if (!fs_exists(dir)) return 0;
    if (fs_list(dir, &names, &count, e)) return -1;
    struct checkpoint *more = mem_realloc(*v, (size_t)(*n + count + 1) * sizeof *more, e);
    if (!more) goto out;
    *v = more;
    for (int i = 0; i < count; i++) {
        char at[FS_PATH_MAX], sub[FS_PATH_MAX];
        struct stat st;
        int64_t step;
        if (!str_starts(names[i], "step-") || !str_int64(names[i] + 5, &step)) continue;
        if (fs_join(sub, dir, names[i], e) || fs_join(at, sub, "manifest.json", e)) goto out;
        if (stat(at, &st) == 0) (*v)[(*n)++] = (struct checkpoint){step, st.st_mtime};
    }
    rc = 0;
out:
    for (int i = 0; i < count; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}

/* All of a job, newest step first; a step that two attempts wrote counts once. */
static int scan(const char *job_dir, struct checkpoint **out, int *count, struct err *e)
{
    char attempts[FS_PATH_MAX], **names = NULL;
    struct checkpoint *v = NULL;
    int n = 0, found = 0, kept = 0, rc = -1;
    if (fs_join(attempts, job_dir, "attempts", e)) return -1;
    if (fs_exists(attempts) && fs_list(attempts, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        char sub[FS_PATH_MAX], dir[FS_PATH_MAX];
        if (fs_join(sub, attempts, names[i], e) || fs_join(dir, sub, "checkpoints", e) ||
            scan_attempt(dir, &v, &found, e))
            goto out;
    }
    if (found) qsort(v, (size_t)found, sizeof *v, newest_first);
    for (int i = 0; i < found; i++)
        if (kept == 0 || v[kept - 1].step != v[i].step) v[kept++] = v[i];
    *out = v;
    *count = kept;
    v = NULL;
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    mem_free(v);
    return rc;
}

/* graft's names for numbers -> the names of the OpenAI object. */
static json_t *checkpoint_metrics(const struct series *m, int64_t step, struct err *e)
{
    static const char *const map[][2] = {{"loss", "train_loss"},
                                         {"train_loss", "train_loss"},
                                         {"valid_loss", "valid_loss"},
                                         {"valid_accuracy", "valid_mean_token_accuracy"}};
    json_t *o = jx_pack(e, "{s:I}", "step", (json_int_t)step);
    int64_t at = series_find(m, step);
    for (int c = 0; o && at >= 0 && c < m->columns; c++) {
        double x = m->values[at * SERIES_COLUMNS + c];
        for (size_t i = 0; i < sizeof map / sizeof *map; i++) {
            if (!str_eq(map[i][0], m->names[c]) || !isfinite(x)) continue;
            if (jx_set(o, map[i][1], json_real(x), e)) {
                json_decref(o);
                return NULL;
            }
        }
    }
    return o;
}

static json_t *checkpoint_json(const char *job_id, const char *result_id,
                               const struct checkpoint *c, const struct series *m, struct err *e)
{
    char id[128], name[256];
    snprintf(id, sizeof id, "ftckpt-%s-%lld", str_starts(job_id, "ftjob-") ? job_id + 6 : job_id,
             (long long)c->step);
    snprintf(name, sizeof name, "%s@step-%lld", result_id, (long long)c->step);
    json_t *metrics = checkpoint_metrics(m, c->step, e);
    if (!metrics) return NULL;
    return jx_pack(e, "{s:s, s:s, s:I, s:s, s:s, s:I, s:o}", "id", id, "object",
                   "fine_tuning.job.checkpoint", "created_at", (json_int_t)c->created_at,
                   "fine_tuned_model_checkpoint", name, "fine_tuning_job_id", job_id,
                   "step_number", (json_int_t)c->step, "metrics", metrics);
}

static json_t *checkpoint_page(const char *job_id, const char *result_id, const char *dir,
                               const struct page *p, struct err *e)
{
    struct series m;
    struct checkpoint *v = NULL;
    int n = 0;
    json_t *data = NULL;
    bool more = false, past = !p->after;
    if (series_load(&m, dir, e)) return NULL;
    if (scan(dir, &v, &n, e)) goto out;
    int rc = (data = json_array()) ? 0 : err_set(e, E_NOMEM, "out of memory");
    for (int k = 0; rc == 0 && k < n && !more; k++) {
        int i = p->ascending ? n - 1 - k : k;
        json_t *o = checkpoint_json(job_id, result_id, &v[i], &m, e);
        bool is_after = o && !past && str_eq(json_string_value(json_object_get(o, "id")), p->after);
        more = past && (int64_t)json_array_size(data) == p->limit;
        if (past && !more) {
            rc = service_append(data, o, e);
        } else {
            rc = o ? 0 : -1;
            json_decref(o);
        }
        past = past || is_after;
    }
    if (rc == 0 && !past) {
        rc = err_set(e, E_NOTFOUND, "there is no checkpoint '%.100s'", p->after);
        err_param(e, "after");
    }
    if (rc) {
        json_decref(data);
        data = NULL;
    }
out:
    mem_free(v);
    series_clear(&m);
    return data ? service_list(data, more, e) : NULL;
}

static int result_id_of(struct service *s, const char *id, char out[256], struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e, "SELECT result_id FROM jobs WHERE id = ?", "t", id);
    if (rc < 0) return -1;
    if (rc == 0) return err_set(e, E_NOTFOUND, "there is no job '%.80s'", id);
    bool ok = store_text(r, 0) && str_copy(out, 256, store_text(r, 0));
    store_rows_end(r);
    return ok ? 0 : err_set(e, E_NOMEM, "out of memory");
}

json_t *jobs_checkpoints(struct service *s, const char *id, const struct page *p, struct err *e)
{
    char dir[FS_PATH_MAX], result_id[256];
    if (result_id_of(s, id, result_id, e) || service_job_dir(s, id, dir, e)) return NULL;
    return checkpoint_page(id, result_id, dir, p, e);
}

json_t *jobs_metrics(struct service *s, const char *id, int64_t max_points, struct err *e)
{
    char dir[FS_PATH_MAX], result_id[256];
    struct series m;
    if (result_id_of(s, id, result_id, e) || service_job_dir(s, id, dir, e) ||
        series_load(&m, dir, e))
        return NULL;
    json_t *columns = series_json(&m, max_points, e);
    json_int_t points = m.rows;
    series_clear(&m);
    if (!columns) return NULL;
    return jx_pack(e, "{s:s, s:s, s:I, s:o}", "object", "graft.metrics", "job_id", id, "points",
                   points, "series", columns);
}

/* --- for the supervisor --------------------------------------------------------------------- */

/* 0: whole, 1: *why says what is missing, -1: could not be found out now. */
static int inspect(struct service *s, const char *id, struct err *why, struct err *e)
{
    static const char *const inputs[] = {"training_file", "validation_file"};
    char dir[FS_PATH_MAX], at[FS_PATH_MAX];
    const char *path;
    json_t *model;
    if (service_job_dir(s, id, dir, e) || fs_join(at, dir, "job.json", e)) return -1;
    json_t *job = jx_load_file(at, 4 << 20, why);
    int rc = job ? 0 : why->code == E_NOTFOUND || why->code == E_FORMAT ? 1 : -1;
    if (rc < 0) *e = *why;
    for (int i = 0; rc == 0 && i < 2; i++) {
        path = json_string_value(json_object_get(job, inputs[i]));
        if (!path || fs_exists(path)) continue;
        err_set(why, E_CORRUPT, "the content of the file is gone");
        err_param(why, "%s", inputs[i]);
        rc = 1;
    }
    if (rc == 0 && (jx_object(job, "model", &model, why) || jx_str(model, "path", &path, why)))
        rc = 1;
    if (rc == 0 && !fs_is_dir(path)) {
        err_set(why, E_NOTFOUND, "the model's folder is gone");
        err_param(why, "model");
        rc = 1;
    }
    json_decref(job);
    return rc;
}

int jobs_validate(struct service *s, const char *id, struct err *e)
{
    struct err why = ERR_INIT;
    int rc = inspect(s, id, &why, e);
    return rc < 0 ? -1 : queue_admit(s->queue, id, rc ? &why : NULL, e);
}

/* Deleted models leave their files behind if the server dies in between. */
static int sweep_result(struct service *s, const char *id, const char *sub, struct err *e)
{
    char rel[FS_PATH_MAX], full[FS_PATH_MAX];
    struct store_rows *r;
    int n = snprintf(rel, sizeof rel, "jobs/%s/result/%s", id, sub);
    if (n >= (int)sizeof rel || fs_join(full, s->data_dir, rel, e))
        return err_set(e, E_LIMIT, "path too long: %.80s...", s->data_dir);
    if (!fs_exists(full)) return 0;
    int known = store_one(s->store, &r, e, "SELECT 1 FROM models WHERE dir = ?", "t", rel);
    if (known < 0) return -1;
    if (known) {
        store_rows_end(r);
        return 0;
    }
    return fs_rmtree(full, e);
}

static int sweep_one(struct service *s, const char *root, const char *id, struct err *e)
{
    char dir[FS_PATH_MAX];
    struct store_rows *r;
    int known = store_one(s->store, &r, e, "SELECT state = 'succeeded' FROM jobs WHERE id = ?",
                          "t", id);
    if (known < 0 || fs_join(dir, root, id, e)) return -1;
    if (!known) {
        log_event(LOG_INFO, NULL, "removed a job folder without a row",
                  LOG_FIELDS(LOG_S("job", id)));
        return fs_rmtree(dir, e);
    }
    bool succeeded = store_int(r, 0) != 0;
    store_rows_end(r);
    if (!succeeded) return 0;
    return sweep_result(s, id, "merged", e) || sweep_result(s, id, "adapter", e) ? -1 : 0;
}

int jobs_sweep(struct service *s, struct err *e)
{
    char root[FS_PATH_MAX], **names = NULL;
    int n = 0, rc = -1;
    if (fs_join(root, s->data_dir, "jobs", e) || fs_mkdirs(root, e) ||
        fs_list(root, &names, &n, e))
        return -1;
    for (int i = 0; i < n; i++)
        if (sweep_one(s, root, names[i], e)) goto out;
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}
