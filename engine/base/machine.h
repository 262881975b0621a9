/* machine.h: what this process may use of the machine, as the kernel tells it.
 *
 * Linux alone. `root` is put before every path: "" outside of tests.
 */
#ifndef GRAFT_MACHINE_H
#define GRAFT_MACHINE_H

#include "engine/base/err.h"

#include <stdint.h>

enum { MACHINE_CPU = 96 };

struct machine_memory {
    int64_t total; /* physical memory, or less if a control group (v1 or v2) allows less */
    int64_t free;  /* of it now, page cache that can go counted as free */
    int64_t used;  /* resident in this process */
};
int machine_memory(const char *root, struct machine_memory *m, struct err *e);

/* The processor's name, "unknown" if the kernel does not tell. */
void machine_cpu(const char *root, char out[MACHINE_CPU]);

#endif
