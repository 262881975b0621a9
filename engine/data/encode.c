#include "engine/data/encode.h"

#include "engine/base/mem.h"

#include <stdio.h>
#include <string.h>

void encode_clear(struct encoding *x)
{
    ids_clear(&x->ids);
    ids_clear(&x->trained);
}

/* Marks everything encoded since the last call. */
static int mark(struct encoding *x, int32_t trained, struct err *e)
{
    while (x->trained.n < x->ids.n)
        if (ids_push(&x->trained, trained, e)) return -1;
    return 0;
}

static int encode_string(struct encoding *x, const struct tok *t, const json_t *s, bool special,
                         struct err *e)
{
    return tok_encode(t, json_string_value(s), json_string_length(s), special, &x->ids, e);
}

/* The end token, unless the text or the tokenizer's own template has already put it there. */
static int encode_eos(struct encoding *x, int32_t eos, struct err *e)
{
    if (eos < 0 || (x->ids.n && x->ids.v[x->ids.n - 1] == eos)) return 0;
    return ids_push(&x->ids, eos, e);
}

static int no_template(struct err *e)
{
    char list[200] = "";
    size_t at = 0;
    for (int c = CHAT_NONE + 1; c < CHAT_COUNT; c++) {
        int k = snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "",
                         chat_name((enum chat_template)c));
        if (k > 0 && at + (size_t)k < sizeof list) at += (size_t)k;
    }
    err_set(e, E_ARG, "the rows are conversations but the model has no chat template; set "
            "chat_template to one of %s", list);
    return err_param(e, "chat_template");
}

static int encode_messages(struct encoding *x, const struct tok *t, const json_t *row,
                           enum chat_template chat, struct err *e)
{
    const json_t *list = json_object_get(row, "messages");
    size_t n = json_array_size(list);
    if (chat == CHAT_NONE) return no_template(e);
    struct chat_message *m = mem_array((int64_t)n, sizeof *m, e);
    if (!m) return -1;
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(list, i), *weight = json_object_get(o, "weight");
        m[i].role = json_string_value(json_object_get(o, "role"));
        m[i].content = json_string_value(json_object_get(o, "content"));
        m[i].calls = json_object_get(o, "tool_calls");
        m[i].train = strcmp(m[i].role, "assistant") == 0 &&
                     !(json_is_number(weight) && json_number_value(weight) == 0);
    }
    const struct chat_talk talk = {.m = m, .n = (int)n, .tools = json_object_get(row, "tools")};
    int rc = chat_encode(t, chat, &talk, &x->ids, &x->trained, e);
    mem_free(m);
    return rc;
}

int encode_row(struct encoding *x, const struct tok *t, const struct row *row,
               const struct dataset_options *o, struct err *e)
{
    const json_t *text = json_object_get(row->json, "text");
    const json_t *prompt = json_object_get(row->json, "prompt");
    const json_t *completion = json_object_get(row->json, "completion");
    x->ids.n = x->trained.n = 0;
    if (rows_is_chat(row->shape)) return encode_messages(x, t, row->json, o->chat, e);
    if (row->shape == ROW_LABEL)
        return err_set(e, E_ARG, "the rows have labels, which train a classifier; to train on the "
                       "text alone leave 'label' and 'text_pair' out");
    if (row->shape == ROW_TEXT && encode_string(x, t, text, true, e)) return -1;
    if (row->shape == ROW_COMPLETION &&
        (encode_string(x, t, prompt, true, e) || mark(x, 0, e) ||
         encode_string(x, t, completion, false, e)))
        return -1;
    return encode_eos(x, o->eos, e) || mark(x, 1, e) ? -1 : 0;
}
