/* The shapes that are conversations: checked in the words of the file, then made `messages`. */
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "engine/data/row.h"

#include <stdio.h>
#include <string.h>

static bool one_of(const char *s, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(s, list[i]) == 0) return true;
    return false;
}

static bool is_set(const json_t *v)
{
    return v && !json_is_null(v);
}

static int check_weight(struct look *k, const json_t *m, struct place at, bool assistant)
{
    const json_t *w = json_object_get(m, "weight");
    at.sub = "weight";
    if (!is_set(w)) return 0;
    double x = json_number_value(w);
    if (!json_is_number(w) || (x != 0 && x != 1)) return row_report_at(k, at, "must be 0 or 1");
    if (!assistant) return row_report_at(k, at, "is for assistant messages only");
    return 0;
}

/* Text that holds JSON: *v is what it says. The parser's own words say what is wrong with it. */
static int parse_inner(struct look *k, struct place at, json_t **v)
{
    struct err bad = ERR_INIT;
    char reason[256];
    json_t *inner = jx_parse(json_string_value(*v), json_string_length(*v), &bad);
    if (!inner && bad.code == E_NOMEM) {
        *k->e = bad;
        return -1;
    }
    *v = inner;
    if (inner) return 0;
    snprintf(reason, sizeof reason, "not JSON: %.200s", bad.msg);
    return row_report_at(k, at, reason);
}

/* {"type": "function", "function": {"name", "arguments"}}: arguments become an object. */
static int check_call(struct look *k, json_t *call, struct place at, size_t i)
{
    json_t *f = json_object_get(call, "function"), *args = json_object_get(f, "arguments");
    const char *type = json_string_value(json_object_get(call, "type"));
    const char *name = json_string_value(json_object_get(f, "name"));
    char reason[128];
    if ((type && !str_eq(type, "function")) || !name || !*name || !args) {
        snprintf(reason, sizeof reason, "call %zu must be {\"type\": \"function\", \"function\": "
                 "{\"name\", \"arguments\"}}", i + 1);
        return row_report_at(k, at, reason);
    }
    if (json_is_string(args)) {
        if (parse_inner(k, at, &args)) return -1;
        if (!args) return 0;
        if (jx_set(f, "arguments", args, k->e)) return -1;
    }
    if (json_is_object(args)) return 0;
    snprintf(reason, sizeof reason, "the arguments of call %zu must be an object", i + 1);
    return row_report_at(k, at, reason);
}

/* *calls tells how many there are. */
static int check_calls(struct look *k, const json_t *m, struct place at, bool assistant,
                       size_t *calls)
{
    json_t *list = json_object_get(m, "tool_calls");
    at.sub = "tool_calls";
    if (!is_set(list)) return 0;
    if (!json_is_array(list)) return row_report_at(k, at, "must be a list");
    *calls = json_array_size(list);
    if (*calls && !assistant) return row_report_at(k, at, "is for assistant messages only");
    if (*calls && k->wide)
        return row_report_at(k, at, "a row with tools must not hold integers beyond 64 bits");
    for (size_t i = 0; i < *calls; i++)
        if (check_call(k, json_array_get(list, i), at, i)) return -1;
    return 0;
}

static int check_message(struct look *k, json_t *m, int64_t i, int *assistants)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    static const char *const known[] = {"role", "content", "weight", "name", "tool_calls",
                                        "tool_call_id"};
    struct place at = {"messages", i, NULL};
    if (!json_is_object(m)) return row_report_at(k, at, "must be an object");
    const json_t *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
    const char *name = json_string_value(role), *key;
    json_t *v;
    size_t calls = 0;
    at.sub = "role";
    if (row_check_string(k, role, at, true)) return -1;
    if (name && !one_of(name, roles, 5) &&
        row_report_at(k, at, "must be system, developer, user, assistant or tool"))
        return -1;
    bool assistant = str_eq(name, "assistant");
    *assistants += assistant;
    if (check_calls(k, m, at, assistant, &calls)) return -1;
    at.sub = "content";
    bool needed = (assistant && !calls) || str_eq(name, "user");
    if (!calls || is_set(content)) {
        if (row_check_string(k, content, at, !needed)) return -1;
    } else if (jx_set(m, "content", json_string(""), k->e)) {
        return -1;
    }
    if (check_weight(k, m, at, assistant)) return -1;
    json_object_foreach(m, key, v) {
        if (one_of(key, known, 6) || json_is_null(v)) continue;
        at.sub = key;
        if (row_report_at(k, at, "is not known; a message has role, content, weight and "
                          "tool_calls"))
            return -1;
    }
    return 0;
}

