#include "engine/tok/chat.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/chat_render.h"
#include "engine/tok/uclass.h"

#include <string.h>

#define CHATML                                                                                 \
    .open = "<|im_start|>", .close = "\n", .lead = "", .end = "<|im_end|>", .after = "\n",     \
    .begin = "", .need = {"<|im_start|>", "<|im_end|>"}
#define LLAMA3                                                                                 \
    .begin = "<|begin_of_text|>", .open = "<|start_header_id|>",                               \
    .close = "<|end_header_id|>\n\n", .lead = "", .end = "<|eot_id|>", .after = "",            \
    .trim = true,                                                                              \
    .need = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}

#define MISTRAL                                                                                \
    .begin = "<s>", .open = "", .close = "", .end = "</s>", .after = "", .no_tool = true,      \
    .need = {"<s>", "</s>"}
#define GEMMA                                                                                  \
    .begin = "<bos>", .open = "<start_of_turn>", .close = "\n", .lead = "",                    \
    .end = "<end_of_turn>", .after = "\n", .ask = "<start_of_turn>user\n",                     \
    .asked = "<end_of_turn>\n", .trim = true, .no_tool = true,                                 \
    .need = {"<bos>", "<start_of_turn>", "<end_of_turn>"}

static const struct chat_style styles[CHAT_COUNT] = {
    [CHAT_NONE] = {.name = "none"},
    [CHAT_CHATML] = {.name = "chatml", CHATML},
    [CHAT_QWEN2] = {.name = "qwen2", CHATML, .system = "You are a helpful assistant."},
    [CHAT_QWEN25] = {.name = "qwen2.5", CHATML, .tools = true,
                     .system = "You are Qwen, created by Alibaba Cloud. You are a helpful "
                               "assistant."},
    [CHAT_SMOLLM2] = {.name = "smollm2", CHATML,
                      .system = "You are a helpful AI assistant named SmolLM, trained by Hugging "
                                "Face"},
    [CHAT_LLAMA2] = {.name = "llama2", .begin = "", .open = "", .close = "", .lead = " ",
                     .end = " </s>", .after = "", .ask = "<s>[INST] ", .asked = " [/INST]",
                     .place = SYSTEM_FIRST, .system_open = "<<SYS>>\n",
                     .system_close = "\n<</SYS>>\n\n", .trim = true, .trim_whole = true,
                     .no_tool = true, .need = {"<s>", "</s>"}},
    [CHAT_MISTRAL] = {.name = "mistral", MISTRAL, .ask = "[INST] ", .asked = " [/INST]",
                      .lead = ""},
    [CHAT_MISTRAL_V3] = {.name = "mistral-v3", MISTRAL, .ask = "[INST] ", .asked = "[/INST]",
                         .lead = " ", .trim_answer = true, .place = SYSTEM_LAST,
                         .system_open = "", .system_close = "\n\n"},
    [CHAT_MISTRAL_NEMO] = {.name = "mistral-nemo", MISTRAL, .ask = "[INST]", .asked = "[/INST]",
                           .lead = "", .place = SYSTEM_LAST, .system_open = "",
                           .system_close = "\n\n"},
    [CHAT_GEMMA] = {.name = "gemma", GEMMA},
    [CHAT_GEMMA3] = {.name = "gemma3", GEMMA, .place = SYSTEM_FIRST, .system_open = "",
                     .system_close = "\n\n"},
    [CHAT_LLAMA3] = {.name = "llama3", LLAMA3},
    [CHAT_LLAMA31] = {.name = "llama3.1", LLAMA3, .tools = true,
                      .system_prefix = "Cutting Knowledge Date: December 2023\n"
                                       "Today Date: 26 Jul 2024\n\n"},
    [CHAT_ZEPHYR] = {.name = "zephyr", .begin = "", .open = "<|", .close = "|>\n", .lead = "",
                     .end = "$eos", .after = "\n", .no_tool = true},
    [CHAT_PLAIN] = {.name = "plain", .begin = "", .open = "", .close = ":", .lead = " ",
                    .end = "$eos", .after = "\n", .capital = true, .no_tool = true,
                    .special = true},
};

const struct chat_style *chat_style(enum chat_template c)
{
    return &styles[c >= 0 && c < CHAT_COUNT ? c : CHAT_NONE];
}

