#include "handlers/handlers.h"

#define JOB "/v1/fine_tuning/jobs/{id}"
#define HUB "/api/models/{repo+}"

/* More literal rows before those with ids (router.h). Creating a file, a model or a job opens
 * what users sent, in another process: that may take long. */
const struct route handlers_routes[] = {
    {"GET", "/healthz", health_show, BODY_NONE, SHAPE_OPENAI, ROUTE_OPEN},
    {"GET", "/openapi.json", openapi_show, BODY_NONE, SHAPE_OPENAI, ROUTE_OPEN},
    {"GET", "/openapi.yaml", openapi_show, BODY_NONE, SHAPE_OPENAI, ROUTE_OPEN},

    {"POST", "/v1/files", files_post, BODY_FORM, SHAPE_OPENAI, ROUTE_SLOW},
    {"GET", "/v1/files", files_index, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", "/v1/files/{id}", files_show, BODY_NONE, SHAPE_OPENAI, 0},
    {"DELETE", "/v1/files/{id}", files_remove, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", "/v1/files/{id}/content", files_content, BODY_NONE, SHAPE_OPENAI, 0},
    {"POST", "/v1/files/{id}/validate", files_validate, BODY_JSON, SHAPE_OPENAI, ROUTE_SLOW},
    {"POST", "/v1/files/{id}/preview", files_preview, BODY_JSON, SHAPE_OPENAI, ROUTE_SLOW},

    {"POST", "/v1/fine_tuning/jobs", jobs_post, BODY_JSON, SHAPE_OPENAI, ROUTE_SLOW},
    {"GET", "/v1/fine_tuning/jobs", jobs_index, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", JOB, jobs_show, BODY_NONE, SHAPE_OPENAI, 0},
    {"POST", JOB "/cancel", jobs_do_cancel, BODY_NONE, SHAPE_OPENAI, 0},
    {"POST", JOB "/pause", jobs_do_pause, BODY_NONE, SHAPE_OPENAI, 0},
    {"POST", JOB "/resume", jobs_do_resume, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", JOB "/events", jobs_index_events, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", JOB "/checkpoints", jobs_index_checkpoints, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", "/v1/jobs/{id}/metrics", jobs_show_metrics, BODY_NONE, SHAPE_OPENAI, 0},

    {"POST", "/v1/models", models_post, BODY_JSON, SHAPE_OPENAI, ROUTE_SLOW},
    {"GET", "/v1/models", models_index, BODY_NONE, SHAPE_OPENAI, 0},
    {"GET", "/v1/models/{id+}", models_show, BODY_NONE, SHAPE_OPENAI, 0},
    {"DELETE", "/v1/models/{id+}", models_remove, BODY_NONE, SHAPE_OPENAI, 0},

    {"GET", "/v1/methods", methods_index, BODY_NONE, SHAPE_OPENAI, 0},
    {"POST", "/v1/plans", plans_post, BODY_JSON, SHAPE_OPENAI, ROUTE_SLOW},

    {"GET", "/api/whoami-v2", hub_whoami, BODY_NONE, SHAPE_HUB, 0},
    {"GET", "/api/models", hub_index, BODY_NONE, SHAPE_HUB, 0},
    {"GET", HUB "/revision/{revision/}", hub_model, BODY_NONE, SHAPE_HUB, 0},
    {"GET", HUB "/tree/{revision/}", hub_tree, BODY_NONE, SHAPE_HUB, 0},
    {"GET", HUB "/tree/{revision/}/{path*}", hub_tree, BODY_NONE, SHAPE_HUB, 0},
    {"POST", HUB "/paths-info/{revision/}", hub_paths_info, BODY_URLENCODED, SHAPE_HUB, 0},
    {"GET", HUB "/refs", hub_refs, BODY_NONE, SHAPE_HUB, 0},
    {"GET", HUB, hub_model, BODY_NONE, SHAPE_HUB, 0},
    {"GET", "/{repo+}/resolve/{revision/}/{path*}", hub_resolve, BODY_NONE, SHAPE_HUB, 0},
};
const int handlers_nroutes = sizeof handlers_routes / sizeof *handlers_routes;