/* A list of function definitions, or text that holds one; an empty one is none. */
static int check_tools(struct look *k)
{
    const struct place at = {"tools", -1, NULL};
    json_t *list = json_object_get(k->row, "tools"), *one;
    size_t i;
    if (json_is_string(list)) {
        if (!json_string_length(list)) list = NULL;
        if (list && parse_inner(k, at, &list)) return -1;
        if (list && jx_set(k->row, "tools", list, k->e)) return -1;
    }
    if (is_set(list) && !json_is_array(list)) return row_report_at(k, at, "must be a list");
    if (json_array_size(list) && k->wide)
        return row_report_at(k, at, "a row with tools must not hold integers beyond 64 bits");
    json_array_foreach(list, i, one) {
        const json_t *f = json_object_get(one, "function");
        const char *name = json_string_value(json_object_get(f, "name"));
        if (name && *name && str_eq(json_string_value(json_object_get(one, "type")), "function"))
            continue;
        if (row_report_at(k, (struct place){"tools", (int64_t)i, NULL},
                          "must be {\"type\": \"function\", \"function\": {\"name\", ...}}"))
            return -1;
    }
    if (!json_array_size(list)) json_object_del(k->row, "tools");
    return 0;
}

int talk_check_messages(struct look *k)
{
    const struct place all = {"messages", -1, NULL};
    const json_t *list = json_object_get(k->row, "messages");
    const json_t *old = json_object_get(k->row, "functions");
    int assistants = 0;
    if (!json_is_array(list)) return row_report_at(k, all, "must be a list");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (check_message(k, json_array_get(list, i), (int64_t)i, &assistants)) return -1;
    if (!assistants && row_report_at(k, all, "must contain an assistant message")) return -1;
    if (is_set(old) && row_report_at(k, (struct place){"functions", -1, NULL},
                                     "is the old name of 'tools'; use that"))
        return -1;
    return check_tools(k);
}

/* --- Alpaca and ShareGPT: their own words, then the same ------------------------------------- */

/* Appends {"role", "content", "weight"?}. */
static int say(struct look *k, json_t *list, const char *role, json_t *content, json_t *weight)
{
    json_t *m = jx_pack(k->e, "{s:s, s:O}", "role", role, "content", content);
    if (m && weight && jx_set(m, "weight", json_incref(weight), k->e)) {
        json_decref(m);
        return -1;
    }
    if (!m) return -1;
    return json_array_append_new(list, m) ? err_set(k->e, E_NOMEM, "out of memory") : 0;
}

static int check_system(struct look *k, json_t **system)
{
    *system = json_object_get(k->row, "system");
    if (!is_set(*system) || (json_is_string(*system) && !json_string_length(*system)))
        *system = NULL;
    return *system ? row_check_string(k, *system, (struct place){"system", -1, NULL}, true) : 0;
}

/* The instruction and, behind an empty line, the input ask; the output answers. */
static int alpaca_messages(struct look *k, json_t *list, json_t *system)
{
    json_t *ask = json_object_get(k->row, "instruction"), *more = json_object_get(k->row, "input");
    json_t *both = NULL;
    int rc = -1;
    if (json_string_length(more))
        both = json_sprintf("%s\n\n%s", json_string_value(ask), json_string_value(more));
    if (json_string_length(more) && !both) return err_set(k->e, E_NOMEM, "out of memory");
    if ((!system || !say(k, list, "system", system, NULL)) &&
        !say(k, list, "user", both ? both : ask, NULL))
        rc = say(k, list, "assistant", json_object_get(k->row, "output"), NULL);
    json_decref(both);
    return rc;
}

