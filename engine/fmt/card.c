#include "engine/fmt/card.h"

#include "engine/base/buf.h"
#include "engine/base/fs.h"
#include "engine/base/str.h"

#include <ctype.h>
#include <string.h>

enum { CARD_BYTES = 1 << 20 };

static int check_text(const char *what, const char *s, struct err *e)
{
    if (s && str_utf8_bad(s, strlen(s)) != strlen(s))
        return err_set(e, E_ARG, "the %s of the model card is not UTF-8", what);
    return 0;
}

/* A YAML double-quoted string on one line. */
static void put_yaml(struct buf *b, const char *s)
{
    size_t n = strlen(s);
    buf_putc(b, '"');
    while (n) {
        uint32_t c;
        size_t len = (size_t)str_utf8_next(s, n, &c);
        bool hidden = c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029 ||
                      c == 0xfeff;
        if (hidden)
            buf_printf(b, "\\u%04x", c);
        else if (c == '"' || c == '\\')
            buf_printf(b, "\\%c", (int)c);
        else
            buf_put(b, s, len);
        s += len;
        n -= len;
    }
    buf_putc(b, '"');
}

static void put_field(struct buf *b, const char *key, const char *value)
{
    if (!value || !*value) return;
    buf_printf(b, "%s: ", key);
    put_yaml(b, value);
    buf_putc(b, '\n');
}

/* Inline Markdown that shows s as it is: no markup, no HTML, no automatic link, one line. At the
 * start of a line also nothing that makes a list or a heading. */
static void put_text(struct buf *b, const char *s)
{
    size_t digits = strspn(s, "0123456789");
    for (size_t i = 0; s[i]; i++) {
        unsigned char c = (unsigned char)s[i];
        bool item = i == digits && i > 0 && strchr(".)", c) && (!s[i + 1] || s[i + 1] == ' ');
        bool leads = item || (i == 0 && strchr("-+=", c));
        bool link = (c == ':' && s[i + 1] == '/') || c == '@' ||
                    (c == '.' && i > 0 && (s[i - 1] | 32) == 'w');
        if (c < 0x20 || c == 0x7f)
            buf_putc(b, ' ');
        else if (c == '<' || c == '>' || c == '&' || link)
            buf_printf(b, "&#%d;", c);
        else if (leads || strchr("\\`*_[]#|~$", c))
            buf_printf(b, "\\%c", c);
        else
            buf_putc(b, (char)c);
    }
}

/* A fenced block whose fence is longer than any run of backticks inside. */
static void put_code(struct buf *b, const char *language, const char *code)
{
    int fence = 3, run = 0;
    for (const char *p = code; *p; p++) {
        run = *p == '`' ? run + 1 : 0;
        if (run >= fence) fence = run + 1;
    }
    for (int i = 0; i < fence; i++) buf_putc(b, '`');
    buf_printf(b, "%s\n%s", language, code);
    if (!str_ends(code, "\n")) buf_putc(b, '\n');
    for (int i = 0; i < fence; i++) buf_putc(b, '`');
    buf_putc(b, '\n');
}

static void put_front(struct buf *b, const struct card *c)
{
    buf_puts(b, "---\n");
    put_field(b, "base_model", c->base_model);
    put_field(b, "library_name", c->library_name);
    put_field(b, "pipeline_tag", c->pipeline_tag);
    put_field(b, "license", c->license);
    if (c->ntags) buf_puts(b, "tags:\n");
    for (int i = 0; i < c->ntags; i++) {
        buf_puts(b, "- ");
        put_yaml(b, c->tags[i]);
        buf_putc(b, '\n');
    }
    buf_puts(b, "---\n\n");
}

static void put_body(struct buf *b, const struct card *c)
{
    buf_puts(b, "# ");
    put_text(b, c->title);
    buf_puts(b, "\n\n");
    if (c->summary) {
        put_text(b, c->summary);
        buf_puts(b, "\n\n");
    }
    if (c->usage) {
        buf_puts(b, "## Use\n\n");
        put_code(b, "python", c->usage);
        buf_putc(b, '\n');
    }
    if (!c->nrows) return;
    buf_puts(b, "## How it was made\n\n| | |\n|---|---|\n");
    for (int i = 0; i < c->nrows; i++) {
        buf_puts(b, "| ");
        put_text(b, c->rows[i].name);
        buf_puts(b, " | ");
        put_text(b, c->rows[i].value);
        buf_puts(b, " |\n");
    }
}

static int check_card(const struct card *c, struct err *e)
{
    if (!c->title || !c->base_model || !c->library_name)
        return err_set(e, E_BUG, "a model card needs title, base_model and library_name");
    if (check_text("title", c->title, e) || check_text("base_model", c->base_model, e) ||
        check_text("library_name", c->library_name, e) ||
        check_text("pipeline_tag", c->pipeline_tag, e) || check_text("license", c->license, e) ||
        check_text("summary", c->summary, e) || check_text("usage", c->usage, e))
        return -1;
    for (int i = 0; i < c->ntags; i++)
        if (check_text("tags", c->tags[i], e)) return -1;
    for (int i = 0; i < c->nrows; i++)
        if (check_text("table", c->rows[i].name, e) || check_text("table", c->rows[i].value, e))
            return -1;
    return 0;
}

int card_write(const char *dir, const struct card *c, struct err *e)
{
    char path[FS_PATH_MAX];
    struct buf b;
    int rc = -1;
    if (check_card(c, e) || fs_join(path, dir, "README.md", e)) return -1;
    buf_init(&b, CARD_BYTES);
    put_front(&b, c);
    put_body(&b, c);
    if (!buf_ok(&b, e)) rc = fs_write_file(path, b.data, b.len, e);
    buf_clear(&b);
    return rc;
}

/* The value of `license:` in the front matter at text, trimmed and unquoted, if it is one word. */
static void find_license(const char *text, char out[64])
{
    static const char key[] = "\nlicense:";
    if (!str_starts(text, "---\n")) return;
    const char *end = strstr(text + 3, "\n---"), *at = strstr(text + 3, key);
    if (!end || !at || at > end) return;
    at += sizeof key - 1;
    at += strspn(at, " \t");
    char quote = *at == '"' || *at == '\'' ? *at++ : 0;
    size_t n = 0;
    while (isalnum((unsigned char)at[n]) || (at[n] && strchr("._-", at[n]))) n++;
    const char *rest = at + n;
    if (quote && *rest++ != quote) return;
    rest += strspn(rest, " \t\r");
    if (n == 0 || n >= 64 || *rest != '\n') return;
    memcpy(out, at, n);
    out[n] = 0;
}

int card_base_license(const char *model_dir, char out[64], struct err *e)
{
    char path[FS_PATH_MAX];
    struct buf b;
    int rc;
    if (fs_join(path, model_dir, "README.md", e)) return -1;
    out[0] = 0;
    if (!fs_exists(path)) return 0;
    buf_init(&b, CARD_BYTES);
    rc = fs_read_file(path, &b, e);
    if (!rc) find_license(buf_str(&b), out);
    buf_clear(&b);
    return rc;
}
