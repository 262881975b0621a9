/* JSON as Python writes it, which is how tools stand in templates: ", " and ": " between, keys in
 * their order, only what must be escaped is. */
#include "engine/tok/chat_render.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_string(struct buf *b, const char *s, size_t n)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    buf_putc(b, '"');
    for (size_t i = 0; i < n; i++) {
        const char *at = s[i] ? strchr(plain, s[i]) : NULL;
        if (at) {
            buf_putc(b, '\\');
            buf_putc(b, letter[at - plain]);
        } else if ((unsigned char)s[i] < 0x20) {
            buf_printf(b, "\\u%04x", (unsigned char)s[i]);
        } else {
            buf_putc(b, s[i]);
        }
    }
    buf_putc(b, '"');
}

/* The fewest digits that read back the same; an exponent from 1e16 on and below 1e-4. */
static void put_real(struct buf *b, double x)
{
    char text[40];
    int n = 0;
    do snprintf(text, sizeof text, "%.*e", n++, x);
    while (n < 17 && strtod(text, NULL) != x);
    char *mark = strchr(text, 'e');
    int exponent = (int)strtol(mark + 1, NULL, 10);
    if (exponent >= -4 && exponent < 16) {
        int digits = n - 1 - exponent; /* behind the point */
        buf_printf(b, "%.*f", digits > 1 ? digits : 1, x);
        return;
    }
    *mark = 0;
    buf_printf(b, "%se%c%02d", text, exponent < 0 ? '-' : '+', abs(exponent));
}

static void put_gap(struct buf *b, int indent, int level)
{
    if (indent) buf_printf(b, "\n%*s", indent * level, "");
}

static void put(struct buf *b, const json_t *v, int indent, int level)
{
    bool object = json_is_object(v);
    const char *key;
    json_t *one;
    size_t i, n = 0;
    switch (json_typeof(v)) {
    case JSON_STRING: put_string(b, json_string_value(v), json_string_length(v)); return;
    case JSON_INTEGER: buf_printf(b, "%lld", (long long)json_integer_value(v)); return;
    case JSON_REAL: put_real(b, json_real_value(v)); return;
    case JSON_TRUE: buf_puts(b, "true"); return;
    case JSON_FALSE: buf_puts(b, "false"); return;
    case JSON_NULL: buf_puts(b, "null"); return;
    default: break;
    }
    buf_putc(b, object ? '{' : '[');
    json_object_foreach((json_t *)(uintptr_t)v, key, one) {
        if (n++) buf_puts(b, indent ? "," : ", ");
        put_gap(b, indent, level + 1);
        put_string(b, key, strlen(key));
        buf_puts(b, ": ");
        put(b, one, indent, level + 1);
    }
    json_array_foreach(v, i, one) {
        if (n++) buf_puts(b, indent ? "," : ", ");
        put_gap(b, indent, level + 1);
        put(b, one, indent, level + 1);
    }
    if (n) put_gap(b, indent, level);
    buf_putc(b, object ? '}' : ']');
}

void chat_put_json(struct buf *b, const json_t *v, int indent)
{
    put(b, v, indent, 0);
}
