/* Encodes, decodes and templates with graft's tokeniser what Python sends, for a comparison there.
 *
 * usage: tok_dump FILE encode|special|decode|skip|chat|pair|check|bench
 * stdin: records of a 32-bit length and as many bytes, little-endian as everything here.
 *   encode, special  a text           -> a list of ids (special: with the post-processor)
 *   decode, skip     ids (int32)      -> a text (skip: without special tokens)
 *   chat             JSON {"template", "messages", "generation", "tools"?}
 *                                     -> ids, then trained flags
 *   pair             JSON {"a", "b"?, "max"} -> ids of both, cut to max
 *   check            (no records)     -> nothing; exit 0 if FILE is accepted
 *   detect           (no records)     -> the name of the chat template of the folder FILE
 *   bench            texts            -> on stdout one line: bytes per second of a single thread
 * stdout: for each record a 32-bit length and the answer; length -1 and then a message that is
 * framed in the same way if graft refuses.
 */
#include "engine/base/clock.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/data/labelled.h"
#include "engine/tok/chat.h"
#include "engine/tok/tok.h"

#include <stdio.h>
#include <string.h>

static bool read_record(char **data, size_t *cap, uint32_t *n)
{
    struct err e = ERR_INIT;
    if (fread(n, sizeof *n, 1, stdin) != 1) return false;
    if (*n + 1 > *cap) {
        char *p = mem_realloc(*data, *n + 1, &e);
        if (!p) return false;
        *data = p;
        *cap = *n + 1;
    }
    (*data)[*n] = 0;
    return fread(*data, 1, *n, stdin) == *n;
}

static void write_record(const void *p, size_t n)
{
    int32_t len = (int32_t)n;
    fwrite(&len, sizeof len, 1, stdout);
    if (n) fwrite(p, 1, n, stdout);
}

static void write_ids(const struct ids *a)
{
    write_record(a->v, (size_t)a->n * sizeof *a->v);
}

static void write_error(const struct err *e)
{
    int32_t none = -1;
    fwrite(&none, sizeof none, 1, stdout);
    write_record(e->msg, strlen(e->msg));
}

static int chat(const struct tok *t, const char *json, size_t n, struct ids *out,
                struct ids *trained, struct err *e)
{
    enum { MOST = 256 };
    struct chat_message m[MOST];
    struct chat_talk talk = {.m = m};
    enum chat_template c;
    const char *name;
    json_t *list, *root = jx_parse(json, n, e);
    int rc = -1;
    if (!root || jx_str(root, "template", &name, e) || jx_array(root, "messages", &list, e) ||
        jx_bool(root, "generation", &talk.generation, e))
        goto out;
    if (!chat_parse(name, &c)) {
        err_set(e, E_ARG, "no template '%s'", name);
        goto out;
    }
    for (; talk.n < MOST && talk.n < (int)json_array_size(list); talk.n++) {
        json_t *o = json_array_get(list, (size_t)talk.n);
        struct chat_message *one = &m[talk.n];
        *one = (struct chat_message){.train = true, .calls = json_object_get(o, "tool_calls")};
        if (jx_str(o, "role", &one->role, e) || jx_str(o, "content", &one->content, e) ||
            jx_opt_bool(o, "train", &one->train, e))
            goto out;
    }
    talk.tools = json_object_get(root, "tools");
    rc = chat_encode(t, c, &talk, out, trained, e);
out:
    json_decref(root);
    return rc;
}

static int pair(const struct tok *t, const char *json, size_t n, struct ids *out, struct err *e)
{
    json_t *root = jx_parse(json, n, e);
    const char *a, *b = NULL;
    int64_t max;
    bool cut;
    int rc = -1;
    if (root && !jx_str(root, "a", &a, e) && !jx_opt_str(root, "b", &b, e) &&
        !jx_int64(root, "max", 1, 1 << 20, &max, e))
        rc = labelled_encode(t, a, b, max, out, &cut, e);
    json_decref(root);
    return rc;
}

static void answer(const struct tok *t, const char *mode, const char *data, uint32_t n)
{
    struct err e = ERR_INIT;
    struct ids out = {0}, trained = {0};
    struct buf text;
    int rc;
    buf_init(&text, 1 << 30);
    if (str_eq(mode, "decode") || str_eq(mode, "skip")) {
        rc = tok_decode(t, (const int32_t *)(const void *)data, n / 4, *mode == 's', &text, &e);
        if (!rc) write_record(buf_str(&text), text.len);
    } else if (str_eq(mode, "chat")) {
        rc = chat(t, data, n, &out, &trained, &e);
        if (!rc) write_ids(&out);
        if (!rc) write_ids(&trained);
    } else if (str_eq(mode, "pair")) {
        rc = pair(t, data, n, &out, &e);
        if (!rc) write_ids(&out);
    } else {
        rc = tok_encode(t, data, n, str_eq(mode, "special"), &out, &e);
        if (!rc) write_ids(&out);
    }
    if (rc) write_error(&e);
    buf_clear(&text);
    ids_clear(&out);
    ids_clear(&trained);
}

static int detect(const char *dir)
{
    struct err e = ERR_INIT;
    enum chat_template c;
    if (chat_detect(dir, &c, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    puts(chat_name(c));
    return 0;
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    char *data = NULL;
    size_t cap = 0;
    uint32_t n;
    int64_t ns = 0, bytes = 0;
    if (argc != 3) return 2;
    if (str_eq(argv[2], "detect")) return detect(argv[1]);
    struct tok *t = tok_open(argv[1], &e);
    if (!t) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    while (!str_eq(argv[2], "check") && read_record(&data, &cap, &n)) {
        if (!str_eq(argv[2], "bench")) {
            answer(t, argv[2], data, n);
            continue;
        }
        struct ids out = {0};
        int64_t start = clock_mono_ns();
        int rc = tok_encode(t, data, n, false, &out, &e);
        ns += clock_mono_ns() - start;
        bytes += rc ? 0 : n;
        ids_clear(&out);
    }
    if (bytes) printf("%.0f\n", (double)bytes / ((double)ns * 1e-9));
    mem_free(data);
    tok_free(t);
    return 0;
}
