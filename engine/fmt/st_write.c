/* Writing one .safetensors file: describe, stream, publish. */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/st_priv.h"

#include <inttypes.h>
#include <string.h>

struct st_writer {
    char path[FS_PATH_MAX];
    json_t *header, *meta;
    struct fs_writer *file; /* from the first byte on */
    int64_t total, written; /* bytes of data described and put */
};

struct st_writer *st_writer_new(const char *path, struct err *e)
{
    struct st_writer *w = mem_zalloc(sizeof *w, e);
    if (!w) return NULL;
    if (!str_copy(w->path, sizeof w->path, path)) {
        err_set(e, E_LIMIT, "path too long: %.80s...", path);
        goto fail;
    }
    w->header = json_object();
    w->meta = json_object();
    /* First of the header, as every other writer has it. */
    if (!w->header || !w->meta || json_object_set(w->header, "__metadata__", w->meta)) {
        err_set(e, E_NOMEM, "out of memory");
        goto fail;
    }
    return w;
fail:
    st_writer_abort(w);
    return NULL;
}

void st_writer_abort(struct st_writer *w)
{
    if (!w) return;
    fs_writer_abort(w->file);
    json_decref(w->header);
    json_decref(w->meta);
    mem_free(w);
}

static json_t *shape_json(int rank, const int64_t *shape, struct err *e)
{
    json_t *v = json_array();
    for (int i = 0; v && i < rank; i++) {
        if (!json_array_append_new(v, json_integer(shape[i]))) continue;
        json_decref(v);
        v = NULL;
    }
    if (!v) err_set(e, E_NOMEM, "out of memory");
    return v;
}

int st_writer_add(struct st_writer *w, const char *name, enum dtype dtype, int rank,
                  const int64_t *shape, struct err *e)
{
    const char *fault = st_name_fault(name);
    int64_t bytes = (int64_t)dtype_size(dtype), end;
    if (w->file) return err_set(e, E_BUG, "tensor '%.80s' is described after the data", name);
    if (fault) return err_set(e, E_ARG, "the name of tensor '%.40s' %s", name, fault);
    if (json_object_get(w->header, name))
        return err_set(e, E_ARG, "tensor '%s' is there twice, or its name is reserved", name);
    if (json_object_size(w->header) > ST_TENSORS_MAX)
        return err_set(e, E_LIMIT, "more than %d tensors", ST_TENSORS_MAX);
    if (rank < 0 || rank > ST_RANK)
        return err_set(e, E_ARG, "tensor '%s' has %d dimensions", name, rank);
    for (int i = 0; i < rank; i++)
        if (!mul_ok(&bytes, bytes, shape[i]))
            return err_set(e, E_ARG, "the size of tensor '%s' overflows", name);
    if (!add_ok(&end, w->total, bytes))
        return err_set(e, E_ARG, "the size of the file overflows at tensor '%s'", name);
    json_t *dims = shape_json(rank, shape, e);
    if (!dims) return -1;
    json_t *entry = jx_pack(e, "{s:s, s:o, s:[I,I]}", "dtype", dtype_name(dtype), "shape", dims,
                            "data_offsets", (json_int_t)w->total, (json_int_t)end);
    if (jx_set(w->header, name, entry, e)) return -1;
    w->total = end;
    return 0;
}

int st_writer_meta(struct st_writer *w, const char *key, const char *value, struct err *e)
{
    if (w->file) return err_set(e, E_BUG, "metadata '%.80s' is set after the data", key);
    if (str_utf8_bad(key, strlen(key)) != strlen(key) ||
        str_utf8_bad(value, strlen(value)) != strlen(value))
        return err_set(e, E_ARG, "metadata must be UTF-8");
    return jx_set(w->meta, key, jx_pack(e, "s", value), e);
}

/* Opens the file and writes its header: from now on the description is fixed. */
static int begin(struct st_writer *w, struct err *e)
{
    unsigned char length[8];
    int rc = -1;
    if (w->file) return 0;
    if (json_object_size(w->meta) == 0) json_object_del(w->header, "__metadata__");
    char *text = jx_dump(w->header, e);
    if (!text) return -1;
    size_t n = strlen(text), padded = (n + 7) & ~(size_t)7;
    if (padded > ST_HEADER_MAX) {
        err_set(e, E_LIMIT, "a header of %zu bytes; at most %d are allowed", n, ST_HEADER_MAX);
        goto out;
    }
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    w->file = fs_writer_new(w->path, e);
    if (!w->file) goto out;
    rc = fs_writer_put(w->file, length, 8, e);
    if (!rc) rc = fs_writer_put(w->file, text, n, e);
    if (!rc) rc = fs_writer_put(w->file, "       ", padded - n, e);
out:
    mem_free(text);
    return rc;
}

int st_writer_put(struct st_writer *w, const void *p, size_t bytes, struct err *e)
{
    if (begin(w, e)) return -1;
    if (bytes > (uint64_t)(w->total - w->written))
        return err_set(e, E_BUG, "%s: more bytes than were described", w->path);
    if (fs_writer_put(w->file, p, bytes, e)) return -1;
    w->written += (int64_t)bytes;
    return 0;
}

int st_writer_publish(struct st_writer *w, char sha256[65], struct err *e)
{
    int rc = begin(w, e);
    if (!rc && w->written != w->total)
        rc = err_set(e, E_BUG, "%s: %" PRId64 " bytes were described but %" PRId64 " put", w->path,
                     w->total, w->written);
    if (!rc) {
        rc = fs_writer_publish(w->file, sha256, e);
        w->file = NULL;
    }
    st_writer_abort(w);
    return rc;
}

int64_t st_writer_written(const struct st_writer *w)
{
    return w->written;
}
