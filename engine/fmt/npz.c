#include "engine/fmt/npz.h"

#include "engine/base/arena.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/safetensors.h"

#include <archive.h>
#include <archive_entry.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES_BYTES = 64 << 20, ALIGN = 64, BOMB_RATIO = 100, SMALL = 1 << 20, PREFIX_BYTES = 12 };

struct npz {
    struct npz_array *v;
    int n, cap;
    int64_t left; /* bytes of data that may still be taken */
    struct arena names;
};

/* Where the bytes of one .npy come from: the current entry of a zip, or memory. */
struct source {
    struct archive *zip;
    const unsigned char *p;
    size_t left;
};

/* Up to n bytes, fewer only at the end; -1 with *e set if the zip is damaged. */
static int64_t take(struct source *s, void *to, size_t n, struct err *e)
{
    size_t done = 0;
    if (!s->zip) {
        done = n < s->left ? n : s->left;
        if (done) memcpy(to, s->p, done);
        s->p += done;
        s->left -= done;
        return (int64_t)done;
    }
    while (done < n) {
        la_ssize_t k = archive_read_data(s->zip, (char *)to + done, n - done);
        if (k == 0) break;
        if (k < 0) return err_set(e, E_FORMAT, "%s", archive_error_string(s->zip));
        done += (size_t)k;
    }
    return (int64_t)done;
}

/* ---- the header: a Python dict of three keys ---- */

struct header {
    enum dtype dtype;
    bool fortran;
    int rank;
    int64_t shape[NPZ_RANK];
};

struct cursor {
    const char *p, *end;
};

static void blanks(struct cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' || *c->p == '\t')) c->p++;
}

static bool eat(struct cursor *c, char want)
{
    blanks(c);
    if (c->p == c->end || *c->p != want) return false;
    c->p++;
    return true;
}

/* A string literal without escapes, as numpy writes them. */
static bool read_string(struct cursor *c, char out[32])
{
    blanks(c);
    if (c->p == c->end || (*c->p != '\'' && *c->p != '"')) return false;
    char quote = *c->p++;
    size_t n = 0;
    while (c->p < c->end && *c->p != quote && *c->p != '\\' && n < 31) out[n++] = *c->p++;
    out[n] = 0;
    return eat(c, quote);
}

static bool read_word(struct cursor *c, const char *word)
{
    size_t n = strlen(word);
    blanks(c);
    if ((size_t)(c->end - c->p) < n || memcmp(c->p, word, n) != 0) return false;
    c->p += n;
    return true;
}

static int read_descr(struct cursor *c, struct header *h, struct err *e)
{
    static const struct {
        const char *descr;
        enum dtype dtype;
    } types[] = {{"<f2", DT_F16}, {"<f4", DT_F32}, {"<f8", DT_F64},
                 {"<i4", DT_I32}, {"<i8", DT_I64}, {"|u1", DT_U8}};
    char text[32];
    blanks(c);
    if (c->p < c->end && *c->p == '[')
        return err_set(e, E_UNSUPPORTED, "structured arrays are not read");
    if (!read_string(c, text)) return err_set(e, E_FORMAT, "'descr' must be a string");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!str_eq(text, types[i].descr)) continue;
        h->dtype = types[i].dtype;
        return 0;
    }
    return err_set(e, E_UNSUPPORTED,
                   "its type is '%s'; <f2, <f4, <f8, <i4, <i8 and |u1 are read", text);
}

static int read_shape(struct cursor *c, struct header *h, struct err *e)
{
    if (!eat(c, '(')) return err_set(e, E_FORMAT, "'shape' must be a tuple");
    while (!eat(c, ')')) {
        int64_t size = 0;
        const char *first;
        blanks(c);
        for (first = c->p; c->p < c->end && *c->p >= '0' && *c->p <= '9'; c->p++)
            if (!mul_ok(&size, size, 10) || !add_ok(&size, size, *c->p - '0'))
                return err_set(e, E_FORMAT, "'shape' overflows");
        if (c->p == first) return err_set(e, E_FORMAT, "'shape' must hold integers >= 0");
        if (c->p < c->end && *c->p == 'L') c->p++; /* Python 2 */
        if (h->rank == NPZ_RANK)
            return err_set(e, E_LIMIT, "'shape' has more than %d dimensions", NPZ_RANK);
        h->shape[h->rank++] = size;
        bool comma = eat(c, ',');
        blanks(c);
        if (!comma && (h->rank == 1 || c->p == c->end || *c->p != ')'))
            return err_set(e, E_FORMAT, "'shape' must be a tuple");
    }
    return 0;
}

static int read_field(struct cursor *c, struct header *h, unsigned *seen, struct err *e)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    char key[32];
    int k = 0;
    if (!read_string(c, key) || !eat(c, ':')) return err_set(e, E_FORMAT, "not a header of numpy");
    while (k < 3 && !str_eq(key, keys[k])) k++;
    if (k == 3 || *seen & 1u << k)
        return err_set(e, E_FORMAT, "the key '%s' is %s", key, k == 3 ? "unknown" : "there twice");
    *seen |= 1u << k;
    if (k == 0) return read_descr(c, h, e);
    if (k == 2) return read_shape(c, h, e);
    if (read_word(c, "True")) h->fortran = true;
    else if (!read_word(c, "False"))
        return err_set(e, E_FORMAT, "'fortran_order' must be True or False");
    return 0;
}

