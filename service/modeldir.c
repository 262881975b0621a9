#include "service/modeldir.h"

#include "engine/base/buf.h"
#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- where folders may lie ------------------------------------------------------------------ */

static bool below(const char *path, const char *root)
{
    size_t n = strlen(root);
    if (n && root[n - 1] == '/') n--;
    return strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

/* Both sides are compared with links resolved, so that neither `..` nor a link leads outside. */
static bool allowed(const struct config *c, const char *real)
{
    const char *p = c->model_roots;
    while (*p) {
        char root[FS_PATH_MAX], resolved[PATH_MAX];
        size_t n = strcspn(p, ":");
        snprintf(root, sizeof root, "%.*s", (int)n, p);
        if (root[0] == '/' && realpath(root, resolved) && below(real, resolved)) return true;
        p += n + (p[n] == ':');
    }
    return false;
}

static int resolve(const struct config *c, const char *path, char out[FS_PATH_MAX], struct err *e)
{
    char real[PATH_MAX];
    /* One answer for "does not exist" and "is not allowed": existence outside is not told. */
    if (!realpath(path, real) || !allowed(c, real) || !str_copy(out, FS_PATH_MAX, real))
        return err_set(e, E_NOTFOUND, "'%.200s' is not a folder below the configured model_roots",
                       path);
    return 0;
}

int modeldir_resolve(const struct config *c, const char *path, char out[FS_PATH_MAX],
                     struct err *e)
{
    if (path[0] != '/') return err_set(e, E_ARG, "the path must be absolute");
    if (!*c->model_roots)
        return err_set(e, E_ARG, "no folder may be registered: the setting model_roots is empty");
    if (resolve(c, path, out, e)) return -1;
    return fs_is_dir(out) ? 0 : err_set(e, E_ARG, "'%.200s' is not a folder", path);
}

/* --- entries -------------------------------------------------------------------------------- */

static bool wanted(const char *name)
{
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".pkl", ".ckpt"};
    if (!fs_safe_name(name)) return false;
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++)
        if (str_ends(name, pickles[i])) return false;
    return true;
}

static json_t *entry(const char *full, const char *rel, int64_t bytes, const char *sha256,
                     struct err *e)
{
    char hex[65], git[41] = "";
    struct buf b;
    buf_init(&b, BLOB_GIT_MAX);
    int rc = 0;
    if (bytes <= BLOB_GIT_MAX) {
        rc = fs_read_file(full, &b, e) || hash_git_blob(buf_str(&b), b.len, git, e);
        if (!rc && !sha256) rc = hash_sha256(buf_str(&b), b.len, hex, e);
    } else if (!sha256) {
        rc = hash_file_sha256(full, hex, e);
    }
    buf_clear(&b);
    if (rc) return NULL;
    return jx_pack(e, "{s:s, s:I, s:s, s:s?}", "path", rel, "bytes", (json_int_t)bytes, "sha256",
                   sha256 ? sha256 : hex, "git_sha1", *git ? git : NULL);
}

static int by_path(const void *a, const void *b)
{
    const json_t *const *x = a, *const *y = b;
    return strcmp(json_string_value(json_object_get(*x, "path")),
                  json_string_value(json_object_get(*y, "path")));
}

/* The same list in byte order of the paths, which is the order of the commit id. */
static json_t *sorted(json_t *list, struct err *e)
{
    size_t n = json_array_size(list);
    json_t **v = mem_array((int64_t)n, sizeof *v, e), *out = v ? json_array() : NULL;
    for (size_t i = 0; v && i < n; i++) v[i] = json_array_get(list, i);
    if (out && n) qsort(v, n, sizeof *v, by_path);
    for (size_t i = 0; out && i < n; i++) {
        if (json_array_append(out, v[i]) == 0) continue;
        json_decref(out);
        out = NULL;
    }
    if (v && !out) err_set(e, E_NOMEM, "out of memory");
    mem_free(v);
    json_decref(list);
    return out;
}

/* --- scanning a folder ---------------------------------------------------------------------- */

struct scan {
    const struct config *config;
    const char *root;
    json_t *list;
};

static int scan_dir(struct scan *s, const char *rel, int depth, struct err *e);

static int scan_one(struct scan *s, const char *rel, int depth, struct err *e)
{
    char full[FS_PATH_MAX], real[FS_PATH_MAX];
    if (fs_join(full, s->root, rel, e) || resolve(s->config, full, real, e)) return -1;
    if (fs_is_dir(real)) return depth < MODELDIR_DEPTH ? scan_dir(s, rel, depth + 1, e) : 0;
    int64_t bytes = fs_size(real, e);
    if (bytes < 0) return -1;
    if (json_array_size(s->list) >= MODELDIR_FILES_MAX)
        return err_set(e, E_LIMIT, "the folder has more than %d files", MODELDIR_FILES_MAX);
    return service_append(s->list, entry(real, rel, bytes, NULL, e), e);
}

