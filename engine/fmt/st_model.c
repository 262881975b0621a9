/* Models of several files: model.safetensors.index.json and its shards, read and written. */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/st_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARDS_MAX = 4096 };

static const char SINGLE[] = "model.safetensors", INDEX[] = "model.safetensors.index.json";

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of the map, sorted; borrowed from it. */
static int shard_names(json_t *map, const char ***out, int *nout, struct err *e)
{
    size_t n = 0, distinct = 0;
    const char *tensor, **v = mem_array((int64_t)json_object_size(map), sizeof *v, e);
    json_t *file;
    if (!v) return -1;
    json_object_foreach(map, tensor, file) {
        const char *name = json_string_value(file);
        if (!name || !fs_safe_name(name) || !str_ends(name, ".safetensors")) {
            mem_free(v);
            return err_set(e, E_FORMAT,
                           "weight_map: the file of '%.80s' must be a plain name that ends in "
                           ".safetensors",
                           tensor);
        }
        v[n++] = name;
    }
    if (n) qsort(v, n, sizeof *v, by_bytes);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(v[i], v[i - 1]) != 0) v[distinct++] = v[i];
    if (distinct > SHARDS_MAX) {
        mem_free(v);
        return err_set(e, E_LIMIT, "weight_map: more than %d files", SHARDS_MAX);
    }
    *out = v;
    *nout = (int)distinct;
    return 0;
}

/* Every tensor of every shard where the map says, and as many as the map has: so none is there
 * twice and none is missing. */
static int add_shard(struct st *s, const char *dir, const char *file, const json_t *map,
                     struct err *e)
{
    char path[FS_PATH_MAX];
    int first = s->n;
    if (fs_join(path, dir, file, e) || st_add(s, path, e)) return -1;
    for (int i = first; i < s->n; i++) {
        const char *want = json_string_value(json_object_get(map, s->v[i].name));
        if (!want)
            return err_set(e, E_FORMAT, "%s holds '%s', which the index does not list", file,
                           s->v[i].name);
        if (strcmp(want, file) != 0)
            return err_set(e, E_FORMAT, "%s holds '%s', which the index places in %s", file,
                           s->v[i].name, want);
    }
    return 0;
}

static int check_listed(const struct st *s, json_t *map, struct err *e)
{
    const char *tensor;
    json_t *file;
    if (json_object_size(map) == (size_t)s->n) return 0;
    json_object_foreach(map, tensor, file)
        if (!st_find(s, tensor))
            return err_set(e, E_FORMAT, "the index lists '%s' in %s, which does not hold it",
                           tensor, json_string_value(file));
    return err_set(e, E_BUG, "index and shards differ");
}

static json_t *load_index(const char *path, struct err *e)
{
    struct buf b;
    json_t *v = NULL;
    buf_init(&b, ST_HEADER_MAX);
    if (!fs_read_file(path, &b, e)) v = st_parse(buf_str(&b), b.len, e);
    buf_clear(&b);
    return v;
}

static struct st *open_shards(const char *dir, const char *index, struct err *e)
{
    struct st *s = NULL, *done = NULL;
    const char **files = NULL;
    int n = 0;
    json_t *map, *top = load_index(index, e);
    if (!top || jx_object(top, "weight_map", &map, e) || shard_names(map, &files, &n, e)) goto out;
    s = st_new(n, e);
    if (!s) goto out;
    for (int i = 0; i < n; i++)
        if (add_shard(s, dir, files[i], map, e)) goto out;
    if (st_finish(s, e) || check_listed(s, map, e)) goto out;
    done = s;
    s = NULL;
out:
    if (!done) err_wrap(e, "%s", index);
    st_close(s);
    mem_free(files);
    json_decref(top);
    return done;
}

struct st *st_open_model(const char *dir, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, SINGLE, e)) return NULL;
    if (fs_exists(path)) return st_open(path, e);
    if (fs_join(path, dir, INDEX, e)) return NULL;
    if (fs_exists(path)) return open_shards(dir, path, e);
    err_set(e, E_NOTFOUND, "%s has neither %s nor %s", dir, SINGLE, INDEX);
    return NULL;
}

static int entry_bytes(const struct st_entry *t, int64_t *out, struct err *e)
{
    *out = (int64_t)dtype_size(t->dtype);
    for (int i = 0; i < t->rank; i++)
        if (!mul_ok(out, *out, t->shape[i]))
            return err_set(e, E_ARG, "the size of tensor '%s' overflows", t->name);
    return 0;
}

