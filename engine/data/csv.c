#include "engine/data/csv.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Where in a field the next byte stands. */
enum state { START, PLAIN, QUOTED, CLOSED };

int csv_open(struct csv *c, const char *path, struct err *e)
{
    *c = (struct csv){.lines = {.fd = -1}};
    buf_init(&c->text, (size_t)JSONL_LINE_MAX + CSV_FIELDS_MAX + 2);
    return jsonl_open(&c->lines, path, e);
}

void csv_close(struct csv *c)
{
    jsonl_close(&c->lines);
    buf_clear(&c->text);
    mem_free(c->field);
    c->field = NULL;
}

const char *csv_text(const struct csv *c, int i)
{
    return c->text.data + c->field[i].at;
}

/* The first fault of a record is the one that is told. */
static void broken(struct csv *c, int64_t line, size_t column, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void broken(struct csv *c, int64_t line, size_t column, const char *fmt, ...)
{
    va_list ap;
    if (*c->reason) return;
    va_start(ap, fmt);
    vsnprintf(c->reason, sizeof c->reason, fmt, ap);
    va_end(ap);
    c->bad_line = line;
    c->bad_column = (int64_t)column + 1;
}

static int begin_field(struct csv *c, int64_t line, size_t column, struct err *e)
{
    if (c->n == c->cap) {
        int cap = c->cap ? 2 * c->cap : 16;
        void *p = mem_realloc(c->field, (size_t)cap * sizeof *c->field, e);
        if (!p) return -1;
        c->field = p;
        c->cap = cap;
    }
    c->field[c->n++] = (struct csv_field){c->text.len, 0, line, (int64_t)column + 1};
    return 0;
}

static void end_field(struct csv *c)
{
    struct csv_field *f = &c->field[c->n - 1];
    f->n = c->text.len - f->at;
    buf_putc(&c->text, 0);
}

/* One line of a record; *s says where the last field stood before it and stands behind it. */
static int take_line(struct csv *c, const struct jsonl_line *l, enum state *s, struct err *e)
{
    size_t bad = str_utf8_bad(l->text, l->n);
    if (l->too_long)
        broken(c, l->number, 0, "the line is longer than 4 MiB");
    else if (bad < l->n)
        broken(c, l->number, bad, "byte 0x%02x is not UTF-8", (unsigned char)l->text[bad]);
    else if (memchr(l->text, 0, l->n))
        broken(c, l->number, strlen(l->text), "NUL is not allowed");
    for (size_t i = 0; i <= l->n && !*c->reason; i++) {
        char ch = i < l->n ? l->text[i] : 0;
        if (*s == START && begin_field(c, l->number, i, e)) return -1;
        if (*s == QUOTED) {
            if (ch == '"') *s = CLOSED;
            else if (ch) buf_putc(&c->text, ch);
        } else if (!ch || ch == ',') {
            end_field(c);
            *s = START;
            if (ch && c->n == CSV_FIELDS_MAX)
                broken(c, l->number, i, "more than %d fields", CSV_FIELDS_MAX);
        } else if (ch == '"') {
            if (*s == PLAIN) broken(c, l->number, i, "a quote inside a field without quotes");
            if (*s == CLOSED) buf_putc(&c->text, ch);
            *s = QUOTED;
        } else {
            if (*s == CLOSED) broken(c, l->number, i, "text behind the closing quote");
            buf_putc(&c->text, ch);
            *s = PLAIN;
        }
    }
    return 0;
}

/* A quoted field goes on in the next line. */
static void take_end(struct csv *c, const struct jsonl_line *l)
{
    const struct csv_field *f = &c->field[c->n - 1];
    buf_puts(&c->text, l->crlf ? "\r\n" : "\n");
    if (c->text.len > JSONL_LINE_MAX)
        broken(c, f->line, (size_t)f->column - 1, "the record is longer than 4 MiB; is this quote "
               "closed?");
}

int csv_next(struct csv *c, struct err *e)
{
    struct jsonl_line l;
    enum state s = START;
    int rc = jsonl_next(&c->lines, &l, e);
    c->n = 0;
    c->text.len = 0;
    *c->reason = 0;
    if (rc <= 0) return rc;
    c->line = l.number;
    c->blank = !l.too_long && strspn(l.text, " \t\r") == l.n;
    for (;;) {
        if (take_line(c, &l, &s, e)) return -1;
        if (s != QUOTED || *c->reason) break;
        take_end(c, &l);
        rc = *c->reason ? 0 : jsonl_next(&c->lines, &l, e);
        if (rc < 0) return -1;
        if (rc) continue;
        const struct csv_field *f = &c->field[c->n - 1];
        broken(c, f->line, (size_t)f->column - 1, "this quote is never closed");
        break;
    }
    return buf_ok(&c->text, e) ? -1 : 1;
}
