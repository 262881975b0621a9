/* LINEAR_CE: the last linear layer and the cross-entropy in one pass over tiles of rows; and CE.
 *
 * Rows without a target are left out first (often most of them are a prompt), so a tile is TILE
 * rows that count. A tile's logits turn into its probabilities and then into its gradient in
 * place. Workspace: one slot per thread (see struct slot), then per tile a loss and a count, then
 * the list of rows.
 *
 * dw is a sum over tiles, so it is added tile after tile, in parallel over slices of the
 * vocabulary, after each group of as many tiles as there are slots: the order of the additions
 * into an element is that of the tiles, however many of them form a group.
 */
#include "engine/cpu/gemm.h"
#include "engine/cpu/vec.h"

#include <string.h>

enum {
    TILE = 256,   /* rows at most, half of it for large vocabularies: each tile packs all of w,
                   * twice, and its logits take memory */
    EVEN = 4,     /* more than one tile are a multiple of so many: 2 or 4 threads end together */
    SLICE = 256,
    LARGE_V = 65536,
};

struct tally {
    double loss, hits;
};

struct ce {
    const struct step *s;
    int64_t N, C, V, tile;  /* tile: rows of a tile at most */
    int64_t ntiles;
    int64_t first, end;     /* tiles of the group at work */
    const int32_t *row;     /* the rows that count */
    int64_t nrow;
    float weight;
    int64_t slot_floats;
    struct tally *tally;    /* [ntiles] */
};

/* Scratch of one tile in work. */
struct slot {
    float *logits;   /* [tile, V] */
    float *x, *dx;   /* [tile, C], gathered rows */
    float *gemm;
};

static struct slot slot_at(const struct ce *c, int64_t i)
{
    float *p = (float *)c->s->ws + i * c->slot_floats;
    return (struct slot){p + GEMM_SCRATCH + 2 * c->tile * c->C, p + GEMM_SCRATCH,
                         p + GEMM_SCRATCH + c->tile * c->C, p};
}

static float row_max(const float *l, int64_t n)
{
    vec top = vec_set(-INFINITY);
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) top = vec_max(top, vec_load(l + i));
    float best = vec_top(top);
    for (; i < n; i++) best = l[i] > best ? l[i] : best;
    return best;
}

/* l[i] = e^(l[i] - max); returns the sum. */
static float row_exp(float *l, int64_t n, float max)
{
    vec sum = {0};
    float tail = 0;
    int64_t i = 0;
    for (int64_t j = 0; j < n; j++) l[j] = mx_exp(l[j] - max);
    for (; i + VEC <= n; i += VEC) sum += vec_load(l + i);
    for (; i < n; i++) tail += l[i];
    return vec_sum(sum) + tail;
}

/* Is target the (first) arg max? */
static bool is_hit(const float *l, int64_t target, float max)
{
    if (l[target] != max) return false;
    for (int64_t i = 0; i < target; i++)
        if (l[i] == max) return false;
    return true;
}

/* Turns the logits of a row into their gradient if that is wanted, else into anything. */
static void ce_row(float *l, int64_t V, int64_t target, float weight, bool gradient,
                   struct tally *t)
{
    float max = row_max(l, V), at = l[target];
    t->hits += is_hit(l, target, max);
    float sum = row_exp(l, V, max);
    t->loss += (double)mx_log(sum) + ((double)max - (double)at);
    if (!gradient) return;
    float k = weight / sum;
    for (int64_t i = 0; i < V; i++) l[i] *= k;
    l[target] -= weight;
}

