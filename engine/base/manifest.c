/* Folders that appear whole: fs_publish_dir and fs_check_dir of fs.h. */
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static const char MANIFEST[] = "manifest.json";

static int add_file(json_t *files, const char *full, const char *rel, struct err *e)
{
    char hex[65];
    int64_t size = fs_size(full, e);
    if (size < 0 || hash_file_sha256(full, hex, e)) return -1;
    int fd = fs_open(full, O_RDONLY, 0, e);
    if (fd < 0) return -1;
    int rc = fs_fsync(fd, e);
    fs_close(fd);
    if (rc) return -1;
    return jx_set(files, rel, jx_pack(e, "{s:I, s:s}", "bytes", (json_int_t)size, "sha256", hex),
                  e);
}

static int add_tree(json_t *files, const char *root, const char *rel, struct err *e)
{
    char dir[FS_PATH_MAX], **names = NULL;
    int n = 0, rc = -1;
    if (fs_join(dir, root, rel, e) || fs_list(dir, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        char sub[FS_PATH_MAX], full[FS_PATH_MAX];
        if (*rel) {
            if (fs_join(sub, rel, names[i], e)) goto out;
        } else if (snprintf(sub, sizeof sub, "%s", names[i]) < 0) {
            goto out;
        }
        if (fs_join(full, root, sub, e)) goto out;
        if (fs_is_dir(full) ? add_tree(files, root, sub, e) : add_file(files, full, sub, e))
            goto out;
    }
    rc = fs_sync_dir(dir, e);
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}

int fs_publish_dir(const char *tmp, const char *path, struct err *e)
{
    char at[FS_PATH_MAX], parent[FS_PATH_MAX];
    char *text = NULL;
    int rc = -1;
    json_t *files = json_object(), *top = NULL;
    if (!files) return err_set(e, E_NOMEM, "out of memory");
    if (add_tree(files, tmp, "", e)) goto out;
    top = jx_pack(e, "{s:i, s:O}", "version", 1, "files", files);
    if (!top || !(text = jx_dump(top, e))) goto out;
    if (CRASHPOINT("fs.dir_before_manifest")) {
        err_set(e, E_IO, "injected failure");
        goto out;
    }
    if (fs_join(at, tmp, MANIFEST, e) || fs_write_file(at, text, strlen(text), e)) goto out;
    if (CRASHPOINT("fs.dir_before_rename")) {
        err_set(e, E_IO, "injected failure");
        goto out;
    }
    if (fs_rename(tmp, path, e)) goto out;
    if (CRASHPOINT("fs.dir_renamed")) {
        err_set(e, E_IO, "injected failure");
        goto out;
    }
    fs_parent(parent, path);
    rc = fs_sync_dir(parent, e);
out:
    mem_free(text);
    json_decref(top);
    json_decref(files);
    return rc ? err_wrap(e, "publishing %s", path) : 0;
}

static int check_file(const char *dir, const char *rel, json_t *want, bool hashes, struct err *e)
{
    char full[FS_PATH_MAX], hex[65];
    int64_t bytes;
    const char *sha;
    if (fs_join(full, dir, rel, e)) return -1;
    if (jx_int64(want, "bytes", 0, INT64_MAX, &bytes, e) || jx_str(want, "sha256", &sha, e))
        return -1;
    int64_t size = fs_size(full, e);
    if (size < 0) return -1;
    if (size != bytes)
        return err_set(e, E_CORRUPT, "%s has %lld bytes where the manifest says %lld", rel,
                       (long long)size, (long long)bytes);
    if (!hashes) return 0;
    if (hash_file_sha256(full, hex, e)) return -1;
    if (strcmp(hex, sha) != 0) return err_set(e, E_CORRUPT, "%s has a wrong SHA-256", rel);
    return 0;
}

int fs_check_dir(const char *path, bool hashes, struct err *e)
{
    char at[FS_PATH_MAX];
    json_t *top = NULL, *files;
    int rc = -1;
    if (fs_join(at, path, MANIFEST, e)) return -1;
    top = jx_load_file(at, 16 << 20, e);
    if (!top || jx_object(top, "files", &files, e)) goto out;
    const char *rel;
    json_t *want;
    json_object_foreach(files, rel, want) {
        if (check_file(path, rel, want, hashes, e)) goto out;
    }
    rc = 0;
out:
    json_decref(top);
    return rc ? err_wrap(e, "%s", path) : 0;
}
