/* Conversations of the two templates that know tools. What they say about tools is theirs, to the
 * letter: a model has learnt it so. */
#include "engine/base/str.h"
#include "engine/tok/chat_render.h"

static const char *call_name(const json_t *call)
{
    return json_string_value(json_object_get(json_object_get(call, "function"), "name"));
}

static const json_t *call_arguments(const json_t *call)
{
    return json_object_get(json_object_get(call, "function"), "arguments");
}

/* --- qwen2.5 -------------------------------------------------------------------------------- */

static void qwen_system(struct chat_render *r, const char *system, const json_t *tools)
{
    json_t *tool;
    size_t i;
    chat_put_header(r, "system");
    buf_puts(&r->text, system);
    if (tools) {
        buf_puts(&r->text, "\n\n# Tools\n\nYou may call one or more functions to assist with the "
                           "user query.\n\nYou are provided with function signatures within "
                           "<tools></tools> XML tags:\n<tools>");
        json_array_foreach((json_t *)(uintptr_t)tools, i, tool) {
            buf_putc(&r->text, '\n');
            chat_put_json(&r->text, tool, 0);
        }
        buf_puts(&r->text, "\n</tools>\n\nFor each function call, return a json object with "
                           "function name and arguments within <tool_call></tool_call> XML tags:\n"
                           "<tool_call>\n{\"name\": <function-name>, \"arguments\": "
                           "<args-json-object>}\n</tool_call>");
    }
    buf_puts(&r->text, "<|im_end|>\n");
}

static void qwen_calls(struct chat_render *r, const struct chat_message *m)
{
    json_t *call;
    size_t i;
    chat_put_header(r, "assistant");
    size_t start = r->text.len;
    buf_puts(&r->text, m->content);
    json_array_foreach((json_t *)(uintptr_t)m->calls, i, call) {
        if (i || *m->content) buf_putc(&r->text, '\n');
        /* The name as it is, as the template puts it between its quotes. */
        buf_printf(&r->text, "<tool_call>\n{\"name\": \"%s\", \"arguments\": ", call_name(call));
        chat_put_json(&r->text, call_arguments(call), 0);
        buf_puts(&r->text, "}\n</tool_call>");
    }
    buf_puts(&r->text, "<|im_end|>");
    chat_add_span(r, m, start);
    buf_putc(&r->text, '\n');
}

/* Answers of tools that follow each other share one turn of the user. */
static void qwen_answer(struct chat_render *r, const struct chat_talk *talk, int i)
{
    bool first = i == 0 || !chat_is_role(&talk->m[i - 1], "tool");
    bool last = i + 1 == talk->n || !chat_is_role(&talk->m[i + 1], "tool");
    if (first) buf_puts(&r->text, "<|im_start|>user");
    buf_printf(&r->text, "\n<tool_response>\n%s\n</tool_response>", talk->m[i].content);
    if (last) buf_puts(&r->text, "<|im_end|>\n");
}

static void render_qwen(struct chat_render *r, const struct chat_talk *talk)
{
    bool own = chat_is_role(&talk->m[0], "system");
    qwen_system(r, own ? talk->m[0].content : r->style->system, talk->tools);
    for (int i = own; i < talk->n; i++) {
        const struct chat_message *m = &talk->m[i];
        if (json_array_size(m->calls))
            qwen_calls(r, m);
        else if (chat_is_role(m, "tool"))
            qwen_answer(r, talk, i);
        else
            chat_put_turn(r, m);
    }
    if (talk->generation) chat_put_header(r, "assistant");
}

/* --- llama3.1 ------------------------------------------------------------------------------- */

static int llama_tools(struct chat_render *r, const struct chat_talk *talk, int i, struct err *e)
{
    json_t *tool;
    size_t k;
    if (i >= talk->n || !chat_is_role(&talk->m[i], "user"))
        return err_set(e, E_FORMAT, "messages[%d]: in the template llama3.1 tools stand in the "
                       "first message of the user, which must come first", i);
    chat_put_header(r, "user");
    buf_puts(&r->text, "Given the following functions, please respond with a JSON for a function "
                       "call with its proper arguments that best answers the given prompt.\n\n"
                       "Respond in the format {\"name\": function name, \"parameters\": dictionary "
                       "of argument name and its value}.Do not use variables.\n\n");
    json_array_foreach((json_t *)(uintptr_t)talk->tools, k, tool) {
        chat_put_json(&r->text, tool, 4);
        buf_puts(&r->text, "\n\n");
    }
    chat_put_content(r, talk->m[i].content, true);
    buf_puts(&r->text, r->end);
    return 0;
}

static int llama_call(struct chat_render *r, const struct chat_message *m, int i, struct err *e)
{
    const json_t *call = json_array_get(m->calls, 0);
    if (json_array_size(m->calls) != 1)
        return err_set(e, E_UNSUPPORTED, "messages[%d]: the chat template llama3.1 has room for "
                       "one tool call in a message", i);
    if (*m->content)
        return err_set(e, E_UNSUPPORTED, "messages[%d]: the chat template llama3.1 has no room for "
                       "text beside a tool call", i);
    chat_put_header(r, "assistant");
    size_t start = r->text.len;
    buf_printf(&r->text, "{\"name\": \"%s\", \"parameters\": ", call_name(call));
    chat_put_json(&r->text, call_arguments(call), 0);
    buf_printf(&r->text, "}%s", r->end);
    chat_add_span(r, m, start);
    return 0;
}

/* The template writes a tool's answer, being text, as a JSON string. */
static int llama_answer(struct chat_render *r, const struct chat_message *m, struct err *e)
{
    json_t *text = json_string(m->content);
    if (!text) return err_set(e, E_NOMEM, "out of memory");
    chat_put_header(r, "ipython");
    chat_put_json(&r->text, text, 0);
    buf_puts(&r->text, r->end);
    json_decref(text);
    return 0;
}

static int render_llama(struct chat_render *r, const struct chat_talk *talk, struct err *e)
{
    bool own = chat_is_role(&talk->m[0], "system");
    int i = own;
    buf_puts(&r->text, r->style->begin);
    chat_put_header(r, "system");
    if (talk->tools) buf_puts(&r->text, "Environment: ipython\n");
    buf_puts(&r->text, r->style->system_prefix);
    if (own) chat_put_content(r, talk->m[0].content, true);
    buf_puts(&r->text, r->end);
    if (talk->tools && llama_tools(r, talk, i++, e)) return -1;
    for (; i < talk->n; i++) {
        const struct chat_message *m = &talk->m[i];
        if (json_array_size(m->calls)) {
            if (llama_call(r, m, i, e)) return -1;
        } else if (chat_is_role(m, "tool")) {
            if (llama_answer(r, m, e)) return -1;
        } else {
            chat_put_turn(r, m);
        }
    }
    if (talk->generation) chat_put_header(r, "assistant");
    return 0;
}

int chat_render_tools(struct chat_render *r, enum chat_template c, const struct chat_talk *talk,
                      struct err *e)
{
    if (c == CHAT_LLAMA31) return render_llama(r, talk, e);
    render_qwen(r, talk);
    return 0;
}
