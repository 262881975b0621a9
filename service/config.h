/* config.h: every setting of the server, from ONE table (config.c): name, default, range, help.
 *
 * Later sources win: default, file (lines `key = value`, # comments), environment (GRAFT_KEY),
 * flags (--key value or --key=value; '-' and '_' are the same). A misspelt key, a value out of
 * range or a file that cannot be read is an error that names key and source. Read-only once loaded.
 */
#ifndef GRAFT_CONFIG_H
#define GRAFT_CONFIG_H

#include "engine/base/err.h"
#include "engine/base/fs.h"

#include <stdint.h>
#include <stdio.h>

struct config {
    char listen_address[64];
    int64_t listen_port;
    int64_t connections_max, connections_per_ip, http_threads, request_timeout_s;
    int64_t header_timeout_s;      /* for the headers of one request, however they drip in */
    char api_key[256];             /* empty: no authentication */
    int64_t allow_public;          /* 1: other addresses than loopback without an api_key */
    char allowed_hosts[1024];      /* ','-separated further names of this server */
    char data_dir[FS_PATH_MAX];
    char model_roots[FS_PATH_MAX]; /* ':'-separated absolute folders; empty: none */
    int64_t file_max_bytes, json_max_bytes;
    int64_t jobs_max;              /* jobs that run at the same time */
    int64_t job_threads;           /* threads of one job; 0: as many as the machine allows */
    int64_t job_attempts;          /* the user's budget of crashes and transient errors */
    int64_t poll_ms, lease_s;      /* how often workers are asked, when one counts as lost */
    int64_t retry_ms;              /* first wait before a retry; quadrupled up to 15 min */
    char worker_path[FS_PATH_MAX]; /* run as `PATH worker DIR ...`; empty: this program */
    char log_level[8];
};

/* argv after the subcommand. `--config FILE` (or GRAFT_CONFIG) names the file. */
int config_load(struct config *c, int argc, char **argv, struct err *e);
void config_default(struct config *c);
/* One key, from `source` ("--port", "graft.conf line 3") for the message. */
int config_set(struct config *c, const char *key, const char *value, const char *source,
               struct err *e);
/* The table as text: for `graft serve --help` and the documentation. */
void config_help(FILE *to);

#endif
