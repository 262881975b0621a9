#include "service/models.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/log.h"
#include "service/modeldir.h"
#include "service/queue.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* --- ids ------------------------------------------------------------------------------------ */

static bool word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool name_ok(const char *s, size_t n)
{
    if (n == 0 || n > 96 || !word(s[0]) || !word(s[n - 1])) return false;
    if (n >= 4 && memcmp(s + n - 4, ".git", 4) == 0) return false;
    for (size_t i = 0; i < n; i++) {
        if (!word(s[i]) && s[i] != '-' && s[i] != '.') return false;
        if (i && s[i] == s[i - 1] && (s[i] == '-' || s[i] == '.')) return false;
    }
    return true;
}

bool models_id_ok(const char *id)
{
    const char *slash = strchr(id, '/');
    return slash && name_ok(id, (size_t)(slash - id)) && name_ok(slash + 1, strlen(slash + 1));
}

/* --- writing -------------------------------------------------------------------------------- */

/* sha1 over the sorted lines "path\0bytes\0sha256\n": the same files give the same commit. */
static int commit_of(const json_t *files, char out[41], int64_t *bytes, struct err *e)
{
    size_t i;
    json_t *f;
    struct hash *h = hash_new("SHA1", e);
    if (!h) return -1;
    int rc = 0;
    *bytes = 0;
    json_array_foreach(files, i, f) {
        char line[FS_PATH_MAX + 128];
        json_int_t n = json_integer_value(json_object_get(f, "bytes"));
        int len = snprintf(line, sizeof line, "%s%c%lld%c%s\n",
                           json_string_value(json_object_get(f, "path")), 0, (long long)n, 0,
                           json_string_value(json_object_get(f, "sha256")));
        *bytes += n;
        if ((rc = hash_add(h, line, (size_t)len, e))) break;
    }
    if (rc == 0) rc = hash_hex(h, out, e);
    hash_free(h);
    return rc;
}

static int insert_files(struct service *s, int64_t seq, const json_t *files, struct err *e)
{
    size_t i;
    json_t *f;
    json_array_foreach(files, i, f) {
        int64_t n = json_integer_value(json_object_get(f, "bytes"));
        if (store_run(s->store, e,
                      "INSERT INTO model_files (model, path, bytes, sha256, git_sha1) "
                      "VALUES (?, ?, ?, ?, ?)",
                      "ititt", seq, json_string_value(json_object_get(f, "path")), n,
                      json_string_value(json_object_get(f, "sha256")),
                      json_string_value(json_object_get(f, "git_sha1"))) < 0)
            return -1;
    }
    return 0;
}

static int taken(struct service *s, const char *id, struct err *e)
{
    struct store_rows *r;
    /* The names of results to come are taken as well: a job must be able to publish. */
    int rc = store_one(s->store, &r, e,
                       "SELECT 1 FROM models WHERE id = ?1 UNION ALL SELECT 1 FROM jobs "
                       "WHERE (result_id = ?1 OR result_id || '-adapter' = ?1) AND state NOT IN "
                       "('succeeded', 'failed', 'cancelled')",
                       "t", id);
    if (rc == 1) store_rows_end(r);
    return rc;
}

int models_insert(struct service *s, const struct models_new *n, struct err *e)
{
    char commit[41];
    int64_t bytes;
    struct store_rows *r;
    if (commit_of(n->files, commit, &bytes, e)) return -1;
    int rc = store_one(s->store, &r, e,
                       "INSERT INTO models (id, kind, parent, job, commit_sha, dir, bytes, "
                       "created_at, info) VALUES (?, ?, ?, (SELECT seq FROM jobs WHERE id = ?), "
                       "?, ?, ?, ?, ?) RETURNING seq",
                       "ttttttiij", n->id, n->kind, n->parent, n->job_id, commit, n->dir, bytes,
                       clock_unix_ms(), n->info);
    if (rc != 1) return rc < 0 ? -1 : err_set(e, E_BUG, "a model row was not written");
    int64_t seq = store_int(r, 0);
    store_rows_end(r);
    return insert_files(s, seq, n->files, e);
}

