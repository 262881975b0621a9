#include "engine/job/graph.h"

#include "engine/base/mem.h"
#include "engine/op/op.h"

#include <string.h>

void graphs_init(struct graphs *gs, struct model *m, struct exec *x)
{
    *gs = (struct graphs){.model = m, .exec = x, .ws = x ? x->device->ws : NULL};
    params_init(&gs->state);
}

void graph_clear(struct graph *g)
{
    plan_free(g->plan);
    tape_free(g->tape);
    *g = (struct graph){0};
}

void graphs_clear(struct graphs *gs)
{
    for (int i = 0; i < gs->n; i++) graph_clear(&gs->items[i]);
    gs->n = 0;
    plan_cache_clear(&gs->plans);
    params_clear(&gs->state);
}

static struct param *sum_of_squares(struct graphs *gs, struct err *e)
{
    static const int64_t one = 1;
    if (gs->state.n) return gs->state.items[0];
    struct param *p = params_add(&gs->state, "grad.sumsq", PARAM_STATE, 1, &one, e);
    if (!p || (gs->exec && params_alloc(&gs->state, e))) return NULL;
    return p;
}

/* Clip by the global norm, then AdamW: every gradient in the order of the parameters. */
static int record_update(struct graphs *gs, struct graph *g, struct err *e)
{
    static const int64_t eight = 8;
    const struct graph_optimiser *o = &gs->optimiser;
    const struct params *ps = &gs->model->params;
    struct tape *t = g->tape;
    struct param *acc = sum_of_squares(gs, e);
    if (!acc) return -1;
    tape_set_phase(t, PHASE_UPDATE);
    g->hyper[0] = tape_input(t, "hyper.decay", DT_F32, 1, &eight);
    g->hyper[1] = tape_input(t, "hyper.plain", DT_F32, 1, &eight);
    int sum = g->sumsq = tape_param(t, acc, SLOT_DATA);
    for (int i = 0; i < ps->n; i++)
        if (ps->items[i]->kind == PARAM_TRAINABLE)
            sum = op_sumsq(t, tape_param(t, ps->items[i], SLOT_GRAD), sum);
    int scale = op_clip(t, sum, o->max_grad_norm, &g->norm);
    tape_output(t, g->norm);
    for (int i = 0; i < ps->n; i++) {
        struct param *p = ps->items[i];
        struct attrs_adamw a = attrs_adamw(o->beta1, o->beta2, o->eps, p->group);
        if (p->kind == PARAM_TRAINABLE) op_adamw(t, p, g->hyper[p->group], scale, &a);
    }
    return tape_ok(t, e);
}

static int record_pass(struct graphs *gs, struct graph *g, struct err *e)
{
    const struct graph_key *k = &g->key;
    struct model_shape s = {.B = k->B, .T = k->T, .rows = k->rows, .cache = k->cache,
                            .train = k->kind == GRAPH_TRAIN};
    if (model_record(gs->model, g->tape, &s, &g->io, e)) return -1;
    if (k->kind != GRAPH_TRAIN) return 0;
    if (tape_backward(g->tape, g->io.loss, e)) return -1;
    if (gs->recompute == RECOMPUTE_NONE) return 0;
    struct tape *t = recompute_tape(g->tape, gs->recompute, e);
    if (!t) return -1;
    tape_free(g->tape);
    g->tape = t;
    return 0;
}

int graph_make(struct graphs *gs, const struct graph_key *k, int threads, struct graph *g,
               struct err *e)
{
    struct plan_options o = {.threads = threads, .ws = gs->ws};
    *g = (struct graph){.key = *k, .model = gs->model};
    if (!(g->tape = tape_new(e))) return -1;
    g->tape->compute = gs->compute;
    if (k->kind == GRAPH_UPDATE ? record_update(gs, g, e) : record_pass(gs, g, e)) goto fail;
    if (!(g->plan = plan_cached(&gs->plans, g->tape, &o, e))) goto fail;
    return 0;
fail:
    graph_clear(g);
    return -1;
}

static bool same(const struct graph_key *a, const struct graph_key *b)
{
    return a->kind == b->kind && a->B == b->B && a->T == b->T && a->rows == b->rows &&
           a->cache == b->cache;
}

static void drop(struct graphs *gs, int i)
{
    if (gs->bound == gs->items[i].plan) gs->bound = NULL;
    graph_clear(&gs->items[i]);
    gs->items[i] = gs->items[--gs->n];
}

