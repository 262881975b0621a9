/* engine/tok/chat: what each template renders, what of it is trained, which ones are recognised. A
 * byte-level tokenizer decodes ids to the very text that was rendered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The golden Llama 3 tokenizer, with the special tokens of the other templates. */
static struct tok *open_all(void)
{
    static const char *const more[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<bos>",
                                       "<start_of_turn>", "<end_of_turn>"};
    struct err e = ERR_INIT;
    json_t *root = jx_load_file("tests/unit/golden/tok_llama3.json", 1 << 20, &e), *list;
    assert_non_null(root);
    assert_int_equal(jx_array(root, "added_tokens", &list, &e), 0);
    for (int i = 0; i < 7; i++) {
        json_t *o = json_deep_copy(json_array_get(list, 0));
        jx_set(o, "id", json_integer(420 + i), &e);
        jx_set(o, "content", json_string(more[i]), &e);
        json_array_append_new(list, o);
    }
    char *text = jx_dump(root, &e);
    struct tok *t = tok_parse(text, strlen(text), &e);
    if (!t) fail_msg("%s", e.msg);
    mem_free(text);
    json_decref(root);
    return t;
}

static const struct chat_message talk[] = {
    {"developer", " Be brief. ", NULL, false}, {"user", "One?\n", NULL, false},
    {"assistant", " 1 ", NULL, true}, {"user", "Two?", NULL, false}, {"assistant", "2", NULL, true},
};

/* Decodes all ids, or only the trained ones; "|" between runs of trained ones. */
static void decode(const struct tok *t, const struct ids *ids, const struct ids *trained,
                   struct buf *out)
{
    struct err e = ERR_INIT;
    for (int64_t i = 0; i < ids->n;) {
        int64_t k = i;
        while (k < ids->n && (!trained || trained->v[k] == trained->v[i])) k++;
        bool take = !trained || trained->v[i];
        if (take && out->len) buf_putc(out, '|');
        if (take) assert_int_equal(tok_decode(t, ids->v + i, k - i, false, out, &e), 0);
        i = k;
    }
}

struct want {
    bool generation;
    const char *text, *said;
};

static void check_render(const struct tok *t, const char *name, const struct chat_message *m, int n,
                         struct want want)
{
    struct err e = ERR_INIT;
    struct ids ids = {0}, trained = {0};
    struct buf all, some;
    enum chat_template c;
    buf_init(&all, 1 << 16);
    buf_init(&some, 1 << 16);
    assert_true(chat_parse(name, &c));
    assert_string_equal(chat_name(c), name);
    const struct chat_talk asked = {.m = m, .n = n, .generation = want.generation};
    if (chat_encode(t, c, &asked, &ids, &trained, &e))
        fail_msg("%s: %s", name, e.msg);
    assert_int_equal(ids.n, trained.n);
    decode(t, &ids, NULL, &all);
    decode(t, &ids, &trained, &some);
    assert_string_equal(buf_str(&all), want.text);
    assert_string_equal(buf_str(&some), want.said);
    buf_clear(&all);
    buf_clear(&some);
    ids_clear(&ids);
    ids_clear(&trained);
}

#define H(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"