static int parse_header(const char *text, size_t n, struct header *h, struct err *e)
{
    struct cursor c = {text, text + n};
    unsigned seen = 0;
    *h = (struct header){0};
    if (!eat(&c, '{')) return err_set(e, E_FORMAT, "not a header of numpy");
    while (!eat(&c, '}')) {
        if (read_field(&c, h, &seen, e)) return -1;
        blanks(&c);
        if (!eat(&c, ',') && (c.p == c.end || *c.p != '}'))
            return err_set(e, E_FORMAT, "not a header of numpy");
    }
    blanks(&c);
    if (c.p != c.end) return err_set(e, E_FORMAT, "something follows the header's dict");
    if (seen != 7) return err_set(e, E_FORMAT, "needs 'descr', 'fortran_order' and 'shape'");
    return 0;
}

static int read_header(struct source *s, struct header *h, struct err *e)
{
    unsigned char start[PREFIX_BYTES];
    int64_t got = take(s, start, 8, e);
    if (got < 0) return -1;
    if (got < 8 || memcmp(start, "\x93NUMPY", 6) != 0)
        return err_set(e, E_FORMAT, "does not begin as a .npy file does");
    int major = start[6], minor = start[7], width = major == 1 ? 2 : 4;
    if (major < 1 || major > 3 || minor)
        return err_set(e, E_UNSUPPORTED, "format version %d.%d; 1.0 to 3.0 are read", major, minor);
    got = take(s, start, (size_t)width, e);
    if (got < 0) return -1;
    if (got < width) return err_set(e, E_FORMAT, "ends inside its header");
    uint32_t n = 0;
    for (int i = width - 1; i >= 0; i--) n = n << 8 | start[i];
    if (n > NPZ_HEADER_MAX)
        return err_set(e, E_LIMIT, "a header of %" PRIu32 " bytes; at most %d are allowed", n,
                       NPZ_HEADER_MAX);
    char *text = mem_alloc(n, e);
    if (!text) return -1;
    got = take(s, text, n, e);
    int rc = got < 0 ? -1
             : got < n ? err_set(e, E_FORMAT, "ends inside its header")
                       : parse_header(text, n, h, e);
    mem_free(text);
    return rc;
}

/* ---- the array ---- */

/* to[i0,i1,...] = from[...,i1,i0]: what a file in Fortran order holds, reversed. */
static void from_fortran(unsigned char *to, const unsigned char *from, const struct npz_array *a)
{
    size_t width = dtype_size(a->dtype);
    int64_t at[NPZ_RANK] = {0}, stride[NPZ_RANK], offset = 0;
    for (int d = 0; d < a->rank; d++) stride[d] = d ? stride[d - 1] * a->shape[d - 1] : 1;
    for (int64_t i = 0; i < a->count; i++) {
        memcpy(to + (size_t)i * width, from + (size_t)offset * width, width);
        for (int d = a->rank - 1; d >= 0; d--) {
            offset += stride[d];
            if (++at[d] < a->shape[d]) break;
            offset -= at[d] * stride[d];
            at[d] = 0;
        }
    }
}

static void *read_data(struct source *s, const struct npz_array *a, bool fortran, struct err *e)
{
    char more;
    size_t n = (size_t)a->bytes;
    void *p = mem_aligned(n ? n : 1, ALIGN, e), *q = NULL;
    if (!p) return NULL;
    int64_t got = take(s, p, n, e), rest = got < 0 ? -1 : take(s, &more, 1, e);
    if (got < 0 || rest < 0) goto fail;
    if (got < a->bytes || rest) {
        err_set(e, E_FORMAT, "%s than the %" PRId64 " bytes of its shape follow",
                rest ? "more" : "less", a->bytes);
        goto fail;
    }
    if (!fortran || a->rank < 2) return p;
    if (!(q = mem_aligned(n ? n : 1, ALIGN, e))) goto fail;
    from_fortran(q, p, a);
    mem_free(p);
    return q;
fail:
    mem_free(p);
    return NULL;
}

static struct npz_array *room(struct npz *z, struct err *e)
{
    if (z->n == NPZ_ARRAYS_MAX) {
        err_set(e, E_LIMIT, "more than %d arrays", NPZ_ARRAYS_MAX);
        return NULL;
    }
    if (z->n == z->cap) {
        int cap = z->cap ? 2 * z->cap : 64;
        struct npz_array *v = mem_realloc(z->v, (size_t)cap * sizeof *v, e);
        if (!v) return NULL;
        z->v = v;
        z->cap = cap;
    }
    return &z->v[z->n];
}

