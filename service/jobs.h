/* jobs.h: fine-tuning jobs as the API shows them (rest-conventions 4). State lives in queue.c. */
#ifndef GRAFT_JOBS_H
#define GRAFT_JOBS_H

#include "service/service.h"

/* Body of POST /v1/fine_tuning/jobs, as parsed. Checks every field, resolves the settings, writes
 * jobs/<id>/job.json and then the row: once this returned 0 the job exists for good.
 * *report as in files_create, when the training or validation file is at fault. */
int jobs_create(struct service *s, const json_t *body, const struct idem *idem, json_t **job,
                json_t **report, struct err *e);
/* The job object of rest-conventions 4.2; extras under "graft": {phase, progress, attempt, ...}. */
json_t *jobs_get(struct service *s, const char *id, struct err *e);
/* metadata: an object of key/value pairs that must match, JSON null for "has none", NULL for any.
 * limit 1..100. */
json_t *jobs_list(struct service *s, const struct page *p, const json_t *metadata, struct err *e);

/* Each returns the job as it is afterwards; E_CONFLICT if its state does not allow it. A cancel
 * of a job that waits or is paused is final at once; a running job ends `cancelled` as soon as its
 * worker has stopped, and never in another way. */
json_t *jobs_cancel(struct service *s, const char *id, struct err *e);
json_t *jobs_pause(struct service *s, const char *id, struct err *e);
json_t *jobs_resume(struct service *s, const char *id, struct err *e);

/* Complete checkpoints on disk, newest first: list object with first_id, last_id, has_more. */
json_t *jobs_checkpoints(struct service *s, const char *id, const struct page *p, struct err *e);
/* {"object": "graft.metrics", "job_id", "points", "series": {"step": [...], "train_loss": [...]}}
 * from all attempts (a later attempt replaces the steps it repeated), thinned to max_points. */
json_t *jobs_metrics(struct service *s, const char *id, int64_t max_points, struct err *e);
/* engine_plan for a body of POST /v1/plans (same shape as jobs_create's); creates nothing. */
json_t *jobs_plan(struct service *s, const json_t *body, struct err *e);

/* --- for the rest of service/ --- */

/* At start: job folders without a row, and result folders whose models were deleted. */
int jobs_sweep(struct service *s, struct err *e);
/* Looks once more at what a job in `validating` needs and admits it to the queue, or fails it. */
int jobs_validate(struct service *s, const char *id, struct err *e);

#endif
