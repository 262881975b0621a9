/* models.h: base models (registered folders, or assembled from uploaded files) and results.
 *
 * A model is immutable: its files, hashes and commit id are fixed when its row is written.
 * Ids are hub ids `namespace/name` (rest-conventions rule 11).
 */
#ifndef GRAFT_MODELS_H
#define GRAFT_MODELS_H

#include "engine/base/arena.h"
#include "engine/base/fs.h"
#include "service/service.h"

enum { MODELS_ID_MAX = 193 }; /* two names of 96 and the slash */

struct model_file {
    const char *path; /* relative, '/'-separated */
    int64_t bytes;
    const char *sha256;
    const char *git_sha1; /* NULL: LFS-class, identified by its SHA-256 */
};

struct model {
    const char *id;
    const char *kind;   /* "base" "merged" "adapter" */
    const char *parent; /* base model of a result, or NULL */
    const char *job_id; /* or NULL */
    const char *method; /* of the job, or NULL */
    const char *commit; /* 40 hex: sha1 over the sorted manifest */
    const char *dir;    /* absolute folder that holds the files */
    int64_t created_at; /* unix ms */
    int64_t bytes;
    json_t *info;       /* engine_check_model's answer, or {}; json_decref by models_clear */
    struct model_file *files; /* sorted by path */
    int nfiles;
    struct arena arena; /* owns the strings */
};

/* Body of POST /v1/models: {"id": "ns/name" (optional with path), "path": "/abs/folder"} for a
 * folder below one of model_roots (links resolved first), or {"id", "files": [{"path", "file"}]}
 * with ids of uploaded files. Hashes everything; opens it the way a job would. */
int models_create(struct service *s, const json_t *body, json_t **model, struct err *e);
/* Fills *m; models_clear frees. `ft:...` aliases are not resolved here. */
int models_get(struct service *s, const char *id, struct model *m, struct err *e);
void models_clear(struct model *m);
const struct model_file *models_file(const struct model *m, const char *path); /* or NULL */
/* A descriptor of the file's bytes (the caller closes it). E_CORRUPT if its size changed. */
int models_read(const struct model *m, const struct model_file *f, struct err *e);
/* OpenAI's Model object with graft's extras. */
json_t *models_json(const struct model *m, struct err *e);
json_t *models_list(struct service *s, struct err *e); /* the whole list object, newest first */
/* E_CONFLICT while a job that has not ended uses it. Folders of users are never touched. */
int models_delete(struct service *s, const char *id, struct err *e);

bool models_id_ok(const char *id);

/* --- for the rest of service/ --- */

struct models_new {
    const char *id, *kind, *parent, *job_id;
    const char *dir;      /* absolute, or relative to the data folder */
    const json_t *info;
    const json_t *files;  /* as modeldir.h makes it */
};
/* Within a transaction. */
int models_insert(struct service *s, const struct models_new *n, struct err *e);
/* At start: folders without a row. */
int models_sweep(struct service *s, struct err *e);

#endif
