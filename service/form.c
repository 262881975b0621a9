#include "service/form.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/router.h"

#include <string.h>
#include <strings.h>

static int add_field(struct form *f, const char *name, const char *value, struct err *e)
{
    if (f->nfield == FORM_FIELDS) return err_set(e, E_LIMIT, "more than %d fields", FORM_FIELDS);
    f->field[f->nfield++] = (struct form_field){name, value};
    return 0;
}

static int part_begin(void *ctx, const struct multipart_part *p, struct err *e)
{
    struct form *f = ctx;
    f->in_file = p->is_file;
    f->name = arena_strdup(f->arena, p->name, e);
    if (!f->name) return -1;
    if (!p->is_file) {
        buf_init(&f->value, FORM_FIELD_BYTES);
        return 0;
    }
    if (f->nfile == FORM_FILES) return err_set(e, E_LIMIT, "more than %d files", FORM_FILES);
    struct form_file *file = &f->file[f->nfile];
    *file = (struct form_file){.name = f->name};
    file->filename = arena_strdup(f->arena, p->filename, e);
    if (!file->filename) return -1;
    file->w = blob_writer_new(f->blobs, f->file_max, e);
    if (!file->w) return -1;
    f->nfile++;
    return 0;
}

static int part_data(void *ctx, const char *s, size_t n, struct err *e)
{
    struct form *f = ctx;
    if (f->in_file) {
        struct form_file *file = &f->file[f->nfile - 1];
        file->size += (int64_t)n;
        if (blob_writer_put(file->w, s, n, e)) return err_param(e, "%s", f->name);
        return 0;
    }
    f->text += n;
    if (f->text > FORM_TEXT_BYTES)
        return err_set(e, E_LIMIT, "the fields together are longer than %d bytes",
                       FORM_TEXT_BYTES);
    buf_put(&f->value, s, n);
    return buf_ok(&f->value, e) ? err_param(e, "%s", f->name) : 0;
}

static int part_end(void *ctx, struct err *e)
{
    struct form *f = ctx;
    struct blob_info info;
    if (f->in_file) return blob_writer_end(f->file[f->nfile - 1].w, &info, e);
    const char *s = buf_str(&f->value);
    if (strlen(s) != f->value.len || str_utf8_bad(s, f->value.len) != f->value.len) {
        err_set(e, E_ARG, "'%s' is not UTF-8 text", f->name);
        return err_param(e, "%s", f->name);
    }
    const char *value = arena_strdup(f->arena, s, e);
    buf_clear(&f->value);
    return value ? add_field(f, f->name, value, e) : -1;
}

int form_init(struct form *f, const char *content_type, struct blobs *b, int64_t file_max,
              struct arena *a, struct err *e)
{
    static const char urlencoded[] = "application/x-www-form-urlencoded";
    *f = (struct form){.arena = a, .blobs = b, .file_max = file_max};
    if (content_type && !strncasecmp(content_type, urlencoded, sizeof urlencoded - 1)) {
        buf_init(&f->value, FORM_TEXT_BYTES);
        return 0;
    }
    const struct multipart_sink sink = {f, part_begin, part_data, part_end};
    struct multipart *m = mem_zalloc(sizeof *m, e);
    if (!m) return -1;
    if (multipart_init(m, content_type, &sink, e)) {
        mem_free(m);
        return -1;
    }
    f->parser = m;
    return 0;
}

int form_put(struct form *f, const char *s, size_t n, struct err *e)
{
    if (f->parser) return multipart_put(f->parser, s, n, e);
    buf_put(&f->value, s, n);
    return buf_ok(&f->value, e);
}

static int finish_urlencoded(struct form *f, struct err *e)
{
    if (strlen(buf_str(&f->value)) != f->value.len)
        return err_set(e, E_ARG, "the form contains a NUL byte");
    char *q = arena_strdup(f->arena, buf_str(&f->value), e);
    if (!q) return -1;
    buf_clear(&f->value);
    for (char *next; q; q = next) {
        next = strchr(q, '&');
        if (next) *next++ = 0;
        if (!*q) continue;
        char *value = strchr(q, '=');
        if (value)
            *value++ = 0;
        else
            value = q + strlen(q);
        if (router_decode(q, true, e) < 0 || router_decode(value, true, e) < 0 ||
            add_field(f, q, value, e))
            return -1;
    }
    return 0;
}

int form_finish(struct form *f, struct err *e)
{
    return f->parser ? multipart_finish(f->parser, e) : finish_urlencoded(f, e);
}

void form_clear(struct form *f)
{
    if (!f->arena) return;
    for (int i = 0; i < f->nfile; i++) blob_writer_abort(f->file[i].w);
    buf_clear(&f->value);
    mem_free(f->parser);
    *f = (struct form){0};
}

const char *form_field(const struct form *f, const char *name)
{
    for (int i = 0; i < f->nfield; i++)
        if (str_eq(f->field[i].name, name)) return f->field[i].value;
    return NULL;
}

struct form_file *form_file(struct form *f, const char *name)
{
    for (int i = 0; i < f->nfile; i++)
        if (str_eq(f->file[i].name, name)) return &f->file[i];
    return NULL;
}
