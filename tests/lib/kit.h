/* kit.h: a service on a fresh data folder with the fake engine, for tests. Failures end the test
 * (cmocka), except where a struct err is passed. */
#ifndef GRAFT_TEST_KIT_H
#define GRAFT_TEST_KIT_H

#include "service/config.h"
#include "service/service.h"

struct kit {
    char root[64];         /* removed by kit_end */
    struct config config;  /* data_dir = root/data, model_roots = root/models */
    struct service *service;
};

void kit_begin(struct kit *k); /* makes folders and a base model's files; does not open */
void kit_open(struct kit *k);
void kit_reopen(struct kit *k);
void kit_end(struct kit *k);

/* An uploaded file; its id is borrowed from *file (json_decref). NULL with *e on failure. */
json_t *kit_try_upload(struct kit *k, const char *name, const char *purpose, const char *text,
                       const struct idem *idem, struct err *e);
json_t *kit_upload(struct kit *k, const char *name, const char *purpose, const char *text);
void kit_model(struct kit *k); /* registers root/models/base as default/base */
/* A job on default/base; settings as JSON text. NULL with *e on failure. */
json_t *kit_try_job(struct kit *k, const char *file_id, const char *settings,
                    const struct idem *idem, struct err *e);
/* Upload, and a job; its id into out. */
void kit_job(struct kit *k, const char *settings, char id[64]);
const char *kit_id(const json_t *o);
/* Waits up to 20 s for this public status (fails the test on another final one). */
json_t *kit_wait(struct kit *k, const char *id, const char *status);

#endif
