/* rows.h: the training rows of a JSONL file, each checked against its shape.
 *
 * One reader for both uses, so that what dataset_check accepts, dataset_open reads: every problem
 * goes to a callback, which either collects it and returns 0 (the row is left out and reading goes
 * on) or fills the err and returns -1 (reading stops).
 *
 * Fields of a row that no shape knows are left alone (datasets carry ids and sources); unknown
 * fields of a message, and tool definitions, would change what is trained and are problems.
 * Columns are bytes from the start of the line, counted from 1: where the value at fault begins, or
 * where the JSON parser stopped.
 */
#ifndef GRAFT_ROWS_H
#define GRAFT_ROWS_H

#include "engine/data/jsonl.h"

#include <jansson.h>

enum row_shape { ROW_NONE, ROW_TEXT, ROW_COMPLETION, ROW_MESSAGES, ROW_SHAPES };

struct rows_problem {
    int64_t line, column;
    char field[96];   /* "messages[2].role"; "" for the row itself. UTF-8, as is reason */
    char reason[256];
};
typedef int (*rows_problem_fn)(void *ctx, const struct rows_problem *p, struct err *e);

struct rows {
    struct jsonl lines;
    rows_problem_fn problem;
    void *ctx;
    enum row_shape shape; /* of the file: that of its first row that has one */
    int64_t shape_line;
    int64_t count;        /* rows so far, good or bad */
    int64_t blank, blanks; /* first line and number of blank lines before the present one */
};

struct row {
    enum row_shape shape;
    json_t *json;         /* owned by the caller once returned */
    int64_t line;
};

const char *rows_shape_name(enum row_shape s); /* "text", ... ; NULL for ROW_NONE */
int rows_open(struct rows *r, const char *path, rows_problem_fn problem, void *ctx, struct err *e);
/* The next good row: 1, 0 at the end, -1. */
int rows_next(struct rows *r, struct row *out, struct err *e);
void rows_close(struct rows *r);

#endif
