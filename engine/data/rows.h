/* rows.h: the training rows of a JSONL or CSV file, each checked against its shape.
 *
 * A file whose first character is { or [ is JSONL; any other is CSV with a header row. A CSV row
 * is read as the object of its cells: strings, except that `messages`, `conversations` and `tools`
 * hold JSON and that a `label` of digits is an integer; empty cells are absent fields.
 *
 * One reader for all uses, so that what dataset_check accepts, dataset_open reads: every problem
 * goes to a callback, which either collects it and returns 0 (the row is left out and reading goes
 * on) or fills the err and returns -1 (reading stops).
 *
 * Fields of a row that no shape knows are left alone (datasets carry ids and sources); unknown
 * fields of a message would change what is trained and are problems.
 * Columns are bytes from the start of the line, counted from 1: where the value at fault begins, or
 * where the parser stopped.
 */
#ifndef GRAFT_ROWS_H
#define GRAFT_ROWS_H

#include "engine/data/csv.h"
#include "engine/data/jsonl.h"

#include <jansson.h>

/* What a row has:
 *   text        text
 *   completion  prompt, completion
 *   messages    messages: role, content, weight?, tool_calls?; tools?
 *   alpaca      instruction, input?, output, system?
 *   sharegpt    conversations: from, value, weight?; system?, tools?
 *   label       text, text_pair?, label */
enum { ROWS_LABELS_MAX = 10000, ROWS_LABEL_BYTES = 256 };
enum row_shape {
    ROW_NONE, ROW_TEXT, ROW_COMPLETION, ROW_MESSAGES, ROW_ALPACA, ROW_SHAREGPT, ROW_LABEL,
    ROW_SHAPES
};

struct rows_problem {
    int64_t line, column;
    char field[96];   /* "messages[2].role"; "" for the row itself. UTF-8, as is reason */
    char reason[256];
};
typedef int (*rows_problem_fn)(void *ctx, const struct rows_problem *p, struct err *e);

struct rows {
    bool csv;
    struct jsonl lines;    /* either this */
    struct csv records;    /* or this */
    json_t *header;        /* names of the columns, NULL before the first record */
    rows_problem_fn problem;
    void *ctx;
    enum row_shape shape;  /* of the file: that of its first row that has one */
    int64_t shape_line;
    json_t *labels;        /* the labels so far by their text, NULL if there is none */
    json_type label;       /* what all of them are: JSON_STRING or JSON_INTEGER */
    int64_t label_line;    /* of the first */
    int64_t count;         /* rows so far, good or bad */
    int64_t blank, blanks; /* first line and number of blank lines before the present one */
};

/* A good row as its readers want it: a conversation of any shape is `messages` of role, content,
 * weight? and tool_calls? with their arguments as objects, and `tools` is a list or absent. */
struct row {
    enum row_shape shape;
    json_t *json;         /* owned by the caller once returned */
    int64_t line;
};

const char *rows_shape_name(enum row_shape s); /* "text", ... ; NULL for ROW_NONE */
bool rows_is_chat(enum row_shape s);           /* conversations, which need a chat template */
int rows_open(struct rows *r, const char *path, rows_problem_fn problem, void *ctx, struct err *e);
/* The next good row: 1, 0 at the end, -1. */
int rows_next(struct rows *r, struct row *out, struct err *e);
/* The labels of the rows so far: integers in order, strings by their bytes. */
json_t *rows_labels(const struct rows *r, struct err *e);
void rows_close(struct rows *r);

#endif