/* One transaction: nobody took the id, the row is written, the model is rendered. */
static int record(struct service *s, const struct models_new *n, json_t **out, struct err *e)
{
    struct model m = {0};
    json_t *o = NULL;
    if (store_begin(s->store, e)) return -1;
    int rc = taken(s, n->id, e);
    if (rc == 1) {
        err_set(e, E_CONFLICT, "a model '%s' exists already", n->id);
        rc = err_param(e, "id");
    }
    if (rc == 0) rc = models_insert(s, n, e);
    if (rc == 0) rc = models_get(s, n->id, &m, e);
    if (rc == 0 && !(o = models_json(&m, e))) rc = -1;
    models_clear(&m);
    if (rc == 0 && CRASHPOINT("models.before_record")) rc = err_set(e, E_IO, "injected failure");
    if (rc)
        store_rollback(s->store);
    else
        rc = store_commit(s->store, e);
    if (rc) {
        json_decref(o);
        return -1;
    }
    *out = o;
    return 0;
}

/* --- registering a folder ------------------------------------------------------------------- */

static int default_id(const char *dir, char id[MODELS_ID_MAX + 1], struct err *e)
{
    const char *name = strrchr(dir, '/');
    snprintf(id, MODELS_ID_MAX + 1, "default/%.180s", name ? name + 1 : dir);
    if (models_id_ok(id)) return 0;
    err_set(e, E_ARG, "the folder's name is no model name: give an id");
    return err_param(e, "id");
}

static int register_folder(struct service *s, const char *id, const char *path, json_t **out,
                           struct err *e)
{
    char dir[FS_PATH_MAX], own[MODELS_ID_MAX + 1];
    json_t *files = NULL, *info = NULL;
    int rc = -1;
    if (modeldir_resolve(s->config, path, dir, e)) {
        err_param(e, "path");
        goto out;
    }
    if (!id && default_id(dir, own, e)) goto out;
    if (!(info = s->engine->check_model(dir, e)) ||
        !(files = modeldir_scan(s->config, dir, e))) {
        err_param(e, "path");
        goto out;
    }
    struct models_new n = {.id = id ? id : own, .kind = "base", .dir = dir, .info = info,
                           .files = files};
    rc = record(s, &n, out, e);
out:
    json_decref(info);
    json_decref(files);
    return rc;
}

/* --- assembling from uploads ---------------------------------------------------------------- */

static int assemble(struct service *s, const char *id, const json_t *list, json_t **out,
                    struct err *e)
{
    char key[QUEUE_ID_MAX], rel[FS_PATH_MAX], dir[FS_PATH_MAX];
    json_t *files = NULL, *info = NULL;
    struct err ignored;
    int rc = -1;
    if (!id) {
        err_set(e, E_ARG, "'id' is required for a model made of files");
        return err_param(e, "id");
    }
    if (service_new_id(key, sizeof key, "model-", e) || fs_join(rel, "models", key, e) ||
        fs_join(dir, s->data_dir, rel, e))
        return -1;
    if (!(files = modeldir_link(s, list, dir, e))) goto out;
    if (!(info = s->engine->check_model(dir, e))) {
        err_param(e, "files");
        goto out;
    }
    if (CRASHPOINT("models.linked_not_recorded")) {
        err_set(e, E_IO, "injected failure");
        goto out;
    }
    struct models_new n = {.id = id, .kind = "base", .dir = rel, .info = info, .files = files};
    rc = record(s, &n, out, e);
out:
    if (rc && fs_rmtree(dir, &ignored))
        log_err(LOG_WARN, NULL, "a model folder stays until the next start", &ignored, NULL);
    json_decref(info);
    json_decref(files);
    return rc;
}

int models_create(struct service *s, const json_t *body, json_t **model, struct err *e)
{
    const char *id = NULL, *path = NULL, *key;
    json_t *v, *files = json_object_get(body, "files");
    if (!json_is_object(body)) return err_set(e, E_ARG, "the body must be a JSON object");
    json_object_foreach((json_t *)(uintptr_t)body, key, v) {
        if (str_eq(key, "id") || str_eq(key, "path") || str_eq(key, "files")) continue;
        err_set(e, E_ARG, "unknown field '%.60s'", key);
        return err_param(e, "%s", key);
    }
    if (jx_opt_str(body, "id", &id, e) || jx_opt_str(body, "path", &path, e)) return -1;
    if (id && !models_id_ok(id)) {
        err_set(e, E_ARG, "'%.80s' is no model id: namespace/name of letters, digits, '.', '_' and "
                          "'-'", id);
        return err_param(e, "id");
    }
    if (path && !files) return register_folder(s, id, path, model, e);
    if (json_is_array(files) && json_array_size(files) && !path)
        return assemble(s, id, files, model, e);
    err_set(e, E_ARG, "give either 'path' (a folder on the server) or 'files' (a list)");
    return err_param(e, "path");
}

