#include "engine/tok/chat.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/uclass.h"

#include <string.h>

enum { CONFIG_MAX = 16 << 20, NEEDS = 4 };

/* A template as data. Every turn is open, role, close, lead, content, end, after. */
struct style {
    const char *name;
    const char *begin;          /* before the first turn */
    const char *open, *close;   /* around the role: the header, where a generation starts */
    const char *lead;           /* said by the model before the content */
    const char *end;            /* end-of-turn token; "$eos": the tokenizer's */
    const char *after;
    const char *system;         /* the system message of a conversation without one, or NULL */
    const char *system_prefix;  /* in front of every first system message */
    bool trim;                  /* content without spaces around it */
    bool no_tool;               /* "tool" turns are not rendered as other turns are */
    bool capital;               /* "User" instead of "user" */
    bool special;               /* the post-processor runs */
    const char *need[NEEDS];    /* tokens that must exist */
};

#define CHATML                                                                                 \
    .open = "<|im_start|>", .close = "\n", .lead = "", .end = "<|im_end|>", .after = "\n",     \
    .begin = "", .need = {"<|im_start|>", "<|im_end|>"}
#define LLAMA3                                                                                 \
    .begin = "<|begin_of_text|>", .open = "<|start_header_id|>",                               \
    .close = "<|end_header_id|>\n\n", .lead = "", .end = "<|eot_id|>", .after = "",            \
    .trim = true,                                                                              \
    .need = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}

static const struct style styles[CHAT_COUNT] = {
    [CHAT_NONE] = {.name = "none"},
    [CHAT_CHATML] = {.name = "chatml", CHATML},
    [CHAT_QWEN2] = {.name = "qwen2", CHATML, .system = "You are a helpful assistant."},
    [CHAT_QWEN25] = {.name = "qwen2.5", CHATML, .no_tool = true,
                     .system = "You are Qwen, created by Alibaba Cloud. You are a helpful "
                               "assistant."},
    [CHAT_SMOLLM2] = {.name = "smollm2", CHATML,
                      .system = "You are a helpful AI assistant named SmolLM, trained by Hugging "
                                "Face"},
    /* Turns of llama2 pair up: render_llama2. */
    [CHAT_LLAMA2] = {.name = "llama2", .end = "</s>", .trim = true, .no_tool = true,
                     .need = {"<s>", "</s>"}},
    [CHAT_LLAMA3] = {.name = "llama3", LLAMA3},
    [CHAT_LLAMA31] = {.name = "llama3.1", LLAMA3, .system = "", .no_tool = true,
                      .system_prefix = "Cutting Knowledge Date: December 2023\n"
                                       "Today Date: 26 Jul 2024\n\n"},
    [CHAT_ZEPHYR] = {.name = "zephyr", .begin = "", .open = "<|", .close = "|>\n", .lead = "",
                     .end = "$eos", .after = "\n", .no_tool = true},
    [CHAT_PLAIN] = {.name = "plain", .begin = "", .open = "", .close = ":", .lead = " ",
                    .end = "$eos", .after = "\n", .capital = true, .no_tool = true,
                    .special = true},
};

/* A rendered conversation: the text, and the spans of it that are trained. */
struct span {
    size_t start, end;
};
struct render {
    struct buf text;
    struct span *span;
    int nspan;
    const struct style *style;
    const char *end; /* the end-of-turn token, "" if there is none */
};

const char *chat_name(enum chat_template c)
{
    return c >= 0 && c < CHAT_COUNT ? styles[c].name : "none";
}

bool chat_parse(const char *name, enum chat_template *out)
{
    for (int c = 0; c < CHAT_COUNT; c++)
        if (str_eq(name, styles[c].name)) {
            *out = (enum chat_template)c;
            return true;
        }
    return false;
}

/* "developer" is the newer name of "system". */
static const char *role_of(const struct chat_message *m)
{
    return str_eq(m->role, "developer") ? "system" : m->role;
}

static bool is_role(const struct chat_message *m, const char *role)
{
    return str_eq(role_of(m), role);
}