/* Where each entry goes: shard[i] never decreases. */
static int place(const struct st_model *m, int *shard, int *shards, int64_t *total, struct err *e)
{
    int64_t limit = m->shard_bytes ? m->shard_bytes : ST_SHARD_BYTES, filled = 0, bytes;
    *shards = 1;
    *total = 0;
    for (int i = 0; i < m->n; i++) {
        if (entry_bytes(&m->v[i], &bytes, e)) return -1;
        if (filled && bytes > limit - filled) {
            ++*shards;
            filled = 0;
        }
        shard[i] = *shards - 1;
        filled += bytes;
        if (!add_ok(total, *total, bytes)) return err_set(e, E_ARG, "the model overflows");
    }
    return 0;
}

static void shard_name(char out[64], int i, int shards)
{
    if (shards == 1)
        snprintf(out, 64, "%s", SINGLE);
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", i + 1, shards);
}

static int write_shard(const struct st_model *m, const char *name, int begin, int end,
                       struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, m->dir, name, e)) return -1;
    struct st_writer *w = st_writer_new(path, e);
    if (!w || st_writer_meta(w, "format", "pt", e)) goto fail;
    for (int i = begin; i < end; i++) {
        const struct st_entry *t = &m->v[i];
        if (st_writer_add(w, t->name, t->dtype, t->rank, t->shape, e)) goto fail;
    }
    for (int i = begin; i < end; i++) {
        int64_t bytes, before = st_writer_written(w);
        if (entry_bytes(&m->v[i], &bytes, e) || m->fill(m->ctx, i, w, e)) goto fail;
        if (st_writer_written(w) - before != bytes) {
            err_set(e, E_BUG, "tensor '%s' was not filled exactly", m->v[i].name);
            goto fail;
        }
    }
    return st_writer_publish(w, NULL, e);
fail:
    st_writer_abort(w);
    return -1;
}

static int write_index(const struct st_model *m, const int *shard, int shards, int64_t total,
                       struct err *e)
{
    char path[FS_PATH_MAX], name[64];
    char *text = NULL;
    int rc = -1;
    json_t *map = json_object(), *top = NULL;
    if (!map) return err_set(e, E_NOMEM, "out of memory");
    for (int i = 0; i < m->n; i++) {
        shard_name(name, shard[i], shards);
        if (jx_set(map, m->v[i].name, jx_pack(e, "s", name), e)) goto out;
    }
    top = jx_pack(e, "{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map",
                  map);
    if (!top || !(text = jx_dump_pretty(top, e)) || fs_join(path, m->dir, INDEX, e)) goto out;
    rc = fs_write_file(path, text, strlen(text), e);
out:
    mem_free(text);
    json_decref(top);
    json_decref(map);
    return rc;
}

static void remove_all(const struct st_model *m, int shards)
{
    char path[FS_PATH_MAX], name[64];
    struct err ignored;
    for (int i = 0; i <= shards; i++) {
        if (i < shards) shard_name(name, i, shards);
        if (!fs_join(path, m->dir, i < shards ? name : INDEX, &ignored)) fs_unlink(path, &ignored);
    }
}

/* Two models in one folder would be a coin toss for every reader. */
static int check_free(const char *dir, struct err *e)
{
    const char *const names[] = {SINGLE, INDEX};
    char path[FS_PATH_MAX];
    for (int i = 0; i < 2; i++) {
        if (fs_join(path, dir, names[i], e)) return -1;
        if (fs_exists(path)) return err_set(e, E_CONFLICT, "%s exists already", path);
    }
    return 0;
}

int st_write_model(const struct st_model *m, struct err *e)
{
    char name[64];
    int shards = 0, rc = -1;
    int64_t total;
    if (check_free(m->dir, e)) return -1;
    int *shard = mem_array(m->n, sizeof *shard, e);
    if (!shard || place(m, shard, &shards, &total, e)) goto out;
    for (int s = 0, begin = 0; s < shards; s++) {
        int end = begin;
        while (end < m->n && shard[end] == s) end++;
        shard_name(name, s, shards);
        if (write_shard(m, name, begin, end, e)) goto out;
        begin = end;
    }
    rc = shards > 1 ? write_index(m, shard, shards, total, e) : 0;
out:
    if (rc) remove_all(m, shards);
    mem_free(shard);
    return rc;
}
