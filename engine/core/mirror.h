/* mirror.h: an exec's copies of parameter arrays in its device's memory.
 *
 * Found by the array's address on the host, so an array may not be freed while it has a copy here
 * (exec_forget). Where memory is the host's there are no copies: the host's array is used.
 * Belongs to its exec, and to its thread.
 */
#ifndef GRAFT_MIRROR_H
#define GRAFT_MIRROR_H

#include "engine/core/exec.h"

struct mirrors *mirrors_new(struct err *e);
void mirrors_free(struct exec *x); /* x->mirrors, and what they hold on the device */

/* Where the device finds an array of p; makes and fills a copy if there is none. *at is NULL if
 * the parameter has no storage yet. */
int mirror_find(struct exec *x, const struct param *p, enum param_slot slot, void **at,
                struct err *e);

#endif