static void ce_tile(void *ctx, int64_t task, int thread)
{
    const struct ce *c = ctx;
    const struct step *s = c->s;
    int64_t t = c->first + task, r0 = t * c->tile, n = min64(c->tile, c->nrow - r0);
    int64_t C = c->C, V = c->V;
    size_t row_bytes = (size_t)C * sizeof(float);
    struct slot k = slot_at(c, s->out[2] ? task : thread);
    const int32_t *target = s->in[2];
    for (int64_t i = 0; i < n; i++)
        memcpy(k.x + i * C, (const float *)s->in[0] + c->row[r0 + i] * C, row_bytes);
    struct gemm g = {.n = n, .m = V, .k = C, .alpha = 1, .a = {k.x, DT_F32, C, false},
                     .b = {s->in[1], s->tin[1]->dtype, C, true}, .c = k.logits, .ldc = V,
                     .scratch = k.gemm};
    gemm_run(&g);
    struct tally sum = {0, 0};
    bool gradient = s->out[1] || s->out[2];
    for (int64_t i = 0; i < n; i++)
        ce_row(k.logits + i * V, V, target[c->row[r0 + i]], c->weight, gradient, &sum);
    c->tally[t] = sum;
    if (!s->out[1]) return;
    g = (struct gemm){.n = n, .m = C, .k = V, .alpha = 1, .a = {k.logits, DT_F32, V, false},
                      .b = {s->in[1], s->tin[1]->dtype, C, false}, .c = k.dx, .ldc = C,
                      .scratch = k.gemm};
    gemm_run(&g);
    for (int64_t i = 0; i < n; i++) {
        float *dx = (float *)s->out[1] + c->row[r0 + i] * C;
        if (accumulates(s, 1))
            for (int64_t j = 0; j < C; j++) dx[j] += k.dx[i * C + j];
        else
            memcpy(dx, k.dx + i * C, row_bytes);
    }
}

/* A slice of dw for all tiles of the group, in order. */
static void dw_slice(void *ctx, int64_t task, int thread)
{
    const struct ce *c = ctx;
    const struct step *s = c->s;
    int64_t v0 = task * SLICE, C = c->C, V = c->V;
    float *dw = (float *)s->out[2] + v0 * C;
    for (int64_t t = c->first; t < c->end; t++) {
        struct slot k = slot_at(c, t - c->first);
        struct gemm g = {.n = min64(SLICE, V - v0), .m = C, .alpha = 1,
                         .k = min64(c->tile, c->nrow - t * c->tile),
                         .a = {k.logits + v0, DT_F32, V, true}, .b = {k.x, DT_F32, C, false},
                         .add = t > 0 || accumulates(s, 2) ? dw : NULL, .ldadd = C,
                         .c = dw, .ldc = C, .scratch = slot_at(c, thread).gemm};
        gemm_run(&g);
    }
}

static void zero_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct ce *c = ctx;
    const struct step *s = c->s;
    int64_t v0 = task * SLICE, v = min64(SLICE, c->V - v0);
    memset((float *)s->out[2] + v0 * c->C, 0, (size_t)(v * c->C) * sizeof(float));
}

/* Lists the rows that count; the others get their zeros of dx here. */
static int list_rows(struct ce *c, int32_t *row, struct err *e)
{
    const struct step *s = c->s;
    const int32_t *target = s->in[2];
    for (int64_t n = 0; n < c->N; n++) {
        if (target[n] >= c->V)
            return err_set(e, E_RANGE, "target %d is outside the vocabulary of %lld",
                           (int)target[n], (long long)c->V);
        if (target[n] >= 0) row[c->nrow++] = (int32_t)n;
        else if (s->out[1] && !accumulates(s, 1))
            memset((float *)s->out[1] + n * c->C, 0, (size_t)c->C * sizeof(float));
    }
    return 0;
}

static void put(const struct step *s, int out, double v)
{
    float *to = s->out[out];
    if (to) *to = (float)(accumulates(s, out) ? (double)*to + v : v);
}

