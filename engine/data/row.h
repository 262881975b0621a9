/* row.h: one row while it is checked and brought into the form that rows.h promises.
 *
 * For rows.c and the files of the shapes alone. Functions return -1 if the callback of the rows
 * ends the reading; a problem that it takes is told by `bad`.
 */
#ifndef GRAFT_ROW_H
#define GRAFT_ROW_H

#include "engine/data/rows.h"

struct look {
    struct rows *r;
    const char *text;     /* JSONL: the line; NULL: the fields stand where the CSV record says */
    int64_t line;         /* where the row begins */
    json_t *row;
    bool wide;            /* integers beyond 64 bits were read as reals */
    bool bad;             /* a problem was reported */
    struct err *e;
};

/* Path of a problem: field `key` of the row, or its element `i` (from 0), or that one's `sub`. */
struct place {
    const char *key; /* NULL: the row */
    int64_t i;       /* -1: no element */
    const char *sub;
};

int row_report(struct look *k, int64_t line, int64_t column, const char *field, const char *fmt,
               ...) __attribute__((format(printf, 5, 6)));
int row_report_at(struct look *k, struct place at, const char *reason);
int row_check_string(struct look *k, const json_t *v, struct place at, bool may_be_empty);
/* Parses n bytes of JSON that stand at `line`, from `column` on. *out stays NULL if it is none,
 * which has then been reported. The caller owns *out. */
int row_parse(struct look *k, const char *text, size_t n, int64_t column, json_t **out);
/* Checks the row and converts k->row if it is good. */
int row_check(struct look *k, enum row_shape shape);

/* talk.c: the same of conversations. */
int talk_check_messages(struct look *k);
int talk_check_sharegpt(struct look *k);
int talk_check_alpaca(struct look *k);

/* place.c: the offset in a line of well-formed JSON of the value at a path. */
size_t place_find(const char *text, const struct place *at);

#endif
