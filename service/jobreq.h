/* jobreq.h: the request for a job: every field checked, every default resolved, nothing written. */
#ifndef GRAFT_JOBREQ_H
#define GRAFT_JOBREQ_H

#include "engine/base/fs.h"
#include "service/models.h"
#include "service/service.h"

struct jobreq {
    /* Borrowed from the body. */
    const char *model, *training_file, *validation_file, *suffix;
    const char *method;  /* the engine's name for it */
    const json_t *metadata;
    /* Owned. */
    json_t *settings, *echo;
    int64_t seed;
    char model_dir[FS_PATH_MAX];
    char result_id[MODELS_ID_MAX + 1];
};

/* report: see jobs_create. On failure nothing is owned. */
int jobreq_parse(struct service *s, const json_t *body, struct jobreq *r, json_t **report,
                 struct err *e);
void jobreq_clear(struct jobreq *r);

/* job.json of engine.h for these absolute paths. */
json_t *jobreq_job(const struct service *s, const struct jobreq *r, const char *id,
                   const char *training, const char *validation, struct err *e);

/* "default/<base>-<method>[-<suffix>]-<6 characters>": legal as a hub id, also with "-adapter"
 * behind it (rest-conventions rule 11). */
int jobreq_result_id(char out[MODELS_ID_MAX + 1], const char *model, const char *method,
                     const char *suffix, struct err *e);

#endif
