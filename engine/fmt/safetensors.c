#include "engine/fmt/safetensors.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/st_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES_BYTES = 256 << 20 };

/* Every dtype of the format; graft computes with those that dtype_parse() knows. */
static const struct st_type {
    const char *name;
    int bits;
} types[] = {
    {"BOOL", 8},        {"U8", 8},       {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},   {"F6_E2M3", 6},
    {"F6_E3M2", 6},     {"I16", 16},     {"U16", 16},        {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},     {"F32", 32},        {"I64", 64},    {"U64", 64},
    {"F64", 64},        {"C64", 64},
};

static const struct st_type *find_type(const char *name)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, name) == 0) return &types[i];
    return NULL;
}

const char *st_name_fault(const char *name)
{
    size_t n = strlen(name);
    if (n > ST_NAME_MAX) return "is longer than 512 bytes";
    if (str_utf8_bad(name, n) != n) return "is not UTF-8";
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i], d = (unsigned char)name[i + 1];
        bool c1 = c == 0xc2 && d < 0xa0; /* U+0080 .. U+009F */
        if (c < 0x20 || c == 0x7f || c1) return "contains a control character";
    }
    return NULL;
}

json_t *st_parse(const char *text, size_t n, struct err *e)
{
    /* An entry has one object, two lists and at most 11 commas; the rest has a few more. */
    const int64_t most_lists = 3 * (int64_t)ST_TENSORS_MAX + 8;
    const int64_t most_commas = 12 * (int64_t)ST_TENSORS_MAX;
    int64_t lists = 0, commas = 0;
    bool quoted = false;
    size_t bad = str_utf8_bad(text, n);
    if (bad != n) {
        err_set(e, E_FORMAT, "byte %zu is not UTF-8", bad);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (quoted && c == '\\') i++;
        else if (c == '"') quoted = !quoted;
        else if (!quoted && (c == '{' || c == '[')) lists++;
        else if (!quoted && c == ',') commas++;
    }
    if (lists > most_lists || commas > most_commas) {
        err_set(e, E_LIMIT, "more JSON values than %d tensors need", ST_TENSORS_MAX);
        return NULL;
    }
    return jx_parse(text, n, e);
}

struct st *st_new(int files, struct err *e)
{
    struct st *s = mem_zalloc(sizeof *s, e);
    if (!s) return NULL;
    arena_init(&s->names, NAMES_BYTES);
    s->maps = mem_array(files, sizeof *s->maps, e);
    if (s->maps) return s;
    mem_free(s);
    return NULL;
}

void st_close(struct st *s)
{
    if (!s) return;
    for (int i = 0; i < s->nmaps; i++) fs_unmap(&s->maps[i]);
    for (int i = 0; i < s->ncopies; i++) mem_free(s->copies[i]);
    mem_free(s->copies);
    mem_free(s->maps);
    mem_free(s->v);
    arena_clear(&s->names);
    json_decref(s->meta);
    mem_free(s);
}

static int reserve(struct st *s, size_t more, struct err *e)
{
    if (more > (size_t)(ST_TENSORS_MAX - s->n))
        return err_set(e, E_LIMIT, "more than %d tensors", ST_TENSORS_MAX);
    int want = s->n + (int)more;
    if (want <= s->cap) return 0;
    struct st_tensor *v = mem_realloc(s->v, (size_t)want * sizeof *v, e);
    if (!v) return -1;
    s->v = v;
    s->cap = want;
    return 0;
}

static int read_shape(struct st_tensor *t, const json_t *shape, struct err *e)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape)) return err_set(e, E_FORMAT, "'shape' must be a list");
    if (rank > ST_RANK)
        return err_set(e, E_LIMIT, "'shape' has %zu dimensions; at most %d are allowed", rank,
                       ST_RANK);
    t->rank = (int)rank;
    t->count = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return err_set(e, E_FORMAT, "'shape' must hold integers >= 0");
        t->shape[i] = json_integer_value(d);
        if (!mul_ok(&t->count, t->count, t->shape[i]))
            return err_set(e, E_FORMAT, "the product of 'shape' overflows");
    }
    return 0;
}