struct graph *graphs_bind(struct graphs *gs, const struct graph_key *k, struct err *e)
{
    struct graph *g = NULL;
    int oldest = 0;
    for (int i = 0; i < gs->n && !g; i++) {
        if (same(&gs->items[i].key, k)) g = &gs->items[i];
        if (gs->items[i].used < gs->items[oldest].used) oldest = i;
    }
    if (!g) {
        if (gs->n == GRAPHS_MAX) drop(gs, oldest);
        g = &gs->items[gs->n];
        if (graph_make(gs, k, pool_threads(gs->exec->pool), g, e)) return NULL;
        gs->n++;
    }
    g->used = ++gs->clock;
    if (gs->bound == g->plan) return g;
    gs->bound = NULL;
    if (exec_bind(gs->exec, g->plan, e)) return NULL;
    gs->bound = g->plan;
    return g;
}

void graphs_forget(struct graphs *gs, const struct model_cache *cache)
{
    for (int i = gs->n - 1; i >= 0; i--)
        if (gs->items[i].key.cache == cache) drop(gs, i);
    exec_forget(gs->exec, &cache->params);
}

static int feed_derived(struct exec *x, const struct graph *g, const int32_t *pos,
                        const int32_t *range, struct err *e)
{
    int64_t N = g->key.B * g->key.T;
    size_t bytes = (size_t)N * sizeof(int32_t);
    int rc = -1;
    if (g->io.types < 0 && g->io.place < 0 && g->io.window < 0) return 0;
    int32_t *v = mem_array(2 * N, sizeof *v, e);
    if (!v) return -1;
    if (g->io.types >= 0 && exec_write(x, g->io.types, v, bytes, e)) goto out;
    for (int64_t n = 0; n < N; n++) v[n] = pos[n] + (int32_t)g->model->first_place;
    if (g->io.place >= 0 && exec_write(x, g->io.place, v, bytes, e)) goto out;
    for (int64_t n = 0; n < N; n++) {
        int64_t from = range[2 * n + 1] - g->model->window;
        v[2 * n] = from > range[2 * n] ? (int32_t)from : range[2 * n];
        v[2 * n + 1] = range[2 * n + 1];
    }
    if (g->io.window >= 0 && exec_write(x, g->io.window, v, 2 * bytes, e)) goto out;
    rc = 0;
out:
    mem_free(v);
    return rc;
}

int graph_feed_tokens(struct exec *x, const struct graph *g, const int32_t *ids,
                      const int32_t *pos, const int32_t *range, struct err *e)
{
    size_t bytes = (size_t)(g->key.B * g->key.T) * sizeof(int32_t);
    if (exec_write(x, g->io.ids, ids, bytes, e) || exec_write(x, g->io.pos, pos, bytes, e) ||
        exec_write(x, g->io.range, range, 2 * bytes, e))
        return -1;
    return feed_derived(x, g, pos, range, e);
}

int graph_feed(struct exec *x, const struct graph *g, const struct batch *b, float weight,
               struct err *e)
{
    if (graph_feed_tokens(x, g, b->ids, b->pos, b->range, e)) return -1;
    size_t n = (size_t)g->tape->tensors[g->io.target].count * sizeof(int32_t);
    if (exec_write(x, g->io.target, b->target, n, e)) return -1;
    return exec_write(x, g->io.weight, &weight, sizeof weight, e);
}

static size_t bytes_of(const struct graph *g, int id)
{
    const struct tensor *t = &g->tape->tensors[id];
    return (size_t)t->count * dtype_size(t->dtype);
}

/* Every patch has its row of the table of positions, and sees all of its image. */
static int feed_patches(struct exec *x, const struct graph *g, struct err *e)
{
    size_t place = bytes_of(g, g->io.place), range = bytes_of(g, g->io.range);
    int64_t rows = (int64_t)(place / sizeof(int32_t)), tokens = g->model->max_length;
    int64_t places = rows / g->key.B;
    int32_t *v = mem_alloc(place > range ? place : range, e);
    if (!v) return -1;
    for (int64_t i = 0; i < rows; i++) v[i] = (int32_t)(i % places);
    int rc = exec_write(x, g->io.place, v, place, e);
    for (int64_t i = 0; i < g->key.B * tokens; i++) {
        v[2 * i] = 0;
        v[2 * i + 1] = (int32_t)tokens;
    }
    if (!rc) rc = exec_write(x, g->io.range, v, range, e);
    mem_free(v);
    return rc;
}

int graph_feed_images(struct exec *x, const struct graph *g, const float *images,
                      const int32_t *labels, float weight, struct err *e)
{
    if (exec_write(x, g->io.image, images, bytes_of(g, g->io.image), e) || feed_patches(x, g, e))
        return -1;
    if (g->io.target < 0) return 0;
    if (exec_write(x, g->io.target, labels, bytes_of(g, g->io.target), e)) return -1;
    return exec_write(x, g->io.weight, &weight, sizeof weight, e);
}
