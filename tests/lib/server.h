/* server.h: a real `graft serve` for tests: a child process on a free port of 127.0.0.1 with a
 * data folder of its own, and small clients for it (libcurl, and raw bytes over a socket).
 *
 * Everything asserts by itself: a test that gets an answer may use it. One thread.
 */
#ifndef GRAFT_TEST_SERVER_H
#define GRAFT_TEST_SERVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct server {
    pid_t pid;
    int port;
    char dir[64];     /* temporary; data/ models/ log are below */
    char binary[512]; /* graft, beside the running test */
};

/* `args` (NULL at the end, may be NULL) come after the usual ones and win. */
void server_start(struct server *s, const char *const *args);
/* The same data folder and arguments again, after server_kill or server_stop. */
void server_restart(struct server *s, const char *const *args);
int server_stop(struct server *s);  /* SIGTERM; the exit code */
void server_kill(struct server *s); /* SIGKILL */
/* Stops it if it runs, and deletes the folder. Both look for reports of sanitizers in the log. */
void server_remove(struct server *s);
/* Runs graft with these arguments to its end; its exit code. stderr goes to DIR/log. */
int server_run(struct server *s, const char *const *args);
char *server_log(const struct server *s); /* all of it; free() */

struct answer {
    long status;
    char *head; /* header lines, each ended by \r\n */
    char *body;
    size_t n;
    json_t *json; /* of the body, NULL if it is none */
};
void answer_clear(struct answer *a);
/* A header's value in a static buffer, NULL if absent. */
const char *answer_header(const struct answer *a, const char *name);
long answer_number(const struct answer *a, const char *name); /* of a header that must be there */
/* By path: "error.code", "data.0.id". NULL if there is no such thing. */
json_t *answer_get(const struct answer *a, const char *path);
const char *answer_str(const struct answer *a, const char *path); /* NULL if not a string */

/* headers: "Name: value" lines, NULL at the end; NULL for none. body NULL: none. */
struct call {
    const char *method, *path;
    const char *const *headers;
    const char *body;
    size_t n;
};
struct answer server_call(struct server *s, const struct call *c);
struct answer server_get(struct server *s, const char *path);
struct answer server_delete(struct server *s, const char *path);
struct answer server_post(struct server *s, const char *path, const char *json);
/* POST /v1/files, purpose first. filename as given to the server. */
struct answer server_upload(struct server *s, const char *purpose, const char *filename,
                            const void *p, size_t n);
/* The same, and the new file's id in out. */
void server_upload_ok(struct server *s, const char *purpose, const char *filename, const void *p,
                      size_t n, char out[64]);

/* Bytes as they are over a new connection. `*closed`: the server closed after its reply (or
 * without one); false if it still answers a second request there. Returns the status of the
 * first reply (0: none) and how many replies came in *replies. */
struct raw {
    int status, replies;
    bool closed;
    char text[8192]; /* the beginning of what came */
};
void server_raw(struct server *s, const char *bytes, size_t n, struct raw *out);
int server_connect(struct server *s);

/* Entries of a folder below the data folder, at any depth; -1 if there is no such folder. */
int server_count_files(const struct server *s, const char *below);

#endif
