/* jansson.h: what engine/base/mem.c names of jansson, for machines without it (see README.md). No
 * JSON is read there. */
#ifndef GRAFT_BARE_JANSSON_H
#define GRAFT_BARE_JANSSON_H

#include <stddef.h>

static inline void json_set_alloc_funcs(void *(*alloc)(size_t), void (*release)(void *))
{
    (void)alloc;
    (void)release;
}

#endif
