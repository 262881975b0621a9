#include "engine/base/jx.h"

#include "engine/base/fs.h"
#include "engine/base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* jansson recurses once per level, so the depth is checked on the text before it is parsed.
 * Strings are skipped; anything malformed is left for the parser to report. */
static int check_depth(const char *s, size_t n, struct err *e)
{
    int depth = 0, line = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (c == '\n') line++;
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JX_DEPTH)
                return err_set(e, E_LIMIT, "line %d: nested deeper than %d levels", line,
                               JX_DEPTH);
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return 0;
}

json_t *jx_parse(const char *text, size_t n, struct err *e)
{
    /* jansson passes over a NUL behind a number. */
    const char *nul = memchr(text, 0, n);
    if (nul) {
        err_set(e, E_FORMAT, "byte %zu is NUL", (size_t)(nul - text));
        return NULL;
    }
    if (check_depth(text, n, e)) return NULL;
    int64_t failures = mem_failures();
    json_error_t je;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    /* mem.h: what was refused meanwhile was counted, not carried out. */
    bool starved = mem_failures() != failures ||
                   (!v && json_error_code(&je) == json_error_out_of_memory);
    if (v && !starved) return v;
    json_decref(v);
    if (starved)
        err_set(e, E_NOMEM, "out of memory while reading JSON");
    else
        err_set(e, E_FORMAT, "line %d, column %d: %s", je.line, je.column, je.text);
    return NULL;
}

json_t *jx_load_file(const char *path, size_t max_bytes, struct err *e)
{
    struct buf b;
    json_t *v = NULL;
    buf_init(&b, max_bytes);
    if (!fs_read_file(path, &b, e)) {
        v = jx_parse(buf_str(&b), b.len, e);
        if (!v) err_wrap(e, "%s", path);
    }
    buf_clear(&b);
    return v;
}

/* Rewrites the number at s (n bytes of %.17g) as the shortest text that reads back the same:
 * 0.0002, not 0.00020000000000000001. Returns its new length, never more than n. */
static size_t shorten(char *s, size_t n)
{
    char text[40], shorter[40];
    if (n >= sizeof text) return n;
    memcpy(text, s, n);
    text[n] = 0;
    if (!strpbrk(text, ".eE")) return n;
    double x = strtod(text, NULL);
    for (int digits = 15; digits < 17; digits++) {
        int m = snprintf(shorter, sizeof shorter, "%.*g", digits, x);
        if (strtod(shorter, NULL) != x) continue;
        if (!strpbrk(shorter, ".eE")) m += snprintf(shorter + m, sizeof shorter - m, ".0");
        if ((size_t)m >= n) return n;
        memcpy(s, shorter, (size_t)m);
        return (size_t)m;
    }
    return n;
}

static void shorten_reals(char *s)
{
    char *to = s;
    bool in_string = false;
    while (*s) {
        if (!in_string && (*s == '-' || (*s >= '0' && *s <= '9'))) {
            size_t n = strspn(s, "+-.0123456789eE"), m = shorten(s, n);
            memmove(to, s, m);
            to += m;
            s += n;
            continue;
        }
        if (*s == '"') in_string = !in_string;
        if (in_string && *s == '\\') *to++ = *s++;
        *to++ = *s++;
    }
    *to = 0;
}

/* json_dumps hands out memory of the hooked allocator, which is mem_free's. */
static char *dump(const json_t *v, size_t flags, struct err *e)
{
    int64_t failures = mem_failures();
    char *s = json_dumps(v, flags | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (s && mem_failures() == failures) {
        shorten_reals(s);
        return s;
    }
    mem_free(s);
    err_set(e, E_NOMEM, "out of memory while writing JSON");
    return NULL;
}

char *jx_dump(const json_t *v, struct err *e)
{
    return dump(v, JSON_COMPACT, e);
}

char *jx_dump_pretty(const json_t *v, struct err *e)
{
    return dump(v, JSON_INDENT(2), e);
}

json_t *jx_pack(struct err *e, const char *fmt, ...)
{
    int64_t failures = mem_failures();
    json_error_t je;
    va_list ap;
    va_start(ap, fmt);
    json_t *v = json_vpack_ex(&je, 0, fmt, ap);
    va_end(ap);
    if (!v) {
        bool oom = mem_failures() != failures;
        err_set(e, oom ? E_NOMEM : E_BUG, "building JSON: %s", oom ? "out of memory" : je.text);
    }
    return v;
}

int jx_set(json_t *obj, const char *key, json_t *value, struct err *e)
{
    if (!value) return -1;
    if (json_object_set_new(obj, key, value)) return err_set(e, E_NOMEM, "out of memory");
    return 0;
}

static int wrong(struct err *e, const char *key, const json_t *v, const char *want)
{
    if (!v)
        err_set(e, E_ARG, "'%s' is required: %s", key, want);
    else
        err_set(e, E_ARG, "'%s' must be %s", key, want);
    return err_param(e, "%s", key);
}

static const json_t *present(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

int jx_str(const json_t *o, const char *key, const char **out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v)) return wrong(e, key, v, "a string");
    *out = json_string_value(v);
    return 0;
}

int jx_int64(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out,
             struct err *e)
{
    const json_t *v = json_object_get(o, key);
    /* 2.0 is an integer to a JavaScript client; 2.5 is not. */
    bool whole = json_is_real(v) && floor(json_real_value(v)) == json_real_value(v) &&
                 fabs(json_real_value(v)) < 9e15;
    if (!json_is_integer(v) && !whole) return wrong(e, key, v, "an integer");
    int64_t n = whole ? (int64_t)json_real_value(v) : json_integer_value(v);
    if (n < lo || n > hi) {
        err_set(e, E_RANGE, "'%s' is %lld; it must be between %lld and %lld", key, (long long)n,
                (long long)lo, (long long)hi);
        return err_param(e, "%s", key);
    }
    *out = n;
    return 0;
}

int jx_real(const json_t *o, const char *key, double lo, double hi, double *out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) return wrong(e, key, v, "a number");
    double x = json_number_value(v);
    if (!(x >= lo && x <= hi)) {
        err_set(e, E_RANGE, "'%s' is %g; it must be between %g and %g", key, x, lo, hi);
        return err_param(e, "%s", key);
    }
    *out = x;
    return 0;
}

int jx_bool(const json_t *o, const char *key, bool *out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_boolean(v)) return wrong(e, key, v, "true or false");
    *out = json_is_true(v);
    return 0;
}

int jx_object(const json_t *o, const char *key, json_t **out, struct err *e)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_object(v)) return wrong(e, key, v, "an object");
    *out = v;
    return 0;
}

int jx_array(const json_t *o, const char *key, json_t **out, struct err *e)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_array(v)) return wrong(e, key, v, "a list");
    *out = v;
    return 0;
}

int jx_opt_str(const json_t *o, const char *key, const char **out, struct err *e)
{
    return present(o, key) ? jx_str(o, key, out, e) : 0;
}

int jx_opt_int64(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out,
                 struct err *e)
{
    return present(o, key) ? jx_int64(o, key, lo, hi, out, e) : 0;
}

int jx_opt_real(const json_t *o, const char *key, double lo, double hi, double *out,
                struct err *e)
{
    return present(o, key) ? jx_real(o, key, lo, hi, out, e) : 0;
}

int jx_opt_bool(const json_t *o, const char *key, bool *out, struct err *e)
{
    return present(o, key) ? jx_bool(o, key, out, e) : 0;
}