static int scan_dir(struct scan *s, const char *rel, int depth, struct err *e)
{
    char full[FS_PATH_MAX], sub[FS_PATH_MAX], **names = NULL;
    int n = 0, rc = -1;
    if (fs_join(full, s->root, rel, e) || fs_list(full, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        if (!wanted(names[i])) continue;
        if (*rel ? fs_join(sub, rel, names[i], e) : !str_copy(sub, sizeof sub, names[i])) goto out;
        if (scan_one(s, sub, depth, e)) goto out;
    }
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}

json_t *modeldir_scan(const struct config *c, const char *dir, struct err *e)
{
    struct scan s = {c, dir, json_array()};
    if (!s.list) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    if (scan_dir(&s, "", 0, e)) {
        json_decref(s.list);
        return NULL;
    }
    return sorted(s.list, e);
}

/* --- uploaded files ------------------------------------------------------------------------- */

static bool safe_path(const char *path)
{
    char part[256];
    int depth = 0;
    for (;; depth++) {
        size_t n = strcspn(path, "/");
        if (n == 0 || n >= sizeof part || depth > MODELDIR_DEPTH) return false;
        memcpy(part, path, n);
        part[n] = 0;
        if (!wanted(part)) return false;
        if (!path[n]) return true;
        path += n + 1;
    }
}

static int link_blob(struct service *s, const char *file_id, const char *to,
                     struct blob_info *info, struct err *e)
{
    char from[FS_PATH_MAX];
    struct store_rows *r;
    store_lock(s->store);
    int rc = store_one(s->store, &r, e,
                       "SELECT b.sha256, b.bytes, coalesce(b.git_sha1, '') FROM files f "
                       "JOIN blobs b ON b.sha256 = f.sha256 WHERE f.id = ?",
                       "t", file_id);
    if (rc == 0) rc = err_set(e, E_NOTFOUND, "there is no file '%.80s'", file_id);
    if (rc == 1) {
        const char *sha = store_text(r, 0), *git = store_text(r, 2);
        info->bytes = store_int(r, 1);
        bool ok = sha && git && str_copy(info->sha256, 65, sha) &&
                  str_copy(info->git_sha1, 41, git);
        store_rows_end(r);
        rc = !ok ? err_set(e, E_NOMEM, "out of memory")
                 : blob_path(s->blobs, info->sha256, from, e) || fs_link(from, to, e) ? -1 : 0;
    }
    store_unlock(s->store);
    return rc;
}

static int link_one(struct service *s, const json_t *item, const char *dir, json_t *out,
                    struct err *e)
{
    const char *path, *file;
    char full[FS_PATH_MAX], parent[FS_PATH_MAX];
    struct blob_info info = {0};
    if (jx_str(item, "path", &path, e) || jx_str(item, "file", &file, e)) return -1;
    if (!safe_path(path))
        return err_set(e, E_ARG, "'%.80s' is no path of a model file", path);
    if (fs_join(full, dir, path, e)) return -1;
    fs_parent(parent, full);
    if (fs_exists(full)) return err_set(e, E_ARG, "'%.80s' appears twice", path);
    if (fs_mkdirs(parent, e) || link_blob(s, file, full, &info, e) || fs_sync_dir(parent, e))
        return -1;
    return service_append(out,
                          jx_pack(e, "{s:s, s:I, s:s, s:s?}", "path", path, "bytes",
                                  (json_int_t)info.bytes, "sha256", info.sha256, "git_sha1",
                                  *info.git_sha1 ? info.git_sha1 : NULL),
                          e);
}

json_t *modeldir_link(struct service *s, const json_t *list, const char *dir, struct err *e)
{
    size_t i;
    json_t *item, *out = NULL;
    char root[FS_PATH_MAX];
    if (json_array_size(list) > MODELDIR_FILES_MAX) {
        err_set(e, E_LIMIT, "a model has at most %d files", MODELDIR_FILES_MAX);
        return NULL;
    }
    if (fs_mkdirs(dir, e) || fs_join(root, s->data_dir, "models", e)) return NULL;
    if (!(out = json_array())) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    json_array_foreach(list, i, item) {
        bool ok = link_one(s, item, dir, out, e) == 0;
        if (ok && CRASHPOINT("models.file_linked")) ok = err_set(e, E_IO, "injected failure") == 0;
        if (ok) continue;
        err_param(e, "files[%zu]", i);
        json_decref(out);
        return NULL;
    }
    if (fs_sync_dir(root, e)) {
        json_decref(out);
        return NULL;
    }
    return sorted(out, e);
}

/* --- results -------------------------------------------------------------------------------- */

static int result_one(const char *result_dir, const char *path, size_t skip, const json_t *want,
                      json_t *out, struct err *e)
{
    char full[FS_PATH_MAX];
    const char *sha;
    int64_t bytes;
    if (jx_int64(want, "bytes", 0, INT64_MAX, &bytes, e) || jx_str(want, "sha256", &sha, e) ||
        fs_join(full, result_dir, path, e))
        return -1;
    if (!safe_path(path + skip) || strlen(sha) != 64)
        return err_set(e, E_CORRUPT, "the manifest names '%.80s'", path);
    return service_append(out, entry(full, path + skip, bytes, sha, e), e);
}

json_t *modeldir_result(const char *result_dir, const char *sub, struct err *e)
{
    char at[FS_PATH_MAX];
    const char *path;
    json_t *manifest = NULL, *files, *want, *out = NULL;
    size_t skip = strlen(sub) + 1;
    if (fs_join(at, result_dir, "manifest.json", e)) return NULL;
    manifest = jx_load_file(at, 16 << 20, e);
    if (!manifest || jx_object(manifest, "files", &files, e)) goto fail;
    if (!(out = json_array())) {
        err_set(e, E_NOMEM, "out of memory");
        goto fail;
    }
    json_object_foreach(files, path, want) {
        if (strncmp(path, sub, skip - 1) != 0 || path[skip - 1] != '/') continue;
        if (result_one(result_dir, path, skip, want, out, e)) goto fail;
    }
    if (json_array_size(out) == 0) {
        err_set(e, E_NOTFOUND, "the result has no %s", sub);
        goto fail;
    }
    json_decref(manifest);
    return sorted(out, e);
fail:
    json_decref(out);
    json_decref(manifest);
    return NULL;
}