int talk_check_alpaca(struct look *k)
{
    const struct place ask = {"instruction", -1, NULL}, more = {"input", -1, NULL},
                       answer = {"output", -1, NULL};
    const json_t *input = json_object_get(k->row, "input");
    const json_t *history = json_object_get(k->row, "history");
    json_t *system, *list;
    if (row_check_string(k, json_object_get(k->row, "instruction"), ask, false) ||
        (is_set(input) && row_check_string(k, input, more, true)) ||
        row_check_string(k, json_object_get(k->row, "output"), answer, false) ||
        check_system(k, &system))
        return -1;
    if (is_set(history) && (!json_is_array(history) || json_array_size(history)) &&
        row_report_at(k, (struct place){"history", -1, NULL}, "earlier turns are for rows of "
                      "'messages'"))
        return -1;
    if (k->bad) return 0;
    if (!(list = json_array())) return err_set(k->e, E_NOMEM, "out of memory");
    if (!alpaca_messages(k, list, system)) return jx_set(k->row, "messages", list, k->e);
    json_decref(list);
    return -1;
}

/* The role that a speaker of a ShareGPT file has, or NULL. */
static const char *role_of(const char *from)
{
    static const char *const names[][2] = {
        {"human", "user"},    {"user", "user"},        {"gpt", "assistant"},
        {"system", "system"}, {"chatgpt", "assistant"}, {"assistant", "assistant"},
        {"tool", "tool"},     {"observation", "tool"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_eq(from, names[i][0])) return names[i][1];
    return NULL;
}

static int check_turn(struct look *k, const json_t *turn, int64_t i, json_t *list)
{
    static const char *const known[] = {"from", "value", "weight"};
    struct place at = {"conversations", i, NULL};
    if (!json_is_object(turn)) return row_report_at(k, at, "must be an object");
    json_t *from = json_object_get(turn, "from"), *value = json_object_get(turn, "value"), *v;
    const char *name = json_string_value(from), *role = name ? role_of(name) : NULL, *key;
    at.sub = "from";
    if (row_check_string(k, from, at, true)) return -1;
    if (name && !role &&
        row_report_at(k, at, "must be system, human, user, gpt, chatgpt, assistant, tool or "
                      "observation"))
        return -1;
    bool assistant = str_eq(role, "assistant");
    at.sub = "value";
    if (row_check_string(k, value, at, !assistant && !str_eq(role, "user")) ||
        check_weight(k, turn, at, assistant))
        return -1;
    json_object_foreach((json_t *)(uintptr_t)turn, key, v) {
        if (one_of(key, known, 3) || json_is_null(v)) continue;
        at.sub = key;
        if (row_report_at(k, at, "is not known; a turn has from, value and weight")) return -1;
    }
    return k->bad ? 0 : say(k, list, role, value, json_object_get(turn, "weight"));
}

static int sharegpt_turns(struct look *k, const json_t *turns, json_t *list)
{
    const struct place all = {"conversations", -1, NULL};
    json_t *system, *one;
    size_t i;
    if (check_system(k, &system)) return -1;
    if (system && !k->bad && say(k, list, "system", system, NULL)) return -1;
    json_array_foreach(turns, i, one) {
        if (check_turn(k, one, (int64_t)i, list)) return -1;
    }
    bool answered = false;
    json_array_foreach(list, i, one) {
        answered |= str_eq(json_string_value(json_object_get(one, "role")), "assistant");
    }
    if (!k->bad && !answered) return row_report_at(k, all, "must contain a turn of gpt");
    return check_tools(k);
}

int talk_check_sharegpt(struct look *k)
{
    const json_t *turns = json_object_get(k->row, "conversations");
    if (!json_is_array(turns))
        return row_report_at(k, (struct place){"conversations", -1, NULL}, "must be a list");
    json_t *list = json_array();
    if (!list) return err_set(k->e, E_NOMEM, "out of memory");
    int rc = sharegpt_turns(k, turns, list);
    if (!rc && !k->bad) return jx_set(k->row, "messages", list, k->e);
    json_decref(list);
    return rc;
}
