#include "engine/tok/tok.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/tok/added.h"
#include "engine/tok/bpe.h"
#include "engine/tok/dec.h"
#include "engine/tok/norm.h"
#include "engine/tok/post.h"
#include "engine/tok/pretok.h"

#include <string.h>

struct tok {
    struct vocab vocab; /* the model's tokens, then the added ones that are not among them */
    struct bpe bpe;
    struct added added;
    struct norm norm;
    struct pretok pretok;
    struct post post;
    struct dec dec;
    const struct added_token **by_id; /* [vocab.n] the added token with this id, or NULL */
    bool *skip;                       /* [vocab.n] left out when special tokens are skipped */
};

/* What one call works with. */
struct work {
    struct pieces a, b;
    struct pretok_parts parts;
    struct rx_scan scan;
    struct bpe_word word;
};

static void work_clear(struct work *w)
{
    pieces_clear(&w->a);
    pieces_clear(&w->b);
    pretok_parts_clear(&w->parts);
    rx_scan_clear(&w->scan);
    bpe_word_clear(&w->word);
}

/* The model's tokens by id: ids 0 .. n-1, each once. The library numbers added tokens from n on, so
 * with a gap two tokens would share an id. */
static int read_vocab(const json_t *model, const char **strings, int32_t n, struct err *e)
{
    const char *token;
    json_t *v;
    json_object_foreach(json_object_get(model, "vocab"), token, v)
    {
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0)
            return err_set(e, E_FORMAT, "vocab: the id of '%.40s' must be a whole number", token);
        if (id >= n)
            return err_set(e, E_FORMAT, "vocab: '%.40s' has id %lld, but there are %d tokens: ids "
                           "must go from 0 to %d without gaps", token, (long long)id, n, n - 1);
        if (strings[id])
            return err_set(e, E_FORMAT, "vocab: '%.40s' and '%.40s' both have id %lld",
                           strings[id], token, (long long)id);
        strings[id] = token;
    }
    return 0;
}

/* Checks each added token's id against the one that the library, which does not read the file's,
 * gives it: that of the vocabulary if it is there, else the next free one. */
static int place_added(struct tok *t, const char **strings, int32_t n_model, struct err *e)
{
    struct vocab model = {0};
    int32_t next = n_model;
    int rc = -1;
    if (vocab_build(&model, strings, n_model, e)) return -1;
    for (int32_t i = 0; i < t->added.n; i++) {
        const struct added_token *a = &t->added.v[i];
        int32_t id = vocab_find(&model, a->content, strlen(a->content));
        if (id < 0) {
            id = next++;
            strings[id] = a->content;
        }
        if (a->id != id) {
            err_set(e, E_FORMAT, "[%d]: '%.40s' has id %d, but by its place it is token %d", i,
                    a->content, a->id, id);
            goto out;
        }
    }
    rc = vocab_build(&t->vocab, strings, next, e);
out:
    vocab_clear(&model);
    return rc;
}

/* Fills by_id and skip; finds added tokens of equal content. */
static int index_added(struct tok *t, struct err *e)
{
    t->by_id = mem_array(t->vocab.n, sizeof *t->by_id, e);
    t->skip = mem_array(t->vocab.n, sizeof *t->skip, e);
    if (!t->by_id || !t->skip) return -1;
    for (int32_t i = 0; i < t->added.n; i++) {
        const struct added_token *a = &t->added.v[i];
        if (t->by_id[a->id] || vocab_find(&t->vocab, a->content, strlen(a->content)) != a->id)
            return err_set(e, E_FORMAT, "[%d]: '%.40s' is there twice", i, a->content);
        t->by_id[a->id] = a;
    }
    /* The library compares what a token decodes to with the contents of special tokens. */
    for (int32_t i = 0; i < t->added.n; i++) {
        const struct added_token *a = &t->added.v[i];
        const char *shown = a->shown ? a->shown : a->content;
        int32_t id = vocab_find(&t->vocab, shown, strlen(shown));
        t->skip[a->id] = id >= 0 && t->by_id[id] && t->by_id[id]->special;
    }
    return 0;
}

static int build_vocab(struct tok *t, const json_t *model, struct err *e)
{
    json_t *vocab;
    const char *type = "BPE"; /* files of old libraries do not say */
    if (jx_opt_str(model, "type", &type, e)) return err_wrap(e, "model");
    if (!str_eq(type, "BPE"))
        return err_set(e, E_UNSUPPORTED, "model: graft does not have the model '%.40s'", type);
    if (jx_object(model, "vocab", &vocab, e)) return err_wrap(e, "model");
    size_t n = json_object_size(vocab), total = n + (size_t)t->added.n;
    if (n == 0 || total > VOCAB_MAX)
        return err_set(e, E_LIMIT, "model.vocab: %zu tokens; there must be 1 to %d", total,
                       VOCAB_MAX);
    const char **strings = mem_array((int64_t)total, sizeof *strings, e);
    int rc = -1;
    if (!strings) return -1;
    if (read_vocab(model, strings, (int32_t)n, e))
        err_wrap(e, "model");
    else if (place_added(t, strings, (int32_t)n, e) || index_added(t, e))
        err_wrap(e, "added_tokens");
    else if (bpe_build(&t->bpe, &t->vocab, (int32_t)n, model, e))
        err_wrap(e, "model");
    else
        rc = 0;
    mem_free(strings);
    return rc;
}

