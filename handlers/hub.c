/* Models as a hub serves them (rest-conventions 8): huggingface_hub, transformers, peft and
 * llama.cpp load results from here. A model is immutable and has one commit; "main" is its name. */
#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "handlers/handlers.h"
#include "service/models.h"

#include <string.h>

enum { LIST_MAX = 1000 };

static bool query_true(const struct request *r, const char *name)
{
    const char *v = request_query(r, name);
    return str_eq(v, "true") || str_eq(v, "True") || str_eq(v, "1");
}

/* The model and revision that the path names. X-Repo-Commit is set as soon as both exist: clients
 * need it on a missing file, too. */
static int find(struct request *r, const char *rev, struct model *m, struct reply *out,
                struct err *e)
{
    if (models_get(r->service, request_param(r, 0), m, e))
        return e->code == E_NOTFOUND ? reply_fail(out, 404, "RepoNotFound") : -1;
    if (!rev || str_eq(rev, "main") || str_eq(rev, "refs/heads/main") || str_eq(rev, m->commit)) {
        if (!reply_header(out, e, "X-Repo-Commit", "%s", m->commit)) return 0;
    } else {
        err_set(e, E_NOTFOUND, "%s has no revision '%.100s'; there is 'main'", m->id, rev);
        reply_fail(out, 404, "RevisionNotFound");
    }
    models_clear(m);
    return -1;
}

static int no_entry(struct reply *out, const struct model *m, const char *path, struct err *e)
{
    err_set(e, E_NOTFOUND, "%s has no entry '%.200s'", m->id, path);
    return reply_fail(out, 404, "EntryNotFound");
}

/* ---- files ---- */

static int resolve_headers(struct reply *out, const struct model_file *f, bool pinned,
                           struct err *e)
{
    if (!f->git_sha1 && (reply_header(out, e, "X-Linked-Etag", "\"%s\"", f->sha256) ||
                         reply_header(out, e, "X-Linked-Size", "%lld", (long long)f->bytes)))
        return -1;
    const char *name = strrchr(f->path, '/');
    if (reply_header(out, e, "Content-Disposition", "inline; filename=\"%s\"",
                     name ? name + 1 : f->path))
        return -1;
    return reply_header(out, e, "Cache-Control", "%s",
                        pinned ? "public, max-age=31536000, immutable" : "no-store");
}

int hub_resolve(struct request *r, struct reply *out, struct err *e)
{
    const char *rev = request_param(r, 1), *path = request_param(r, 2);
    struct model m;
    int rc = -1;
    if (find(r, rev, &m, out, e)) return -1;
    const struct model_file *f = models_file(&m, path);
    if (!f) {
        no_entry(out, &m, path, e);
        goto out;
    }
    int fd = models_read(&m, f, e);
    if (fd < 0) goto out;
    const struct reply_file file = {fd, f->bytes, "application/octet-stream",
                                    f->git_sha1 ? f->git_sha1 : f->sha256};
    if (reply_file(out, r, &file, e)) goto out;
    rc = resolve_headers(out, f, str_eq(rev, m.commit), e);
out:
    models_clear(&m);
    return rc;
}

/* ---- descriptions ---- */

/* A large file is in git as a small pointer file; its id and length are part of the protocol. */
struct pointer {
    char oid[41];
    size_t bytes;
};

static int pointer_of(const struct model_file *f, struct pointer *p, struct err *e)
{
    char text[256];
    int n = snprintf(text, sizeof text,
                     "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %lld\n",
                     f->sha256, (long long)f->bytes);
    p->bytes = (size_t)n;
    return hash_git_blob(text, p->bytes, p->oid, e);
}

/* Adds the git id under `oid_key` and, for a large file, "lfs" with its hash under `hash_key`. */
static int add_ids(json_t *v, const struct model_file *f, const char *oid_key,
                   const char *hash_key, struct err *e)
{
    struct pointer p;
    if (f->git_sha1) return jx_set(v, oid_key, json_string(f->git_sha1), e);
    if (pointer_of(f, &p, e) || jx_set(v, oid_key, json_string(p.oid), e)) return -1;
    return jx_set(v, "lfs", jx_pack(e, "{s:s, s:I, s:I}", hash_key, f->sha256, "size",
                                    (json_int_t)f->bytes, "pointerSize", (json_int_t)p.bytes), e);
}

static int add_commit(json_t *entry, const struct model *m, struct err *e)
{
    char when[32];
    clock_iso8601(m->created_at, when);
    return jx_set(entry, "lastCommit", jx_pack(e, "{s:s, s:s, s:s}", "id", m->commit, "title",
                                               "Published by graft", "date", when), e);
}

