#include "service/models.h"

#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "handlers/handlers.h"

static const char not_found[] = "model_not_found";

int models_post(struct request *r, struct reply *out, struct err *e)
{
    json_t *model = NULL;
    if (models_create(r->service, r->json, &model, e))
        return handlers_missing(out, e, str_eq(e->param, "path") ? "folder_not_found"
                                                                 : "file_not_found");
    return reply_json(out, model, e);
}

int models_index(struct request *r, struct reply *out, struct err *e)
{
    return reply_json(out, models_list(r->service, e), e);
}

int models_show(struct request *r, struct reply *out, struct err *e)
{
    struct model m;
    if (models_get(r->service, request_param(r, 0), &m, e))
        return handlers_missing(out, e, not_found);
    json_t *v = models_json(&m, e);
    models_clear(&m);
    return reply_json(out, v, e);
}

int models_remove(struct request *r, struct reply *out, struct err *e)
{
    const char *id = request_param(r, 0);
    if (models_delete(r->service, id, e)) return handlers_missing(out, e, not_found);
    return reply_json(out,
                      jx_pack(e, "{s:s, s:s, s:b}", "id", id, "object", "model", "deleted", 1), e);
}
