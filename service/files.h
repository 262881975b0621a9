/* files.h: uploaded and produced files as OpenAI File objects (rest-conventions 2). */
#ifndef GRAFT_FILES_H
#define GRAFT_FILES_H

#include "service/blob.h"
#include "service/queue.h"
#include "service/service.h"

struct files_new {
    const char *filename;   /* as the client said; kept for display, never used as a path */
    const char *purpose;
    int64_t expires_after_s; /* 0: never; else 3600..2592000 after creation */
};

/* Takes w (filled, not yet ended) in every case. Files of purpose fine-tune are checked line by
 * line first; problems are E_FORMAT and *report (may be NULL before, new reference after) holds
 * engine_check_file's answer for error.details. Nothing is left behind on failure. */
int files_create(struct service *s, struct blob_writer *w, const struct files_new *n,
                 const struct idem *idem, json_t **file, json_t **report, struct err *e);
json_t *files_get(struct service *s, const char *id, struct err *e);
/* purpose may be NULL. The list object with first_id, last_id, has_more. limit 1..10000. */
json_t *files_list(struct service *s, const struct page *p, const char *purpose, struct err *e);
/* E_CONFLICT while a job that has not ended uses it. */
int files_delete(struct service *s, const char *id, struct err *e);

/* For GET .../content: a descriptor (the caller closes it), its size, and the SHA-256 for ETag. */
int files_read(struct service *s, const char *id, int *fd, struct blob_info *info, char name[256],
               struct err *e);

/* What is in a file. ask, the body of the request: {"model", "max_length", "chat_template"}, all
 * optional, and, to see rows as tokens (`preview`), "rows" with "model" required. The report with
 * "object", "file_id" and "model"; problems of the file are its content, not an error. */
json_t *files_examine(struct service *s, const char *id, const json_t *ask, bool preview,
                      struct err *e);

/* --- for the rest of service/ --- */

/* engine_check_file with its answer as an error: E_FORMAT and *report (may be NULL). */
int files_check(struct service *s, const char *path, const char *kind, json_t **report,
                struct err *e);
/* Within a transaction: the filled writer as a file with this id. Does not free w. */
int files_insert(struct service *s, struct blob_writer *w, const char *id,
                 const struct files_new *n, bool checked, struct err *e);
/* Deletes files past their time that no open job uses. */
int files_expire(struct service *s, struct err *e);

#endif
