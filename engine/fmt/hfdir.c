#include "engine/fmt/hfdir.h"

#include "engine/base/fs.h"
#include "engine/base/mem.h"

#include <fcntl.h>

enum { COPY_MAX = 64 << 20, CHUNK = 1 << 16 };

const char *const *hfdir_files(void)
{
    static const char *const files[] = {
        "config.json",           "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
        "added_tokens.json",     "vocab.json",             "merges.txt",
        "chat_template.jinja",   NULL,
    };
    return files;
}

static int has(const char *dir, const char *name, bool *yes, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, name, e)) return -1;
    *yes = fs_exists(path);
    return 0;
}

int hfdir_check(const char *dir, struct err *e)
{
    static const char *const needed[] = {"config.json", "tokenizer.json"};
    bool yes, index;
    if (!fs_is_dir(dir)) return err_set(e, E_NOTFOUND, "%s is not a folder", dir);
    for (int i = 0; i < 2; i++) {
        if (has(dir, needed[i], &yes, e)) return -1;
        if (!yes) return err_set(e, E_NOTFOUND, "%s has no %s", dir, needed[i]);
    }
    if (has(dir, "model.safetensors", &yes, e) ||
        has(dir, "model.safetensors.index.json", &index, e))
        return -1;
    if (!yes && !index)
        return err_set(e, E_NOTFOUND, "%s has no model.safetensors (other weight formats, such as "
                       "pytorch_model.bin, are not read)", dir);
    return 0;
}

static int copy(const char *from, const char *to, struct err *e)
{
    int rc = -1, fd = -1;
    struct fs_writer *w = NULL;
    char *chunk = NULL;
    int64_t size = fs_size(from, e), done = 0, n;
    if (size < 0) return -1;
    if (size > COPY_MAX) return err_set(e, E_LIMIT, "%s is larger than 64 MiB", from);
    if ((fd = fs_open(from, O_RDONLY, 0, e)) < 0 || !(chunk = mem_alloc(CHUNK, e)) ||
        !(w = fs_writer_new(to, e)))
        goto out;
    while ((n = fs_read(fd, chunk, CHUNK, e)) > 0) {
        done += n; /* the size was a promise of the past */
        if (done > COPY_MAX) {
            err_set(e, E_LIMIT, "%s is larger than 64 MiB", from);
            goto out;
        }
        if (fs_writer_put(w, chunk, (size_t)n, e)) goto out;
    }
    if (n < 0) goto out;
    rc = fs_writer_publish(w, NULL, e);
    w = NULL;
out:
    fs_writer_abort(w);
    mem_free(chunk);
    fs_close(fd);
    return rc;
}

int hfdir_copy(const char *from, const char *to, struct err *e)
{
    for (const char *const *f = hfdir_files(); *f; f++) {
        char src[FS_PATH_MAX], dst[FS_PATH_MAX];
        if (fs_join(src, from, *f, e) || fs_join(dst, to, *f, e)) return -1;
        if (fs_exists(src) && copy(src, dst, e)) return -1;
    }
    return 0;
}
