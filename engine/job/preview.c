/* engine_preview: how the rows of a file become tokens for a model, without its weights. */
#include "engine/base/jx.h"
#include "engine/engine.h"
#include "engine/job/session.h"

enum { SHOW_MAX = 100, LENGTH_MAX = 1 << 20 };

json_t *engine_preview(const char *path, const json_t *ask, struct err *e)
{
    struct session_options at = {.random = true}; /* opens no weights */
    struct dataset_options o = {0};
    const char *chat_template = "auto";
    struct session s = {0};
    json_t *out = NULL;
    int64_t length = 0, show = 0;
    bool chat;
    if (jx_str(ask, "model", &at.dir, e) || jx_opt_int64(ask, "rows", 0, SHOW_MAX, &show, e) ||
        jx_opt_int64(ask, "max_length", 0, LENGTH_MAX, &length, e) ||
        jx_opt_str(ask, "chat_template", &chat_template, e))
        return NULL;
    if (session_open(&s, &at, e) || model_expect(s.model, &task_causal_lm, e)) {
        err_param(e, "model");
        goto out;
    }
    if (session_pick_length(&s, length, &o.max_length, e)) {
        err_param(e, "max_length");
        goto out;
    }
    if (dataset_is_chat(path, &chat, e)) goto out;
    if (chat && session_pick_chat(&s, chat_template, &o.chat, e)) {
        err_param(e, "chat_template");
        goto out;
    }
    o.eos = session_eos(&s);
    out = dataset_preview(path, s.tok, &o, show, e);
out:
    session_close(&s);
    return out;
}
