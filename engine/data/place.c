/* Where a value stands in its line. The text was parsed before, so it is well-formed. */
#include "engine/data/row.h"

#include <string.h>

static const char *skip_blanks(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

static const char *skip_string(const char *p)
{
    for (p++; *p != '"'; p++)
        if (*p == '\\') p++;
    return p + 1;
}

static const char *skip_value(const char *p)
{
    int depth = 0;
    do {
        if (*p == '"') {
            p = skip_string(p);
            continue;
        }
        if (*p == '{' || *p == '[') depth++;
        if (*p == '}' || *p == ']') depth--;
        p++;
        if (depth == 0 && strchr(",]} \t\r\n", *p)) break;
    } while (depth || !strchr(",]}", *p));
    return p;
}

/* The value of `key` in the object at p; p itself if it is none, or the key has escapes. */
static const char *find_key(const char *p, const char *key)
{
    size_t n = strlen(key);
    if (*p != '{') return p;
    const char *at = skip_blanks(p + 1);
    while (*at == '"') {
        const char *end = skip_string(at), *value = skip_blanks(skip_blanks(end) + 1);
        if ((size_t)(end - at) == n + 2 && memcmp(at + 1, key, n) == 0) return value;
        at = skip_blanks(skip_value(value));
        if (*at == ',') at = skip_blanks(at + 1);
    }
    return p;
}

/* Element i of the list at p; p itself if it is no list. */
static const char *find_index(const char *p, int64_t i)
{
    if (*p != '[') return p;
    const char *at = skip_blanks(p + 1);
    while (i--) at = skip_blanks(skip_blanks(skip_value(at)) + 1);
    return at;
}

size_t place_find(const char *text, const struct place *at)
{
    const char *p = skip_blanks(text);
    if (at->key) p = find_key(p, at->key);
    if (at->key && at->i >= 0) p = find_index(p, at->i);
    if (at->key && at->sub) p = find_key(p, at->sub);
    return (size_t)(p - text);
}