/* Python's str.strip(), which Jinja's trim is: White_Space and the four separators of ASCII. */
static bool blank(uint32_t cp)
{
    return uclass_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

static void strip(const char **s, size_t *n)
{
    uint32_t cp;
    while (*n) {
        size_t len = (size_t)str_utf8_next(*s, *n, &cp);
        if (!blank(cp)) break;
        *s += len;
        *n -= len;
    }
    while (*n) {
        size_t k = *n - 1;
        while (k && ((unsigned char)(*s)[k] & 0xc0) == 0x80) k--;
        str_utf8_next(*s + k, *n - k, &cp);
        if (!blank(cp)) break;
        *n = k;
    }
}

static void put_content(struct render *r, const char *s)
{
    size_t n = strlen(s);
    if (r->style->trim) strip(&s, &n);
    buf_put(&r->text, s, n);
}

static void put_header(struct render *r, const char *role)
{
    buf_puts(&r->text, r->style->open);
    size_t at = r->text.len;
    buf_puts(&r->text, role);
    if (r->style->capital && !r->text.err.code) r->text.data[at] = (char)(role[0] - 32);
    buf_puts(&r->text, r->style->close);
}

static void add_span(struct render *r, const struct chat_message *m, size_t start)
{
    if (!m->train || !is_role(m, "assistant")) return;
    r->span[r->nspan++] = (struct span){start, r->text.len};
}

/* One turn. The first system turn may have a prefix. */
static void put_turn(struct render *r, const struct chat_message *m, const char *prefix)
{
    const struct style *st = r->style;
    put_header(r, role_of(m));
    size_t start = r->text.len;
    buf_puts(&r->text, st->lead);
    if (prefix) buf_puts(&r->text, prefix);
    put_content(r, m->content);
    /* Only an assistant's turn of `plain` ends in eos: the others end in their line end. */
    bool ends = *r->end && (!st->special || is_role(m, "assistant"));
    if (ends) buf_puts(&r->text, r->end);
    if (ends) add_span(r, m, start);
    buf_puts(&r->text, st->after);
    if (!ends) add_span(r, m, start);
}

static void render_turns(struct render *r, const struct chat_message *m, int n, bool generation)
{
    const struct style *st = r->style;
    buf_puts(&r->text, st->begin);
    if (st->system && !is_role(&m[0], "system")) {
        struct chat_message system = {"system", st->system, false};
        put_turn(r, &system, st->system_prefix);
    }
    for (int i = 0; i < n; i++)
        put_turn(r, &m[i], i == 0 && is_role(&m[0], "system") ? st->system_prefix : NULL);
    if (generation) put_header(r, "assistant");
}

/* <s>[INST] <<SYS>>\n...\n<</SYS>>\n\nuser [/INST] assistant </s><s>[INST] ...
 * A generation needs no header: it starts behind [/INST]. */
static int render_llama2(struct render *r, const struct chat_message *m, int n, struct err *e)
{
    const char *system = is_role(&m[0], "system") ? m[0].content : NULL;
    struct buf first;
    int rc = -1;
    buf_init(&first, TOK_TEXT_MAX);
    for (int i = system ? 1 : 0, turn = 0; i < n; i++, turn++) {
        if (!is_role(&m[i], turn % 2 ? "assistant" : "user")) {
            err_set(e, E_FORMAT, "messages[%d]: in the template llama2 roles must alternate: user, "
                    "assistant, user, ... behind an optional system message", i);
            goto out;
        }
        size_t start = r->text.len;
        if (turn % 2) {
            buf_puts(&r->text, " ");
            put_content(r, m[i].content);
            buf_puts(&r->text, " </s>");
            add_span(r, &m[i], start);
            continue;
        }
        buf_puts(&r->text, "<s>[INST] ");
        if (turn == 0 && system) {
            buf_printf(&first, "<<SYS>>\n%s\n<</SYS>>\n\n%s", system, m[i].content);
            if (buf_ok(&first, e)) goto out;
            put_content(r, buf_str(&first));
        } else {
            put_content(r, m[i].content);
        }
        buf_puts(&r->text, " [/INST]");
    }
    rc = 0;
out:
    buf_clear(&first);
    return rc;
}

static const char *find_eos(const struct tok *t)
{
    static const char *const names[] = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (tok_is_special(t, tok_id(t, names[i]))) return names[i];
    return NULL;
}

static int check(const struct tok *t, struct render *r, const struct chat_message *m, int n,
                 struct err *e)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    const struct style *st = r->style;
    if (!st->end) return err_set(e, E_ARG, "no chat template is chosen");
    if (n < 1) return err_set(e, E_FORMAT, "a conversation needs at least one message");
    for (int k = 0; k < NEEDS && st->need[k]; k++)
        if (tok_id(t, st->need[k]) < 0)
            return err_set(e, E_UNSUPPORTED, "the chat template %s needs the token %s, which the "
                           "tokenizer does not have", st->name, st->need[k]);
    r->end = st->end;
    if (str_eq(st->end, "$eos")) r->end = find_eos(t);
    if (!r->end && !st->special)
        return err_set(e, E_UNSUPPORTED, "the chat template %s needs an end-of-sequence token such "
                       "as </s>, which the tokenizer does not have", st->name);
    if (!r->end) r->end = "";
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (size_t k = 0; k < sizeof roles / sizeof *roles; k++) known |= is_role(&m[i], roles[k]);
        if (!known) return err_set(e, E_FORMAT, "messages[%d]: no role '%.40s'", i, m[i].role);
        if (st->no_tool && is_role(&m[i], "tool"))
            return err_set(e, E_UNSUPPORTED, "messages[%d]: the chat template %s has no turn for "
                           "the role tool", i, st->name);
    }
    return 0;
}

