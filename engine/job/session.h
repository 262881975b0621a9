/* session.h: a model made ready to compute: tokeniser, exec, and its planned passes.
 *
 * Used by jobs, by scoring and by generation alike. session_open() leaves the model without
 * storage, so that a method can still change what is trained; session_ready() or method_begin()
 * allocate it. One owner, one thread (the exec has its own pool).
 */
#ifndef GRAFT_SESSION_H
#define GRAFT_SESSION_H

#include "engine/data/dataset.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"
#include "engine/tok/tok.h"

struct session {
    struct model *model;
    struct adaptation adapt; /* begun, loaded, or zero */
    struct tok *tok;         /* NULL: the model reads images */
    struct exec *exec;
    struct graphs graphs;
    int64_t tok_bytes; /* heap of the tokeniser */
};

/* Where to compute: the CPU, a GPU, or a GPU if there is one that can be used. */
enum session_device { SESSION_CPU, SESSION_CUDA, SESSION_AUTO };

struct session_options {
    const char *dir;
    bool random;
    uint64_t seed;
    int threads; /* >= 1; 0: no exec, for planning alone */
    enum session_device device;
    bool bf16;   /* activations in bf16, on a device that has it; else f32 */
    bool images; /* a model that reads no text is fine, and has no tokenizer */
};

int session_open(struct session *s, const struct session_options *o, struct err *e);
/* For inference: with the adapter in a folder, or NULL for the plain model. */
int session_ready(struct session *s, const char *adapter_dir, struct err *e);
void session_close(struct session *s); /* zeroed is fine */

/* Sum of -log p over the targets of a batch, and how many rows had the target on top. */
int session_loss(struct session *s, const struct batch *b, double *nll, double *hits,
                 struct err *e);
/* Logits of all n positions; mem_free. NULL on failure. */
float *session_logits(struct session *s, const int32_t *ids, int64_t n, struct err *e);
/* Mean loss per token of a text, in windows of at most the model's length. */
int session_score(struct session *s, const char *text, double *nll, int64_t *tokens,
                  struct err *e);
/* How rows become tokens for this model; the caller names its parameter. asked 0: the model's own
 * length, at most 1024. name: of a template, "none", or "auto" for that of the model's folder. */
int session_pick_length(const struct session *s, int64_t asked, int64_t *length, struct err *e);
int session_pick_chat(const struct session *s, const char *name, enum chat_template *chat,
                      struct err *e);
int32_t session_eos(const struct session *s); /* what a row ends in; -1: nothing */
bool session_ends(const struct session *s, int32_t id); /* an end-of-answer token */

#endif
