#include "service/jobs.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "handlers/handlers.h"

#include <string.h>

static const char not_found[] = "job_not_found";

/* Which of the objects that a job names does not exist or cannot be used. */
static int missing_part(struct reply *out, const struct err *e)
{
    bool file = str_eq(e->param, "training_file") || str_eq(e->param, "validation_file");
    if (file && e->code == E_FORMAT) return reply_fail(out, 422, "dataset_invalid");
    if (file) return handlers_missing(out, e, "file_not_found");
    if (str_eq(e->param, "model")) return handlers_missing(out, e, "model_not_found");
    if (e->code == E_NOTFOUND) return reply_fail(out, 400, "invalid_value");
    return -1;
}

int jobs_post(struct request *r, struct reply *out, struct err *e)
{
    struct idem idem;
    json_t *job = NULL, *report = NULL;
    char *text = jx_dump(r->json, e);
    int rc = text ? handlers_idem(r, text, &idem, e) : -1;
    mem_free(text);
    if (rc) return -1;
    if (jobs_create(r->service, r->json, idem.key ? &idem : NULL, &job, &report, e)) {
        missing_part(out, e);
        return handlers_report(out, report, e);
    }
    json_decref(report);
    return reply_json(out, job, e);
}

/* Adds one metadata[key]=value of the query to *filter. */
static int add_filter(struct request *r, const struct pair *q, json_t **filter, struct err *e)
{
    static const size_t prefix = sizeof "metadata[" - 1;
    size_t n = strlen(q->name);
    if (q->name[n - 1] != ']') {
        err_set(e, E_ARG, "'%.64s' is not of the form metadata[key]", q->name);
        return err_param(e, "metadata");
    }
    char *key = arena_strndup(&r->arena, q->name + prefix, n - prefix - 1, e);
    if (!key) return -1;
    if (!*filter) *filter = json_object();
    return jx_set(*filter, key, json_string(q->value), e);
}

/* metadata=null: jobs without any; metadata[k]=v: an object of what must match; NULL: all. */
static int metadata_filter(struct request *r, json_t **filter, struct err *e)
{
    const char *none = request_query(r, "metadata");
    *filter = NULL;
    if (none && !str_eq(none, "null")) {
        err_set(e, E_ARG, "'metadata' must be null, or be given as metadata[key]=value");
        return err_param(e, "metadata");
    }
    if (none) *filter = json_null();
    for (int i = 0; i < r->nquery && !none; i++) {
        if (!str_starts(r->query[i].name, "metadata[")) continue;
        if (!add_filter(r, &r->query[i], filter, e)) continue;
        json_decref(*filter);
        return -1;
    }
    return 0;
}

int jobs_index(struct request *r, struct reply *out, struct err *e)
{
    static const char *const known[] = {"after", "limit", "metadata", "metadata[", NULL};
    struct page p = {.limit = 20};
    json_t *filter;
    if (request_query_only(r, known, e) || handlers_page(r, 100, &p, e) ||
        metadata_filter(r, &filter, e))
        return -1;
    json_t *list = jobs_list(r->service, &p, filter, e);
    json_decref(filter);
    return list ? reply_json(out, list, e) : handlers_missing(out, e, not_found);
}

static int answer(struct reply *out, json_t *v, struct err *e)
{
    if (v) return reply_json(out, v, e);
    if (e->code == E_CONFLICT) return reply_fail(out, 409, "invalid_job_state");
    return handlers_missing(out, e, not_found);
}

int jobs_show(struct request *r, struct reply *out, struct err *e)
{
    return answer(out, jobs_get(r->service, request_param(r, 0), e), e);
}

int jobs_do_cancel(struct request *r, struct reply *out, struct err *e)
{
    return answer(out, jobs_cancel(r->service, request_param(r, 0), e), e);
}

int jobs_do_pause(struct request *r, struct reply *out, struct err *e)
{
    return answer(out, jobs_pause(r->service, request_param(r, 0), e), e);
}

int jobs_do_resume(struct request *r, struct reply *out, struct err *e)
{
    return answer(out, jobs_resume(r->service, request_param(r, 0), e), e);
}

int jobs_index_checkpoints(struct request *r, struct reply *out, struct err *e)
{
    static const char *const known[] = {"after", "limit", NULL};
    struct page p = {.limit = 10};
    if (request_query_only(r, known, e) || handlers_page(r, 100, &p, e)) return -1;
    return answer(out, jobs_checkpoints(r->service, request_param(r, 0), &p, e), e);
}

int jobs_show_metrics(struct request *r, struct reply *out, struct err *e)
{
    static const char *const known[] = {"max_points", NULL};
    int64_t points = 1000;
    if (request_query_only(r, known, e) ||
        request_query_int(r, "max_points", 2, 100000, &points, e))
        return -1;
    return answer(out, jobs_metrics(r->service, request_param(r, 0), points, e), e);
}

int plans_post(struct request *r, struct reply *out, struct err *e)
{
    json_t *plan = jobs_plan(r->service, r->json, e);
    return plan ? reply_json(out, plan, e) : missing_part(out, e);
}
