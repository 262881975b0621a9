#include "engine/data/rows.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One row while it is checked. */
struct look {
    struct rows *r;
    const struct jsonl_line *line;
    const json_t *row;
    bool bad;       /* a problem was reported */
    struct err *e;
};

const char *rows_shape_name(enum row_shape s)
{
    static const char *const names[ROW_SHAPES] = {
        [ROW_TEXT] = "text", [ROW_COMPLETION] = "completion", [ROW_MESSAGES] = "messages"};
    return names[s];
}

int rows_open(struct rows *r, const char *path, rows_problem_fn problem, void *ctx, struct err *e)
{
    *r = (struct rows){.problem = problem, .ctx = ctx};
    return jsonl_open(&r->lines, path, e);
}

void rows_close(struct rows *r)
{
    jsonl_close(&r->lines);
}

/* Where a value stands in its line. The text was parsed before, so it is well-formed. */
static const char *skip_blanks(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

static const char *skip_string(const char *p)
{
    for (p++; *p != '"'; p++)
        if (*p == '\\') p++;
    return p + 1;
}

static const char *skip_value(const char *p)
{
    int depth = 0;
    do {
        if (*p == '"') {
            p = skip_string(p);
            continue;
        }
        if (*p == '{' || *p == '[') depth++;
        if (*p == '}' || *p == ']') depth--;
        p++;
        if (depth == 0 && strchr(",]} \t\r\n", *p)) break;
    } while (depth || !strchr(",]}", *p));
    return p;
}

/* The value of `key` in the object at p; p itself if the key is written with escapes. */
static const char *find_key(const char *p, const char *key)
{
    size_t n = strlen(key);
    const char *at = skip_blanks(p + 1);
    while (*at == '"') {
        const char *end = skip_string(at), *value = skip_blanks(skip_blanks(end) + 1);
        if ((size_t)(end - at) == n + 2 && memcmp(at + 1, key, n) == 0) return value;
        at = skip_blanks(skip_value(value));
        if (*at == ',') at = skip_blanks(at + 1);
    }
    return p;
}

static const char *find_index(const char *p, size_t i)
{
    const char *at = skip_blanks(p + 1);
    while (i--) at = skip_blanks(skip_blanks(skip_value(at)) + 1);
    return at;
}

/* Path of a problem: field `key` of the row, or message `i` (from 0), or its field `sub`. */
struct place {
    const char *key;
    int64_t i; /* -1: no message */
    const char *sub;
};

static int64_t column_of(const struct look *k, const struct place *at)
{
    const char *text = k->line->text, *p = skip_blanks(text);
    if (at->key) p = find_key(p, at->key);
    if (at->key && at->i >= 0) p = find_index(p, (size_t)at->i);
    if (at->key && at->sub) p = find_key(p, at->sub);
    return p - text + 1;
}

/* Cuts what a fixed buffer has split: problems are UTF-8. */
static void trim(char *s)
{
    s[str_utf8_bad(s, strlen(s))] = 0;
}

static int report(struct look *k, int64_t column, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static int report(struct look *k, int64_t column, const char *field, const char *fmt, ...)
{
    struct rows_problem p = {.line = k->line->number, .column = column < 1 ? 1 : column};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p.reason, sizeof p.reason, fmt, ap);
    va_end(ap);
    str_copy(p.field, sizeof p.field, field);
    trim(p.field);
    trim(p.reason);
    k->bad = true;
    return k->r->problem(k->r->ctx, &p, k->e);
}

static int report_at(struct look *k, struct place at, const char *reason)
{
    char field[96] = "";
    if (at.key && at.i >= 0)
        snprintf(field, sizeof field, "%s[%lld]%s%.60s", at.key, (long long)at.i,
                 at.sub ? "." : "", at.sub ? at.sub : "");
    else if (at.key)
        snprintf(field, sizeof field, "%.90s", at.key);
    return report(k, column_of(k, &at), field, "%s", reason);
}

static int check_string(struct look *k, const json_t *v, struct place at, bool may_be_empty)
{
    if (!v) {
        struct place parent = {at.i >= 0 ? at.key : NULL, at.i, NULL};
        char reason[96];
        snprintf(reason, sizeof reason, "'%s' is required: a string", at.sub ? at.sub : at.key);
        return report_at(k, parent, reason);
    }
    if (!json_is_string(v)) return report_at(k, at, "must be a string");
    if (!may_be_empty && json_string_length(v) == 0) return report_at(k, at, "must not be empty");
    return 0;
}

static bool one_of(const char *s, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(s, list[i]) == 0) return true;
    return false;
}