/* --- reading -------------------------------------------------------------------------------- */

static const char *keep(struct model *m, struct store_rows *r, int column, struct err *e)
{
    const char *text = store_text(r, column);
    return arena_strdup(&m->arena, text ? text : "", e);
}

/* NULL stays NULL; *bad tells a failure from that. */
static const char *keep_null(struct model *m, struct store_rows *r, int column, bool *bad,
                             struct err *e)
{
    if (store_is_null(r, column)) return NULL;
    const char *p = keep(m, r, column, e);
    if (!p) *bad = true;
    return p;
}

static int load_files(struct service *s, int64_t seq, int64_t count, struct model *m,
                      struct err *e)
{
    bool bad = false;
    m->files = arena_alloc(&m->arena, (size_t)(count ? count : 1) * sizeof *m->files, e);
    if (!m->files) return -1;
    struct store_rows *r = store_query(s->store, e,
                                       "SELECT path, bytes, sha256, git_sha1 FROM model_files "
                                       "WHERE model = ? ORDER BY path",
                                       "i", seq);
    int rc = r ? 0 : -1;
    while (rc == 0 && m->nfiles < count && (rc = store_next(r, e)) == 1) {
        struct model_file *f = &m->files[m->nfiles++];
        *f = (struct model_file){.path = keep(m, r, 0, e), .bytes = store_int(r, 1),
                                 .sha256 = keep(m, r, 2, e),
                                 .git_sha1 = keep_null(m, r, 3, &bad, e)};
        rc = bad || !f->path || !f->sha256 ? -1 : 0;
    }
    store_rows_end(r);
    return rc;
}

static int load(struct service *s, struct store_rows *r, struct model *m, struct err *e)
{
    bool bad = false;
    m->id = keep(m, r, 1, e);
    m->kind = keep(m, r, 2, e);
    m->parent = keep_null(m, r, 3, &bad, e);
    m->commit = keep(m, r, 4, e);
    m->dir = keep(m, r, 5, e);
    m->bytes = store_int(r, 6);
    m->created_at = store_int(r, 7);
    m->info = store_json(r, 8, e);
    m->job_id = keep_null(m, r, 9, &bad, e);
    m->method = keep_null(m, r, 10, &bad, e);
    if (bad || !m->id || !m->kind || !m->commit || !m->dir || !m->info) return -1;
    if (m->dir[0] != '/') m->dir = arena_printf(&m->arena, e, "%s/%s", s->data_dir, m->dir);
    if (!m->dir) return -1;
    return load_files(s, store_int(r, 0), store_int(r, 11), m, e);
}

#define MODEL_COLUMNS \
    "m.seq, m.id, m.kind, m.parent, m.commit_sha, m.dir, m.bytes, m.created_at, m.info, j.id, " \
    "j.method, (SELECT count(*) FROM model_files f WHERE f.model = m.seq) " \
    "FROM models m LEFT JOIN jobs j ON j.seq = m.job "

int models_get(struct service *s, const char *id, struct model *m, struct err *e)
{
    struct store_rows *r;
    struct model found = {0};
    int rc = store_one(s->store, &r, e, "SELECT " MODEL_COLUMNS "WHERE m.id = ?", "t", id);
    if (rc == 0) return err_set(e, E_NOTFOUND, "there is no model '%.120s'", id);
    if (rc < 0) return -1;
    arena_init(&found.arena, 16 << 20);
    rc = load(s, r, &found, e);
    store_rows_end(r);
    if (rc) {
        models_clear(&found);
        return -1;
    }
    *m = found;
    return 0;
}

void models_clear(struct model *m)
{
    json_decref(m->info);
    arena_clear(&m->arena);
    *m = (struct model){0};
}