static int read_offsets(const json_t *o, int64_t data_bytes, int64_t *begin, int64_t *end,
                        struct err *e)
{
    const json_t *a = json_array_get(o, 0), *b = json_array_get(o, 1);
    if (json_array_size(o) != 2 || !json_is_integer(a) || !json_is_integer(b))
        return err_set(e, E_FORMAT, "'data_offsets' must be a list of two integers");
    *begin = json_integer_value(a);
    *end = json_integer_value(b);
    if (*begin < 0 || *end < *begin || *end > data_bytes)
        return err_set(e, E_FORMAT,
                       "'data_offsets' [%" PRId64 ", %" PRId64 "] leave the %" PRId64
                       " bytes of data or are reversed",
                       *begin, *end, data_bytes);
    return 0;
}

/* data: the first byte after the header. */
static int read_entry(struct st_tensor *t, const json_t *o, const unsigned char *data,
                      int64_t data_bytes, struct err *e)
{
    const json_t *dtype = json_object_get(o, "dtype"), *shape = json_object_get(o, "shape");
    const json_t *offsets = json_object_get(o, "data_offsets");
    int64_t begin = 0, end = 0, bits;
    if (!json_is_object(o) || json_object_size(o) != 3 || !json_is_string(dtype) || !shape ||
        !offsets)
        return err_set(e, E_FORMAT, "must have 'dtype', 'shape' and 'data_offsets', no more");
    const struct st_type *type = find_type(json_string_value(dtype));
    if (!type)
        return err_set(e, E_FORMAT, "unknown dtype '%.32s'", json_string_value(dtype));
    t->dtype_name = type->name;
    if (!dtype_parse(type->name, &t->dtype)) t->dtype = DT_COUNT;
    if (read_shape(t, shape, e) || read_offsets(offsets, data_bytes, &begin, &end, e)) return -1;
    if (!mul_ok(&bits, t->count, type->bits))
        return err_set(e, E_FORMAT, "its size overflows");
    if (bits % 8) return err_set(e, E_FORMAT, "its size is not a whole number of bytes");
    t->bytes = bits / 8;
    if (end - begin != t->bytes)
        return err_set(e, E_FORMAT,
                       "'shape' and 'dtype' need %" PRId64
                       " bytes but 'data_offsets' span %" PRId64,
                       t->bytes, end - begin);
    t->data = data + begin;
    return 0;
}