static int build(struct tok *t, const json_t *root, struct err *e)
{
    const char *version = "1.0";
    if (jx_opt_str(root, "version", &version, e)) return -1;
    if (!str_eq(version, "1.0"))
        return err_set(e, E_UNSUPPORTED, "version: '%.20s' is not known", version);
    if (norm_build(&t->norm, json_object_get(root, "normalizer"), e))
        return err_wrap(e, "normalizer");
    if (pretok_build(&t->pretok, json_object_get(root, "pre_tokenizer"), e))
        return err_wrap(e, "pre_tokenizer");
    if (added_read(&t->added, json_object_get(root, "added_tokens"), e) ||
        added_build(&t->added, &t->norm, e))
        return err_wrap(e, "added_tokens");
    if (build_vocab(t, json_object_get(root, "model"), e)) return -1;
    if (post_build(&t->post, json_object_get(root, "post_processor"), t->vocab.n, e))
        return err_wrap(e, "post_processor");
    if (dec_build(&t->dec, json_object_get(root, "decoder"), e)) return err_wrap(e, "decoder");
    return 0;
}

struct tok *tok_parse(const char *json, size_t n, struct err *e)
{
    if (n > TOK_FILE_MAX) {
        err_set(e, E_LIMIT, "%zu bytes; at most %d are read", n, TOK_FILE_MAX);
        return NULL;
    }
    json_t *root = jx_parse(json, n, e);
    struct tok *t = root ? mem_zalloc(sizeof *t, e) : NULL;
    if (t && build(t, root, e)) {
        tok_free(t);
        t = NULL;
    }
    /* To a caller the file is at fault, not an argument. */
    if (!t && (e->code == E_ARG || e->code == E_RANGE)) e->code = E_FORMAT;
    json_decref(root);
    return t;
}

struct tok *tok_open(const char *tokenizer_json, struct err *e)
{
    struct buf b;
    struct tok *t = NULL;
    buf_init(&b, TOK_FILE_MAX);
    if (!fs_read_file(tokenizer_json, &b, e)) t = tok_parse(buf_str(&b), b.len, e);
    if (!t) err_wrap(e, "%s", tokenizer_json);
    buf_clear(&b);
    return t;
}

void tok_free(struct tok *t)
{
    if (!t) return;
    added_clear(&t->added);
    bpe_clear(&t->bpe);
    vocab_clear(&t->vocab);
    norm_clear(&t->norm);
    pretok_clear(&t->pretok);
    dec_clear(&t->dec);
    mem_free(t->by_id);
    mem_free(t->skip);
    mem_free(t);
}

/* Text to pieces: added tokens out of the raw text, normalisation, added tokens out of that, then
 * the pre-tokenisers. The result is in w->a. */
static int cut_text(const struct tok *t, const char *text, size_t n, struct work *w, struct err *e)
{
    if (pieces_room(&w->a, n, e)) return -1;
    if (n) memcpy(w->a.text, text, n);
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = str_utf8_next(text + i, n - i, &cp);
        for (int k = 0; k < len; k++) w->a.at[i + (size_t)k] = (uint32_t)i;
        i += (size_t)len;
    }
    w->a.len = n;
    if (pieces_end(&w->a, 0, 0, -1, e) || added_run(&t->added.raw, &w->b, &w->a, e)) return -1;
    pieces_swap(&w->a, &w->b);
    if (norm_run(&t->norm, &w->a, &w->b, &w->scan, e)) return -1;
    pieces_reset(&w->b);
    if (added_run(&t->added.normal, &w->b, &w->a, e)) return -1;
    pieces_swap(&w->a, &w->b);
    return pretok_run(&t->pretok, &w->a, &w->b, &w->parts, &w->scan, e);
}

/* Where ids go; spans may be NULL. */
struct sink {
    struct ids *out;
    struct tok_spans *spans;
};

static int put(struct sink *s, int32_t id, int32_t first, int32_t last, struct err *e)
{
    struct tok_spans *p = s->spans;
    if (p && (ids_push(&p->first, first, e) || ids_push(&p->last, last, e))) return -1;
    return ids_push(s->out, id, e);
}

