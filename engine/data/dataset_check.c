/* What is in a file, for the person who made it: every problem at once, and how rows become tokens.
 * No row is kept. */
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "engine/data/encode.h"

enum { SHOWN = 50 };

struct findings {
    json_t *problems;
    int64_t more;
};

static int collect(void *ctx, const struct rows_problem *p, struct err *e)
{
    struct findings *f = ctx;
    if (json_array_size(f->problems) >= SHOWN) {
        f->more++;
        return 0;
    }
    json_t *o = jx_pack(e, "{s:I, s:I, s:s, s:s}", "line", (json_int_t)p->line, "column",
                        (json_int_t)p->column, "field", p->field, "reason", p->reason);
    if (!o) return -1;
    return json_array_append_new(f->problems, o) ? err_set(e, E_NOMEM, "out of memory") : 0;
}

static json_t *report(const struct rows *r, const struct findings *f, struct err *e)
{
    json_t *o = jx_pack(e, "{s:b, s:s?, s:s, s:I, s:O, s:I}", "ok",
                        json_array_size(f->problems) == 0, "format", rows_shape_name(r->shape),
                        "container", r->csv ? "csv" : "jsonl", "rows", (json_int_t)r->count,
                        "problems", f->problems, "more", (json_int_t)f->more);
    if (!o || r->shape != ROW_LABEL || !jx_set(o, "labels", rows_labels(r, e), e)) return o;
    json_decref(o);
    return NULL;
}

json_t *dataset_check(const char *path, struct err *e)
{
    struct findings f = {.problems = json_array()};
    struct rows r;
    struct row row;
    json_t *out = NULL;
    int rc;
    if (!f.problems) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    if (rows_open(&r, path, collect, &f, e)) goto out;
    while ((rc = rows_next(&r, &row, e)) > 0) json_decref(row.json);
    if (!rc) out = report(&r, &f, e);
    if (!out) err_wrap(e, "%s", path);
    rows_close(&r);
out:
    json_decref(f.problems);
    return out;
}

/* --- through a tokenizer -------------------------------------------------------------------- */

struct count {
    int64_t tokens, trained, longest, cut_rows, cut_tokens, skipped;
};

struct preview {
    const struct tok *tok;
    const struct dataset_options *o;
    struct encoding x;
    struct count all;
    json_t *data; /* rows to show, or NULL */
    int64_t show;
};

/* Nothing predicts the first token. */
static bool is_trained(const struct encoding *x, int64_t i)
{
    return i > 0 && x->trained.v[i];
}

static int append(json_t *list, json_t *v, struct err *e)
{
    return json_array_append_new(list, v) ? err_set(e, E_NOMEM, "out of memory") : 0;
}

/* The lists of a shown row: one entry per token, and [from, to) of each run that is trained. */
static int list_tokens(const struct preview *p, int64_t n, json_t *row, struct err *e)
{
    json_t *tokens = json_object_get(row, "tokens"), *ids = json_object_get(row, "ids");
    json_t *labels = json_object_get(row, "labels"), *spans = json_object_get(row, "trained_spans");
    int64_t from = -1;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = p->x.ids.v[i];
        bool trained = is_trained(&p->x, i);
        const char *text = tok_token(p->tok, id);
        if (append(tokens, json_string(text ? text : ""), e) ||
            append(ids, json_integer(id), e) ||
            append(labels, json_integer(trained ? id : -100), e))
            return -1;
        if (trained && from < 0) from = i;
        if (from < 0 || (trained && i + 1 < n)) continue;
        int64_t to = trained ? n : i;
        if (append(spans, json_pack("[I, I]", (json_int_t)from, (json_int_t)to), e)) return -1;
        from = -1;
    }
    return 0;
}

static int show_row(struct preview *p, int64_t line, int64_t n, int64_t trained, struct err *e)
{
    json_t *row = jx_pack(e, "{s:I, s:[], s:[], s:[], s:[], s:I, s:I, s:b}", "line",
                          (json_int_t)line, "tokens", "ids", "labels", "trained_spans",
                          "num_tokens", (json_int_t)n, "num_trained_tokens", (json_int_t)trained,
                          "truncated", n < p->x.ids.n);
    if (row && !list_tokens(p, n, row, e)) return append(p->data, row, e);
    json_decref(row);
    return -1;
}

