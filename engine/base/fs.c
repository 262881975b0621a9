/* The one file that may call open, read, write, rename, fsync and unlink. */
#include "engine/base/fs.h"

#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

int fs_open(const char *path, int flags, int mode, struct err *e)
{
    int fd = fault_hit(FAULT_FILE) ? -1 : open(path, flags | O_CLOEXEC, mode);
    return fd < 0 ? err_sys(e, "cannot open %s", path) : fd;
}

int64_t fs_read(int fd, void *p, size_t n, struct err *e)
{
    for (;;) {
        ssize_t k = fault_hit(FAULT_FILE) ? -1 : read(fd, p, n);
        if (k >= 0) return k;
        if (errno != EINTR) return err_sys(e, "cannot read");
    }
}

int fs_write_all(int fd, const void *p, size_t n, struct err *e)
{
    const char *s = p;
    while (n) {
        ssize_t k = fault_hit(FAULT_FILE) ? -1 : write(fd, s, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return err_sys(e, "cannot write");
        s += k;
        n -= (size_t)k;
    }
    return 0;
}

int fs_fsync(int fd, struct err *e)
{
    /* After a failed fsync the pages may be gone: the caller must give the file up. */
    if (fault_hit(FAULT_FILE) || fsync(fd)) return err_sys(e, "cannot sync to disk");
    return 0;
}

int fs_close(int fd)
{
    return fd < 0 ? 0 : close(fd);
}

int64_t fs_size(const char *path, struct err *e)
{
    struct stat st;
    if (fault_hit(FAULT_FILE) || stat(path, &st)) return err_sys(e, "cannot look at %s", path);
    if (!S_ISREG(st.st_mode)) return err_set(e, E_ARG, "%s is not a regular file", path);
    return st.st_size;
}

bool fs_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool fs_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int fs_mkdirs(const char *path, struct err *e)
{
    char p[FS_PATH_MAX];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof p) return err_set(e, E_LIMIT, "path too long: %.80s...", path);
    memcpy(p, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (p[i] != '/' && p[i] != 0) continue;
        char keep = p[i];
        p[i] = 0;
        if (!fs_is_dir(p) && (fault_hit(FAULT_FILE) || mkdir(p, 0700)) && !fs_is_dir(p))
            return err_sys(e, "cannot create the folder %s", p);
        p[i] = keep;
    }
    return 0;
}

int fs_rename(const char *from, const char *to, struct err *e)
{
    if (fault_hit(FAULT_FILE) || rename(from, to))
        return err_sys(e, "cannot rename %s to %s", from, to);
    return 0;
}

int fs_link(const char *from, const char *to, struct err *e)
{
    if (fault_hit(FAULT_FILE) || link(from, to))
        return err_sys(e, "cannot link %s to %s", from, to);
    return 0;
}

int fs_unlink(const char *path, struct err *e)
{
    if (fault_hit(FAULT_FILE) || (unlink(path) && errno != ENOENT))
        return err_sys(e, "cannot remove %s", path);
    return 0;
}

int fs_rmtree(const char *path, struct err *e)
{
    struct stat st;
    if (lstat(path, &st)) return errno == ENOENT ? 0 : err_sys(e, "cannot look at %s", path);
    if (!S_ISDIR(st.st_mode)) return fs_unlink(path, e);
    char **names = NULL;
    int n = 0, rc = -1;
    if (fs_list(path, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        char p[FS_PATH_MAX];
        if (fs_join(p, path, names[i], e) || fs_rmtree(p, e)) goto out;
    }
    if (fault_hit(FAULT_FILE) || (rmdir(path) && errno != ENOENT)) {
        err_sys(e, "cannot remove the folder %s", path);
        goto out;
    }
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}

int fs_sync_dir(const char *path, struct err *e)
{
    int fd = fs_open(path, O_RDONLY | O_DIRECTORY, 0, e);
    if (fd < 0) return -1;
    int rc = fs_fsync(fd, e);
    fs_close(fd);
    return rc;
}

int64_t fs_free_bytes(const char *path, struct err *e)
{
    struct statvfs v;
    if (statvfs(path, &v)) return err_sys(e, "cannot ask for the free space of %s", path);
    return (int64_t)v.f_bavail * (int64_t)v.f_frsize;
}

void fs_parent(char out[FS_PATH_MAX], const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) snprintf(out, FS_PATH_MAX, ".");
    else snprintf(out, FS_PATH_MAX, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

int fs_join(char out[FS_PATH_MAX], const char *dir, const char *name, struct err *e)
{
    size_t n = strlen(dir);
    const char *sep = n && dir[n - 1] == '/' ? "" : "/";
    int k = snprintf(out, FS_PATH_MAX, "%s%s%s", dir, sep, name);
    if (k < 0 || k >= FS_PATH_MAX) return err_set(e, E_LIMIT, "path too long: %.80s...", dir);
    return 0;
}

bool fs_safe_name(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 255 || name[0] == '.') return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
        if (!ok) return false;
    }
    return true;
}

