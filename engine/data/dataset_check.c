/* dataset_check: every problem of a file, without a tokenizer and without keeping its rows. */
#include "engine/base/jx.h"
#include "engine/data/dataset.h"
#include "engine/data/rows.h"

enum { SHOWN = 50 };

struct findings {
    json_t *list;
    int64_t more;
};

static int collect(void *ctx, const struct rows_problem *p, struct err *e)
{
    struct findings *f = ctx;
    if (json_array_size(f->list) >= SHOWN) {
        f->more++;
        return 0;
    }
    json_t *o = jx_pack(e, "{s:I, s:I, s:s, s:s}", "line", (json_int_t)p->line, "column",
                        (json_int_t)p->column, "field", p->field, "reason", p->reason);
    if (!o) return -1;
    return json_array_append_new(f->list, o) ? err_set(e, E_NOMEM, "out of memory") : 0;
}

json_t *dataset_check(const char *path, struct err *e)
{
    struct findings f = {.list = json_array()};
    struct rows r;
    struct row row;
    json_t *report = NULL;
    int rc;
    if (!f.list) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    if (rows_open(&r, path, collect, &f, e)) goto out;
    while ((rc = rows_next(&r, &row, e)) > 0) json_decref(row.json);
    if (!rc)
        report = jx_pack(e, "{s:b, s:s?, s:s, s:I, s:O, s:I}", "ok", json_array_size(f.list) == 0,
                         "format", rows_shape_name(r.shape), "container", r.csv ? "csv" : "jsonl",
                         "rows", (json_int_t)r.count, "problems", f.list, "more",
                         (json_int_t)f.more);
    if (report && r.shape == ROW_LABEL && jx_set(report, "labels", rows_labels(&r, e), e)) {
        json_decref(report);
        report = NULL;
    }
    if (!report) err_wrap(e, "%s", path);
    rows_close(&r);
out:
    json_decref(f.list);
    return report;
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