static int count_row(struct preview *p, int64_t line, struct err *e)
{
    struct count *c = &p->all;
    int64_t whole = p->x.ids.n, n = whole < p->o->max_length ? whole : p->o->max_length;
    int64_t trained = 0;
    for (int64_t i = 0; i < n; i++) trained += is_trained(&p->x, i);
    c->tokens += n;
    c->trained += trained;
    c->cut_rows += n < whole;
    c->cut_tokens += whole - n;
    c->skipped += trained == 0;
    if (whole > c->longest) c->longest = whole;
    return p->data ? show_row(p, line, n, trained, e) : 0;
}

/* What the row cannot say is its problem; a parameter that is missing or wrong is the caller's. */
static int take_row(struct preview *p, struct findings *f, const struct row *row, struct err *e)
{
    struct err bad = ERR_INIT;
    struct rows_problem told = {.line = row->line, .column = 1};
    if (!encode_row(&p->x, p->tok, row, p->o, &bad)) return count_row(p, row->line, e);
    bool content = bad.code == E_FORMAT || bad.code == E_UNSUPPORTED || bad.code == E_LIMIT ||
                   bad.code == E_ARG;
    if (!content || bad.param[0]) {
        *e = bad;
        return err_wrap(e, "line %lld", (long long)row->line);
    }
    str_copy(told.reason, sizeof told.reason, bad.msg);
    return collect(f, &told, e);
}

static json_t *preview_report(const struct preview *p, const struct rows *r,
                              const struct findings *f, struct err *e)
{
    const struct count *c = &p->all;
    json_t *o = report(r, f, e), *more = NULL;
    if (o)
        more = jx_pack(e, "{s:I, s:s?, s:I, s:I, s:I, s:I, s:I, s:I}", "max_seq_length",
                       (json_int_t)p->o->max_length, "chat_template",
                       p->o->chat ? chat_name(p->o->chat) : NULL, "num_tokens",
                       (json_int_t)c->tokens, "num_trained_tokens", (json_int_t)c->trained,
                       "longest", (json_int_t)c->longest, "rows_truncated",
                       (json_int_t)c->cut_rows, "tokens_truncated", (json_int_t)c->cut_tokens,
                       "rows_skipped", (json_int_t)c->skipped);
    if (more && !json_object_update(o, more) &&
        (!p->data || !json_object_set(o, "data", p->data))) {
        json_decref(more);
        return o;
    }
    if (more) err_set(e, E_NOMEM, "out of memory");
    json_decref(more);
    json_decref(o);
    return NULL;
}

json_t *dataset_preview(const char *path, const struct tok *t, const struct dataset_options *o,
                        int64_t show, struct err *e)
{
    struct findings f = {.problems = json_array()};
    struct preview p = {.tok = t, .o = o, .show = show, .data = show ? json_array() : NULL};
    struct rows r;
    struct row row;
    json_t *out = NULL;
    int rc = 0;
    if (!f.problems || (show && !p.data)) {
        err_set(e, E_NOMEM, "out of memory");
        goto out;
    }
    if (rows_open(&r, path, collect, &f, e)) goto out;
    while (!rc && (!show || (int64_t)json_array_size(p.data) < show) &&
           (rc = rows_next(&r, &row, e)) > 0) {
        rc = take_row(&p, &f, &row, e);
        json_decref(row.json);
    }
    if (!rc) out = preview_report(&p, &r, &f, e);
    if (!out) err_wrap(e, "%s", path);
    rows_close(&r);
out:
    encode_clear(&p.x);
    json_decref(p.data);
    json_decref(f.problems);
    return out;
}

static int ignore(void *ctx, const struct rows_problem *p, struct err *e)
{
    (void)ctx;
    (void)p;
    (void)e;
    return 0;
}

int dataset_is_chat(const char *path, bool *yes, struct err *e)
{
    struct rows r;
    struct row row;
    int rc;
    if (rows_open(&r, path, ignore, NULL, e)) return err_wrap(e, "%s", path);
    /* A bad row may have a shape all the same, and be the last one. */
    while ((rc = rows_next(&r, &row, e)) > 0) {
        json_decref(row.json);
        if (r.shape) break;
    }
    *yes = rows_is_chat(r.shape);
    rows_close(&r);
    return rc < 0 ? err_wrap(e, "%s", path) : 0;
}