int cpu_linear_ce(const struct step *s, struct exec *x, struct err *e)
{
    int slots = pool_threads(x->pool);
    struct ce c = {.s = s, .N = s->tin[0]->shape[0], .C = s->tin[0]->shape[1],
                   .V = s->tin[1]->shape[0], .weight = *(const float *)s->in[3]};
    int64_t most = c.V > LARGE_V ? TILE / 2 : TILE, round = most * EVEN;
    c.tile = min64(most, c.N);
    c.slot_floats = (GEMM_SCRATCH + c.tile * (c.V + 2 * c.C) + 63) / 64 * 64;
    c.tally = (struct tally *)((float *)s->ws + slots * c.slot_floats);
    int32_t *row = (int32_t *)(c.tally + tiles(c.N, round) * EVEN);
    if ((char *)(row + c.N) > (char *)s->ws + s->ws_bytes)
        return err_set(e, E_BUG, "linear_ce: workspace of %lld bytes is too small",
                       (long long)s->ws_bytes);
    c.row = row;
    if (list_rows(&c, row, e)) return -1;
    if (c.nrow > most) c.tile = tiles(c.nrow, tiles(c.nrow, round) * EVEN);
    c.ntiles = c.nrow ? tiles(c.nrow, c.tile) : 0;
    if (!s->out[2]) pool_run(x->pool, c.ntiles, ce_tile, &c);
    else if (!c.ntiles && !accumulates(s, 2)) pool_run(x->pool, tiles(c.V, SLICE), zero_piece, &c);
    for (; s->out[2] && c.first < c.ntiles; c.first += slots) {
        c.end = min64(c.first + slots, c.ntiles);
        pool_run(x->pool, c.end - c.first, ce_tile, &c);
        pool_run(x->pool, tiles(c.V, SLICE), dw_slice, &c);
    }
    struct tally sum = {0, 0};
    for (int64_t t = 0; t < c.ntiles; t++) {
        sum.loss += c.tally[t].loss;
        sum.hits += c.tally[t].hits;
    }
    put(s, 0, (double)c.weight * sum.loss);
    put(s, 3, sum.hits);
    return 0;
}

/* ---- CE: of given logits ---- */

struct plain_ce {
    const struct step *s;
    int64_t N, V;
    int64_t row_floats;  /* of a thread's row */
    float weight;
    struct tally *tally; /* [tiles(N, TILE)] */
};

static void plain_tile(void *ctx, int64_t task, int thread)
{
    const struct plain_ce *c = ctx;
    const struct step *s = c->s;
    const int32_t *target = s->in[1];
    bool gradient = s->out[1], add = accumulates(s, 1);
    size_t bytes = (size_t)c->V * sizeof(float);
    struct tally sum = {0, 0};
    for (int64_t n = task * TILE; n < min64((task + 1) * TILE, c->N); n++) {
        float *d = gradient ? (float *)s->out[1] + n * c->V : NULL;
        float *row = gradient && !add ? d : (float *)s->ws + thread * c->row_floats;
        if (target[n] < 0) {
            if (gradient && !add) memset(d, 0, bytes);
            continue;
        }
        memcpy(row, (const float *)s->in[0] + n * c->V, bytes);
        ce_row(row, c->V, target[n], c->weight, gradient, &sum);
        for (int64_t i = 0; gradient && add && i < c->V; i++) d[i] += row[i];
    }
    c->tally[task] = sum;
}

int cpu_ce(const struct step *s, struct exec *x, struct err *e)
{
    const int32_t *target = s->in[1];
    struct plain_ce c = {.s = s, .N = s->tin[0]->shape[0], .V = s->tin[0]->shape[1],
                         .weight = *(const float *)s->in[2]};
    c.row_floats = tiles(c.V, 64) * 64;
    c.tally = (struct tally *)((float *)s->ws + pool_threads(x->pool) * c.row_floats);
    for (int64_t n = 0; n < c.N; n++)
        if (target[n] >= c.V)
            return err_set(e, E_RANGE, "target %d is outside the %lld classes", (int)target[n],
                           (long long)c.V);
    pool_run(x->pool, tiles(c.N, TILE), plain_tile, &c);
    struct tally sum = {0, 0};
    for (int64_t t = 0; t < tiles(c.N, TILE); t++) {
        sum.loss += c.tally[t].loss;
        sum.hits += c.tally[t].hits;
    }
    put(s, 0, (double)c.weight * sum.loss);
    put(s, 2, sum.hits);
    return 0;
}
