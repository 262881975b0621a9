/* events.h: what happened to a job, numbered from 1 without gaps, append-only.
 *
 * Event ids are `ftevent-<job>-<n>`. Rows come from state changes (queue.c) and from the worker's
 * events.jsonl, whose offset is stored in the same transaction: each line becomes one row.
 */
#ifndef GRAFT_EVENTS_H
#define GRAFT_EVENTS_H

#include "service/service.h"

/* Newest first unless p->ascending; `after` is an event id. limit 1..1000. */
json_t *events_list(struct service *s, const char *job_id, const struct page *p, struct err *e);
/* For streams: up to `limit` events with number > after_n, oldest first, as an array; each has
 * "n" besides the usual fields. *final: the job has ended and no further event will come. */
json_t *events_since(struct service *s, const char *job_id, int64_t after_n, int64_t limit,
                     bool *final, struct err *e);

struct events_new {
    const char *level;   /* info warn error */
    const char *type;    /* message metrics */
    const char *message; /* cut at 4 kB */
    const json_t *data;  /* or NULL */
    const char *state;   /* the state this event reports, or NULL */
    int64_t created_at;  /* unix ms; 0: now */
};
/* Within a transaction. */
int events_append(struct store *store, int64_t job_seq, const struct events_new *n, struct err *e);

/* Copies complete new lines of the attempt's events.jsonl into rows, at most 256 kB per call.
 * Fenced: E_CONFLICT unless `attempt` is the running one. 1: there is more, 0: all copied. */
int events_tail(struct store *store, const char *job_dir, const char *job_id, int attempt,
                struct err *e);

#endif
