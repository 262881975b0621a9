/* chat.h: chat templates by name, and which tokens of a conversation are trained.
 *
 * Templates are programs of other people and are never executed: the known ones are recognised
 * (by their text in tokenizer_config.json) or asked for by name.
 */
#ifndef GRAFT_CHAT_H
#define GRAFT_CHAT_H

#include "engine/tok/tok.h"

/* qwen2, qwen2.5 and smollm2 are chatml with a system message of their own where a conversation has
 * none; llama3.1 is llama3 with a system message that always names two dates ("26 Jul 2024" being
 * the template's own default for today). plain is for models without a template and is made of
 * text alone:
 *   [<bos> as the post-processor adds it]System: ...\nUser: ...\nAssistant: ...<eos>\n
 * where <eos> is the first of </s>, <|endoftext|>, <|end_of_text|>, <eos> that is a special token
 * of the tokenizer, or nothing. A generation starts behind "Assistant:". */
enum chat_template {
    CHAT_NONE, CHAT_CHATML, CHAT_LLAMA2, CHAT_LLAMA3, CHAT_ZEPHYR, CHAT_PLAIN, CHAT_QWEN2,
    CHAT_QWEN25, CHAT_SMOLLM2, CHAT_LLAMA31, CHAT_COUNT
};

struct chat_message {
    const char *role;    /* "system" (or "developer"), "user", "assistant", "tool" */
    const char *content; /* UTF-8 */
    bool train;          /* assistant only: what the model has to say there carries loss, that is
                            all behind the header up to and with the end-of-turn token */
};

const char *chat_name(enum chat_template c);            /* "chatml", ... */
bool chat_parse(const char *name, enum chat_template *out);
/* From the folder's chat_template.jinja, else its tokenizer_config.json: CHAT_NONE if it has no
 * template; E_UNSUPPORTED, naming the choices, if it has one that is not known. */
int chat_detect(const char *model_dir, enum chat_template *out, struct err *e);
/* Appends ids of the whole conversation, as transformers' apply_chat_template gives them, and, for
 * each id, whether it is trained (may be NULL).
 * `generation`: ends with the header that makes the model answer. Special tokens a template needs
 * must exist in t (E_UNSUPPORTED naming the first that does not). */
int chat_encode(const struct tok *t, enum chat_template c, const struct chat_message *m, int n,
                bool generation, struct ids *out, struct ids *trained, struct err *e);

#endif