static int encode_piece(const struct tok *t, struct work *w, int64_t i, struct sink *s,
                        struct err *e)
{
    const struct piece *v = &w->a.v[i];
    const uint32_t *at = w->a.at + v->off;
    if (v->id >= 0) return put(s, v->id, (int32_t)at[0], (int32_t)at[v->len - 1], e);
    if (bpe_encode(&t->bpe, w->a.text + v->off, v->len, &w->word, e)) return -1;
    size_t pos = 0;
    for (int64_t k = 0; k < w->word.n; k++) {
        const struct bpe_symbol *y = &w->word.v[k];
        if (put(s, y->id, (int32_t)at[pos], (int32_t)at[pos + y->len - 1], e)) return -1;
        pos += y->len;
    }
    return 0;
}

static int encode(const struct tok *t, const char *text, size_t n, bool special, struct sink *s,
                  struct err *e)
{
    struct work w = {0};
    int rc = -1;
    if (n > TOK_TEXT_MAX)
        return err_set(e, E_LIMIT, "a text of %zu bytes; at most %d are encoded", n, TOK_TEXT_MAX);
    size_t bad = str_utf8_bad(text, n);
    if (bad < n) return err_set(e, E_FORMAT, "not UTF-8 at byte %zu", bad);
    if (cut_text(t, text, n, &w, e)) goto out;
    for (int k = 0; k < t->post.one.n; k++) {
        int32_t part = t->post.one.part[k];
        if (part != POST_SEQUENCE) {
            if (special && put(s, part, -1, -1, e)) goto out;
            continue;
        }
        for (int64_t i = 0; i < w.a.n; i++)
            if (encode_piece(t, &w, i, s, e)) goto out;
    }
    rc = 0;
out:
    work_clear(&w);
    return rc;
}

int tok_encode_spans(const struct tok *t, const char *text, size_t n, bool special,
                     struct ids *out, struct tok_spans *spans, struct err *e)
{
    struct sink s = {out, spans};
    int64_t before = out->n, spans_before = spans ? spans->first.n : 0;
    if (!encode(t, text, n, special, &s, e)) return 0;
    out->n = before;
    if (spans) spans->first.n = spans->last.n = spans_before;
    return -1;
}

void tok_spans_clear(struct tok_spans *s)
{
    ids_clear(&s->first);
    ids_clear(&s->last);
}

int tok_encode(const struct tok *t, const char *text, size_t n, bool special, struct ids *out,
               struct err *e)
{
    return tok_encode_spans(t, text, n, special, out, NULL, e);
}

int tok_decode(const struct tok *t, const int32_t *ids, int64_t n, bool skip_special,
               struct buf *out, struct err *e)
{
    struct work w = {0};
    int rc = -1;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->vocab.n) continue; /* as the library */
        if (skip_special && t->skip[ids[i]]) continue;
        const struct added_token *a = t->by_id[ids[i]];
        size_t len, start = w.a.len;
        const char *s = vocab_str(&t->vocab, ids[i], &len);
        if (a && a->shown) {
            s = a->shown;
            len = strlen(s);
        }
        if (pieces_fill(&w.a, s, 0, len, e) || pieces_end(&w.a, start, 0, -1, e)) goto out;
    }
    if (dec_run(&t->dec, &w.a, &w.b, &w.scan, e)) goto out;
    for (int64_t i = 0; i < w.a.n; i++) buf_put(out, w.a.text + w.a.v[i].off, w.a.v[i].len);
    rc = buf_ok(out, e);
out:
    work_clear(&w);
    return rc;
}

int tok_join_added(const struct tok *t, bool two)
{
    const struct post_list *p = two ? &t->post.two : &t->post.one;
    int n = 0;
    for (int k = 0; k < p->n; k++) n += p->part[k] >= 0;
    return n;
}

int tok_join(const struct tok *t, const struct ids *a, const struct ids *b, struct ids *out,
             struct err *e)
{
    const struct post_list *p = b ? &t->post.two : &t->post.one;
    int64_t before = out->n;
    for (int k = 0; k < p->n; k++) {
        const struct ids *text = p->part[k] == POST_SECOND ? b : a;
        if (p->part[k] >= 0 ? ids_push(out, p->part[k], e)
                            : ids_append(out, text->v, text->n, e)) {
            out->n = before;
            return -1;
        }
    }
    return 0;
}

int32_t tok_id(const struct tok *t, const char *token)
{
    return vocab_find(&t->vocab, token, strlen(token));
}

const char *tok_token(const struct tok *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n ? vocab_str(&t->vocab, id, NULL) : NULL;
}

int32_t tok_size(const struct tok *t)
{
    return t->vocab.n;
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n && t->by_id[id] && t->by_id[id]->special;
}
