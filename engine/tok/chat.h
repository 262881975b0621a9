/* chat.h: chat templates by name, and which tokens of a conversation are trained.
 *
 * Templates are programs of other people and are never executed: the known ones are recognised
 * (by their text in tokenizer_config.json) or asked for by name.
 */
#ifndef GRAFT_CHAT_H
#define GRAFT_CHAT_H

#include "engine/tok/tok.h"

enum chat_template { CHAT_NONE, CHAT_CHATML, CHAT_LLAMA2, CHAT_LLAMA3, CHAT_ZEPHYR, CHAT_PLAIN,
                     CHAT_COUNT };

struct chat_message {
    const char *role;    /* "system" (or "developer"), "user", "assistant", "tool" */
    const char *content; /* UTF-8 */
    bool train;          /* assistant only: its content and end-of-turn token carry loss */
};

const char *chat_name(enum chat_template c);            /* "chatml", ... */
bool chat_parse(const char *name, enum chat_template *out);
/* From the folder's tokenizer_config.json (or chat_template.jinja): CHAT_NONE if it has no template;
 * E_UNSUPPORTED, naming the choices, if it has one that is not known. */
int chat_detect(const char *model_dir, enum chat_template *out, struct err *e);
/* Appends ids of the whole conversation and, for each id, whether it is trained (may be NULL).
 * `generation`: ends with the header that makes the model answer. Special tokens a template needs
 * must exist in t (E_UNSUPPORTED naming the first that does not). */
int chat_encode(const struct tok *t, enum chat_template c, const struct chat_message *m, int n,
                bool generation, struct ids *out, struct ids *trained, struct err *e);

#endif
