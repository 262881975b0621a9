/* csv.h: the records of a CSV file (RFC 4180), each field with the place where it stands.
 *
 * Fields are separated by commas; a quoted field may hold commas, line ends (kept as they are) and
 * quotes, doubled. A quote anywhere else breaks the record, and reading goes on behind its line. A
 * byte order mark is skipped, lines end in LF or CRLF. UTF-8 without NUL; a record of more than
 * JSONL_LINE_MAX bytes or CSV_FIELDS_MAX fields is a broken one. Memory is bounded by the longest
 * record.
 */
#ifndef GRAFT_CSV_H
#define GRAFT_CSV_H

#include "engine/base/buf.h"
#include "engine/data/jsonl.h"

enum { CSV_FIELDS_MAX = 1024 };

struct csv_field {
    size_t at, n;          /* of csv_text */
    int64_t line, column;  /* where it begins, quote included; bytes, from 1 */
};

struct csv {
    struct jsonl lines;
    struct buf text;       /* the fields without their quotes, each followed by NUL */
    struct csv_field *field;
    int n, cap;
    int64_t line;          /* where the record begins */
    bool blank;            /* an empty line or one of blanks */
    char reason[96];       /* why the record is broken, or "" */
    int64_t bad_line, bad_column;
};

int csv_open(struct csv *c, const char *path, struct err *e);
/* 1: the next record, broken if it has a reason; 0 at the end; -1. */
int csv_next(struct csv *c, struct err *e);
const char *csv_text(const struct csv *c, int i); /* NUL-terminated; valid until the next call */
void csv_close(struct csv *c);

#endif
