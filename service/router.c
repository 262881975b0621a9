#include "service/router.h"

#include "engine/base/str.h"

#include <stdio.h>
#include <string.h>

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

int64_t router_decode(char *s, bool plus, struct err *e)
{
    char *to = s;
    for (const char *p = s; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '%') {
            int hi = hex(p[1]), lo = hi < 0 ? -1 : hex(p[2]);
            if (lo < 0) return err_set(e, E_ARG, "a percent-escape is malformed");
            c = (unsigned char)(hi * 16 + lo);
            p += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        if (c < ' ' || c == 127)
            return err_set(e, E_ARG, "percent-encoded text contains a control character");
        *to++ = (char)c;
    }
    *to = 0;
    size_t n = (size_t)(to - s);
    if (str_utf8_bad(s, n) != n) return err_set(e, E_ARG, "percent-encoded text is not UTF-8");
    return (int64_t)n;
}

/* The segments of a path: decoded text, and whether it held an encoded slash. */
struct segments {
    const char *s[ROUTER_SEGMENTS];
    bool slash[ROUTER_SEGMENTS];
    int n;
};

static bool has_dots(const char *s)
{
    for (size_t n; *s; s += n + (s[n] == '/')) {
        n = strcspn(s, "/");
        if ((n == 1 && s[0] == '.') || (n == 2 && s[0] == '.' && s[1] == '.')) return true;
    }
    return false;
}

static int split(const char *path, struct segments *g, struct arena *a, struct err *e)
{
    g->n = 0;
    while (*path == '/') {
        size_t n = strcspn(++path, "/");
        if (g->n == ROUTER_SEGMENTS) return err_set(e, E_NOTFOUND, "no such route");
        char *s = arena_strndup(a, path, n, e);
        if (!s || router_decode(s, false, e) < 0) return -1;
        if (has_dots(s)) return err_set(e, E_ARG, "the address contains '.' or '..'");
        g->slash[g->n] = strchr(s, '/') != NULL;
        g->s[g->n++] = s;
        path += n;
    }
    return 0;
}

/* The joined text of segments [from,to). */
static const char *join(const struct segments *g, int from, int to, struct arena *a,
                        struct err *e)
{
    const char *s = g->s[from];
    for (int i = from + 1; s && i < to; i++) s = arena_printf(a, e, "%s/%s", s, g->s[i]);
    return s;
}

/* An id is a or a/b with both sides there: checked on the text, wherever the slash came from. */
static bool is_id(const char *s)
{
    const char *slash = strchr(s, '/');
    return *s && *s != '/' && (!slash || (slash[1] && !strchr(slash + 1, '/')));
}

static bool fits(char kind, const char *v, bool slash)
{
    if (kind == '+') return is_id(v);
    if (kind == '*' || kind == '/') return *v && *v != '/' && !strstr(v, "//") && !str_ends(v, "/");
    return *v && !slash;
}

struct matcher {
    const struct segments *g;
    struct route_match *m;
    struct arena *a;
    struct err *e;
};

/* 1 if pattern matches the segments from i on, 0 if not, -1 on failure. */
static int match(struct matcher *x, const char *pattern, int i, int param)
{
    const struct segments *g = x->g;
    if (!*pattern) return i == g->n;
    size_t n = strcspn(++pattern, "/");
    if (pattern[0] == '{' && pattern[n - 1] != '}') n += 1 + strcspn(pattern + n + 1, "/");
    const char *rest = pattern + n;
    if (i >= g->n) return 0;
    if (pattern[0] != '{')
        return !g->slash[i] && strlen(g->s[i]) == n && !memcmp(g->s[i], pattern, n)
                   ? match(x, rest, i + 1, param)
                   : 0;
    char kind = pattern[n - 2];
    int most = kind == '+' ? 2 : kind == '*' ? g->n - i : 1;
    int least = kind == '*' ? most : 1;
    for (int k = least; k <= most && i + k <= g->n; k++) {
        const char *v = join(g, i, i + k, x->a, x->e);
        if (!v) return -1;
        if (!fits(kind, v, g->slash[i])) continue;
        int rc = match(x, rest, i + k, param + 1);
        if (rc > 0 && param < ROUTER_PARAMS) x->m->param[param] = v;
        if (rc) return rc;
    }
    return 0;
}

int router_find(const struct route *table, int n, const char *method, const char *path,
                struct arena *a, struct route_match *m, struct err *e)
{
    struct segments g;
    *m = (struct route_match){0};
    if (split(path, &g, a, e)) return -1;
    struct matcher x = {&g, m, a, e};
    const struct route *get = NULL;
    struct route_match found = {0};
    for (int i = 0; i < n; i++) {
        int rc = match(&x, table[i].pattern, 0, 0);
        if (rc < 0) return -1;
        if (rc == 0) continue;
        if (str_eq(table[i].method, method)) {
            m->route = &table[i];
            return 0;
        }
        if (!get && str_eq(table[i].method, "GET")) {
            get = &table[i];
            found = *m;
        }
        size_t used = strlen(m->allow);
        if (!strstr(m->allow, table[i].method))
            snprintf(m->allow + used, sizeof m->allow - used, "%s%s", used ? ", " : "",
                     table[i].method);
    }
    if (get && str_eq(method, "HEAD")) {
        *m = found;
        m->route = get;
        return 0;
    }
    if (!m->allow[0]) return err_set(e, E_NOTFOUND, "no such route: %s %.200s", method, path);
    return err_set(e, E_UNSUPPORTED, "%s is not allowed here; allowed: %s", method, m->allow);
}