static json_t *file_entry(const struct model *m, const struct model_file *f, bool expand,
                          struct err *e)
{
    json_t *v = jx_pack(e, "{s:s, s:s, s:I}", "type", "file", "path", f->path, "size",
                        (json_int_t)f->bytes);
    if (!v) return NULL;
    if (add_ids(v, f, "oid", "oid", e) || (expand && add_commit(v, m, e))) {
        json_decref(v);
        return NULL;
    }
    return v;
}

/* A folder has no hash of its own; clients only want 40 hex digits that change with the content. */
static json_t *dir_entry(const struct model *m, const char *path, size_t n, bool expand,
                         struct err *e)
{
    struct buf b;
    char oid[41];
    json_t *v = NULL;
    buf_init(&b, 8192);
    buf_puts(&b, m->commit);
    buf_put(&b, path, n);
    if (!buf_ok(&b, e) && !hash_git_blob(buf_str(&b), b.len, oid, e))
        v = jx_pack(e, "{s:s, s:s%, s:s}", "type", "directory", "path", path, n, "oid", oid);
    buf_clear(&b);
    if (v && expand && add_commit(v, m, e)) {
        json_decref(v);
        v = NULL;
    }
    return v;
}

static int append(json_t *list, json_t *v, struct err *e)
{
    if (!v) return -1;
    return json_array_append_new(list, v) ? err_set(e, E_NOMEM, "out of memory") : 0;
}

struct walk {
    const struct model *m;
    const char *dir; /* "" for the root */
    bool recursive, expand;
    json_t *list;
};

/* What of file i lies below the folder: the file itself, and each folder that it is the first to
 * name. Files are sorted, so those of one folder stand together. */
static int walk_file(struct walk *w, int i, struct err *e)
{
    const struct model *m = w->m;
    const char *path = m->files[i].path, *before = i ? m->files[i - 1].path : "";
    size_t n = strlen(w->dir);
    if (n && (strncmp(path, w->dir, n) || path[n] != '/')) return 0;
    for (const char *p = path + n + (n > 0); (p = strchr(p, '/')); p++) {
        size_t k = (size_t)(p - path);
        bool new = strncmp(path, before, k + 1) != 0;
        if (new && append(w->list, dir_entry(m, path, k, w->expand, e), e)) return -1;
        if (!w->recursive) return 0;
    }
    return append(w->list, file_entry(m, &m->files[i], w->expand, e), e);
}

int hub_tree(struct request *r, struct reply *out, struct err *e)
{
    const char *dir = request_param(r, 2) ? request_param(r, 2) : "";
    struct model m;
    int rc = -1;
    if (find(r, request_param(r, 1), &m, out, e)) return -1;
    struct walk w = {&m, dir, query_true(r, "recursive"), query_true(r, "expand"), json_array()};
    if (!w.list) err_set(e, E_NOMEM, "out of memory");
    for (int i = 0; w.list && i < m.nfiles; i++)
        if (walk_file(&w, i, e)) goto out;
    if (*dir && json_array_size(w.list) == 0) {
        no_entry(out, &m, dir, e);
        goto out;
    }
    rc = reply_json(out, w.list, e);
    w.list = NULL;
out:
    json_decref(w.list);
    models_clear(&m);
    return rc;
}

static bool is_dir(const struct model *m, const char *path)
{
    size_t n = strlen(path);
    for (int i = 0; i < m->nfiles; i++)
        if (!strncmp(m->files[i].path, path, n) && m->files[i].path[n] == '/') return true;
    return false;
}

static int add_path(json_t *list, const struct model *m, const char *path, bool expand,
                    struct err *e)
{
    const struct model_file *f = models_file(m, path);
    if (f) return append(list, file_entry(m, f, expand, e), e);
    if (is_dir(m, path)) return append(list, dir_entry(m, path, strlen(path), expand, e), e);
    return 0; /* hubs leave out what does not exist */
}

int hub_paths_info(struct request *r, struct reply *out, struct err *e)
{
    const char *flag = form_field(&r->form, "expand");
    bool expand = json_is_true(json_object_get(r->json, "expand")) || str_eq(flag, "true") ||
                  str_eq(flag, "True");
    json_t *paths = json_object_get(r->json, "paths"), *item, *list = json_array();
    struct model m;
    size_t k;
    int rc = 0;
    if (!list) return err_set(e, E_NOMEM, "out of memory");
    if (find(r, request_param(r, 1), &m, out, e)) {
        json_decref(list);
        return -1;
    }
    for (int i = 0; i < r->form.nfield && !rc; i++)
        if (str_eq(r->form.field[i].name, "paths"))
            rc = add_path(list, &m, r->form.field[i].value, expand, e);
    if (json_is_string(paths)) rc = add_path(list, &m, json_string_value(paths), expand, e);
    json_array_foreach(paths, k, item)
        if (!rc && json_is_string(item))
            rc = add_path(list, &m, json_string_value(item), expand, e);
    models_clear(&m);
    if (!rc) return reply_json(out, list, e);
    json_decref(list);
    return -1;
}

