#include "service/blob.h"

#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/log.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

struct blobs {
    struct store *store;
    char dir[FS_PATH_MAX], spool[FS_PATH_MAX];
    _Atomic int64_t next; /* names of spool files */
};

struct blob_writer {
    struct blobs *blobs;
    struct hash *hash;
    struct buf head; /* the whole file while it is small: git hashes the length first */
    int64_t bytes, max_bytes;
    int fd;
    bool ended, published;
    struct blob_info info;
    char path[FS_PATH_MAX];
};

struct blobs *blob_open(const char *data_dir, struct store *store, struct err *e)
{
    struct blobs *b = mem_zalloc(sizeof *b, e);
    if (!b) return NULL;
    b->store = store;
    if (fs_join(b->dir, data_dir, "blobs", e) || fs_join(b->spool, data_dir, "spool", e) ||
        fs_mkdirs(b->dir, e) || fs_mkdirs(b->spool, e)) {
        mem_free(b);
        return NULL;
    }
    return b;
}

void blob_close(struct blobs *b)
{
    mem_free(b);
}

struct blob_writer *blob_writer_new(struct blobs *b, int64_t max_bytes, struct err *e)
{
    char name[32];
    struct blob_writer *w = mem_zalloc(sizeof *w, e);
    if (!w) return NULL;
    w->blobs = b;
    w->max_bytes = max_bytes;
    w->fd = -1;
    buf_init(&w->head, BLOB_GIT_MAX);
    snprintf(name, sizeof name, "upload-%lld", (long long)atomic_fetch_add(&b->next, 1));
    if (fs_join(w->path, b->spool, name, e)) goto fail;
    w->hash = hash_new("SHA256", e);
    if (!w->hash) goto fail;
    w->fd = fs_open(w->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600, e);
    if (w->fd < 0) goto fail;
    return w;
fail:
    hash_free(w->hash);
    mem_free(w);
    return NULL;
}

int blob_writer_put(struct blob_writer *w, const void *p, size_t n, struct err *e)
{
    if ((int64_t)n > w->max_bytes - w->bytes)
        return err_set(e, E_LIMIT, "the file is larger than the allowed %lld bytes",
                       (long long)w->max_bytes);
    if (CRASHPOINT("upload.put")) return err_set(e, E_IO, "injected failure");
    if (hash_add(w->hash, p, n, e) || fs_write_all(w->fd, p, n, e)) return -1;
    w->bytes += (int64_t)n;
    if (w->bytes <= BLOB_GIT_MAX)
        buf_put(&w->head, p, n);
    else
        buf_clear(&w->head);
    return 0;
}

int blob_writer_end(struct blob_writer *w, struct blob_info *info, struct err *e)
{
    if (!w->ended) {
        if (w->fd < 0) return err_set(e, E_BUG, "a failed upload was used again");
        int fd = w->fd, rc = fs_fsync(fd, e);
        w->fd = -1; /* after a failed fsync the bytes may be gone: there is no second try */
        if (fs_close(fd) && !rc) rc = err_sys(e, "cannot close");
        if (rc || hash_hex(w->hash, w->info.sha256, e)) return -1;
        if (w->bytes <= BLOB_GIT_MAX) {
            if (buf_ok(&w->head, e) ||
                hash_git_blob(buf_str(&w->head), w->head.len, w->info.git_sha1, e))
                return -1;
        }
        buf_clear(&w->head);
        w->info.bytes = w->bytes;
        w->ended = true;
        if (CRASHPOINT("upload.spooled")) return err_set(e, E_IO, "injected failure");
    }
    if (info) *info = w->info;
    return 0;
}

const char *blob_writer_path(const struct blob_writer *w)
{
    return w->path;
}

void blob_writer_abort(struct blob_writer *w)
{
    struct err ignored;
    if (!w) return;
    fs_close(w->fd);
    if (!w->published) fs_unlink(w->path, &ignored);
    hash_free(w->hash);
    buf_clear(&w->head);
    mem_free(w);
}

/* DATA/blobs/ab/abcdef...; the folder ab alone if dir_only. */
static int path_of(const struct blobs *b, const char *sha256, bool dir_only,
                   char out[FS_PATH_MAX], struct err *e)
{
    int n = snprintf(out, FS_PATH_MAX, "%s/%.2s%s%s", b->dir, sha256, dir_only ? "" : "/",
                     dir_only ? "" : sha256);
    return n < FS_PATH_MAX ? 0 : err_set(e, E_LIMIT, "path too long: %.80s...", b->dir);
}

