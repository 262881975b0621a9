/* profile.h: how fast this device computes, measured once and kept in a small file.
 *
 * profile.json in a cache folder holds one entry per processor, kernel level, number of threads and
 * version of graft; an unknown combination is measured (under a second) and added. The file may be
 * removed at any time.
 */
#ifndef GRAFT_PROFILE_H
#define GRAFT_PROFILE_H

#include "engine/base/err.h"
#include "engine/core/plan.h"

/* From the file, or measured and written to it. */
int profile_get(const char *cache_dir, int threads, struct plan_rates *out, struct err *e);
/* Measured now, with the kernels that jobs run. */
int profile_measure(int threads, struct plan_rates *out, struct err *e);

#endif
