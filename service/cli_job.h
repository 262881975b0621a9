/* cli_job.h: jobs from the command line: a short job file becomes a full job.json and is run here.
 *
 * A job file is the job.json of engine.h in which much may be left out: version, id, seed (0),
 * model.id, result_id (made from the file's name), method (lora), settings (all defaults),
 * validation_file, threads. Relative paths are relative to the job file's folder.
 */
#ifndef GRAFT_CLI_JOB_H
#define GRAFT_CLI_JOB_H

#include "engine/base/err.h"
#include "engine/engine.h"

#include <jansson.h>
#include <stdbool.h>

/* The complete job of a job file. threads < 0: as the file says. New reference. */
json_t *cli_job_load(const char *path, int threads, struct err *e);

/* Runs it in `dir` (NULL: beside the job file, "<name>-job"), going on where an earlier run of the
 * same job stopped. Ctrl-C saves a checkpoint and stops. Returns the exit code of engine.h. */
int cli_job_run(const char *path, const char *dir, int threads, struct err *e);

/* Prints engine_plan, for people or as JSON. EXIT_DEVMEM if the job would not fit. The measurement
 * of this device is kept in $XDG_CACHE_HOME/graft or ~/.cache/graft. */
int cli_job_plan(const char *path, bool json, struct err *e);

#endif
