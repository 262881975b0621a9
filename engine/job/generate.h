/* generate.h: text from a model, token by token, with a key-value cache. */
#ifndef GRAFT_GENERATE_H
#define GRAFT_GENERATE_H

#include "engine/job/session.h"

struct generate_options {
    int64_t max_tokens;
    double temperature; /* 0: greedy, ties to the lowest id */
    double top_p;       /* 1: all tokens */
    uint64_t seed;
};

/* Appends the ids after the prompt, up to an end token (left out), max_tokens, or the model's
 * length. */
int generate_ids(struct session *s, const struct ids *prompt, const struct generate_options *o,
                 struct ids *out, struct err *e);
/* The same in text. With a chat template the prompt is a user's message. mem_free the result. */
char *generate_text(struct session *s, enum chat_template chat, const char *prompt,
                    const struct generate_options *o, struct err *e);

#endif