/* An id is trained if any byte it stands for lies in a span. Spans and ids are both in order. */
static int mark_trained(const struct render *r, const struct tok_spans *spans,
                        struct ids *trained, struct err *e)
{
    int k = 0;
    int64_t before = trained->n;
    for (int64_t i = 0; i < spans->first.n; i++) {
        int32_t first = spans->first.v[i], last = spans->last.v[i];
        while (first >= 0 && k < r->nspan && r->span[k].end <= (size_t)first) k++;
        bool yes = first >= 0 && k < r->nspan && (size_t)last >= r->span[k].start;
        if (ids_push(trained, yes, e)) {
            trained->n = before;
            return -1;
        }
    }
    return 0;
}

int chat_encode(const struct tok *t, enum chat_template c, const struct chat_message *m, int n,
                bool generation, struct ids *out, struct ids *trained, struct err *e)
{
    struct render r = {.style = &styles[c >= 0 && c < CHAT_COUNT ? c : CHAT_NONE]};
    struct tok_spans spans = {0};
    int64_t before = out->n;
    int rc = -1;
    buf_init(&r.text, TOK_TEXT_MAX);
    if (check(t, &r, m, n, e)) return -1;
    r.span = mem_array(n, sizeof *r.span, e);
    if (!r.span) return -1;
    if (c == CHAT_LLAMA2) {
        if (render_llama2(&r, m, n, e)) goto out;
    } else {
        render_turns(&r, m, n, generation);
    }
    if (buf_ok(&r.text, e)) goto out;
    if (tok_encode_spans(t, buf_str(&r.text), r.text.len, r.style->special, out, &spans, e))
        goto out;
    if (trained && mark_trained(&r, &spans, trained, e)) {
        out->n = before;
        goto out;
    }
    rc = 0;
out:
    tok_spans_clear(&spans);
    buf_clear(&r.text);
    mem_free(r.span);
    return rc;
}

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
            const char *own = styles[c].system;
            if (own && *own && str_starts(p, own) && str_starts(p + strlen(own), "<|im_end|>"))
                return (enum chat_template)c;
        }
        return CHAT_NONE;
    }
    return CHAT_CHATML;
}

static enum chat_template detect(const char *text)
{
    if (has(text, "<|im_start|>") && has(text, "<|im_end|>")) return detect_chatml(text);
    if (has(text, "<|start_header_id|>") && has(text, "<|eot_id|>"))
        return has(text, "Cutting Knowledge Date") ? CHAT_LLAMA31 : CHAT_LLAMA3;
    if (has(text, "[INST]") && has(text, "<<SYS>>")) return CHAT_LLAMA2;
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
        buf_printf(&b, "%s%s", b.len ? ", " : "", styles[c].name);
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
