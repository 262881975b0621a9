#include "service/files.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/idem.h"
#include "service/log.h"
#include "service/models.h"

#include <string.h>

#define FILE_COLUMNS \
    "f.id, f.created_at, f.expires_at, f.filename, f.purpose, b.bytes, f.status, " \
    "f.status_details FROM files f JOIN blobs b ON b.sha256 = f.sha256 "

static json_t *file_json(struct store_rows *r, struct err *e)
{
    json_t *o = jx_pack(e, "{s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:s?}", "id", store_text(r, 0),
                        "object", "file", "bytes", (json_int_t)store_int(r, 5), "created_at",
                        (json_int_t)(store_int(r, 1) / 1000), "filename", store_text(r, 3),
                        "purpose", store_text(r, 4), "status", store_text(r, 6),
                        "status_details", store_text(r, 7));
    if (o && !store_is_null(r, 2) &&
        jx_set(o, "expires_at", json_integer(store_int(r, 2) / 1000), e)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int no_file(const char *id, struct err *e)
{
    return err_set(e, E_NOTFOUND, "there is no file '%.80s'", id);
}

json_t *files_get(struct service *s, const char *id, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e, "SELECT " FILE_COLUMNS "WHERE f.id = ?", "t", id);
    if (rc == 0) no_file(id, e);
    if (rc != 1) return NULL;
    json_t *o = file_json(r, e);
    store_rows_end(r);
    return o;
}

/* --- creating ------------------------------------------------------------------------------- */

static int check_names(const struct files_new *n, struct err *e)
{
    static const char *const purposes[] = {"assistants", "batch", "evals", "fine-tune", "model",
                                           "user_data", "vision"};
    size_t len = n->filename ? strlen(n->filename) : 0;
    if (len == 0 || len > 255 || str_utf8_bad(n->filename, len) != len) {
        err_set(e, E_ARG, "the file name must be 1 to 255 bytes of UTF-8");
        return err_param(e, "file");
    }
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)n->filename[i] >= 0x20 && n->filename[i] != 0x7f) continue;
        err_set(e, E_ARG, "the file name contains a control character");
        return err_param(e, "file");
    }
    if (n->expires_after_s && (n->expires_after_s < 3600 || n->expires_after_s > 2592000)) {
        err_set(e, E_RANGE, "a file expires 3600 to 2592000 seconds after its creation");
        return err_param(e, "expires_after[seconds]");
    }
    for (size_t i = 0; n->purpose && i < sizeof purposes / sizeof *purposes; i++)
        if (str_eq(n->purpose, purposes[i])) return 0;
    err_set(e, E_ARG, "purpose must be one of assistants, batch, evals, fine-tune, model, "
                      "user_data, vision");
    return err_param(e, "purpose");
}

/* What engine_check_file can say about a file of this purpose and name, or NULL. */
static const char *content_kind(const struct files_new *n)
{
    if (str_eq(n->purpose, "fine-tune")) return "jsonl";
    if (!str_eq(n->purpose, "model")) return NULL;
    if (str_ends(n->filename, ".safetensors")) return "safetensors";
    if (str_eq(n->filename, "tokenizer.json")) return "tokenizer";
    return str_ends(n->filename, ".json") ? "json" : NULL;
}

int files_check(struct service *s, const char *path, const char *kind, json_t **report,
                struct err *e)
{
    json_t *found = s->engine->check_file(path, kind, e);
    if (!found) return -1;
    if (json_is_true(json_object_get(found, "ok"))) {
        json_decref(found);
        return 0;
    }
    const json_t *first = json_array_get(json_object_get(found, "problems"), 0);
    const char *reason = json_string_value(json_object_get(first, "reason"));
    json_int_t line = json_integer_value(json_object_get(first, "line"));
    if (line > 0)
        err_set(e, E_FORMAT, "line %lld: %s", (long long)line, reason ? reason : "not valid");
    else
        err_set(e, E_FORMAT, "%s", reason ? reason : "the file is not valid");
    if (report)
        *report = found;
    else
        json_decref(found);
    return -1;
}