static json_t *siblings(const struct model *m, bool blobs, struct err *e)
{
    json_t *list = json_array();
    int rc = list ? 0 : err_set(e, E_NOMEM, "out of memory");
    for (int i = 0; i < m->nfiles && !rc; i++) {
        const struct model_file *f = &m->files[i];
        json_t *v = jx_pack(e, "{s:s}", "rfilename", f->path);
        rc = v ? 0 : -1;
        if (v && blobs)
            rc = jx_set(v, "size", json_integer(f->bytes), e) ||
                 add_ids(v, f, "blobId", "sha256", e);
        if (rc)
            json_decref(v);
        else
            rc = append(list, v, e);
    }
    if (!rc) return list;
    json_decref(list);
    return NULL;
}

/* Model card data, as a hub takes it from the head of README.md. */
static json_t *card(const struct model *m, const char *library, struct err *e)
{
    json_t *v = jx_pack(e, "{s:s, s:s, s:[s]}", "library_name", library, "pipeline_tag",
                        "text-generation", "tags", "graft");
    if (v && m->parent && jx_set(v, "base_model", json_string(m->parent), e)) {
        json_decref(v);
        return NULL;
    }
    return v;
}

static int add_tags(json_t *v, const struct model *m, const char *library, struct err *e)
{
    json_t *tags = jx_pack(e, "[s, s, s]", library, "graft", "text-generation");
    if (tags && m->parent) {
        char text[32 + MODELS_ID_MAX];
        snprintf(text, sizeof text, "base_model:%s", m->parent);
        if (append(tags, json_string(text), e)) {
            json_decref(tags);
            return -1;
        }
    }
    return jx_set(v, "tags", tags, e);
}

static int add_config(json_t *v, const struct model *m, struct err *e)
{
    const char *type = json_string_value(json_object_get(m->info, "model_type"));
    const char *arch = json_string_value(json_object_get(m->info, "architecture"));
    const char *dtype = json_string_value(json_object_get(m->info, "dtype"));
    json_t *count = json_object_get(m->info, "parameters");
    if (type && arch &&
        jx_set(v, "config", jx_pack(e, "{s:[s], s:s}", "architectures", arch, "model_type", type),
               e))
        return -1;
    if (!dtype || !json_is_integer(count)) return 0;
    return jx_set(v, "safetensors",
                  jx_pack(e, "{s:{s:O}, s:O}", "parameters", dtype, count, "total", count), e);
}

static json_t *model_json(const struct model *m, bool files, bool blobs, struct err *e)
{
    const char *library = str_eq(m->kind, "adapter") ? "peft" : "transformers";
    const char *slash = strchr(m->id, '/');
    char when[32];
    clock_iso8601(m->created_at, when);
    json_t *v = jx_pack(e,
                        "{s:s, s:s, s:s, s:s, s:s%, s:b, s:b, s:b, s:s, s:s, s:s, s:s, s:i, s:i}",
                        "_id", m->commit, "id", m->id, "modelId", m->id, "sha", m->commit,
                        "author", slash ? m->id : "", slash ? (size_t)(slash - m->id) : (size_t)0,
                        "private", 0, "gated", 0, "disabled", 0, "createdAt", when,
                        "lastModified", when, "pipeline_tag", "text-generation", "library_name",
                        library, "downloads", 0, "likes", 0);
    if (!v) return NULL;
    if (add_tags(v, m, library, e) || add_config(v, m, e) ||
        (files && (jx_set(v, "siblings", siblings(m, blobs, e), e) ||
                   jx_set(v, "cardData", card(m, library, e), e)))) {
        json_decref(v);
        return NULL;
    }
    return v;
}

int hub_model(struct request *r, struct reply *out, struct err *e)
{
    struct model m;
    if (find(r, request_param(r, 1), &m, out, e)) return -1;
    json_t *v = model_json(&m, true, query_true(r, "blobs"), e);
    models_clear(&m);
    return reply_json(out, v, e);
}

