#include "engine/job/generate.h"

#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER_MAX_BYTES = 16 << 20 };

/* One answer being made. */
struct run {
    struct session *s;
    struct model_cache cache;
    float *logits; /* [V] */
    int64_t V, at; /* at: tokens in the cache */
    struct token *order; /* [V], when sampling */
};

struct token {
    int32_t id;
    float p;
};

/* Puts n tokens through the model; the logits are those after the last. */
static int push(struct run *r, const int32_t *ids, int64_t n, struct err *e)
{
    struct exec *x = r->s->exec;
    struct graph_key k = {.kind = GRAPH_LOGITS, .B = 1, .T = n, .rows = 1, .cache = &r->cache};
    int32_t last = (int32_t)(n - 1);
    int rc = -1;
    int32_t *pos = mem_array(3 * n, sizeof *pos, e);
    struct graph *g = pos ? graphs_bind(&r->s->graphs, &k, e) : NULL;
    if (!g) goto out;
    int32_t *range = pos + n;
    for (int64_t t = 0; t < n; t++) {
        pos[t] = (int32_t)(r->at + t);
        range[2 * t] = 0;
        range[2 * t + 1] = pos[t] + 1;
    }
    if (graph_feed_tokens(x, g, ids, pos, range, e) ||
        exec_write(x, g->io.idx, &last, sizeof last, e) || exec_run(x, PHASE_STEP, 0, e) ||
        exec_read(x, g->io.logits, r->logits, (size_t)r->V * sizeof(float), e))
        goto out;
    r->at += n;
    rc = 0;
out:
    mem_free(pos);
    return rc;
}

static int32_t greedy(const struct run *r)
{
    int32_t best = 0;
    for (int32_t i = 1; i < r->V; i++)
        if (r->logits[i] > r->logits[best]) best = i;
    return best;
}

static int by_probability(const void *a, const void *b)
{
    const struct token *x = a, *y = b;
    if (x->p != y->p) return x->p < y->p ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Draws from the smallest set of most likely tokens that holds top_p of the probability. */
static int32_t draw(struct run *r, const struct generate_options *o)
{
    double max = r->logits[greedy(r)], sum = 0, kept = 0;
    for (int64_t i = 0; i < r->V; i++) {
        double p = exp((r->logits[i] - max) / o->temperature);
        r->order[i] = (struct token){(int32_t)i, (float)p};
        sum += (float)p;
    }
    qsort(r->order, (size_t)r->V, sizeof *r->order, by_probability);
    int64_t n = 0;
    while (n < r->V && kept < o->top_p * sum) kept += r->order[n++].p;
    if (n == 0) return r->order[0].id;
    double u = kept * rng_uniform(o->seed, RNG_SAMPLE, (uint32_t)r->at, 0);
    for (int64_t i = 0; i < n; i++) {
        u -= r->order[i].p;
        if (u < 0) return r->order[i].id;
    }
    return r->order[n - 1].id;
}

int generate_ids(struct session *s, const struct ids *prompt, const struct generate_options *o,
                 struct ids *out, struct err *e)
{
    int64_t most = s->model->max_length, n = prompt->n, max = o->max_tokens;
    struct run r = {.s = s, .V = s->model->cfg.vocab_size};
    int rc = -1;
    if (n < 1 || n >= most) {
        err_set(e, E_ARG, "the prompt has %lld tokens; the model takes 1 to %lld", (long long)n,
                (long long)most - 1);
        return err_param(e, "prompt");
    }
    if (max > most - n) max = most - n;
    if (model_cache_init(&r.cache, s->model, 1, n + max, e)) return -1;
    if (!(r.logits = mem_array(r.V, sizeof *r.logits, e)) ||
        !(r.order = mem_array(r.V, sizeof *r.order, e)) || push(&r, prompt->v, n, e))
        goto out;
    for (int64_t i = 0; i < max; i++) {
        int32_t id = o->temperature > 0 ? draw(&r, o) : greedy(&r);
        if (session_ends(s, id)) break;
        if (ids_push(out, id, e) || (i + 1 < max && push(&r, &id, 1, e))) goto out;
    }
    rc = 0;
out:
    graphs_forget(&s->graphs, &r.cache);
    model_cache_clear(&r.cache);
    mem_free(r.order);
    mem_free(r.logits);
    return rc;
}

static char *decode_alone(const struct tok *t, const struct ids *ids, struct err *e)
{
    struct buf text;
    char *out = NULL;
    buf_init(&text, ANSWER_MAX_BYTES);
    if (!tok_decode(t, ids->v, ids->n, true, &text, e) && !buf_ok(&text, e))
        out = buf_take(&text);
    buf_clear(&text);
    return out;
}

char *generate_text(struct session *s, enum chat_template chat, const char *prompt,
                    const struct generate_options *o, struct err *e)
{
    const struct chat_message turn = {.role = "user", .content = prompt};
    const struct chat_talk talk = {.m = &turn, .n = 1, .generation = true};
    struct ids in = {0}, ids = {0};
    struct buf before, all;
    char *out = NULL;
    buf_init(&before, ANSWER_MAX_BYTES);
    buf_init(&all, ANSWER_MAX_BYTES);
    if (chat == CHAT_NONE ? tok_encode(s->tok, prompt, strlen(prompt), true, &in, e)
                          : chat_encode(s->tok, chat, &talk, &in, NULL, e))
        goto out;
    /* Decoders treat the start of a text specially (a blank may go), so the answer is what the
     * whole has more than the prompt. */
    if (tok_decode(s->tok, in.v, in.n, true, &before, e) || generate_ids(s, &in, o, &ids, e) ||
        ids_append(&in, ids.v, ids.n, e) || tok_decode(s->tok, in.v, in.n, true, &all, e) ||
        buf_ok(&before, e) || buf_ok(&all, e))
        goto out;
    if (str_starts(buf_str(&all), buf_str(&before)))
        out = mem_strdup(buf_str(&all) + before.len, e);
    else
        out = decode_alone(s->tok, &ids, e);
out:
    buf_clear(&before);
    buf_clear(&all);
    ids_clear(&in);
    ids_clear(&ids);
    return out;
}
