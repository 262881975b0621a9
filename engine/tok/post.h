/* post.h: the post-processor of a tokenizer.json: what is put around one sequence, or two. */
#ifndef GRAFT_POST_H
#define GRAFT_POST_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdint.h>

enum { POST_PARTS = 64, POST_SEQUENCE = -1, POST_SECOND = -2 };

struct post_list {
    int32_t part[POST_PARTS]; /* ids, and POST_SEQUENCE and POST_SECOND where the texts go */
    int n;
};

struct post {
    struct post_list one, two;
};

/* From the value of "post_processor"; NULL or null: the sequences alone. Ids are below `size`. */
int post_build(struct post *p, const json_t *v, int32_t size, struct err *e);

#endif
