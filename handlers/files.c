#include "engine/base/buf.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "handlers/handlers.h"
#include "service/files.h"

#include <string.h>

static const char not_found[] = "file_not_found";

static int only_known(const struct form *f, struct err *e)
{
    static const char *const known[] = {"purpose", "expires_after[anchor]",
                                        "expires_after[seconds]"};
    for (int i = 0; i < f->nfield; i++) {
        const char *name = f->field[i].name;
        bool ok = false;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) ok = ok || str_eq(name, known[k]);
        for (int k = 0; ok && k < i; k++) ok = !str_eq(name, f->field[k].name);
        if (!ok) {
            err_set(e, E_ARG, "the field '%.64s' is unknown or given twice", name);
            return err_param(e, "%.64s", name);
        }
    }
    const char *filename = f->nfile ? f->file[0].filename : "";
    if (f->nfile != 1 || !str_eq(f->file[0].name, "file"))
        err_set(e, E_ARG, "exactly one file is needed, in the field 'file'");
    else if (strpbrk(filename, "/\\") || str_eq(filename, ".") || str_eq(filename, ".."))
        err_set(e, E_ARG, "the file name must be a name, not a path");
    else
        return 0;
    return err_param(e, "file");
}

static int expiry(const struct form *f, int64_t *seconds, struct err *e)
{
    const char *anchor = form_field(f, "expires_after[anchor]");
    const char *text = form_field(f, "expires_after[seconds]");
    if (!anchor && !text) return 0;
    if (!str_eq(anchor, "created_at")) {
        err_set(e, E_ARG, "expires_after[anchor] must be 'created_at'");
        return err_param(e, "expires_after[anchor]");
    }
    if (text && str_int64(text, seconds)) {
        if (*seconds >= 3600 && *seconds <= 2592000) return 0;
        err_set(e, E_RANGE, "expires_after[seconds] must be between 3600 and 2592000");
    } else {
        err_set(e, E_ARG, "expires_after[seconds] must be an integer");
    }
    return err_param(e, "expires_after[seconds]");
}

/* What an idempotency key stands for: all fields as sent, and the content of the file. */
static int upload_idem(const struct request *r, struct form_file *file, struct idem *idem,
                       struct err *e)
{
    struct blob_info info;
    struct buf b;
    buf_init(&b, 2 << 20);
    for (int i = 0; i < r->form.nfield; i++)
        buf_printf(&b, "%s=%s\n", r->form.field[i].name, r->form.field[i].value);
    int rc = blob_writer_end(file->w, &info, e);
    if (!rc) {
        buf_printf(&b, "%s %s", file->filename, info.sha256);
        rc = buf_ok(&b, e);
    }
    if (!rc) rc = handlers_idem(r, buf_str(&b), idem, e);
    buf_clear(&b);
    return rc;
}

int files_post(struct request *r, struct reply *out, struct err *e)
{
    struct files_new n = {.purpose = form_field(&r->form, "purpose")};
    struct idem idem;
    json_t *object = NULL, *report = NULL;
    if (only_known(&r->form, e)) return -1;
    if (!n.purpose) {
        err_set(e, E_ARG, "'purpose' is required: what the file is for, such as fine-tune");
        return err_param(e, "purpose");
    }
    if (expiry(&r->form, &n.expires_after_s, e)) return -1;
    struct form_file *file = &r->form.file[0];
    if (upload_idem(r, file, &idem, e)) return -1;
    n.filename = file->filename;
    struct blob_writer *w = file->w;
    file->w = NULL;
    if (files_create(r->service, w, &n, idem.key ? &idem : NULL, &object, &report, e)) {
        err_param(e, "file");
        return handlers_report(out, report, e);
    }
    json_decref(report);
    return reply_json(out, object, e);
}

int files_index(struct request *r, struct reply *out, struct err *e)
{
    static const char *const known[] = {"after", "limit", "order", "purpose", NULL};
    struct page p = {.limit = 10000};
    if (request_query_only(r, known, e) || handlers_page(r, 10000, &p, e)) return -1;
    json_t *list = files_list(r->service, &p, request_query(r, "purpose"), e);
    return list ? reply_json(out, list, e) : handlers_missing(out, e, not_found);
}

int files_show(struct request *r, struct reply *out, struct err *e)
{
    json_t *file = files_get(r->service, request_param(r, 0), e);
    return file ? reply_json(out, file, e) : handlers_missing(out, e, not_found);
}

/* RFC 6266: a plain name for old clients, and the true one percent-encoded. */
static int disposition(struct reply *out, const char *name, struct err *e)
{
    char plain[256], coded[3 * 256];
    size_t n = 0, m = 0;
    for (const char *s = name; *s && n + 1 < sizeof plain; s++) {
        bool safe = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') ||
                    (*s >= '0' && *s <= '9') || (*s && strchr("._-", *s));
        plain[n++] = safe ? *s : '_';
        if (safe)
            coded[m++] = *s;
        else
            m += (size_t)snprintf(coded + m, 4, "%%%02X", (unsigned char)*s);
    }
    plain[n] = coded[m] = 0;
    return reply_header(out, e, "Content-Disposition",
                        "attachment; filename=\"%s\"; filename*=UTF-8''%s", plain, coded);
}

int files_content(struct request *r, struct reply *out, struct err *e)
{
    struct blob_info info;
    char name[256];
    int fd;
    if (files_read(r->service, request_param(r, 0), &fd, &info, name, e))
        return handlers_missing(out, e, not_found);
    const struct reply_file f = {fd, info.bytes, "application/octet-stream", info.sha256};
    if (reply_file(out, r, &f, e)) return -1;
    return disposition(out, name, e);
}

int files_remove(struct request *r, struct reply *out, struct err *e)
{
    const char *id = request_param(r, 0);
    if (files_delete(r->service, id, e)) return handlers_missing(out, e, not_found);
    return reply_json(out, jx_pack(e, "{s:s, s:s, s:b}", "id", id, "object", "file", "deleted", 1),
                      e);
}

static int examine(struct request *r, struct reply *out, bool preview, struct err *e)
{
    json_t *report = files_examine(r->service, request_param(r, 0), r->json, preview, e);
    if (report) return reply_json(out, report, e);
    return handlers_missing(out, e, str_eq(e->param, "model") ? "model_not_found" : not_found);
}

int files_validate(struct request *r, struct reply *out, struct err *e)
{
    return examine(r, out, false, e);
}

int files_preview(struct request *r, struct reply *out, struct err *e)
{
    return examine(r, out, true, e);
}