int blob_path(const struct blobs *b, const char *sha256, char out[FS_PATH_MAX], struct err *e)
{
    return path_of(b, sha256, false, out, e);
}

int blob_publish(struct blob_writer *w, struct err *e)
{
    struct blobs *b = w->blobs;
    char path[FS_PATH_MAX], dir[FS_PATH_MAX];
    if (!w->ended || w->published) return err_set(e, E_BUG, "blob published in a wrong state");
    if (path_of(b, w->info.sha256, false, path, e) || path_of(b, w->info.sha256, true, dir, e))
        return -1;
    int known = store_run(b->store, e,
                          "INSERT INTO blobs (sha256, bytes, git_sha1, created_at) "
                          "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                          "titi", w->info.sha256, w->info.bytes,
                          *w->info.git_sha1 ? w->info.git_sha1 : NULL, clock_unix_ms());
    if (known < 0) return -1;
    /* The rename replaces equal bytes by equal bytes if the blob is there already. */
    bool new_dir = !fs_is_dir(dir);
    if (fs_mkdirs(dir, e) || fs_rename(w->path, path, e)) return -1;
    w->published = true;
    if (CRASHPOINT("blob.renamed_not_recorded")) return err_set(e, E_IO, "injected failure");
    if (fs_sync_dir(dir, e) || (new_dir && fs_sync_dir(b->dir, e))) return -1;
    return 0;
}

int blob_drop(struct blobs *b, const char *sha256, struct err *e)
{
    char path[FS_PATH_MAX];
    struct store_rows *r;
    if (blob_path(b, sha256, path, e)) return -1;
    /* Held until the file is gone: an upload of the same bytes must come wholly before or after. */
    store_lock(b->store);
    int rc = store_run(b->store, e,
                       "DELETE FROM blobs WHERE sha256 = ? "
                       "AND NOT EXISTS (SELECT 1 FROM files WHERE files.sha256 = blobs.sha256)",
                       "t", sha256);
    if (rc < 0) goto out;
    rc = store_one(b->store, &r, e, "SELECT 1 FROM blobs WHERE sha256 = ?", "t", sha256);
    if (rc == 1) store_rows_end(r);
    if (rc) {
        rc = rc < 0 ? -1 : 0;
        goto out;
    }
    if (CRASHPOINT("blob.unrecorded_not_removed"))
        rc = err_set(e, E_IO, "injected failure");
    else
        rc = fs_unlink(path, e);
out:
    store_unlock(b->store);
    return rc;
}

int blob_read(const struct blobs *b, const char *sha256, struct err *e)
{
    char path[FS_PATH_MAX];
    if (blob_path(b, sha256, path, e)) return -1;
    int fd = fs_open(path, O_RDONLY | O_NOFOLLOW, 0, e);
    if (fd < 0 && e->code == E_NOTFOUND) e->code = E_CORRUPT; /* its row says it exists */
    return fd;
}

static int sweep_dir(struct blobs *b, const char *dir, struct err *e)
{
    char **names = NULL;
    int n = 0, rc = -1;
    if (fs_list(dir, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        struct store_rows *r;
        char path[FS_PATH_MAX];
        int known = store_one(b->store, &r, e, "SELECT 1 FROM blobs WHERE sha256 = ?", "t",
                              names[i]);
        if (known < 0) goto out;
        if (known) {
            store_rows_end(r);
            continue;
        }
        if (fs_join(path, dir, names[i], e) || fs_unlink(path, e)) goto out;
        log_event(LOG_INFO, NULL, "removed a blob without a row",
                  LOG_FIELDS(LOG_S("sha256", names[i])));
    }
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}

int blob_sweep(struct blobs *b, struct err *e)
{
    char **names = NULL, dir[FS_PATH_MAX];
    int n = 0, rc = -1;
    if (fs_rmtree(b->spool, e) || fs_mkdirs(b->spool, e) || fs_list(b->dir, &names, &n, e))
        return -1;
    for (int i = 0; i < n; i++)
        if (fs_join(dir, b->dir, names[i], e) || (fs_is_dir(dir) && sweep_dir(b, dir, e)))
            goto out;
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}
