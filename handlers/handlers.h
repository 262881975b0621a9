/* handlers.h: the route table of the program, and one line per handler.
 *
 * A handler parses the request, calls the service, and fills the reply; it knows no SQL and no
 * engine. 0: *out is the reply. -1: *e (and reply_fail) say what to answer. Handlers run on
 * several threads at once and keep nothing between calls.
 */
#ifndef GRAFT_HANDLERS_H
#define GRAFT_HANDLERS_H

#include "service/reply.h"
#include "service/request.h"
#include "service/router.h"
#include "service/service.h"

extern const struct route handlers_routes[];
extern const int handlers_nroutes;

#define HANDLER(name) int name(struct request *r, struct reply *out, struct err *e)

HANDLER(files_post);
HANDLER(files_index);
HANDLER(files_show);
HANDLER(files_content);
HANDLER(files_remove);
HANDLER(files_validate);
HANDLER(files_preview);

HANDLER(jobs_post);
HANDLER(jobs_index);
HANDLER(jobs_show);
HANDLER(jobs_do_cancel);
HANDLER(jobs_do_pause);
HANDLER(jobs_do_resume);
HANDLER(jobs_index_checkpoints);
HANDLER(jobs_show_metrics);
HANDLER(jobs_index_events); /* a list, or a stream for Accept: text/event-stream */

HANDLER(models_post);
HANDLER(models_index);
HANDLER(models_show);
HANDLER(models_remove);

HANDLER(methods_index);
HANDLER(plans_post);

HANDLER(hub_index);
HANDLER(hub_model);
HANDLER(hub_tree);
HANDLER(hub_paths_info);
HANDLER(hub_refs);
HANDLER(hub_resolve);
HANDLER(hub_whoami);

HANDLER(health_show);
HANDLER(openapi_show);

/* Shared by the handlers (common.c). */

/* Gives a missing object its own code word: "file_not_found" and so on. */
int handlers_missing(struct reply *out, const struct err *e, const char *code);
/* after, limit and order of a list request; defaults in *p are kept where nothing is said. */
int handlers_page(const struct request *r, int64_t limit_max, struct page *p, struct err *e);
/* The idempotency key of a creating request; idem->key is NULL if there is none. `content` names
 * the body: its JSON, or for an upload its fields and the hash of its file. */
struct idem;
int handlers_idem(const struct request *r, const char *content, struct idem *idem, struct err *e);
/* The problems of a file's check as error.details, with the code "dataset_invalid" and the place of
 * the first in the message. Takes report (NULL is fine). Returns -1. */
int handlers_report(struct reply *out, json_t *report, struct err *e);

#endif
