/* chat.h: chat templates by name, and which tokens of a conversation are trained.
 *
 * Templates are programs of other people and are never executed: the known ones are recognised
 * (by their text in tokenizer_config.json) or asked for by name.
 */
#ifndef GRAFT_CHAT_H
#define GRAFT_CHAT_H

#include "engine/tok/tok.h"

#include <jansson.h>

/* qwen2, qwen2.5 and smollm2 are chatml with a system message of their own where a conversation has
 * none; llama3.1 is llama3 with a system message that always names two dates ("26 Jul 2024" being
 * the template's own default for today). mistral is the template of Mistral 7B Instruct 0.1 and
 * 0.2, mistral-v3 that of 0.3, mistral-nemo that of Nemo; gemma3 is gemma with a system message,
 * put into the first question. plain is for models without a template and is made of text alone:
 *   [<bos> as the post-processor adds it]System: ...\nUser: ...\nAssistant: ...<eos>\n
 * where <eos> is the first of </s>, <|endoftext|>, <|end_of_text|>, <eos> that is a special token
 * of the tokenizer, or nothing. A generation starts behind "Assistant:".
 * Tools and their calls can be said in qwen2.5 and llama3.1; the others refuse them. */
enum chat_template {
    CHAT_NONE, CHAT_CHATML, CHAT_LLAMA2, CHAT_LLAMA3, CHAT_MISTRAL, CHAT_GEMMA, CHAT_ZEPHYR,
    CHAT_PLAIN, CHAT_QWEN2, CHAT_QWEN25, CHAT_SMOLLM2, CHAT_LLAMA31, CHAT_MISTRAL_V3,
    CHAT_MISTRAL_NEMO, CHAT_GEMMA3, CHAT_COUNT
};

struct chat_message {
    const char *role;    /* "system" (or "developer"), "user", "assistant", "tool" */
    const char *content; /* UTF-8; may be "" beside calls */
    const json_t *calls; /* assistant only: [{"function": {"name", "arguments": {...}}}], or NULL */
    bool train;          /* assistant only: what the model has to say there carries loss, that is
                            all behind the header up to and with the end-of-turn token */
};

struct chat_talk {
    const struct chat_message *m;
    int n;
    const json_t *tools; /* [{"type": "function", "function": {...}}], or NULL */
    bool generation;     /* ends with the header that makes the model answer */
};

const char *chat_name(enum chat_template c);            /* "chatml", ... */
bool chat_parse(const char *name, enum chat_template *out);
/* From the folder's chat_template.jinja, else its tokenizer_config.json: CHAT_NONE if it has no
 * template; E_UNSUPPORTED, naming the choices, if it has one that is not known. */
int chat_detect(const char *model_dir, enum chat_template *out, struct err *e);
/* Appends ids of the whole conversation, as transformers' apply_chat_template gives them, and, for
 * each id, whether it is trained (may be NULL). Special tokens a template needs must exist in t
 * (E_UNSUPPORTED naming the first that does not). What a template would leave out in silence is
 * E_UNSUPPORTED, an order of turns that it refuses E_FORMAT. */
int chat_encode(const struct tok *t, enum chat_template c, const struct chat_talk *talk,
                struct ids *out, struct ids *trained, struct err *e);

#endif