static int check_weight(struct look *k, const json_t *m, struct place at, bool assistant)
{
    const json_t *w = json_object_get(m, "weight");
    at.sub = "weight";
    if (!w || json_is_null(w)) return 0;
    double x = json_number_value(w);
    if (!json_is_number(w) || (x != 0 && x != 1)) return report_at(k, at, "must be 0 or 1");
    if (!assistant) return report_at(k, at, "is for assistant messages only");
    return 0;
}

static int check_message(struct look *k, const json_t *m, int64_t i, int *assistants)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    static const char *const known[] = {"role", "content", "weight", "name"};
    struct place at = {"messages", i, NULL};
    if (!json_is_object(m)) return report_at(k, at, "must be an object");
    const json_t *role = json_object_get(m, "role");
    const char *name = json_string_value(role), *key;
    json_t *v;
    at.sub = "role";
    if (check_string(k, role, at, true)) return -1;
    if (name && !one_of(name, roles, 5) &&
        report_at(k, at, "must be system, developer, user, assistant or tool"))
        return -1;
    bool assistant = str_eq(name, "assistant");
    *assistants += assistant;
    at.sub = "content";
    bool needed = assistant || str_eq(name, "user");
    if (check_string(k, json_object_get(m, "content"), at, !needed) ||
        check_weight(k, m, at, assistant))
        return -1;
    json_object_foreach((json_t *)(uintptr_t)m, key, v) {
        if (one_of(key, known, 4) || json_is_null(v)) continue;
        at.sub = key;
        if (report_at(k, at, "is not known; a message has role, content and weight")) return -1;
    }
    return 0;
}

static int check_messages(struct look *k)
{
    static const char *const tools[] = {"tools", "functions"};
    const struct place all = {"messages", -1, NULL};
    const json_t *list = json_object_get(k->row, "messages");
    int assistants = 0;
    if (!json_is_array(list)) return report_at(k, all, "must be a list");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (check_message(k, json_array_get(list, i), (int64_t)i, &assistants)) return -1;
    if (!assistants && report_at(k, all, "must contain an assistant message")) return -1;
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(k->row, tools[i]);
        if (v && !json_is_null(v) &&
            report_at(k, (struct place){tools[i], -1, NULL}, "tool definitions are not supported"))
            return -1;
    }
    return 0;
}

static int check_fields(struct look *k, enum row_shape shape)
{
    const struct place text = {"text", -1, NULL}, prompt = {"prompt", -1, NULL},
                       completion = {"completion", -1, NULL};
    switch (shape) {
    case ROW_TEXT: return check_string(k, json_object_get(k->row, "text"), text, false);
    case ROW_COMPLETION:
        /* An empty prompt is a model that starts by itself; an empty completion teaches nothing. */
        return check_string(k, json_object_get(k->row, "prompt"), prompt, true) ||
                       check_string(k, json_object_get(k->row, "completion"), completion, false)
                   ? -1
                   : 0;
    default: return check_messages(k);
    }
}

static int check_shape(struct look *k, enum row_shape *out)
{
    bool has[ROW_SHAPES] = {
        [ROW_TEXT] = json_object_get(k->row, "text"),
        [ROW_COMPLETION] = json_object_get(k->row, "prompt") ||
                           json_object_get(k->row, "completion"),
        [ROW_MESSAGES] = json_object_get(k->row, "messages"),
    };
    int n = has[ROW_TEXT] + has[ROW_COMPLETION] + has[ROW_MESSAGES];
    *out = ROW_NONE;
    if (n == 0)
        return report(k, 1, "", "a row needs 'text', or 'prompt' and 'completion', or 'messages'");
    if (n > 1)
        return report(k, 1, "", "a row must have only one of 'text', 'prompt' with 'completion', "
                      "and 'messages'");
    for (int s = 1; s < ROW_SHAPES; s++)
        if (has[s]) *out = (enum row_shape)s;
    if (!k->r->shape) {
        k->r->shape = *out;
        k->r->shape_line = k->line->number;
    }
    if (*out == k->r->shape) return 0;
    return report(k, 1, "", "a '%s' row in a file of '%s' rows (since line %lld)",
                  rows_shape_name(*out), rows_shape_name(k->r->shape),
                  (long long)k->r->shape_line);
}

