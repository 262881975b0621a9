/* plan_cache.h: plans of recordings that were seen before.
 *
 * A plan follows from the structure of its tape alone: operations, attributes, shapes, types,
 * segments and what each tensor is, but not from whose parameters it names. So a recording that has
 * the same structure (by a 128-bit digest) takes over the steps and places of an earlier plan; the
 * least recently used one of 32 makes room. A zeroed cache is empty. One owner, one thread,
 * one device: what workspaces it wants (plan_options.ws) is not part of the digest.
 */
#ifndef GRAFT_PLAN_CACHE_H
#define GRAFT_PLAN_CACHE_H

#include "engine/core/plan.h"

enum { PLAN_CACHE_MAX = 32, PLAN_DIGEST = 33 };

struct plan_cache {
    struct {
        char digest[PLAN_DIGEST];
        struct plan *plan; /* owned; its tape is gone and must not be looked at */
        uint64_t used;
    } items[PLAN_CACHE_MAX];
    int n;
    uint64_t clock, hits;
};

/* As plan_make: the caller owns the result, which is of t. */
struct plan *plan_cached(struct plan_cache *c, const struct tape *t,
                         const struct plan_options *o, struct err *e);
void plan_cache_clear(struct plan_cache *c);

/* What a plan depends on, as 32 hex digits. */
int plan_digest(const struct tape *t, const struct plan_options *o, char out[PLAN_DIGEST],
                struct err *e);

#endif
