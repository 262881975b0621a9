#include "engine/data/rows.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/data/row.h"

#include <stdlib.h>
#include <string.h>

#define SHAPES_TEXT "'text', 'prompt' and 'completion', 'messages', 'instruction' and 'output', " \
                    "'conversations', or 'text' and 'label'"

const char *rows_shape_name(enum row_shape s)
{
    static const char *const names[ROW_SHAPES] = {
        [ROW_TEXT] = "text", [ROW_COMPLETION] = "completion", [ROW_MESSAGES] = "messages",
        [ROW_ALPACA] = "alpaca", [ROW_SHAREGPT] = "sharegpt", [ROW_LABEL] = "label"};
    return names[s];
}

bool rows_is_chat(enum row_shape s)
{
    return s == ROW_MESSAGES || s == ROW_ALPACA || s == ROW_SHAREGPT;
}

/* The first character that is no blank decides; a file of blanks alone has no rows either way. */
static int sniff(struct rows *r, const char *path, struct err *e)
{
    struct jsonl_line l;
    int rc = jsonl_open(&r->lines, path, e);
    if (rc) return -1;
    do {
        rc = jsonl_next(&r->lines, &l, e);
        const char *first = rc > 0 ? l.text + strspn(l.text, " \t\r") : "";
        bool some = rc > 0 && (l.too_long || first < l.text + l.n);
        if (some) r->csv = !l.too_long && *first != '{' && *first != '[';
        if (some) break;
    } while (rc > 0);
    jsonl_close(&r->lines);
    return rc < 0 ? -1 : 0;
}

int rows_open(struct rows *r, const char *path, rows_problem_fn problem, void *ctx, struct err *e)
{
    *r = (struct rows){.problem = problem, .ctx = ctx, .lines = {.fd = -1},
                       .records = {.lines = {.fd = -1}}};
    if (sniff(r, path, e)) return -1;
    return r->csv ? csv_open(&r->records, path, e) : jsonl_open(&r->lines, path, e);
}

void rows_close(struct rows *r)
{
    if (r->csv) csv_close(&r->records);
    else jsonl_close(&r->lines);
    json_decref(r->header);
    json_decref(r->labels);
    r->header = r->labels = NULL;
}

static int by_label(const void *a, const void *b)
{
    const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
    json_int_t i = json_integer_value(x), j = json_integer_value(y);
    if (json_is_string(x)) return strcmp(json_string_value(x), json_string_value(y));
    return (i > j) - (i < j);
}

json_t *rows_labels(const struct rows *r, struct err *e)
{
    int64_t n = (int64_t)json_object_size(r->labels), at = 0;
    json_t **all = mem_array(n ? n : 1, sizeof *all, e), *list = all ? json_array() : NULL, *v;
    const char *key;
    if (all && !list) err_set(e, E_NOMEM, "out of memory");
    if (!list) goto out;
    json_object_foreach(r->labels, key, v) all[at++] = v;
    qsort(all, (size_t)n, sizeof *all, by_label);
    for (int64_t i = 0; i < n; i++) {
        if (!json_array_append(list, all[i])) continue;
        err_set(e, E_NOMEM, "out of memory");
        json_decref(list);
        list = NULL;
        break;
    }
out:
    mem_free(all);
    return list;
}

static bool has(const struct look *k, const char *key)
{
    return json_object_get(k->row, key) != NULL;
}

