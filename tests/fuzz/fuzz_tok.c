/* A tokenizer.json, a line of NUL, and a text: read, encode, decode. */
#include "engine/base/mem.h"
#include "engine/tok/tok.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    mem_hook_libraries();
    return 0;
}

static void check(const struct tok *t, const char *text, size_t n)
{
    struct err e = ERR_INIT;
    struct ids out = {0};
    struct tok_spans spans = {0};
    struct buf back;
    buf_init(&back, 1 << 28);
    if (!tok_encode_spans(t, text, n, true, &out, &spans, &e)) {
        for (int64_t i = 0; i < out.n; i++) {
            if (out.v[i] < 0 || out.v[i] >= tok_size(t)) abort();
            if (spans.last.v[i] >= (int64_t)n) abort();
        }
        if (tok_decode(t, out.v, out.n, false, &back, &e) && e.code != E_LIMIT) abort();
    }
    buf_clear(&back);
    ids_clear(&out);
    tok_spans_clear(&spans);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err e = ERR_INIT;
    size_t before = mem_live();
    const uint8_t *end = memchr(data, 0, n);
    size_t json = end ? (size_t)(end - data) : n;
    struct tok *t = tok_parse((const char *)data, json, &e);
    if (t) {
        check(t, "Hello w\xc3\xb6rld 12345's\n\n", 21);
        if (end) check(t, (const char *)end + 1, n - json - 1);
    }
    tok_free(t);
    if (mem_live() != before) abort();
    return 0;
}
