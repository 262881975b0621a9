/* supervisor.h: the thread that carries jobs from queued to their end.
 *
 * Each round: admit validated jobs, poll workers (heartbeats, events, exits), rescue expired
 * leases, claim and start while there is room. At start it first adopts living workers of running
 * rows and collects those that ended meanwhile, and only then claims.
 */
#ifndef GRAFT_SUPERVISOR_H
#define GRAFT_SUPERVISOR_H

#include "service/runner.h"
#include "service/service.h"

struct supervisor *supervisor_start(struct service *s, const struct runner *runner,
                                    struct err *e);
/* Something changed (a job was created, cancelled, ...): begin a round now. Any thread. */
void supervisor_wake(struct supervisor *v); /* NULL is fine */
void supervisor_stop(struct supervisor *v); /* joins the thread, leaves workers running */

#endif