static int check_shape(struct look *k, enum row_shape *out)
{
    struct rows *r = k->r;
    bool label = has(k, "text") && (has(k, "label") || has(k, "text_pair"));
    const bool found[ROW_SHAPES] = {
        [ROW_TEXT] = has(k, "text") && !label,
        [ROW_COMPLETION] = has(k, "prompt") || has(k, "completion"),
        [ROW_MESSAGES] = has(k, "messages"),
        [ROW_ALPACA] = has(k, "instruction"),
        [ROW_SHAREGPT] = has(k, "conversations"),
        [ROW_LABEL] = label,
    };
    int n = 0;
    *out = ROW_NONE;
    for (int s = 1; s < ROW_SHAPES; s++) {
        n += found[s];
        if (found[s]) *out = (enum row_shape)s;
    }
    if (n == 0) return row_report(k, k->line, 1, "", "a row needs one of: " SHAPES_TEXT);
    if (n > 1) {
        *out = ROW_NONE;
        return row_report(k, k->line, 1, "", "a row must have only one of: " SHAPES_TEXT);
    }
    if (!r->shape) {
        r->shape = *out;
        r->shape_line = k->line;
    }
    if (*out == r->shape) return 0;
    return row_report(k, k->line, 1, "", "a '%s' row in a file of '%s' rows (since line %lld)",
                      rows_shape_name(*out), rows_shape_name(r->shape), (long long)r->shape_line);
}

/* Takes k->row. 1: *out is a good row. 0: it was reported. */
static int check_row(struct look *k, struct row *out)
{
    enum row_shape shape = ROW_NONE;
    int rc = 0;
    if (k->row && !json_is_object(k->row))
        rc = row_report(k, k->line, 1, "", "a row must be a JSON object");
    else if (k->row && !(rc = check_shape(k, &shape)) && shape)
        rc = row_check(k, shape);
    if (!rc && !k->bad) {
        *out = (struct row){shape, k->row, k->line};
        return 1;
    }
    json_decref(k->row);
    return rc;
}

/* Blank lines may end a file; before another row they are a problem, one for each run. */
static int check_blanks(struct rows *r, struct err *e)
{
    struct look k = {.r = r, .line = r->blank, .text = "", .e = e};
    int64_t n = r->blanks;
    r->blank = r->blanks = 0;
    if (n == 0) return 0;
    if (n == 1) return row_report(&k, k.line, 1, "", "blank line inside the file");
    return row_report(&k, k.line, 1, "", "%lld blank lines inside the file", (long long)n);
}

static bool is_blank(struct rows *r, bool blank, int64_t line)
{
    if (blank && !r->blanks++) r->blank = line;
    return blank;
}

/* --- JSONL ---------------------------------------------------------------------------------- */

static int parse_line(struct look *k, const struct jsonl_line *l)
{
    if (l->too_long) return row_report(k, k->line, 1, "", "the line is longer than 4 MiB");
    size_t bad = str_utf8_bad(l->text, l->n);
    if (bad < l->n)
        return row_report(k, k->line, (int64_t)bad + 1, "", "byte 0x%02x is not UTF-8",
                          (unsigned char)l->text[bad]);
    if (memchr(l->text, 0, l->n))
        return row_report(k, k->line, (int64_t)strlen(l->text) + 1, "", "NUL is not allowed");
    return row_parse(k, l->text, l->n, 1, &k->row);
}

static int next_line(struct rows *r, struct row *out, struct err *e)
{
    struct jsonl_line l;
    int rc;
    while ((rc = jsonl_next(&r->lines, &l, e)) > 0) {
        if (is_blank(r, !l.too_long && strspn(l.text, " \t\r") == l.n, l.number)) continue;
        struct look k = {.r = r, .line = l.number, .text = l.text, .e = e};
        if (check_blanks(r, e)) return -1;
        r->count++;
        if (parse_line(&k, &l)) return -1;
        if ((rc = check_row(&k, out))) return rc;
    }
    return rc;
}

/* --- CSV ------------------------------------------------------------------------------------ */

static int check_header(struct look *k)
{
    static const char *const known[] = {"text", "prompt", "completion", "messages", "instruction",
                                        "conversations"};
    const struct csv *c = &k->r->records;
    bool some = false;
    if (!(k->r->header = json_array())) return err_set(k->e, E_NOMEM, "out of memory");
    for (int i = 0; i < c->n; i++) {
        const char *name = csv_text(c, i);
        for (size_t j = 0; j < sizeof known / sizeof *known; j++) some |= str_eq(name, known[j]);
        for (int j = 0; *name && j < i; j++)
            if (str_eq(name, csv_text(c, j)) &&
                row_report(k, c->field[i].line, c->field[i].column, name, "this column is there "
                           "twice"))
                return -1;
        if (json_array_append_new(k->r->header, json_string(name)))
            return err_set(k->e, E_NOMEM, "out of memory");
    }
    if (some) return 0;
    return row_report(k, k->line, 1, "", "neither a JSON object nor the header of a CSV file, "
                      "which needs columns for: " SHAPES_TEXT);
}