const struct model_file *models_file(const struct model *m, const char *path)
{
    int lo = 0, hi = m->nfiles;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2, c = strcmp(path, m->files[mid].path);
        if (c == 0) return &m->files[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

int models_read(const struct model *m, const struct model_file *f, struct err *e)
{
    char path[FS_PATH_MAX];
    struct stat st;
    if (fs_join(path, m->dir, f->path, e)) return -1;
    int fd = fs_open(path, O_RDONLY, 0, e);
    if (fd < 0) {
        if (e->code == E_NOTFOUND) e->code = E_CORRUPT;
        return -1;
    }
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == f->bytes) return fd;
    fs_close(fd);
    return err_set(e, E_CORRUPT, "%s of model %s has changed on disk since it was registered",
                   f->path, m->id);
}

json_t *models_json(const struct model *m, struct err *e)
{
    const char *slash = strchr(m->id, '/');
    json_t *extra = jx_pack(e, "{s:s, s:s?, s:s?, s:I, s:s, s:i, s:O}", "kind", m->kind, "job_id",
                            m->job_id, "method", m->method, "bytes", (json_int_t)m->bytes,
                            "commit", m->commit, "files", m->nfiles, "info", m->info);
    if (!extra) return NULL;
    return jx_pack(e, "{s:s, s:s, s:I, s:s#, s:s?, s:s, s:o}", "id", m->id, "object", "model",
                   "created", (json_int_t)(m->created_at / 1000), "owned_by", m->id,
                   (int)(slash ? slash - m->id : 0), "parent", m->parent, "root",
                   m->parent ? m->parent : m->id, "graft", extra);
}

json_t *models_list(struct service *s, struct err *e)
{
    json_t *data = json_array();
    struct store_rows *r = !data ? NULL
                                 : store_query(s->store, e,
                                               "SELECT " MODEL_COLUMNS "ORDER BY m.seq DESC", "");
    int rc = r ? 0 : -1;
    if (!data) err_set(e, E_NOMEM, "out of memory");
    while (rc == 0 && (rc = store_next(r, e)) == 1) {
        struct model m = {0};
        arena_init(&m.arena, 16 << 20);
        rc = load(s, r, &m, e) ? -1 : service_append(data, models_json(&m, e), e);
        models_clear(&m);
    }
    store_rows_end(r);
    if (rc == 0) return service_list(data, false, e);
    json_decref(data);
    return NULL;
}

/* --- deleting ------------------------------------------------------------------------------- */

static int remove_row(struct service *s, const char *id, char dir[FS_PATH_MAX], struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s->store, &r, e,
                       "SELECT dir, EXISTS (SELECT 1 FROM jobs WHERE state NOT IN ('succeeded', "
                       "'failed', 'cancelled') AND model = models.id) FROM models WHERE id = ?",
                       "t", id);
    if (rc < 0) return -1;
    if (rc == 0) return err_set(e, E_NOTFOUND, "there is no model '%.120s'", id);
    bool used = store_int(r, 1) != 0;
    bool known = store_text(r, 0) && str_copy(dir, FS_PATH_MAX, store_text(r, 0));
    store_rows_end(r);
    if (!known) return err_set(e, E_NOMEM, "out of memory");
    if (used) return err_set(e, E_CONFLICT, "a job that has not ended uses this model");
    return store_run(s->store, e, "DELETE FROM models WHERE id = ?", "t", id) < 0 ? -1 : 0;
}

int models_delete(struct service *s, const char *id, struct err *e)
{
    char dir[FS_PATH_MAX], full[FS_PATH_MAX];
    struct err late;
    if (store_begin(s->store, e)) return -1;
    if (remove_row(s, id, dir, e)) {
        store_rollback(s->store);
        return -1;
    }
    if (store_commit(s->store, e)) return -1;
    if (dir[0] == '/') return 0; /* a folder of the user */
    if (CRASHPOINT("models.unrecorded_not_removed")) return err_set(e, E_IO, "injected failure");
    if (fs_join(full, s->data_dir, dir, &late) || fs_rmtree(full, &late))
        log_err(LOG_WARN, NULL, "the files of a deleted model remain", &late, NULL);
    return 0;
}

int models_sweep(struct service *s, struct err *e)
{
    char root[FS_PATH_MAX], **names = NULL;
    int n = 0, rc = -1;
    if (fs_join(root, s->data_dir, "models", e) || fs_mkdirs(root, e) ||
        fs_list(root, &names, &n, e))
        return -1;
    for (int i = 0; i < n; i++) {
        char rel[FS_PATH_MAX], full[FS_PATH_MAX];
        struct store_rows *r;
        if (fs_join(rel, "models", names[i], e) || fs_join(full, root, names[i], e)) goto out;
        int known = store_one(s->store, &r, e, "SELECT 1 FROM models WHERE dir = ?", "t", rel);
        if (known < 0) goto out;
        if (known)
            store_rows_end(r);
        else if (fs_rmtree(full, e))
            goto out;
    }
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}