int files_insert(struct service *s, struct blob_writer *w, const char *id,
                 const struct files_new *n, bool checked, struct err *e)
{
    struct blob_info info;
    int64_t now = clock_unix_ms();
    if (blob_writer_end(w, &info, e) || blob_publish(w, e)) return -1;
    int rc = store_run(s->store, e,
                       "INSERT INTO files (id, created_at, expires_at, filename, purpose, sha256, "
                       "status) VALUES (?, ?, nullif(?, 0), ?, ?, ?, ?)",
                       "tiitttt", id, now,
                       n->expires_after_s ? now + n->expires_after_s * 1000 : (int64_t)0,
                       n->filename, n->purpose, info.sha256, checked ? "processed" : "uploaded");
    return rc < 0 ? -1 : 0;
}

/* The row, the blob and the idempotency key appear together. 1: replayed. */
static int insert(struct service *s, struct blob_writer *w, const struct files_new *n,
                  const struct idem *idem, json_t **file, struct err *e)
{
    char id[QUEUE_ID_MAX];
    json_t *o = NULL;
    if (service_new_id(id, sizeof id, "file-", e) || store_begin(s->store, e)) return -1;
    int rc = idem_find(s->store, idem, &o, e);
    if (rc == 0) {
        bool checked = content_kind(n) != NULL;
        if (files_insert(s, w, id, n, checked, e) || !(o = files_get(s, id, e)) ||
            idem_save(s->store, idem, o, e))
            rc = -1;
    }
    if (rc < 0)
        store_rollback(s->store);
    else if (store_commit(s->store, e))
        rc = -1;
    if (rc < 0) {
        json_decref(o);
        return -1;
    }
    (void)CRASHPOINT("files.recorded_not_answered");
    *file = o;
    return rc;
}

int files_create(struct service *s, struct blob_writer *w, const struct files_new *n,
                 const struct idem *idem, json_t **file, json_t **report, struct err *e)
{
    struct blob_info info;
    struct err ignored;
    int rc = -1;
    if (check_names(n, e) || blob_writer_end(w, &info, e)) goto out;
    if (info.bytes == 0) {
        err_set(e, E_FORMAT, "the file is empty");
        err_param(e, "file");
        goto out;
    }
    const char *kind = content_kind(n);
    if (kind && files_check(s, blob_writer_path(w), kind, report, e)) {
        err_param(e, "file");
        goto out;
    }
    rc = insert(s, w, n, idem, file, e);
    if (rc < 0 && blob_drop(s->blobs, info.sha256, &ignored))
        log_err(LOG_WARN, NULL, "a file without a row stays until the next start", &ignored,
                NULL);
out:
    blob_writer_abort(w);
    return rc < 0 ? -1 : 0;
}

/* --- listing, reading, deleting ------------------------------------------------------------- */

static int seq_of(struct service *s, const char *after, int64_t *seq, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e, "SELECT seq FROM files WHERE id = ?", "t", after);
    if (rc < 0) return -1;
    if (rc == 0) {
        no_file(after, e);
        return err_param(e, "after");
    }
    *seq = store_int(r, 0);
    store_rows_end(r);
    return 0;
}

json_t *files_list(struct service *s, const struct page *p, const char *purpose, struct err *e)
{
    int64_t seq = p->ascending ? 0 : INT64_MAX;
    if (p->after && seq_of(s, p->after, &seq, e)) return NULL;
    json_t *data = json_array();
    if (!data) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    struct store_rows *r =
        p->ascending ? store_query(s->store, e,
                                   "SELECT " FILE_COLUMNS "WHERE f.seq > ?1 AND (?2 IS NULL OR "
                                   "f.purpose = ?2) ORDER BY f.seq LIMIT ?3",
                                   "iti", seq, purpose, p->limit + 1)
                     : store_query(s->store, e,
                                   "SELECT " FILE_COLUMNS "WHERE f.seq < ?1 AND (?2 IS NULL OR "
                                   "f.purpose = ?2) ORDER BY f.seq DESC LIMIT ?3",
                                   "iti", seq, purpose, p->limit + 1);
    int rc = r ? 0 : -1;
    bool more = false;
    while (rc == 0 && !more && (rc = store_next(r, e)) == 1) {
        more = (int64_t)json_array_size(data) == p->limit;
        rc = more ? 0 : service_append(data, file_json(r, e), e);
    }
    store_rows_end(r);
    if (rc == 0) return service_list(data, more, e);
    json_decref(data);
    return NULL;
}

