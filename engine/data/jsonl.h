/* jsonl.h: a text file line by line, in memory bounded by the longest allowed line.
 *
 * Lines end in LF or CRLF; the last one may lack it. A UTF-8 byte order mark at the start of the
 * file is skipped and not counted in columns. A line longer than JSONL_LINE_MAX is passed over and
 * returned as `too_long` without its bytes, so that the lines after it can still be read.
 */
#ifndef GRAFT_JSONL_H
#define GRAFT_JSONL_H

#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSONL_LINE_MAX = 4 << 20 };

struct jsonl {
    int fd;
    char *buf;
    size_t cap, pos, len;  /* unread bytes are buf[pos, len); buf has room for one more */
    int64_t line;          /* number of the last line returned */
    bool end;              /* nothing left in the file */
};

struct jsonl_line {
    const char *text;      /* NUL-terminated, without its line end; valid until the next call */
    size_t n;
    int64_t number;        /* from 1 */
    bool too_long;
    bool crlf;             /* the line end was CRLF */
};

int jsonl_open(struct jsonl *r, const char *path, struct err *e);
int jsonl_next(struct jsonl *r, struct jsonl_line *l, struct err *e); /* 1, 0 at the end, -1 */
void jsonl_close(struct jsonl *r);

#endif
