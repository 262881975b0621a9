/* service.h: everything that lives as long as the server process, behind one handle.
 *
 * service_open() locks the data folder (one server per folder), sets the umask to 077, opens
 * database and blobs, and sweeps up what a crash left behind; service_start() starts the
 * supervisor thread that runs jobs. Handlers pass the handle to files_*, jobs_*, models_* and
 * events_*; all of those may be called from any thread at any time between open and close. JSON
 * out-parameters are new references and are written only on success.
 *
 * Errors carry an HTTP status by their code (err.h) and name the request field in err.param.
 * E_CONFLICT is always permanent: the reply needs `x-should-retry: false`.
 */
#ifndef GRAFT_SERVICE_H
#define GRAFT_SERVICE_H

#include "engine/base/err.h"
#include "engine/base/fs.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* What the service asks of the engine: main.c fills the table with engine.h's functions of the
 * same names and contracts, tests with fakes. It runs inside the server, so only calls that
 * open headers and parse text belong here. */
struct engine_calls {
    json_t *(*methods)(struct err *e);
    json_t *(*settings)(const char *method, const json_t *settings, struct err *e);
    json_t *(*check_model)(const char *dir, struct err *e);
    json_t *(*check_file)(const char *path, const char *kind, struct err *e);
    json_t *(*plan)(const json_t *job, const char *cache_dir, struct err *e);
    json_t *(*preview)(const char *path, const json_t *ask, struct err *e);
};

struct blobs;
struct config;
struct queue;
struct store;
struct supervisor;

struct service {
    const struct config *config;
    const struct engine_calls *engine;
    struct store *store;
    struct blobs *blobs;
    struct queue *queue;
    struct supervisor *supervisor; /* NULL until service_start */
    char data_dir[FS_PATH_MAX];    /* absolute, links resolved */
    int lock_fd;
    int64_t started_ms;            /* boot clock */
};

/* Borrows config and engine until service_close. */
struct service *service_open(const struct config *config, const struct engine_calls *engine,
                             struct err *e);
int service_start(struct service *s, struct err *e);
/* Stops the supervisor and closes everything. Workers run on and are adopted by the next server.
 * NULL is fine. */
void service_close(struct service *s);

/* {"status": "ok", "version", "uptime_s", "jobs": {"queued": n, "running": n, ...}} for /healthz:
 * E_* if the database does not answer. */
json_t *service_health(struct service *s, struct err *e);

/* A page of a list. `after` is the id of the last item of the page before (exclusive), or NULL.
 * An id that does not exist is E_NOTFOUND: never the first page again. */
struct page {
    const char *after;
    int64_t limit;
    bool ascending; /* by creation */
};

/* An idempotency key and what it was used for. The first reply is stored in the transaction that
 * creates the object and replayed for 24 h; the same key with another hash is E_FORMAT (422). */
struct idem {
    const char *key;         /* from the header, 1..255 bytes */
    char request_sha256[65]; /* of method, path and body (of an upload: fields and content) */
};

/* Appends v (taken, may be NULL: then *e is already set). */
int service_append(json_t *list, json_t *v, struct err *e);
/* {"object": "list", "data", "first_id", "last_id", "has_more"}; takes data (NULL: *e is set). */
json_t *service_list(json_t *data, bool more, struct err *e);
/* DATA/jobs/<id>: where a job's folder is, whether it exists or not. */
int service_job_dir(const struct service *s, const char *job_id, char out[FS_PATH_MAX],
                    struct err *e);
/* `prefix` and 24 random characters [a-z0-9]: "ftjob-...". out must hold prefix + 25 bytes. */
int service_new_id(char *out, size_t cap, const char *prefix, struct err *e);

#endif
