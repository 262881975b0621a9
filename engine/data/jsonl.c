#include "engine/data/jsonl.h"

#include "engine/base/fs.h"
#include "engine/base/mem.h"

#include <fcntl.h>
#include <string.h>

enum { CHUNK = 1 << 16 };

int jsonl_open(struct jsonl *r, const char *path, struct err *e)
{
    *r = (struct jsonl){.fd = fs_open(path, O_RDONLY, 0, e)};
    if (r->fd < 0) return -1;
    r->cap = 2 * CHUNK;
    r->buf = mem_alloc(r->cap, e);
    if (r->buf) return 0;
    jsonl_close(r);
    return -1;
}

void jsonl_close(struct jsonl *r)
{
    mem_free(r->buf);
    fs_close(r->fd);
    *r = (struct jsonl){.fd = -1};
}

/* Reads one chunk behind what is there. */
static int fill(struct jsonl *r, struct err *e)
{
    if (r->pos) {
        memmove(r->buf, r->buf + r->pos, r->len - r->pos);
        r->len -= r->pos;
        r->pos = 0;
    }
    if (r->cap - r->len < CHUNK + 1) {
        char *more = mem_realloc(r->buf, 2 * r->cap, e);
        if (!more) return -1;
        r->buf = more;
        r->cap *= 2;
    }
    int64_t n = fs_read(r->fd, r->buf + r->len, CHUNK, e);
    if (n < 0) return -1;
    r->len += (size_t)n;
    r->end = n == 0;
    return 0;
}

static void skip_mark(struct jsonl *r)
{
    if (r->line == 0 && r->len - r->pos >= 3 && memcmp(r->buf + r->pos, "\xef\xbb\xbf", 3) == 0)
        r->pos += 3;
}

int jsonl_next(struct jsonl *r, struct jsonl_line *l, struct err *e)
{
    char *newline = NULL;
    size_t seen = 0; /* bytes of the line already searched */
    bool too_long = false;
    while (!r->end && r->len - r->pos < 3)
        if (fill(r, e)) return -1;
    skip_mark(r);
    for (;;) {
        size_t left = r->len - r->pos;
        newline = memchr(r->buf + r->pos + seen, '\n', left - seen);
        if (newline || r->end) break;
        seen = left;
        if (left > JSONL_LINE_MAX + 1) { /* one more than a full line with its CR */
            too_long = true;
            r->pos = r->len;
            seen = 0;
        }
        if (fill(r, e)) return -1;
    }
    if (!newline && r->pos == r->len && !too_long) return 0;
    char *text = r->buf + r->pos, *stop = newline ? newline : r->buf + r->len;
    r->pos = (size_t)(stop - r->buf) + (newline ? 1 : 0);
    bool crlf = newline && stop > text && stop[-1] == '\r';
    if (stop > text && stop[-1] == '\r') stop--;
    *stop = 0;
    size_t n = (size_t)(stop - text);
    too_long = too_long || n > JSONL_LINE_MAX;
    *l = (struct jsonl_line){too_long ? "" : text, too_long ? 0 : n, ++r->line, too_long, crlf};
    return 1;
}