static void each_template_renders_its_text_and_trains_what_the_model_says(void **state)
{
    (void)state;
    struct tok *t = open_all();
    check_render(t, "chatml", talk, 5, (struct want){false,
                 "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nOne?\n<|im_end|>\n"
                 "<|im_start|>assistant\n 1 <|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
                 "<|im_start|>assistant\n2<|im_end|>\n", " 1 <|im_end|>|2<|im_end|>"});
    check_render(t, "qwen2", talk + 3, 1, (struct want){true,
                 "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                 "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n", ""});
    check_render(t, "llama2", talk, 5, (struct want){true,
                 "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nOne? [/INST] 1 </s>"
                 "<s>[INST] Two? [/INST] 2 </s>", " 1 </s>| 2 </s>"});
    check_render(t, "llama3", talk, 4, (struct want){true,
                 "<|begin_of_text|>" H("system") "Be brief.<|eot_id|>" H("user") "One?<|eot_id|>"
                 H("assistant") "1<|eot_id|>" H("user") "Two?<|eot_id|>" H("assistant"),
                 "1<|eot_id|>"});
    check_render(t, "llama3.1", talk + 3, 2, (struct want){false,
                 "<|begin_of_text|>" H("system") "Cutting Knowledge Date: December 2023\n"
                 "Today Date: 26 Jul 2024\n\n<|eot_id|>" H("user") "Two?<|eot_id|>" H("assistant")
                 "2<|eot_id|>", "2<|eot_id|>"});
    check_render(t, "mistral", talk + 1, 4, (struct want){true,
                 "<s>[INST] One?\n [/INST] 1 </s>[INST] Two? [/INST]2</s>", " 1 </s>|2</s>"});
    check_render(t, "mistral-v3", talk, 4, (struct want){true,
                 "<s>[INST] One?\n[/INST] 1</s>[INST]  Be brief. \n\nTwo?[/INST]", " 1</s>"});
    check_render(t, "mistral-nemo", talk + 1, 4, (struct want){false,
                 "<s>[INST]One?\n[/INST] 1 </s>[INST]Two?[/INST]2</s>", " 1 </s>|2</s>"});
    check_render(t, "gemma", talk + 1, 3, (struct want){true,
                 "<bos><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\n1"
                 "<end_of_turn>\n<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n",
                 "1<end_of_turn>"});
    check_render(t, "gemma3", talk, 3, (struct want){false,
                 "<bos><start_of_turn>user\n Be brief. \n\nOne?<end_of_turn>\n"
                 "<start_of_turn>model\n1<end_of_turn>\n", "1<end_of_turn>"});
    check_render(t, "zephyr", talk + 3, 2, (struct want){true,
                 "<|user|>\nTwo?</s>\n<|assistant|>\n2</s>\n<|assistant|>\n", "2</s>"});
    check_render(t, "plain", talk, 5, (struct want){true,
                 "<|begin_of_text|>System:  Be brief. \nUser: One?\n\nAssistant:  1 </s>\n"
                 "User: Two?\nAssistant: 2</s>\nAssistant:", "  1 </s>| 2</s>"});
    tok_free(t);
}

/* Renders with tools; *e says why not. */
static int encode_tools(const struct tok *t, const char *name, const char *calls,
                        const char *content, struct buf *all, struct err *e)
{
    static const char tools[] = "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"x\":[1,2"
           ".5],"
                                "\"y\":{}}}]";
    struct ids ids = {0}, trained = {0};
    enum chat_template c;
    json_t *list = jx_parse(tools, sizeof tools - 1, e), *made = jx_parse(calls, strlen(calls), e);
    const struct chat_message m[] = {
        {"user", " q ", NULL, false}, {"assistant", content, made, true},
        {"tool", "\"1\"", NULL, false}, {"tool", "2", NULL, false}};
    const struct chat_talk asked = {m, 4, list, false};
    assert_non_null(list);
    assert_non_null(made);
    assert_true(chat_parse(name, &c));
    int rc = chat_encode(t, c, &asked, &ids, &trained, e);
    if (!rc) decode(t, &ids, NULL, all);
    if (!rc) buf_puts(all, "~~");
    if (!rc) decode(t, &ids, &trained, all);
    ids_clear(&ids);
    ids_clear(&trained);
    json_decref(list);
    json_decref(made);
    return rc;
}

#define CALL "[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[\"\u00e9\\n\"],\"b\":1e-7}}}]"

static void tools_and_calls_stand_where_a_template_has_them(void **state)
{
    (void)state;
    struct tok *t = open_all();
    struct err e = ERR_INIT;
    struct buf all;
    buf_init(&all, 1 << 16);
    assert_int_equal(encode_tools(t, "qwen2.5", CALL, "", &all, &e), 0);
    assert_non_null(strstr(buf_str(&all), "assistant.\n\n# Tools\n\n"));
    assert_non_null(strstr(buf_str(&all), "<tools>\n{\"type\": \"function\", \"function\": {\"na"
           "me\": "
                           "\"f\", \"x\": [1, 2.5], \"y\": {}}}\n</tools>\n\n"));
    assert_non_null(strstr(buf_str(&all), "<|im_start|>user\n<tool_response>\n\"1\"\n"
                           "</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n~~|"
                           "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [\"\u00e9\\n\"], "
                           "\"b\": 1e-07}}\n</tool_call><|im_end|>"));
    buf_clear(&all);
    assert_int_equal(encode_tools(t, "llama3.1", CALL, "", &all, &e), 0);
    assert_non_null(strstr(buf_str(&all), "its value}.Do not use variables.\n\n{\n    \"type\": "
                           "\"function\",\n    \"function\": {\n        \"name\": \"f\",\n      "
                           "  \"x\": "
                           "[\n            1,\n            2.5\n        ],\n        \"y\": {}\n "
                           "   }\n"
                           "}\n\nq<|eot_id|>"));
    assert_non_null(strstr(buf_str(&all), "ipython<|end_header_id|>\n\n\"\\\"1\\\"\"<|eot_id|>"));
    assert_non_null(strstr(buf_str(&all), "~~|{\"name\": \"f\", \"parameters\": {\"a\": "));
    buf_clear(&all);
    tok_free(t);
}

static void a_template_that_cannot_say_tools_says_so(void **state)
{
    (void)state;
    static const struct {
        const char *name, *calls, *content, *says;
    } rows[] = {
        {"chatml", CALL, "", "the chat template chatml cannot say which tools there are"},
        {"mistral", CALL, "", "the chat template mistral cannot say which tools there are"},
        {"llama3.1", "[1,2]", "", "messages[1]: the chat template llama3.1 has room for one tool"},
        {"llama3.1", CALL, "x", "messages[1]: the chat template llama3.1 has no room for text"},
    };
    struct tok *t = open_all();
    struct buf all;
    buf_init(&all, 1 << 16);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        assert_int_equal(encode_tools(t, rows[i].name, rows[i].calls, rows[i].content, &all, &e),
                         -1);
        assert_int_equal(e.code, E_UNSUPPORTED);
        if (!str_starts(e.msg, rows[i].says)) fail_msg("row %zu says: %s", i, e.msg);
    }
    struct err e = ERR_INIT;
    struct ids ids = {0};
    json_t *calls = jx_parse(CALL, sizeof CALL - 1, &e);
    const struct chat_message m = {"assistant", "", calls, true};
    const struct chat_talk asked = {&m, 1, NULL, false};
    assert_int_equal(chat_encode(t, CHAT_LLAMA3, &asked, &ids, NULL, &e), -1);
    assert_true(str_starts(e.msg, "messages[0]: the chat template llama3 cannot write tool calls"));
    const struct chat_talk first = {&m, 1, calls, false};
    assert_int_equal(chat_encode(t, CHAT_LLAMA31, &first, &ids, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "first message of the user"));
    json_decref(calls);
    buf_clear(&all);
    tok_free(t);
}

static void without_an_end_token_the_line_end_of_plain_is_trained(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    /* qwen2's tokenizer has <|endoftext|>; without added tokens it has none that ends. */
    json_t *root = jx_load_file("tests/unit/golden/tok_qwen2.json", 1 << 20, &e);
    assert_non_null(root);
    json_object_del(root, "added_tokens");
    char *text = jx_dump(root, &e);
    struct tok *t = tok_parse(text, strlen(text), &e);
    assert_non_null(t);
    check_render(t, "plain", talk + 3, 2,
                 (struct want){false, "User: Two?\nAssistant: 2\n", " 2\n"});
    mem_free(text);
    json_decref(root);
    tok_free(t);
}

static void an_answer_that_is_not_to_be_trained_is_not(void **state)
{
    (void)state;
    struct tok *t = open_all();
    struct chat_message m[5];
    memcpy(m, talk, sizeof m);
    m[2].train = false;
    m[3].train = true; /* means nothing for a user */
    check_render(t, "zephyr", m + 1, 4, (struct want){false,
                 "<|user|>\nOne?\n</s>\n<|assistant|>\n 1 </s>\n<|user|>\nTwo?</s>\n"
                 "<|assistant|>\n2</s>\n", "2</s>"});
    tok_free(t);
}

static void what_a_template_cannot_say_is_refused_and_changes_nothing(void **state)
{
    (void)state;
    static const struct chat_message tool[] = {{"tool", "x", NULL, false}};
    static const struct chat_message odd[] = {{"wizard", "x", NULL, false}};
    static const struct {
        const char *name, *says;
        const struct chat_message *m;
        int n;
        enum errc code;
    } rows[] = {
        {"chatml", "messages[0]: no role 'wizard'", odd, 1, E_FORMAT},
        {"chatml", "a conversation needs at least one message", talk, 0, E_FORMAT},
        {"zephyr", "messages[0]: the chat template zephyr has no turn for the role tool", tool, 1,
         E_UNSUPPORTED},
        {"llama2", "messages[0]: in the template llama2 roles must alternate", talk + 2, 1,
         E_FORMAT},
        {"none", "no chat template is chosen", talk, 5, E_ARG},
        {"mistral", "messages[0]: the chat template mistral has no system message", talk, 5,
         E_UNSUPPORTED},
        {"gemma", "messages[0]: the chat template gemma has no system message", talk, 5,
         E_UNSUPPORTED},
        {"mistral-v3", "messages[0]: the chat template mistral-v3 has a system message only where",
         talk, 5, E_UNSUPPORTED},
        {"gemma3", "messages[0]: in the template gemma3 roles must alternate", talk + 2, 1,
         E_FORMAT},
    };
    struct tok *t = open_all();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        struct ids ids = {0}, trained = {0};
        enum chat_template c;
        assert_true(chat_parse(rows[i].name, &c));
        const struct chat_talk asked = {.m = rows[i].m, .n = rows[i].n};
        assert_int_equal(chat_encode(t, c, &asked, &ids, &trained, &e), -1);
        if (!str_starts(e.msg, rows[i].says)) fail_msg("row %zu says: %s", i, e.msg);
        assert_int_equal(e.code, rows[i].code);
        assert_int_equal(ids.n + trained.n, 0);
        ids_clear(&ids);
        ids_clear(&trained);
    }
    tok_free(t);
    enum chat_template c;
    assert_false(chat_parse("alpaca", &c));
}

