#include "engine/data/row.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Cuts what a fixed buffer has split: problems are UTF-8. */
static void trim(char *s)
{
    s[str_utf8_bad(s, strlen(s))] = 0;
}

int row_report(struct look *k, int64_t line, int64_t column, const char *field, const char *fmt,
               ...)
{
    struct rows_problem p = {.line = line, .column = column < 1 ? 1 : column};
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

int row_report_at(struct look *k, struct place at, const char *reason)
{
    char field[96] = "";
    if (at.key && at.i >= 0)
        snprintf(field, sizeof field, "%s[%lld]%s%.60s", at.key, (long long)at.i,
                 at.sub ? "." : "", at.sub ? at.sub : "");
    else if (at.key)
        snprintf(field, sizeof field, "%.90s", at.key);
    if (k->text)
        return row_report(k, k->line, (int64_t)place_find(k->text, &at) + 1, field, "%s", reason);
    const struct csv *c = &k->r->records;
    for (int i = 0; at.key && i < c->n; i++)
        if (str_eq(json_string_value(json_array_get(k->r->header, (size_t)i)), at.key))
            return row_report(k, c->field[i].line, c->field[i].column, field, "%s", reason);
    return row_report(k, k->line, 1, field, "%s", reason);
}

int row_check_string(struct look *k, const json_t *v, struct place at, bool may_be_empty)
{
    if (!v) {
        struct place parent = {at.i >= 0 ? at.key : NULL, at.i, NULL};
        char reason[96];
        snprintf(reason, sizeof reason, "'%s' is required: a string", at.sub ? at.sub : at.key);
        return row_report_at(k, parent, reason);
    }
    if (!json_is_string(v)) return row_report_at(k, at, "must be a string");
    if (!may_be_empty && json_string_length(v) == 0)
        return row_report_at(k, at, "must not be empty");
    return 0;
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

int row_parse(struct look *k, const char *text, size_t n, int64_t column, json_t **out)
{
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
    int64_t failures = mem_failures();
    json_error_t je;
    size_t deep = too_deep(text, n);
    if (deep < n)
        return row_report(k, k->line, column + (int64_t)deep, "", "nested deeper than %d levels",
                          JX_DEPTH);
    *out = json_loadb(text, n, flags, &je);
    /* Once more with integers as reals: an id of 20 digits is nobody's mistake. */
    if (!*out && json_error_code(&je) == json_error_numeric_overflow) {
        *out = json_loadb(text, n, flags | JSON_DECODE_INT_AS_REAL, &je);
        k->wide = true;
    }
    if (mem_failures() != failures) {
        json_decref(*out);
        *out = NULL;
        return err_set(k->e, E_NOMEM, "out of memory while reading line %lld", (long long)k->line);
    }
    if (*out) return 0;
    if (json_error_code(&je) == json_error_null_character)
        return row_report(k, k->line, column - 1 + je.position, "", "\\u0000 is not allowed");
    return row_report(k, k->line, column - 1 + je.position, "", "not JSON: %s", je.text);
}

/* Collects a label that may be new. */
static int keep_label(struct look *k, json_t *v)
{
    struct rows *r = k->r;
    const struct place at = {"label", -1, NULL};
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)json_integer_value(v));
    const char *key = json_is_string(v) ? json_string_value(v) : text;
    if (json_object_get(r->labels, key)) return 0;
    if (json_object_size(r->labels) == ROWS_LABELS_MAX)
        return row_report_at(k, at, "is a new label after 10000 others");
    if (!r->labels && !(r->labels = json_object())) return err_set(k->e, E_NOMEM, "out of memory");
    return jx_set(r->labels, key, json_incref(v), k->e);
}

/* Strings or integers, the same in all rows. */
static int check_label(struct look *k)
{
    const struct place at = {"label", -1, NULL};
    struct rows *r = k->r;
    json_t *v = json_object_get(k->row, "label");
    char reason[96];
    if (!v) return row_report_at(k, (struct place){NULL, -1, NULL}, "'label' is required: a string "
                                 "or an integer");
    if (!json_is_string(v) && !json_is_integer(v))
        return row_report_at(k, at, "must be a string or an integer");
    if (json_is_string(v) && !json_string_length(v))
        return row_report_at(k, at, "must not be empty");
    if (json_string_length(v) > ROWS_LABEL_BYTES)
        return row_report_at(k, at, "must have at most 256 bytes");
    if (!r->label_line) {
        r->label = json_typeof(v);
        r->label_line = k->line;
    }
    if (json_typeof(v) == r->label) return keep_label(k, v);
    snprintf(reason, sizeof reason, "must be %s as in line %lld",
             r->label == JSON_STRING ? "a string" : "an integer", (long long)r->label_line);
    return row_report_at(k, at, reason);
}

static int check_labelled(struct look *k)
{
    const struct place text = {"text", -1, NULL}, pair = {"text_pair", -1, NULL};
    const json_t *second = json_object_get(k->row, "text_pair");
    if (row_check_string(k, json_object_get(k->row, "text"), text, false)) return -1;
    if (second && !json_is_null(second) && row_check_string(k, second, pair, false)) return -1;
    return check_label(k);
}

int row_check(struct look *k, enum row_shape shape)
{
    const struct place text = {"text", -1, NULL}, prompt = {"prompt", -1, NULL},
                       completion = {"completion", -1, NULL};
    switch (shape) {
    case ROW_TEXT: return row_check_string(k, json_object_get(k->row, "text"), text, false);
    case ROW_COMPLETION:
        /* An empty prompt is a model that starts by itself; an empty completion teaches nothing. */
        return row_check_string(k, json_object_get(k->row, "prompt"), prompt, true) ||
                       row_check_string(k, json_object_get(k->row, "completion"), completion, false)
                   ? -1
                   : 0;
    case ROW_ALPACA: return talk_check_alpaca(k);
    case ROW_SHAREGPT: return talk_check_sharegpt(k);
    case ROW_LABEL: return check_labelled(k);
    default: return talk_check_messages(k);
    }
}
