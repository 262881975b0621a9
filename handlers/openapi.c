#include "handlers/handlers.h"

#include "openapi_yaml.h"

/* The file is written as JSON, which is YAML too: one source, served under both names. */
int openapi_show(struct request *r, struct reply *out, struct err *e)
{
    (void)r;
    return reply_bytes(out, "application/json", openapi_yaml, sizeof openapi_yaml - 1, e);
}