int fs_read_file(const char *path, struct buf *b, struct err *e)
{
    int fd = fs_open(path, O_RDONLY, 0, e);
    if (fd < 0) return -1;
    int rc = -1;
    for (;;) {
        char *to = buf_room(b, b->max - b->len < 65536 ? b->max - b->len : 65536);
        if (!to) {
            buf_ok(b, e);
            break;
        }
        int64_t n;
        if (b->len == b->max) {
            char one;
            n = fs_read(fd, &one, 1, e);
            if (n > 0) n = err_set(e, E_LIMIT, "larger than the allowed %zu bytes", b->max);
        } else {
            n = fs_read(fd, to, b->max - b->len < 65536 ? b->max - b->len : 65536, e);
        }
        if (n < 0) break;
        b->len += (size_t)n;
        b->data[b->len] = 0;
        if (n == 0) {
            rc = 0;
            break;
        }
    }
    fs_close(fd);
    return rc ? err_wrap(e, "%s", path) : 0;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int fs_list(const char *path, char ***names, int *n, struct err *e)
{
    char **v = NULL;
    int len = 0, cap = 0, rc = -1;
    DIR *d = fault_hit(FAULT_FILE) ? NULL : opendir(path);
    if (!d) return err_sys(e, "cannot list %s", path);
    for (struct dirent *de; (de = readdir(d));) {
        if (!strcmp(de->d_name, ".") || !strcmp(de->d_name, "..")) continue;
        if (len == cap) {
            cap = cap ? cap * 2 : 16;
            char **more = mem_realloc(v, (size_t)cap * sizeof *v, e);
            if (!more) goto out;
            v = more;
        }
        v[len] = mem_strdup(de->d_name, e);
        if (!v[len]) goto out;
        len++;
    }
    if (len) qsort(v, (size_t)len, sizeof *v, by_bytes);
    *names = v;
    *n = len;
    v = NULL;
    len = 0;
    rc = 0;
out:
    for (int i = 0; i < len; i++) mem_free(v[i]);
    mem_free(v);
    closedir(d);
    return rc;
}

int fs_map(const char *path, struct fs_map *m, struct err *e)
{
    struct stat st;
    int rc = -1, fd = fs_open(path, O_RDONLY, 0, e);
    if (fd < 0) return -1;
    if (fstat(fd, &st)) {
        err_sys(e, "cannot look at %s", path);
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, E_ARG, "%s is not a regular file", path);
        goto out;
    }
    void *p = NULL;
    if (st.st_size) {
        p = fault_hit(FAULT_FILE) ? MAP_FAILED
                                  : mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            err_sys(e, "cannot map %s", path);
            goto out;
        }
    }
    *m = (struct fs_map){p, (size_t)st.st_size};
    rc = 0;
out:
    fs_close(fd);
    return rc;
}

void fs_unmap(struct fs_map *m)
{
    if (m->data) munmap((void *)(uintptr_t)m->data, m->size);
    *m = (struct fs_map){0};
}

struct fs_writer {
    int fd;
    struct hash *hash;
    char path[FS_PATH_MAX], tmp[FS_PATH_MAX], dir[FS_PATH_MAX];
};

struct fs_writer *fs_writer_new(const char *path, struct err *e)
{
    struct fs_writer *w = mem_zalloc(sizeof *w, e);
    if (!w) return NULL;
    w->fd = -1;
    int k = snprintf(w->tmp, sizeof w->tmp, "%s.tmp.%d", path, (int)getpid());
    if (k < 0 || k >= (int)sizeof w->tmp) {
        err_set(e, E_LIMIT, "path too long: %.80s...", path);
        goto fail;
    }
    snprintf(w->path, sizeof w->path, "%s", path);
    fs_parent(w->dir, path);
    w->hash = hash_new("SHA256", e);
    if (!w->hash) goto fail;
    w->fd = fs_open(w->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600, e);
    if (w->fd < 0) goto fail;
    return w;
fail:
    hash_free(w->hash);
    mem_free(w);
    return NULL;
}

int fs_writer_put(struct fs_writer *w, const void *p, size_t n, struct err *e)
{
    if (hash_add(w->hash, p, n, e) || fs_write_all(w->fd, p, n, e))
        return err_wrap(e, "writing %s", w->path);
    return 0;
}

static int crashed_here(struct err *e)
{
    return err_set(e, E_IO, "injected failure");
}

int fs_writer_publish(struct fs_writer *w, char sha256[65], struct err *e)
{
    char hex[65];
    if (hash_hex(w->hash, hex, e)) goto fail;
    if (CRASHPOINT("fs.file_written") && crashed_here(e)) goto fail;
    if (fs_fsync(w->fd, e)) goto fail;
    int fd = w->fd;
    w->fd = -1;
    if (fs_close(fd)) {
        err_sys(e, "cannot close");
        goto fail;
    }
    if (CRASHPOINT("fs.file_synced") && crashed_here(e)) goto fail;
    if (fs_rename(w->tmp, w->path, e)) goto fail;
    w->tmp[0] = 0;
    if (CRASHPOINT("fs.file_renamed") && crashed_here(e)) goto fail;
    if (fs_sync_dir(w->dir, e)) goto fail;
    if (sha256) memcpy(sha256, hex, sizeof hex);
    fs_writer_abort(w);
    return 0;
fail:
    err_wrap(e, "writing %s", w->path);
    fs_writer_abort(w);
    return -1;
}

void fs_writer_abort(struct fs_writer *w)
{
    struct err ignored;
    if (!w) return;
    if (w->fd >= 0) fs_close(w->fd);
    if (w->tmp[0]) fs_unlink(w->tmp, &ignored);
    hash_free(w->hash);
    mem_free(w);
}

int fs_write_file(const char *path, const void *p, size_t n, struct err *e)
{
    struct fs_writer *w = fs_writer_new(path, e);
    if (!w) return -1;
    if (fs_writer_put(w, p, n, e)) {
        fs_writer_abort(w);
        return -1;
    }
    return fs_writer_publish(w, NULL, e);
}

int fs_append_line(int fd, const char *line, size_t n, struct err *e)
{
    char *s = mem_alloc(n + 1, e);
    if (!s) return -1;
    memcpy(s, line, n);
    s[n] = '\n';
    int rc = fs_write_all(fd, s, n + 1, e);
    mem_free(s);
    return rc;
}
