/* jobdir.h: job folders for tests of whole jobs, on the tiny model and rows of
 * tests/method/golden. Paths are relative to the repository, where tests run. Failures end the
 * test (cmocka). */
#ifndef GRAFT_TEST_JOBDIR_H
#define GRAFT_TEST_JOBDIR_H

#include "engine/engine.h"

#include <stddef.h>

#define JOBDIR_MODEL "tests/method/golden/model"
#define JOBDIR_DATA "tests/method/golden/data.jsonl"

/* A new folder under /tmp, its name into out. */
void jobdir_root(char out[64]);
/* Writes root/name/job.json: settings as the inside of a JSON object, e.g. "\"r\": 4". Returns the
 * folder, valid until the next call. */
const char *jobdir_make(const char *root, const char *name, const char *method,
                        const char *settings, int threads);
/* Runs an attempt and expects this exit code. */
void jobdir_run(const char *dir, int attempt, const struct engine_hooks *hooks,
                enum engine_exit want);
/* The same in a child process with GRAFT_CRASH=crash; expects it to die by SIGKILL. */
void jobdir_crash(const char *dir, int attempt, const char *crash);
/* Fails unless both folders hold the same files with the same bytes. */
void jobdir_same(const char *a, const char *b);
/* Column `name` of result/metrics.csv for steps 1, 2, ...; returns how many. */
int jobdir_column(const char *dir, const char *name, double *out, int most);

#endif
