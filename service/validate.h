/* validate.h: untrusted files are parsed in a process of their own.
 *
 * The server runs `graft worker --validate KIND BYTES` on itself with the file as read-only
 * descriptor 3 and reads one JSON report from the child's standard output. The child has limits on
 * memory, CPU time, file size and descriptors and cannot gain privileges; if it crashes or meets
 * a limit, that is a fault of the file, told to its owner. Any thread may call; calls run side by
 * side. Contracts of the four are those of engine.h's functions of the same names.
 */
#ifndef GRAFT_VALIDATE_H
#define GRAFT_VALIDATE_H

#include "engine/base/err.h"

#include <jansson.h>

json_t *validate_file(const char *path, const char *kind, struct err *e);
json_t *validate_model(const char *dir, struct err *e);
json_t *validate_plan(const json_t *job, const char *cache_dir, struct err *e);
json_t *validate_preview(const char *path, const json_t *ask, struct err *e);

/* The child: argv is {"worker", "--validate", KIND, BYTES of the input, MORE}; MORE is the cache
 * folder of a plan, what is asked of a preview, else empty. Returns the process exit code. */
int validate_main(int argc, char **argv);

#endif