const char *chat_name(enum chat_template c)
{
    return chat_style(c)->name;
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

bool chat_is_role(const struct chat_message *m, const char *role)
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

void chat_put_content(struct chat_render *r, const char *s, bool trim)
{
    size_t n = strlen(s);
    if (trim) strip(&s, &n);
    buf_put(&r->text, s, n);
}

void chat_put_header(struct chat_render *r, const char *role)
{
    buf_puts(&r->text, r->style->open);
    size_t at = r->text.len;
    buf_puts(&r->text, role);
    if (r->style->capital && !r->text.err.code) r->text.data[at] = (char)(role[0] - 32);
    buf_puts(&r->text, r->style->close);
}

void chat_add_span(struct chat_render *r, const struct chat_message *m, size_t start)
{
    if (!m->train || !chat_is_role(m, "assistant")) return;
    r->span[r->nspan++] = (struct chat_span){start, r->text.len};
}

void chat_put_turn(struct chat_render *r, const struct chat_message *m)
{
    const struct chat_style *st = r->style;
    chat_put_header(r, role_of(m));
    size_t start = r->text.len;
    buf_puts(&r->text, st->lead);
    chat_put_content(r, m->content, st->trim);
    /* Only an assistant's turn of `plain` ends in eos: the others end in their line end. */
    bool ends = *r->end && (!st->special || chat_is_role(m, "assistant"));
    if (ends) buf_puts(&r->text, r->end);
    if (ends) chat_add_span(r, m, start);
    buf_puts(&r->text, st->after);
    if (!ends) chat_add_span(r, m, start);
}

static void render_turns(struct chat_render *r, const struct chat_talk *talk)
{
    const struct chat_style *st = r->style;
    buf_puts(&r->text, st->begin);
    if (st->system && !chat_is_role(&talk->m[0], "system")) {
        const struct chat_message system = {.role = "system", .content = st->system};
        chat_put_turn(r, &system);
    }
    for (int i = 0; i < talk->n; i++) chat_put_turn(r, &talk->m[i]);
    if (talk->generation) chat_put_header(r, "assistant");
}

/* A question, with the system message in it if there is one. */
static int put_question(struct chat_render *r, const char *system, const char *content,
                        struct err *e)
{
    const struct chat_style *st = r->style;
    struct buf whole;
    int rc = 0;
    buf_init(&whole, TOK_TEXT_MAX);
    buf_puts(&r->text, st->ask);
    if (system && st->trim_whole) {
        buf_printf(&whole, "%s%s%s%s", st->system_open, system, st->system_close, content);
        if (!(rc = buf_ok(&whole, e))) chat_put_content(r, buf_str(&whole), true);
    } else {
        if (system) buf_printf(&r->text, "%s%s%s", st->system_open, system, st->system_close);
        chat_put_content(r, content, st->trim);
    }
    buf_puts(&r->text, st->asked);
    buf_clear(&whole);
    return rc;
}

/* The question in which the system message is said; -1 where there is none. */
static int system_place(const struct chat_style *st, const struct chat_talk *talk, struct err *e)
{
    if (st->place == SYSTEM_NOWHERE)
        return err_set(e, E_UNSUPPORTED, "messages[0]: the chat template %s has no system message",
                       st->name);
    if (st->place == SYSTEM_FIRST) return 1;
    if (chat_is_role(&talk->m[talk->n - 1], "user")) return talk->n - 1;
    return err_set(e, E_UNSUPPORTED, "messages[0]: the chat template %s has a system message only "
                   "where a question of the user comes last", st->name);
}

static int render_pairs(struct chat_render *r, const struct chat_talk *talk, struct err *e)
{
    const struct chat_style *st = r->style;
    const struct chat_message *m = talk->m;
    const char *model = *st->open ? "model" : "", *system = NULL;
    int first = chat_is_role(&m[0], "system"), with = 0;
    if (first && (with = system_place(st, talk, e)) < 0) return -1;
    if (first) system = m[0].content;
    buf_puts(&r->text, st->begin);
    for (int i = first; i < talk->n; i++) {
        bool answer = (i - first) % 2;
        if (!chat_is_role(&m[i], answer ? "assistant" : "user"))
            return err_set(e, E_FORMAT, "messages[%d]: in the template %s roles must alternate: "
                           "user, assistant, user, ...%s", i, st->name,
                           st->place ? " behind an optional system message" : "");
        if (!answer) {
            if (put_question(r, i == with ? system : NULL, m[i].content, e)) return -1;
            continue;
        }
        chat_put_header(r, model);
        size_t start = r->text.len;
        buf_puts(&r->text, st->lead);
        chat_put_content(r, m[i].content, st->trim || st->trim_answer);
        buf_puts(&r->text, r->end);
        chat_add_span(r, &m[i], start);
        buf_puts(&r->text, st->after);
    }
    if (talk->generation) chat_put_header(r, model);
    return 0;
}

static const char *find_eos(const struct tok *t)
{
    static const char *const names[] = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (tok_is_special(t, tok_id(t, names[i]))) return names[i];
    return NULL;
}

static int check_message(const struct chat_style *st, const struct chat_message *m, int i,
                         struct err *e)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    bool known = false;
    for (size_t k = 0; k < sizeof roles / sizeof *roles; k++) known |= chat_is_role(m, roles[k]);
    if (!known) return err_set(e, E_FORMAT, "messages[%d]: no role '%.40s'", i, m->role);
    if (st->no_tool && chat_is_role(m, "tool"))
        return err_set(e, E_UNSUPPORTED, "messages[%d]: the chat template %s has no turn for "
                       "the role tool", i, st->name);
    if (json_array_size(m->calls) && !st->tools)
        return err_set(e, E_UNSUPPORTED, "messages[%d]: the chat template %s cannot write tool "
                       "calls; qwen2.5 and llama3.1 can", i, st->name);
    return 0;
}

