#include "handlers/handlers.h"

int health_show(struct request *r, struct reply *out, struct err *e)
{
    return reply_json(out, service_health(r->service, e), e);
}
