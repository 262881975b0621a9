#include "service/multipart.h"

#include "engine/base/str.h"

#include <string.h>
#include <strings.h>

/* The input is read as if "\r\n" stood before it, so that the first delimiter needs no case of
 * its own. '\r' occurs in a delimiter only at its start: after a mismatch the bytes matched so far
 * are data and the search starts afresh at the byte that did not match. */
enum { PREAMBLE, TAIL, TAIL_LF, TAIL_DASH, HEADERS, DATA, EPILOGUE, FAILED };

static bool boundary_char(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c && strchr("'()+_,-./:=? ", c));
}

static const char *skip_blank(const char *s)
{
    while (*s == ' ' || *s == '\t') s++;
    return s;
}

/* One `; key=value` of a header at *s. Returns 1 with key and value, 0 at the end, -1 if it is
 * malformed or too long. A backslash escapes only a quote or itself: browsers send it raw. */
static int parameter(const char **s, char key[32], char *value, size_t cap)
{
    const char *p = skip_blank(*s);
    if (!*p) return 0;
    if (*p != ';') return -1;
    p = skip_blank(p + 1);
    size_t n = strcspn(p, "=; \t\"");
    if (n == 0 || n >= 32 || p[n] != '=') return -1;
    memcpy(key, p, n);
    key[n] = 0;
    p += n + 1;
    bool quoted = *p == '"';
    p += quoted;
    for (n = 0; *p && (quoted ? *p != '"' : !strchr("; \t\"", *p)); p++) {
        if (quoted && *p == '\\' && (p[1] == '"' || p[1] == '\\')) p++;
        if (n + 1 >= cap) return -1;
        value[n++] = *p;
    }
    value[n] = 0;
    if (quoted && *p++ != '"') return -1;
    *s = p;
    return 1;
}

/* Clients that follow the WHATWG form rules write a quote in a name as %22. */
static void undo_quotes(char *s)
{
    for (char *p; (p = strstr(s, "%22")); s = p + 1) {
        *p = '"';
        memmove(p + 1, p + 3, strlen(p + 3) + 1);
    }
}

int multipart_init(struct multipart *m, const char *content_type,
                   const struct multipart_sink *sink, struct err *e)
{
    static const char type[] = "multipart/form-data";
    char key[32], value[MULTIPART_BOUNDARY_MAX + 1], boundary[MULTIPART_BOUNDARY_MAX + 1] = "";
    int got;
    if (!content_type || strncasecmp(content_type, type, sizeof type - 1))
        return err_set(e, E_ARG, "the body must be multipart/form-data");
    const char *s = content_type + sizeof type - 1;
    while ((got = parameter(&s, key, value, sizeof value)) == 1)
        if (!strcasecmp(key, "boundary")) memcpy(boundary, value, sizeof boundary);
    size_t n = strlen(boundary);
    bool ok = got == 0 && n > 0 && boundary[n - 1] != ' ';
    for (size_t i = 0; i < n; i++) ok = ok && boundary_char(boundary[i]);
    if (!ok) return err_set(e, E_ARG, "Content-Type has no valid multipart boundary");
    *m = (struct multipart){.sink = *sink, .state = PREAMBLE, .matched = 2};
    memcpy(m->delim, "\r\n--", 4);
    memcpy(m->delim + 4, boundary, n + 1);
    m->ndelim = n + 4;
    return 0;
}

static int disposition(struct multipart_part *p, const char *s, struct err *e)
{
    static const char type[] = "form-data";
    char key[32], value[MULTIPART_NAME_MAX];
    bool named = false;
    int got;
    if (strncasecmp(s, type, sizeof type - 1)) goto bad;
    s += sizeof type - 1;
    while ((got = parameter(&s, key, value, sizeof value)) == 1) {
        undo_quotes(value);
        if (!strcasecmp(key, "name")) {
            if (named) goto bad;
            named = true;
            memcpy(p->name, value, sizeof value);
        } else if (!strcasecmp(key, "filename")) {
            if (p->is_file) goto bad;
            p->is_file = true;
            memcpy(p->filename, value, sizeof value);
        }
    }
    if (got == 0 && named && p->name[0]) return 0;
bad:
    return err_set(e, E_ARG, "a multipart part has no valid Content-Disposition");
}

static int header_line(struct multipart_part *p, char *line, bool *found, struct err *e)
{
    char *colon = strchr(line, ':');
    if (!colon || colon == line) return err_set(e, E_ARG, "a multipart part header is malformed");
    *colon = 0;
    const char *value = skip_blank(colon + 1);
    if (!strcasecmp(line, "Content-Disposition")) {
        if (*found) return err_set(e, E_ARG, "a multipart part has two Content-Dispositions");
        *found = true;
        return disposition(p, value, e);
    }
    if (!strcasecmp(line, "Content-Transfer-Encoding") && strcasecmp(value, "binary") &&
        strcasecmp(value, "8bit") && strcasecmp(value, "7bit"))
        return err_set(e, E_UNSUPPORTED, "Content-Transfer-Encoding '%.32s' is not supported",
                       value);
    return 0;
}

