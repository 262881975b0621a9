/* job.h: job.json, parsed strictly (engine.h describes it). */
#ifndef GRAFT_JOB_H
#define GRAFT_JOB_H

#include "engine/base/err.h"
#include "engine/job/session.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct job {
    json_t *json;           /* owned; the strings below borrow from it */
    const char *id, *model_id, *model_path, *result_id;
    const char *training_file, *validation_file; /* validation_file may be NULL */
    const struct method *method;
    json_t *settings;       /* owned; every property present */
    uint64_t seed;
    bool random;            /* init of the model */
    int threads;            /* >= 1 */
    enum session_device device;
    bool bf16;              /* precision */
    char hash[65];          /* of all that decides the result: a checkpoint of another is refused */
};

int job_parse(struct job *j, const json_t *json, struct err *e);
int job_load(struct job *j, const char *dir, struct err *e); /* dir/job.json */
void job_clear(struct job *j);

#endif