static void a_tokenizer_without_the_tokens_of_a_template_is_refused(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct ids ids = {0};
    struct tok *t = tok_open("tests/unit/golden/tok_llama3.json", &e);
    assert_non_null(t);
    const struct chat_talk asked = {.m = talk, .n = 5};
    assert_int_equal(chat_encode(t, CHAT_CHATML, &asked, &ids, NULL, &e), -1);
    assert_int_equal(e.code, E_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "needs the token <|im_start|>"));
    tok_free(t);
}

static void a_template_is_recognised_by_its_text(void **state)
{
    (void)state;
    static const struct {
        const char *file, *text, *name; /* name NULL: refused */
    } rows[] = {
        {"tokenizer_config.json", "{}", "none"},
        {"tokenizer_config.json",
         "{\"chat_template\":\"{{'<|im_start|>' + role + '\\n' + text + '<|im_end|>'}}\"}",
         "chatml"},
        {"tokenizer_config.json",
         "{\"chat_template\":[{\"name\":\"rag\",\"template\":\"?\"},{\"name\":\"default\","
         "\"template\":\"[INST] <<SYS>>\"}]}", "llama2"},
        {"tokenizer_config.json", "{\"chat_template\":\"{{ messages }}\"}", NULL},
        {"chat_template.jinja", "<|start_header_id|> <|eot_id|>", "llama3"},
        {"chat_template.jinja", "<|start_header_id|><|eot_id|>Cutting Knowledge Date", "llama3.1"},
        {"chat_template.jinja", "'[INST] ' + x + ' [/INST]' {{ message['content'] + eos_token }}",
         "mistral"},
        {"chat_template.jinja", "'[INST] ' + x + ' [/INST]' {{ ' ' + x + eos_token }}", NULL},
        {"chat_template.jinja", "\"[INST] \" + x + \"[/INST]\" "
         "{{- \" \" + message[\"content\"]|trim + eos_token }}", "mistral-v3"},
        {"chat_template.jinja", "\"[INST]\" + x + \"[/INST]\" "
         "{{- message[\"content\"] + eos_token }}", "mistral-nemo"},
        {"chat_template.jinja", "<start_of_turn> <end_of_turn> System role not supported", "gemma"},
        {"chat_template.jinja", "<start_of_turn> <end_of_turn> first_user_prefix", "gemma3"},
        {"chat_template.jinja", "<start_of_turn> <end_of_turn>", NULL},
        {"chat_template.jinja", "<|user|> <|system|> <|assistant|> eos_token", "zephyr"},
        {"chat_template.jinja", "<|user|> <|system|> <|assistant|> eos_token <|end|>", NULL},
        {"chat_template.jinja",
         "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n", "qwen2"},
        {"chat_template.jinja", "<|im_start|>system\nYou are a pirate.<|im_end|>\n", NULL},
        {"chat_template.jinja", "<|im_start|> <|im_end|> <think>", NULL},
    };
    char dir[] = "/tmp/graft-chat-XXXXXX", path[128];
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        enum chat_template c = CHAT_COUNT;
        snprintf(path, sizeof path, "%s/%s", dir, rows[i].file);
        assert_int_equal(fs_write_file(path, rows[i].text, strlen(rows[i].text), &e), 0);
        int rc = chat_detect(dir, &c, &e);
        if (rows[i].name) {
            assert_int_equal(rc, 0);
            assert_string_equal(chat_name(c), rows[i].name);
        } else {
            assert_int_equal(rc, -1);
            assert_int_equal(e.code, E_UNSUPPORTED);
            assert_non_null(strstr(e.msg, "choose one of: chatml, llama2, llama3, mistral, gemma"
                   ", zephyr"));
            assert_int_equal(c, CHAT_COUNT);
        }
    }
    struct err e = ERR_INIT;
    assert_int_equal(fs_rmtree(dir, &e), 0);
}

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_template_renders_its_text_and_trains_what_the_model_says),
        cmocka_unit_test(tools_and_calls_stand_where_a_template_has_them),
        cmocka_unit_test(a_template_that_cannot_say_tools_says_so),
        cmocka_unit_test(without_an_end_token_the_line_end_of_plain_is_trained),
        cmocka_unit_test(an_answer_that_is_not_to_be_trained_is_not),
        cmocka_unit_test(what_a_template_cannot_say_is_refused_and_changes_nothing),
        cmocka_unit_test(a_tokenizer_without_the_tokens_of_a_template_is_refused),
        cmocka_unit_test(a_template_is_recognised_by_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