/* "7", but not "007" or "-0", which are other labels than 7 and 0. */
static bool is_number(const char *s, int64_t *v)
{
    const char *digits = s + (*s == '-');
    return (*digits != '0' || str_eq(s, "0")) && str_int64(s, v);
}

/* The value of a cell, by what its column is for. *v stays NULL for an absent one. */
static int cell(struct look *k, int i, const char *name, json_t **v)
{
    const struct csv *c = &k->r->records;
    const char *text = csv_text(c, i);
    int64_t line = k->line, number;
    int rc = 0;
    if (str_eq(name, "label") && is_number(text, &number)) {
        *v = json_integer(number);
    } else if (str_eq(name, "messages") || str_eq(name, "conversations")) {
        k->line = c->field[i].line;
        rc = row_parse(k, text, c->field[i].n, c->field[i].column, v);
        k->line = line;
        return rc;
    } else {
        *v = json_stringn(text, c->field[i].n);
    }
    return *v ? 0 : err_set(k->e, E_NOMEM, "out of memory");
}

static int parse_record(struct look *k)
{
    const struct csv *c = &k->r->records;
    int names = (int)json_array_size(k->r->header);
    if (*c->reason) return row_report(k, c->bad_line, c->bad_column, "", "%s", c->reason);
    if (c->n != names)
        return row_report(k, k->line, 1, "", "%d fields, but the header has %d", c->n, names);
    if (!(k->row = json_object())) return err_set(k->e, E_NOMEM, "out of memory");
    for (int i = 0; i < names; i++) {
        const char *name = json_string_value(json_array_get(k->r->header, (size_t)i));
        json_t *v = NULL;
        /* An empty cell is an absent field, except where emptiness means something. */
        bool text = str_eq(name, "text") || str_eq(name, "prompt") || str_eq(name, "completion") ||
                    str_eq(name, "instruction") || str_eq(name, "output") ||
                    str_eq(name, "label");
        if (!*name || (!c->field[i].n && !text)) continue;
        if (cell(k, i, name, &v) || (v && jx_set(k->row, name, v, k->e))) return -1;
    }
    return 0;
}

static int next_record(struct rows *r, struct row *out, struct err *e)
{
    struct csv *c = &r->records;
    int rc;
    while ((rc = csv_next(c, e)) > 0) {
        struct look k = {.r = r, .line = c->line, .e = e};
        if (is_blank(r, c->blank, c->line)) continue;
        if (check_blanks(r, e)) return -1;
        if (!r->header && *c->reason)
            return row_report(&k, c->bad_line, c->bad_column, "", "%s", c->reason);
        if (!r->header) {
            /* Columns of unknown meaning: one problem, not one for every row. */
            if (check_header(&k)) return -1;
            if (!k.bad) continue;
            json_decref(r->header);
            r->header = NULL;
            return 0;
        }
        r->count++;
        if (parse_record(&k)) {
            json_decref(k.row);
            return -1;
        }
        if (k.bad) json_decref(k.row);
        else if ((rc = check_row(&k, out))) return rc;
    }
    return rc;
}

int rows_next(struct rows *r, struct row *out, struct err *e)
{
    int rc = r->csv ? next_record(r, out, e) : next_line(r, out, e);
    if (rc || r->count || (r->csv && !r->header)) return rc;
    struct look k = {.r = r, .line = 1, .text = "", .e = e};
    r->blanks = 0;
    return row_report(&k, 1, 1, "", "the file has no rows");
}