/* Within a transaction. *sha256 receives the blob to drop after it. */
static int remove_row(struct service *s, const char *id, char sha256[65], struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e,
                       "SELECT sha256, EXISTS (SELECT 1 FROM jobs WHERE state NOT IN "
                       "('succeeded', 'failed', 'cancelled') AND (training_file = files.id OR "
                       "validation_file = files.id)) FROM files WHERE id = ?",
                       "t", id);
    if (rc < 0) return -1;
    if (rc == 0) return no_file(id, e);
    const char *sha = store_text(r, 0);
    bool used = store_int(r, 1) != 0, known = sha && str_copy(sha256, 65, sha);
    store_rows_end(r);
    if (!known) return err_set(e, E_NOMEM, "out of memory");
    if (used) return err_set(e, E_CONFLICT, "a job that has not ended uses this file");
    return store_run(s->store, e, "DELETE FROM files WHERE id = ?", "t", id) < 0 ? -1 : 0;
}

int files_delete(struct service *s, const char *id, struct err *e)
{
    char sha256[65];
    struct err late;
    if (store_begin(s->store, e)) return -1;
    if (remove_row(s, id, sha256, e)) {
        store_rollback(s->store);
        return -1;
    }
    if (store_commit(s->store, e)) return -1;
    (void)CRASHPOINT("files.unrecorded_not_dropped");
    /* The file is gone for clients. Bytes that cannot be removed now are swept at the next start */
    if (blob_drop(s->blobs, sha256, &late))
        log_err(LOG_WARN, NULL, "the bytes of a deleted file remain", &late, NULL);
    return 0;
}

int files_expire(struct service *s, struct err *e)
{
    for (;;) {
        char id[QUEUE_ID_MAX];
        struct store_rows *r;
        int rc = store_one(s->store, &r, e,
                           "SELECT id FROM files WHERE expires_at <= ? AND NOT EXISTS (SELECT 1 "
                           "FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') AND "
                           "(training_file = files.id OR validation_file = files.id)) LIMIT 1",
                           "i", clock_unix_ms());
        if (rc < 1) return rc;
        bool known = store_text(r, 0) && str_copy(id, sizeof id, store_text(r, 0));
        store_rows_end(r);
        if (!known) return err_set(e, E_NOMEM, "out of memory");
        if (files_delete(s, id, e) && e->code != E_NOTFOUND && e->code != E_CONFLICT) return -1;
        log_event(LOG_INFO, NULL, "file expired", LOG_FIELDS(LOG_S("file", id)));
    }
}

int files_read(struct service *s, const char *id, int *fd, struct blob_info *info, char name[256],
               struct err *e)
{
    struct store_rows *r;
    struct blob_info found = {0};
    /* The lock is held until the descriptor is open: a deletion may come right after. */
    store_lock(s->store);
    int rc = store_one(s->store, &r, e,
                       "SELECT b.bytes, b.sha256, coalesce(b.git_sha1, ''), f.filename FROM files "
                       "f JOIN blobs b ON b.sha256 = f.sha256 WHERE f.id = ?",
                       "t", id);
    if (rc == 0) rc = no_file(id, e);
    if (rc == 1) {
        char filename[256];
        const char *sha = store_text(r, 1), *git = store_text(r, 2), *text = store_text(r, 3);
        found.bytes = store_int(r, 0);
        bool ok = sha && git && text && str_copy(found.sha256, 65, sha) &&
                  str_copy(found.git_sha1, 41, git) && str_copy(filename, 256, text);
        store_rows_end(r);
        int opened = ok ? blob_read(s->blobs, found.sha256, e)
                        : err_set(e, E_NOMEM, "out of memory");
        if (opened >= 0) {
            *fd = opened;
            *info = found;
            memcpy(name, filename, sizeof filename);
        }
        rc = opened < 0 ? -1 : 0;
    }
    store_unlock(s->store);
    return rc;
}