static int read_array(struct npz *z, struct source *s, const char *name, size_t name_bytes,
                      struct err *e)
{
    struct header h;
    struct npz_array *a = room(z, e);
    if (!a || read_header(s, &h, e)) return -1;
    *a = (struct npz_array){.dtype = h.dtype, .rank = h.rank, .count = 1};
    memcpy(a->shape, h.shape, sizeof h.shape);
    for (int d = 0; d < a->rank; d++)
        if (!mul_ok(&a->count, a->count, a->shape[d]))
            return err_set(e, E_FORMAT, "the product of 'shape' overflows");
    if (!mul_ok(&a->bytes, a->count, (int64_t)dtype_size(a->dtype)))
        return err_set(e, E_FORMAT, "its size overflows");
    if (a->bytes > z->left)
        return err_set(e, E_LIMIT, "its %" PRId64 " bytes are more than such a file may unpack to",
                       a->bytes);
    if (!(a->name = arena_strndup(&z->names, name, name_bytes, e)) ||
        !(a->data = read_data(s, a, h.fortran, e)))
        return -1;
    z->left -= a->bytes;
    z->n++;
    return 0;
}

/* ---- the zip ---- */

static int read_entry(struct npz *z, struct archive *zip, struct archive_entry *entry,
                      struct err *e)
{
    const char *name = archive_entry_pathname_utf8(entry);
    struct source s = {.zip = zip};
    if (!name) return err_set(e, E_FORMAT, "the name of entry %d cannot be read", z->n);
    const char *fault = st_name_fault(name);
    if (fault)
        return err_set(e, E_FORMAT, "the name of entry '%.40s' %s", name, fault);
    if (archive_entry_filetype(entry) != AE_IFREG || !str_ends(name, ".npy"))
        return err_set(e, E_FORMAT, "entry '%s' is not a .npy file", name);
    if (archive_entry_is_encrypted(entry))
        return err_set(e, E_UNSUPPORTED, "entry '%s' is encrypted", name);
    size_t stem = strlen(name) - strlen(".npy");
    return read_array(z, &s, name, stem, e) ? err_wrap(e, "array '%.*s'", (int)stem, name) : 0;
}

static int read_zip(struct npz *z, const struct fs_map *m, struct err *e)
{
    struct archive *zip = archive_read_new();
    struct archive_entry *entry;
    int rc = -1, k;
    if (!zip) return err_set(e, E_NOMEM, "out of memory");
    if (archive_read_support_format_zip_seekable(zip) ||
        archive_read_open_memory(zip, m->data, m->size)) {
        err_set(e, E_FORMAT, "%s", archive_error_string(zip));
        goto out;
    }
    while ((k = archive_read_next_header(zip, &entry)) == ARCHIVE_OK)
        if (read_entry(z, zip, entry, e)) goto out;
    if (k != ARCHIVE_EOF) {
        err_set(e, E_FORMAT, "%s", archive_error_string(zip));
        goto out;
    }
    rc = 0;
out:
    archive_read_free(zip);
    return rc;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct npz_array *)a)->name, ((const struct npz_array *)b)->name);
}

static int sort(struct npz *z, struct err *e)
{
    if (z->n) qsort(z->v, (size_t)z->n, sizeof *z->v, by_name);
    for (int i = 1; i < z->n; i++)
        if (str_eq(z->v[i - 1].name, z->v[i].name))
            return err_set(e, E_FORMAT, "array '%s' is there twice", z->v[i].name);
    return 0;
}

struct npz *npz_open(const char *path, int64_t max_bytes, struct err *e)
{
    struct fs_map m = {0};
    struct npz *z = NULL;
    int rc = -1;
    if (fs_map(path, &m, e)) return NULL;
    if (!(z = mem_zalloc(sizeof *z, e))) goto out;
    arena_init(&z->names, NAMES_BYTES);
    int64_t most = (int64_t)m.size * BOMB_RATIO + SMALL;
    z->left = most < max_bytes ? most : max_bytes;
    if (m.size >= 4 && memcmp(m.data, "PK", 2) == 0) {
        rc = read_zip(z, &m, e);
    } else if (m.size >= 6 && memcmp(m.data, "\x93NUMPY", 6) == 0) {
        struct source s = {.p = m.data, .left = m.size};
        rc = read_array(z, &s, "arr_0", strlen("arr_0"), e);
    } else {
        err_set(e, E_FORMAT, "neither a .npz (zip) nor a .npy file of numpy");
    }
    if (!rc) rc = sort(z, e);
out:
    fs_unmap(&m);
    if (!rc) return z;
    npz_close(z);
    err_wrap(e, "%s", path);
    return NULL;
}

void npz_close(struct npz *z)
{
    if (!z) return;
    for (int i = 0; i < z->n; i++) mem_free((void *)(uintptr_t)z->v[i].data);
    mem_free(z->v);
    arena_clear(&z->names);
    mem_free(z);
}

int npz_count(const struct npz *z)
{
    return z->n;
}

const struct npz_array *npz_at(const struct npz *z, int i)
{
    return &z->v[i];
}

const struct npz_array *npz_find(const struct npz *z, const char *name)
{
    struct npz_array key = {.name = name};
    return z->n ? bsearch(&key, z->v, (size_t)z->n, sizeof *z->v, by_name) : NULL;
}