int hub_refs(struct request *r, struct reply *out, struct err *e)
{
    struct model m;
    if (find(r, NULL, &m, out, e)) return -1;
    json_t *v = jx_pack(e, "{s:[{s:s, s:s, s:s}], s:[], s:[]}", "branches", "name", "main", "ref",
                        "refs/heads/main", "targetCommit", m.commit, "converts", "tags");
    models_clear(&m);
    return reply_json(out, v, e);
}

/* ---- the list ---- */

struct listing {
    const char *search, *author, *filter, *cursor;
    int64_t limit;
};

static bool wanted(const struct listing *l, const char *id, const json_t *v)
{
    size_t n = l->author ? strlen(l->author) : 0;
    bool tagged = !l->filter;
    size_t i;
    json_t *tag;
    if (l->author && (strncmp(id, l->author, n) || id[n] != '/')) return false;
    if (l->search && !strcasestr(id, l->search)) return false;
    json_array_foreach(json_object_get(v, "tags"), i, tag)
        tagged = tagged || str_eq(json_string_value(tag), l->filter);
    return tagged;
}

/* Where the list goes on: an absolute address, because clients open it as it is. */
static int add_next(struct request *r, struct reply *out, const struct listing *l,
                    const char *last, struct err *e)
{
    const char *host = request_header(r, "host");
    struct buf b;
    buf_init(&b, 2000);
    buf_printf(&b, "<http://%s/api/models?limit=%lld&cursor=%s", host ? host : "localhost",
               (long long)l->limit, last);
    for (int i = 0; i < r->nquery; i++) {
        const struct pair *q = &r->query[i];
        bool keep = str_eq(q->name, "search") || str_eq(q->name, "author") ||
                    str_eq(q->name, "filter");
        if (!keep) continue;
        buf_printf(&b, "&%s=", q->name);
        for (const char *s = q->value; *s; s++) buf_printf(&b, "%%%02X", (unsigned char)*s);
    }
    buf_puts(&b, ">; rel=\"next\"");
    int rc = buf_ok(&b, e);
    if (!rc) rc = reply_header(out, e, "Link", "%s", buf_str(&b));
    buf_clear(&b);
    return rc;
}

/* The list entry of one id, or NULL without an error if it is not wanted (or was just deleted). */
static json_t *list_entry(struct request *r, const struct listing *l, const char *id,
                          struct err *e)
{
    struct model m;
    struct err gone = ERR_INIT;
    if (models_get(r->service, id, &m, &gone)) {
        if (gone.code != E_NOTFOUND) *e = gone;
        return NULL;
    }
    json_t *v = model_json(&m, query_true(r, "full"), false, e);
    models_clear(&m);
    if (!v || wanted(l, id, v)) return v;
    json_decref(v);
    return NULL;
}

int hub_index(struct request *r, struct reply *out, struct err *e)
{
    struct listing l = {request_query(r, "search"), request_query(r, "author"),
                        request_query(r, "filter"), request_query(r, "cursor"), LIST_MAX};
    if (request_query_int(r, "limit", 1, LIST_MAX, &l.limit, e)) return -1;
    json_t *all = models_list(r->service, e), *list = json_array(), *item;
    bool started = !l.cursor;
    const char *last = NULL;
    size_t i;
    if (!all) goto fail;
    if (!list) {
        err_set(e, E_NOMEM, "out of memory");
        goto fail;
    }
    json_array_foreach(json_object_get(all, "data"), i, item) {
        const char *id = json_string_value(json_object_get(item, "id"));
        if (!started) {
            started = str_eq(id, l.cursor);
            continue;
        }
        json_t *v = list_entry(r, &l, id, e);
        if (!v && e->code) goto fail;
        if (!v) continue;
        if ((int64_t)json_array_size(list) == l.limit) {
            json_decref(v);
            if (add_next(r, out, &l, last, e)) goto fail;
            break;
        }
        if (append(list, v, e)) goto fail;
        last = id;
    }
    if (!started) {
        err_set(e, E_ARG, "there is no model '%.200s' to go on from", l.cursor);
        goto fail;
    }
    int rc = reply_json(out, list, e);
    json_decref(all);
    return rc;
fail:
    json_decref(all);
    json_decref(list);
    return -1;
}

int hub_whoami(struct request *r, struct reply *out, struct err *e)
{
    (void)r;
    return reply_json(out, jx_pack(e, "{s:s, s:s, s:s, s:s, s:b, s:b, s:[], s:{s:s, s:{s:s, s:s}}}",
                                   "type", "user", "id", "graft", "name", "graft", "fullname",
                                   "graft", "isPro", 0, "canPay", 0, "orgs", "auth", "type",
                                   "access_token", "accessToken", "displayName", "graft", "role",
                                   "write"), e);
}
