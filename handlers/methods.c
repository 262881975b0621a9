#include "engine/base/jx.h"
#include "handlers/handlers.h"

int methods_index(struct request *r, struct reply *out, struct err *e)
{
    json_t *list = r->service->engine->methods(e);
    if (!list) return -1;
    return reply_json(out, jx_pack(e, "{s:s, s:o, s:b}", "object", "list", "data", list,
                                   "has_more", 0), e);
}