static int check(const struct tok *t, struct chat_render *r, const struct chat_talk *talk,
                 struct err *e)
{
    const struct chat_style *st = r->style;
    if (!st->end) return err_set(e, E_ARG, "no chat template is chosen");
    if (talk->n < 1) return err_set(e, E_FORMAT, "a conversation needs at least one message");
    for (int k = 0; k < CHAT_NEEDS && st->need[k]; k++)
        if (tok_id(t, st->need[k]) < 0)
            return err_set(e, E_UNSUPPORTED, "the chat template %s needs the token %s, which the "
                           "tokenizer does not have", st->name, st->need[k]);
    r->end = st->end;
    if (str_eq(st->end, "$eos")) r->end = find_eos(t);
    if (!r->end && !st->special)
        return err_set(e, E_UNSUPPORTED, "the chat template %s needs an end-of-sequence token such "
                       "as </s>, which the tokenizer does not have", st->name);
    if (!r->end) r->end = "";
    if (talk->tools && !st->tools)
        return err_set(e, E_UNSUPPORTED, "the chat template %s cannot say which tools there are; "
                       "qwen2.5 and llama3.1 can", st->name);
    for (int i = 0; i < talk->n; i++)
        if (check_message(st, &talk->m[i], i, e)) return -1;
    return 0;
}

/* An id is trained if any byte it stands for lies in a span. Spans and ids are both in order. */
static int mark_trained(const struct chat_render *r, const struct tok_spans *spans,
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

static int render(struct chat_render *r, enum chat_template c, const struct chat_talk *talk,
                  struct err *e)
{
    if (r->style->tools) return chat_render_tools(r, c, talk, e);
    if (r->style->ask) return render_pairs(r, talk, e);
    render_turns(r, talk);
    return 0;
}

int chat_encode(const struct tok *t, enum chat_template c, const struct chat_talk *given,
                struct ids *out, struct ids *trained, struct err *e)
{
    struct chat_render r = {.style = chat_style(c)};
    struct chat_talk talk = *given;
    struct tok_spans spans = {0};
    int64_t before = out->n;
    int rc = -1;
    if (!json_array_size(talk.tools)) talk.tools = NULL;
    buf_init(&r.text, TOK_TEXT_MAX);
    if (check(t, &r, &talk, e)) return -1;
    r.span = mem_array(talk.n, sizeof *r.span, e);
    if (!r.span) return -1;
    if (render(&r, c, &talk, e) || buf_ok(&r.text, e) ||
        tok_encode_spans(t, buf_str(&r.text), r.text.len, r.style->special, out, &spans, e))
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