static int headers_done(struct multipart *m, struct err *e)
{
    struct multipart_part p = {0};
    bool found = false;
    size_t n = m->nhead - 2; /* without the empty line */
    if (str_utf8_bad(m->head, n) != n)
        return err_set(e, E_ARG, "a multipart part header is not UTF-8");
    for (size_t i = 0, j; i < n; i = j + 2) {
        for (j = i; m->head[j] != '\r'; j++)
            if ((unsigned char)m->head[j] < ' ' && m->head[j] != '\t')
                return err_set(e, E_ARG, "a multipart part header has a control character");
        if (m->head[j + 1] != '\n')
            return err_set(e, E_ARG, "a multipart part header has a control character");
        m->head[j] = 0;
        if (header_line(&p, m->head + i, &found, e)) return -1;
    }
    if (!found) return err_set(e, E_ARG, "a multipart part has no Content-Disposition");
    if (++m->parts > MULTIPART_PARTS_MAX)
        return err_set(e, E_LIMIT, "more than %d multipart parts", MULTIPART_PARTS_MAX);
    m->state = DATA;
    m->matched = 0;
    return m->sink.begin(m->sink.ctx, &p, e);
}

/* Searches the delimiter in s[0..n); returns how many bytes were used, or -1. */
static long scan(struct multipart *m, const char *s, size_t n, struct err *e)
{
    bool data = m->state == DATA;
    size_t i = 0;
    while (i < n) {
        if (m->matched == 0) {
            const char *cr = memchr(s + i, '\r', n - i);
            size_t k = cr ? (size_t)(cr - s) - i : n - i;
            if (data && k && m->sink.data(m->sink.ctx, s + i, k, e)) return -1;
            i += k;
            if (i == n) break;
        }
        if (s[i] == m->delim[m->matched]) {
            i++;
            if (++m->matched < m->ndelim) continue;
            m->state = TAIL;
            if (data && m->sink.end(m->sink.ctx, e)) return -1;
            break;
        }
        if (data && m->matched && m->sink.data(m->sink.ctx, m->delim, m->matched, e)) return -1;
        m->matched = 0;
    }
    return (long)i;
}

static int tail_byte(struct multipart *m, char c, struct err *e)
{
    if (m->state == TAIL && (c == ' ' || c == '\t')) return 0;
    if (m->state == TAIL && c == '\r') {
        m->state = TAIL_LF;
    } else if (m->state == TAIL && c == '-') {
        m->state = TAIL_DASH;
    } else if (m->state == TAIL_LF && c == '\n') {
        m->state = HEADERS;
        m->nhead = 0;
    } else if (m->state == TAIL_DASH && c == '-') {
        m->state = EPILOGUE;
    } else {
        return err_set(e, E_ARG, "a multipart delimiter is followed by other bytes");
    }
    return 0;
}

static int head_byte(struct multipart *m, char c, struct err *e)
{
    if (m->nhead + 1 >= sizeof m->head)
        return err_set(e, E_LIMIT, "multipart part headers are longer than %d bytes",
                       MULTIPART_HEADERS_MAX);
    m->head[m->nhead++] = c;
    m->head[m->nhead] = 0;
    bool empty = m->nhead == 2 && !memcmp(m->head, "\r\n", 2);
    bool done = m->nhead >= 4 && !memcmp(m->head + m->nhead - 4, "\r\n\r\n", 4);
    return empty || done ? headers_done(m, e) : 0;
}

static int put(struct multipart *m, const char *s, size_t n, struct err *e)
{
    for (size_t i = 0; i < n;) {
        if (m->state == PREAMBLE || m->state == DATA) {
            long k = scan(m, s + i, n - i, e);
            if (k < 0) return -1;
            i += (size_t)k;
        } else if (m->state == EPILOGUE) {
            return 0;
        } else if (m->state == HEADERS) {
            if (head_byte(m, s[i++], e)) return -1;
        } else if (m->state == FAILED) {
            return err_set(e, E_ARG, "the multipart body is malformed");
        } else if (tail_byte(m, s[i++], e)) {
            return -1;
        }
    }
    return 0;
}

int multipart_put(struct multipart *m, const char *s, size_t n, struct err *e)
{
    if (put(m, s, n, e) == 0) return 0;
    m->state = FAILED;
    return -1;
}

int multipart_finish(struct multipart *m, struct err *e)
{
    if (m->state == EPILOGUE) return 0;
    return err_set(e, E_ARG, "the multipart body ends before its closing delimiter");
}
