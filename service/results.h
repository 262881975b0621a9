/* results.h: a finished job's result/ as models and files. */
#ifndef GRAFT_RESULTS_H
#define GRAFT_RESULTS_H

#include "service/models.h"
#include "service/queue.h"
#include "service/service.h"

struct blob_writer;

struct results {
    char job_id[QUEUE_ID_MAX], merged_id[MODELS_ID_MAX + 1], adapter_id[MODELS_ID_MAX + 16];
    char merged_dir[FS_PATH_MAX], adapter_dir[FS_PATH_MAX]; /* relative to the data folder */
    char csv_id[QUEUE_ID_MAX];
    char *parent;              /* base model */
    json_t *merged, *adapter;  /* lists of files, or NULL */
    json_t *info;              /* engine_check_model's answer for the merged model */
    struct blob_writer *csv;   /* metrics.csv, spooled; or NULL */
};

/* Reads and checks result/, outside of any transaction. E_CORRUPT: it is not what a worker that
 * said "done" must leave; any other error: try again later. */
int results_load(struct service *s, const char *job_id, struct results *r, struct err *e);
/* Model and file rows, within the transaction that makes the job succeed. */
int results_register(struct service *s, struct results *r, struct err *e);
const char *results_model(const struct results *r);        /* fine_tuned_model */
json_t *results_files(const struct results *r, struct err *e); /* result_files */
void results_clear(struct results *r);

#endif
