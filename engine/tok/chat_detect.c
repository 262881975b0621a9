/* Which of the known templates a model's folder has, by the text of its template. */
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/chat_render.h"

#include <string.h>

enum { CONFIG_MAX = 16 << 20 };

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* A chatml template: with a system message of its own if one stands, as text, behind the header of
 * one. A newline in the template may be written as such or, inside a Jinja string, as \n. */
static enum chat_template detect_chatml(const char *text)
{
    static const char header[] = "<|im_start|>system";
    if (has(text, "<think>")) return CHAT_NONE; /* edits earlier turns: not chatml any more */
    for (const char *p = text; (p = strstr(p, header)) != NULL;) {
        p += sizeof header - 1;
        if (str_starts(p, "\\n"))
            p += 2;
        else if (*p == '\n')
            p++;
        if (!*p || strchr("'\"{", *p)) continue;
        for (int c = 0; c < CHAT_COUNT; c++) {
            const char *own = chat_style((enum chat_template)c)->system;
            if (own && *own && str_starts(p, own) && str_starts(p + strlen(own), "<|im_end|>"))
                return (enum chat_template)c;
        }
        return CHAT_NONE;
    }
    return CHAT_CHATML;
}

/* Templates with [INST] that have no <<SYS>>: by what stands around a question and an answer. */
static enum chat_template detect_mistral(const char *text)
{
    if (has(text, "' [/INST]'") && has(text, "{{ message['content'] + eos_token"))
        return CHAT_MISTRAL;
    if (!has(text, "\"[/INST]\"")) return CHAT_NONE;
    if (has(text, "\"[INST] \"") && has(text, "{{- \" \" + message[\"content\"]|trim + eos_token"))
        return CHAT_MISTRAL_V3;
    if (has(text, "\"[INST]\"") && has(text, "{{- message[\"content\"] + eos_token"))
        return CHAT_MISTRAL_NEMO;
    return CHAT_NONE;
}

static enum chat_template detect_gemma(const char *text)
{
    if (has(text, "System role not supported")) return CHAT_GEMMA;
    return has(text, "first_user_prefix") ? CHAT_GEMMA3 : CHAT_NONE;
}

static enum chat_template detect(const char *text)
{
    if (has(text, "<|im_start|>") && has(text, "<|im_end|>")) return detect_chatml(text);
    if (has(text, "<|start_header_id|>") && has(text, "<|eot_id|>"))
        return has(text, "Cutting Knowledge Date") ? CHAT_LLAMA31 : CHAT_LLAMA3;
    if (has(text, "[INST]") && has(text, "<<SYS>>")) return CHAT_LLAMA2;
    if (has(text, "[INST]")) return detect_mistral(text);
    if (has(text, "<start_of_turn>") && has(text, "<end_of_turn>")) return detect_gemma(text);
    if (has(text, "<|user|>") && has(text, "<|assistant|>") && has(text, "<|system|>") &&
        has(text, "eos_token") && !has(text, "bos_token") && !has(text, "<|end|>"))
        return CHAT_ZEPHYR;
    return CHAT_NONE;
}

/* "chat_template": a string, or a list of {"name", "template"} of which "default" counts. */
static const char *template_text(const json_t *v)
{
    const char *first = NULL;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *o = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(o, "name"));
        const char *text = json_string_value(json_object_get(o, "template"));
        if (text && str_eq(name, "default")) return text;
        if (!first) first = text;
    }
    return json_is_string(v) ? json_string_value(v) : first;
}

static int not_known(struct err *e, const char *dir)
{
    struct buf b;
    buf_init(&b, 256);
    for (int c = CHAT_NONE + 1; c < CHAT_COUNT; c++)
        buf_printf(&b, "%s%s", b.len ? ", " : "", chat_name((enum chat_template)c));
    err_set(e, E_UNSUPPORTED, "the chat template of %.200s is not one that graft knows; choose one "
            "of: %s", dir, buf_str(&b));
    buf_clear(&b);
    return -1;
}

int chat_detect(const char *model_dir, enum chat_template *out, struct err *e)
{
    char path[FS_PATH_MAX];
    struct buf jinja;
    json_t *config = NULL;
    const char *text = NULL;
    int rc = -1;
    buf_init(&jinja, CONFIG_MAX);
    if (fs_join(path, model_dir, "chat_template.jinja", e)) goto out;
    if (fs_exists(path)) {
        if (fs_read_file(path, &jinja, e)) goto out;
        text = buf_str(&jinja);
    } else {
        if (fs_join(path, model_dir, "tokenizer_config.json", e)) goto out;
        if (fs_exists(path)) {
            config = jx_load_file(path, CONFIG_MAX, e);
            if (!config) goto out;
            text = template_text(json_object_get(config, "chat_template"));
        }
    }
    enum chat_template found = text ? detect(text) : CHAT_NONE;
    if (text && found == CHAT_NONE) {
        not_known(e, model_dir);
        goto out;
    }
    *out = found;
    rc = 0;
out:
    json_decref(config);
    buf_clear(&jinja);
    return rc;
}