/* Offset of the bracket that opens level JX_DEPTH + 1, or n: the parser recurses once a level. */
static size_t too_deep(const char *s, size_t n)
{
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        if (quoted && s[i] == '\\') i++;
        else if (s[i] == '"') quoted = !quoted;
        else if (!quoted && (s[i] == '{' || s[i] == '[') && ++depth > JX_DEPTH) return i;
        else if (!quoted && (s[i] == '}' || s[i] == ']')) depth--;
    }
    return n;
}

/* *out stays NULL if the line is not JSON, which has then been reported. The caller owns *out. */
static int parse(struct look *k, json_t **out)
{
    const struct jsonl_line *l = k->line;
    int64_t failures = mem_failures();
    json_error_t je;
    if (l->too_long) return report(k, 1, "", "the line is longer than 4 MiB");
    size_t bad = str_utf8_bad(l->text, l->n), deep;
    if (bad < l->n)
        return report(k, (int64_t)bad + 1, "", "byte 0x%02x is not UTF-8",
                      (unsigned char)l->text[bad]);
    if (memchr(l->text, 0, l->n))
        return report(k, (int64_t)strlen(l->text) + 1, "", "NUL is not allowed");
    if ((deep = too_deep(l->text, l->n)) < l->n)
        return report(k, (int64_t)deep + 1, "", "nested deeper than %d levels", JX_DEPTH);
    /* Integers as reals: an id of 20 digits is nobody's mistake. */
    *out = json_loadb(l->text, l->n,
                      JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &je);
    if (mem_failures() != failures)
        return err_set(k->e, E_NOMEM, "out of memory while reading line %lld",
                       (long long)l->number);
    if (*out) return 0;
    if (json_error_code(&je) == json_error_null_character)
        return report(k, je.position, "", "\\u0000 is not allowed");
    return report(k, je.position, "", "not JSON: %s", je.text);
}

/* 1: *out is a good row. 0: it was reported. */
static int check_row(struct rows *r, const struct jsonl_line *l, struct row *out, struct err *e)
{
    struct look k = {.r = r, .line = l, .e = e};
    json_t *json = NULL;
    enum row_shape shape = ROW_NONE;
    int rc = parse(&k, &json);
    if (!rc && json) {
        k.row = json;
        if (!json_is_object(json))
            rc = report(&k, 1, "", "a row must be a JSON object");
        else if (!(rc = check_shape(&k, &shape)) && shape)
            rc = check_fields(&k, shape);
    }
    if (!rc && !k.bad) {
        *out = (struct row){shape, json, l->number};
        return 1;
    }
    json_decref(json);
    return rc;
}

/* Blank lines may end a file; before another row they are a problem, one for each run. */
static int check_blanks(struct rows *r, struct err *e)
{
    struct jsonl_line first = {.number = r->blank, .text = ""};
    struct look k = {.r = r, .line = &first, .e = e};
    int64_t n = r->blanks;
    r->blank = r->blanks = 0;
    if (n == 0) return 0;
    if (n == 1) return report(&k, 1, "", "blank line inside the file");
    return report(&k, 1, "", "%lld blank lines inside the file", (long long)n);
}

static bool is_blank(const struct jsonl_line *l)
{
    return !l->too_long && strspn(l->text, " \t\r") == l->n;
}

int rows_next(struct rows *r, struct row *out, struct err *e)
{
    struct jsonl_line l;
    int rc;
    while ((rc = jsonl_next(&r->lines, &l, e)) > 0) {
        if (is_blank(&l)) {
            if (!r->blanks++) r->blank = l.number;
            continue;
        }
        if (check_blanks(r, e)) return -1;
        r->count++;
        if ((rc = check_row(r, &l, out, e))) return rc;
    }
    if (rc || r->count) return rc;
    struct jsonl_line none = {.number = 1, .text = ""};
    struct look k = {.r = r, .line = &none, .e = e};
    r->blanks = 0;
    return report(&k, 1, "", "the file has no rows");
}
