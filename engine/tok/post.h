/* post.h: the post-processor of a tokenizer.json for one sequence: what is put around it. */
#ifndef GRAFT_POST_H
#define GRAFT_POST_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdint.h>

enum { POST_PARTS = 64, POST_SEQUENCE = -1 };

struct post {
    int32_t part[POST_PARTS]; /* ids, and POST_SEQUENCE where the text goes */
    int n;
};

/* From the value of "post_processor"; NULL or null: the sequence alone. Ids are below `size`. */
int post_build(struct post *p, const json_t *v, int32_t size, struct err *e);

#endif