/* --- looking inside ------------------------------------------------------------------------- */

enum { ROWS_DEFAULT = 5 };

static int check_ask(const json_t *ask, bool preview, struct err *e)
{
    static const char *const known[] = {"model", "max_length", "chat_template", "rows"};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)ask, key, v) {
        bool found = false;
        for (size_t i = 0; i < (preview ? 4 : 3); i++) found |= str_eq(key, known[i]);
        if (found) continue;
        err_set(e, E_ARG, "unknown field '%.60s'", key);
        return err_param(e, "%.80s", key);
    }
    bool named = json_is_string(json_object_get(ask, "model"));
    if (preview || named || !json_object_size(ask)) return 0;
    err_set(e, E_ARG, "max_length and chat_template need a 'model'");
    return err_param(e, "model");
}

/* The same request with the model's folder in the place of its id. */
static json_t *resolve_ask(struct service *s, const json_t *ask, const char *model, bool preview,
                           struct err *e)
{
    struct model m;
    int64_t rows = ROWS_DEFAULT;
    json_t *out = NULL;
    if (preview && jx_opt_int64(ask, "rows", 1, 100, &rows, e)) return NULL;
    if (models_get(s, model, &m, e)) {
        err_param(e, "model");
        return NULL;
    }
    if (str_eq(m.kind, "adapter")) {
        err_set(e, E_UNSUPPORTED, "'%s' is an adapter: use the merged model of its job", model);
        err_param(e, "model");
    } else if ((out = json_copy((json_t *)(uintptr_t)ask)) == NULL) {
        err_set(e, E_NOMEM, "out of memory");
    } else if (jx_set(out, "model", jx_pack(e, "s", m.dir), e) ||
               jx_set(out, "rows", json_integer(preview ? rows : 0), e)) {
        json_decref(out);
        out = NULL;
    }
    models_clear(&m);
    return out;
}

/* Where the bytes are and what they are said to be. */
static int find_content(struct service *s, const char *id, char path[FS_PATH_MAX],
                        const char **kind, struct err *e)
{
    struct store_rows *r;
    char sha[65] = "";
    int rc = store_one(s->store, &r, e, "SELECT sha256, purpose, filename FROM files WHERE id = ?",
                       "t", id);
    if (rc < 0) return -1;
    if (rc == 0) return no_file(id, e);
    const struct files_new n = {.purpose = store_text(r, 1), .filename = store_text(r, 2)};
    bool known = store_text(r, 0) && n.purpose && n.filename;
    if (known) str_copy(sha, sizeof sha, store_text(r, 0));
    if (known) *kind = content_kind(&n);
    store_rows_end(r);
    if (!known) return err_set(e, E_NOMEM, "out of memory");
    if (!*kind) *kind = "jsonl"; /* whatever it was uploaded for: is it a data set? */
    return blob_path(s->blobs, sha, path, e);
}

json_t *files_examine(struct service *s, const char *id, const json_t *ask, bool preview,
                      struct err *e)
{
    char path[FS_PATH_MAX];
    const char *model = NULL, *kind = NULL;
    json_t *resolved = NULL, *report = NULL;
    if (find_content(s, id, path, &kind, e) || check_ask(ask, preview, e)) return NULL;
    if (preview ? jx_str(ask, "model", &model, e) : jx_opt_str(ask, "model", &model, e))
        return NULL;
    if (model && !(resolved = resolve_ask(s, ask, model, preview, e))) return NULL;
    report = resolved ? s->engine->preview(path, resolved, e)
                      : s->engine->check_file(path, kind, e);
    json_decref(resolved);
    if (!report) return NULL;
    if (!jx_set(report, "object", json_string(preview ? "file.preview" : "file.validation"), e) &&
        !jx_set(report, "file_id", jx_pack(e, "s", id), e) &&
        !jx_set(report, "model", jx_pack(e, "s?", model), e))
        return report;
    json_decref(report);
    return NULL;
}
