#include "engine/base/buf.h"
#include "engine/base/hash.h"
#include "engine/base/str.h"
#include "handlers/handlers.h"

#include <stdio.h>
#include <string.h>

enum { IDEM_KEY_MAX = 255, IDEM_TEXT_MAX = 2 << 20 };

int handlers_missing(struct reply *out, const struct err *e, const char *code)
{
    return e->code == E_NOTFOUND ? reply_fail(out, 404, code) : -1;
}

int handlers_page(const struct request *r, int64_t limit_max, struct page *p, struct err *e)
{
    const char *order = request_query(r, "order");
    if (request_query_int(r, "limit", 1, limit_max, &p->limit, e)) return -1;
    p->after = request_query(r, "after");
    if (!order) return 0;
    if (!str_eq(order, "asc") && !str_eq(order, "desc")) {
        err_set(e, E_ARG, "'order' must be asc or desc");
        return err_param(e, "order");
    }
    p->ascending = str_eq(order, "asc");
    return 0;
}

int handlers_idem(const struct request *r, const char *content, struct idem *idem, struct err *e)
{
    struct buf b;
    const char *key = request_header(r, "idempotency-key");
    if (!key) key = request_header(r, "x-idempotency-key");
    *idem = (struct idem){0};
    if (!key) return 0;
    if (!*key || strlen(key) > IDEM_KEY_MAX) {
        err_set(e, E_ARG, "Idempotency-Key must have 1 to %d bytes", IDEM_KEY_MAX);
        return err_param(e, "Idempotency-Key");
    }
    buf_init(&b, IDEM_TEXT_MAX);
    buf_printf(&b, "%s %s\n", r->method, r->path);
    buf_puts(&b, content);
    int rc = buf_ok(&b, e);
    if (!rc) rc = hash_sha256(buf_str(&b), b.len, idem->request_sha256, e);
    if (!rc) idem->key = key;
    buf_clear(&b);
    return rc;
}

int handlers_report(struct reply *out, json_t *report, struct err *e)
{
    json_t *problems = json_object_get(report, "problems");
    json_t *first = json_array_get(problems, 0);
    const char *reason = json_string_value(json_object_get(first, "reason"));
    json_int_t line = json_integer_value(json_object_get(first, "line"));
    json_int_t column = json_integer_value(json_object_get(first, "column"));
    if (json_is_array(problems)) {
        out->fail_details = json_incref(problems);
        reply_fail(out, 422, "dataset_invalid");
    }
    /* Only the text: what field of the request is at fault stays as it is. */
    if (reason && line > 0 && column > 0)
        snprintf(e->msg, sizeof e->msg, "line %lld, column %lld: %s", (long long)line,
                 (long long)column, reason);
    json_decref(report);
    return -1;
}