static int by_span(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* No hole, no overlap, nothing after the last tensor: a file has no room for a second meaning. */
static int check_spans(struct st_tensor *v, int n, const unsigned char *data, int64_t data_bytes,
                       struct err *e)
{
    int64_t at = 0;
    if (n) qsort(v, (size_t)n, sizeof *v, by_span);
    for (int i = 0; i < n; i++) {
        int64_t begin = (const unsigned char *)v[i].data - data;
        if (begin != at)
            return err_set(e, E_FORMAT, "tensor '%s' begins at %" PRId64 ", %s", v[i].name, begin,
                           begin < at ? "inside the tensor before it" : "which leaves a hole");
        at += v[i].bytes;
    }
    if (at != data_bytes)
        return err_set(e, E_FORMAT, "%" PRId64 " bytes follow the last tensor", data_bytes - at);
    return 0;
}

static int element_bytes(const struct st_tensor *t)
{
    int bits = find_type(t->dtype_name)->bits;
    return bits < 8 ? 1 : bits / 8;
}

/* Old writers pad nothing, so a tensor may start anywhere; kernels read elements in place. */
static int align(struct st *s, int first, struct err *e)
{
    int n = 0;
    for (int i = first; i < s->n; i++) n += (uintptr_t)s->v[i].data % element_bytes(&s->v[i]) != 0;
    if (!n) return 0;
    void **copies = mem_realloc(s->copies, (size_t)(s->ncopies + n) * sizeof *copies, e);
    if (!copies) return -1;
    s->copies = copies;
    for (int i = first; i < s->n; i++) {
        struct st_tensor *t = &s->v[i];
        if ((uintptr_t)t->data % element_bytes(t) == 0) continue;
        void *p = mem_dup(t->data, (size_t)t->bytes, e);
        if (!p) return -1;
        s->copies[s->ncopies++] = p;
        t->data = p;
    }
    return 0;
}

static int check_metadata(const json_t *meta, struct err *e)
{
    const char *key;
    json_t *v;
    if (!json_is_object(meta))
        return err_set(e, E_FORMAT, "'__metadata__' must be an object");
    json_object_foreach((json_t *)meta, key, v)
        if (!json_is_string(v))
            return err_set(e, E_FORMAT, "'__metadata__' must map to strings only");
    return 0;
}

static int add_entries(struct st *s, json_t *header, const unsigned char *data,
                       int64_t data_bytes, struct err *e)
{
    int first = s->n;
    const char *name;
    json_t *o;
    size_t entries = json_object_size(header) - (json_object_get(header, "__metadata__") != NULL);
    if (reserve(s, entries, e)) return -1;
    json_object_foreach(header, name, o) {
        if (strcmp(name, "__metadata__") == 0) {
            if (check_metadata(o, e)) return -1;
            if (s->nmaps == 1) s->meta = json_incref(o);
            continue;
        }
        const char *fault = st_name_fault(name);
        if (fault)
            return err_set(e, str_starts(fault, "is longer") ? E_LIMIT : E_FORMAT,
                           "the name of tensor '%.40s' %s", name, fault);
        struct st_tensor *t = &s->v[s->n];
        *t = (struct st_tensor){.name = arena_strdup(&s->names, name, e)};
        if (!t->name) return -1;
        if (read_entry(t, o, data, data_bytes, e)) return err_wrap(e, "tensor '%s'", name);
        s->n++;
    }
    if (check_spans(s->v + first, s->n - first, data, data_bytes, e)) return -1;
    return align(s, first, e);
}

static uint64_t little_endian(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

int st_add(struct st *s, const char *path, struct err *e)
{
    struct fs_map *m = &s->maps[s->nmaps];
    json_t *header = NULL;
    int rc = -1;
    if (fs_map(path, m, e)) return -1;
    s->nmaps++;
    if (m->size < 8) {
        err_set(e, E_FORMAT, "%zu bytes are too few for a safetensors file", m->size);
        goto out;
    }
    uint64_t n = little_endian(m->data);
    if (n > m->size - 8) {
        err_set(e, E_FORMAT, "the header says %" PRIu64 " bytes but only %zu follow", n,
                m->size - 8);
        goto out;
    }
    if (n > ST_HEADER_MAX) {
        err_set(e, E_LIMIT, "a header of %" PRIu64 " bytes; at most %d are allowed", n,
                ST_HEADER_MAX);
        goto out;
    }
    if (n == 0 || m->data[8] != '{') {
        err_set(e, E_FORMAT, "the header does not start with '{'");
        goto out;
    }
    header = st_parse((const char *)m->data + 8, (size_t)n, e);
    if (!header) {
        err_wrap(e, "header");
        goto out;
    }
    rc = add_entries(s, header, m->data + 8 + n, (int64_t)(m->size - 8 - n), e);
out:
    json_decref(header);
    return rc ? err_wrap(e, "%s", path) : 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

int st_finish(struct st *s, struct err *e)
{
    if (s->n) qsort(s->v, (size_t)s->n, sizeof *s->v, by_name);
    for (int i = 1; i < s->n; i++)
        if (strcmp(s->v[i - 1].name, s->v[i].name) == 0)
            return err_set(e, E_FORMAT, "tensor '%s' is there twice", s->v[i].name);
    return 0;
}

struct st *st_open(const char *path, struct err *e)
{
    struct st *s = st_new(1, e);
    if (s && !st_add(s, path, e) && !st_finish(s, e)) return s;
    st_close(s);
    return NULL;
}

int st_count(const struct st *s)
{
    return s->n;
}

const struct st_tensor *st_at(const struct st *s, int i)
{
    return &s->v[i];
}

const struct st_tensor *st_find(const struct st *s, const char *name)
{
    struct st_tensor key = {.name = name};
    return s->n ? bsearch(&key, s->v, (size_t)s->n, sizeof *s->v, by_name) : NULL;
}

const char *st_metadata(const struct st *s, const char *key)
{
    return json_string_value(json_object_get(s->meta, key));
}
