#include "engine/tok/edit.h"

#include "engine/base/str.h"

#include <string.h>

int edit_replace(struct pieces *out, const struct pieces *in, int64_t i, const struct rx *rx,
                 const char *content, struct rx_scan *scan, struct err *e)
{
    const struct piece *v = &in->v[i];
    const char *s = in->text + v->off;
    const uint32_t *at = in->at + v->off;
    size_t start = out->len, done = 0, n = strlen(content);
    int found;
    rx_scan_begin(scan, s, v->len);
    while ((found = rx_scan_next(scan, rx, e)) > 0) {
        uint32_t origin = scan->end ? at[scan->end - 1] : v->origin;
        if (pieces_put(out, s + done, at + done, scan->start - done, e) ||
            pieces_fill(out, content, origin, n, e))
            return -1;
        done = scan->end;
    }
    if (found < 0 || pieces_put(out, s + done, at + done, v->len - done, e)) return -1;
    return pieces_end(out, start, v->origin, -1, e);
}

int edit_prepend(struct pieces *out, const struct pieces *in, int64_t i, const char *text,
                 struct err *e)
{
    const struct piece *v = &in->v[i];
    size_t start = out->len;
    if (pieces_fill(out, text, in->at[v->off], strlen(text), e) ||
        pieces_put(out, in->text + v->off, in->at + v->off, v->len, e))
        return -1;
    return pieces_end(out, start, v->origin, -1, e);
}

/* Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100 on, in order. */
static bool printable(uint32_t b)
{
    return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xff && b != 0xad);
}

uint32_t edit_byte_char(unsigned char byte)
{
    if (printable(byte)) return byte;
    if (byte <= ' ') return 0x100u + byte;
    return byte == 0xad ? 0x143 : 0x121u + (byte - 0x7fu);
}

int edit_char_byte(uint32_t cp)
{
    if (cp < 0x100) return printable(cp) ? (int)cp : -1;
    if (cp <= 0x120) return (int)cp - 0x100;
    if (cp <= 0x142) return (int)cp - 0x121 + 0x7f;
    return cp == 0x143 ? 0xad : -1;
}

int edit_bytes(struct pieces *out, const struct pieces *in, int64_t i, struct err *e)
{
    const struct piece *v = &in->v[i];
    size_t start = out->len;
    if (pieces_room(out, 2 * (size_t)v->len, e)) return -1;
    for (uint32_t k = 0; k < v->len; k++) {
        unsigned char byte = (unsigned char)in->text[v->off + k];
        int n = str_utf8_put(edit_byte_char(byte), out->text + out->len);
        for (int j = 0; j < n; j++) out->at[out->len + (size_t)j] = in->at[v->off + k];
        out->len += (size_t)n;
    }
    return pieces_end(out, start, v->origin, -1, e);
}
