/* From a tape to placed steps; invariants (1)-(4) are in plan.h.
 *
 * Reading order of plan_make(): which nodes run (prune), when each tensor lives (live), which
 * outputs overlay a dying input (overlay), where every block of bytes lies (place), what it all
 * costs (report). A block is the storage of one tensor, or of several that overlay each other,
 * or one step's workspace. */
#include "engine/core/plan.h"

#include "engine/base/arena.h"
#include "engine/base/mem.h"
#include "engine/op/op.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 256 };

struct block {
    int64_t size, offset; /* size 0: no block */
    int first, last; /* steps, inclusive */
    int id;          /* tensor, or ntensors + step for a workspace: breaks ties */
};

struct work {
    const struct tape *t;
    struct plan *p;
    op_ws_fn ws;
    struct arena scratch;
    bool *need;           /* [tensors] per root: somebody reads it */
    int *home;            /* [tensors] per root: the tensor whose block it lies in */
    struct block *blocks; /* [tensors + steps] by id */
    struct block **row;   /* placed blocks by offset */
};

static int64_t aligned(int64_t bytes)
{
    return (bytes + ALIGN - 1) & ~(int64_t)(ALIGN - 1);
}

/* Never 0, so that an empty tensor has an address too. */
static int64_t block_bytes(const struct tensor *x)
{
    return aligned(x->count ? x->count * (int64_t)dtype_size(x->dtype) : 1);
}

static bool planned(const struct work *w, int root)
{
    return !w->t->tensors[root].param;
}

static const struct node *node_of(const struct work *w, int step)
{
    return &w->t->nodes[w->p->steps[step].node];
}

/* Whether output k of n has storage that this plan provides and somebody reads. */
static bool wanted(const struct work *w, const struct node *n, int k)
{
    return n->out[k] >= 0 && w->need[tape_root(w->t, n->out[k])];
}

/* ---- prune --------------------------------------------------------------------------------- */

static bool lives(const struct work *w, const struct node *n)
{
    if (op_table[n->op].flags & F_STATE) return true;
    for (int k = 0; k < n->nout; k++)
        if (wanted(w, n, k)) return true;
    return false;
}

/* Lists all nodes in execution order, then walks back from what must be: outputs, persistent
 * storage and state. */
static void prune(struct work *w)
{
    struct plan_step *steps = w->p->steps;
    int n = 0, kept;
    for (int phase = 0; phase < PHASE_COUNT; phase++)
        for (int i = 0; i < w->t->nnodes; i++)
            if ((int)w->t->nodes[i].phase == phase)
                steps[n++] = (struct plan_step){i, (enum phase)phase, -1, 0};
    for (int i = 0; i < w->t->ntensors; i++)
        w->need[i] = !planned(w, i) || w->t->tensors[i].flags & TENSOR_OUTPUT;
    kept = n;
    for (int i = n - 1; i >= 0; i--) {
        const struct node *node = node_of(w, i);
        if (!lives(w, node)) continue;
        for (int k = 0; k < node->nin; k++)
            if (node->in[k] >= 0) w->need[tape_root(w->t, node->in[k])] = true;
        steps[--kept] = steps[i];
    }
    w->p->nsteps = n - kept;
    memmove(steps, steps + kept, (size_t)w->p->nsteps * sizeof *steps);
}

/* ---- live ---------------------------------------------------------------------------------- */

static void touch(struct work *w, int root, int step)
{
    struct plan_place *x = &w->p->places[root];
    if (x->first < 0) x->first = w->t->tensors[root].flags & TENSOR_INPUT ? 0 : step;
    x->last = step;
}

static int read_inputs(struct work *w, int step, struct err *e)
{
    const struct node *n = node_of(w, step);
    for (int k = 0; k < n->nin; k++) {
        int x = tape_root(w->t, n->in[k]);
        if (x < 0 || !planned(w, x)) continue;
        if (w->p->places[x].first < 0 && !(w->t->tensors[x].flags & TENSOR_INPUT))
            return err_set(e, E_BUG, "%s reads %s before anything writes it",
                           op_table[n->op].name, w->t->tensors[x].name);
        touch(w, x, step);
    }
    return 0;
}

static int write_outputs(struct work *w, int step, struct err *e)
{
    const struct node *n = node_of(w, step);
    for (int k = 0; k < n->nout; k++) {
        int x = tape_root(w->t, n->out[k]);
        if (!wanted(w, n, k) || !planned(w, x)) continue;
        if (n->accum >> k & 1 && w->p->places[x].first < 0)
            return err_set(e, E_BUG, "%s adds to %s before anything writes it",
                           op_table[n->op].name, w->t->tensors[x].name);
        touch(w, x, step);
    }
    return 0;
}

/* Extends what the host reads to the end of the phase that touched it last. */
static void keep_outputs(struct work *w)
{
    int end[PHASE_COUNT] = {-1, -1};
    for (int i = 0; i < w->p->nsteps; i++) end[w->p->steps[i].phase] = i;
    for (int i = 0; i < w->t->ntensors; i++) {
        struct plan_place *x = &w->p->places[i];
        if (x->last >= 0 && w->t->tensors[i].flags & TENSOR_OUTPUT)
            x->last = end[w->p->steps[x->last].phase];
    }
}

static int live(struct work *w, struct err *e)
{
    for (int i = 0; i < w->t->ntensors; i++)
        w->p->places[i] = (struct plan_place){-1, -1, -1};
    for (int i = 0; i < w->p->nsteps; i++)
        if (read_inputs(w, i, e) || write_outputs(w, i, e)) return -1;
    keep_outputs(w);
    return 0;
}

/* ---- overlay ------------------------------------------------------------------------------- */

/* The input whose bytes output 0 of a step takes over, or -1. */
static int overlaid(const struct work *w, int step)
{
    const struct node *n = node_of(w, step);
    const struct op_info *op = &op_table[n->op];
    const struct plan_place *places = w->p->places;
    if (op->inplace < 0 || op->flags & F_STATE || !wanted(w, n, 0)) return -1;
    int x = tape_root(w->t, n->in[op->inplace]), y = tape_root(w->t, n->out[0]);
    if (x < 0 || !planned(w, x) || !planned(w, y)) return -1;
    if (w->t->tensors[x].flags & (TENSOR_INPUT | TENSOR_OUTPUT)) return -1;
    if (places[x].last != step || places[y].first != step || n->accum & 1) return -1;
    if (block_bytes(&w->t->tensors[x]) != block_bytes(&w->t->tensors[y])) return -1;
    for (int k = 0; k < n->nin; k++)
        if (k != op->inplace && tape_root(w->t, n->in[k]) == x) return -1;
    return x;
}

static void overlay(struct work *w)
{
    for (int i = 0; i < w->t->ntensors; i++) w->home[i] = i;
    for (int i = 0; i < w->p->nsteps; i++) {
        int x = overlaid(w, i);
        if (x >= 0) w->home[tape_root(w->t, node_of(w, i)->out[0])] = w->home[x];
    }
}

/* ---- place --------------------------------------------------------------------------------- */

static void step_cost(const struct plan *p, op_ws_fn ws, int step, struct op_cost *c)
{
    const struct tape *t = p->tape;
    const struct node *n = &t->nodes[p->steps[step].node];
    const struct tensor *in[NODE_IN] = {0}, *out[NODE_OUT] = {0};
    for (int k = 0; k < n->nin; k++)
        if (n->in[k] >= 0) in[k] = &t->tensors[n->in[k]];
    for (int k = 0; k < n->nout; k++) {
        int y = tape_root(t, n->out[k]);
        if (y >= 0 && (t->tensors[y].param || p->places[y].first >= 0))
            out[k] = &t->tensors[n->out[k]];
    }
    op_table[n->op].cost(n->attrs, in, out, p->threads, c);
    if (ws) c->ws_bytes = ws(n->op, n->attrs, in, out, c->ws_bytes);
}

/* Fills blocks[id] and counts costs on the way. */
static void make_blocks(struct work *w)
{
    struct plan_report *r = &w->p->report;
    for (int i = 0; i < w->t->ntensors; i++) {
        const struct plan_place *x = &w->p->places[i];
        struct block *b = &w->blocks[w->home[i]];
        if (x->first < 0) continue;
        if (w->home[i] == i)
            *b = (struct block){block_bytes(&w->t->tensors[i]), -1, x->first, x->last, i};
        else if (x->last > b->last)
            b->last = x->last;
    }
    for (int i = 0; i < w->p->nsteps; i++) {
        struct plan_step *s = &w->p->steps[i];
        struct op_cost c = {0};
        step_cost(w->p, w->ws, i, &c);
        r->flops[s->phase] += c.flops;
        r->traffic[s->phase] += c.bytes;
        s->ws_bytes = c.ws_bytes;
        int id = w->t->ntensors + i;
        w->blocks[id] = (struct block){aligned(c.ws_bytes), -1, i, i, id};
        if (c.ws_bytes > r->workspace_bytes) r->workspace_bytes = c.ws_bytes;
    }
}

static int by_size(const void *va, const void *vb)
{
    const struct block *a = *(struct block *const *)va, *b = *(struct block *const *)vb;
    if (a->size != b->size) return a->size < b->size ? 1 : -1;
    return a->id < b->id ? -1 : 1;
}

/* Puts b into the lowest gap that is free during its whole life, and into w->row by offset. */
static void place_block(struct work *w, struct block *b, int placed)
{
    int64_t at = 0;
    int i = 0;
    for (; i < placed; i++) {
        const struct block *other = w->row[i];
        if (other->last < b->first || b->last < other->first) continue;
        if (other->offset - at >= b->size) break;
        if (other->offset + other->size > at) at = other->offset + other->size;
    }
    b->offset = at;
    for (i = placed; i > 0 && w->row[i - 1]->offset > at; i--) w->row[i] = w->row[i - 1];
    w->row[i] = b;
    if (at + b->size > w->p->report.step_bytes) w->p->report.step_bytes = at + b->size;
}

static int place(struct work *w, struct err *e)
{
    int total = w->t->ntensors + w->p->nsteps, n = 0;
    struct block **order = arena_alloc(&w->scratch, (size_t)total * sizeof *order, e);
    int64_t *change = arena_alloc(&w->scratch, ((size_t)w->p->nsteps + 1) * sizeof *change, e);
    if (!order || !change) return -1;
    for (int i = 0; i < total; i++) {
        struct block *b = &w->blocks[i];
        if (b->size == 0) continue;
        order[n++] = b;
        change[b->first] += b->size;
        change[b->last + 1] -= b->size;
    }
    int64_t now = 0;
    for (int i = 0; i < w->p->nsteps; i++) {
        now += change[i];
        if (now > w->p->report.lower_bound) w->p->report.lower_bound = now;
    }
    qsort(order, (size_t)n, sizeof *order, by_size);
    for (int i = 0; i < n; i++) place_block(w, order[i], i);
    return 0;
}

static void note_places(struct work *w)
{
    for (int i = 0; i < w->t->ntensors; i++)
        if (w->p->places[i].first >= 0) w->p->places[i].offset = w->blocks[w->home[i]].offset;
    for (int i = 0; i < w->t->ntensors; i++)
        w->p->places[i] = w->p->places[tape_root(w->t, i)];
    for (int i = 0; i < w->p->nsteps; i++)
        if (w->p->steps[i].ws_bytes > 0)
            w->p->steps[i].ws_offset = w->blocks[w->t->ntensors + i].offset;
}

/* ---- report -------------------------------------------------------------------------------- */

/* A tape has one tensor per parameter and slot. */
static void count_params(struct work *w)
{
    struct plan_report *r = &w->p->report;
    for (int i = 0; i < w->t->ntensors; i++) {
        const struct tensor *x = &w->t->tensors[i];
        int64_t bytes = x->count * (int64_t)dtype_size(x->dtype);
        if (!x->param || x->param == &w->t->one) continue;
        if (x->slot == SLOT_GRAD) r->grad_bytes += bytes;
        else if (x->slot != SLOT_DATA) r->moment_bytes += bytes;
        else if (x->param->kind == PARAM_TRAINABLE) r->trainable_bytes += bytes;
        else r->weight_bytes += bytes;
    }
}

static int work_init(struct work *w, struct err *e)
{
    size_t tensors = (size_t)w->t->ntensors, blocks = tensors + (size_t)w->t->nnodes;
    arena_init(&w->scratch, (size_t)1 << 30);
    w->need = arena_alloc(&w->scratch, tensors * sizeof *w->need, e);
    w->home = arena_alloc(&w->scratch, tensors * sizeof *w->home, e);
    w->blocks = arena_alloc(&w->scratch, blocks * sizeof *w->blocks, e);
    w->row = arena_alloc(&w->scratch, blocks * sizeof *w->row, e);
    w->p->steps = mem_array(w->t->nnodes, sizeof *w->p->steps, e);
    w->p->places = mem_array(w->t->ntensors, sizeof *w->p->places, e);
    return w->need && w->home && w->blocks && w->row && w->p->steps && w->p->places ? 0 : -1;
}

struct plan *plan_make(const struct tape *t, const struct plan_options *o, struct err *e)
{
    struct work w = {.t = t, .ws = o->ws};
    int rc = -1;
    if (tape_ok(t, e)) return NULL;
    if (o->threads < 1 || o->threads > PLAN_THREADS) {
        err_set(e, E_RANGE, "a plan for %d threads; 1 to %d are possible", o->threads,
                PLAN_THREADS);
        return NULL;
    }
    w.p = mem_zalloc(sizeof *w.p, e);
    if (!w.p) return NULL;
    w.p->tape = t;
    w.p->threads = o->threads;
    if (work_init(&w, e)) goto out;
    prune(&w);
    if (live(&w, e)) goto out;
    overlay(&w);
    make_blocks(&w);
    if (place(&w, e)) goto out;
    note_places(&w);
    count_params(&w);
    rc = 0;
out:
    arena_clear(&w.scratch);
    if (rc) plan_free(w.p);
    return rc ? NULL : w.p;
}

void plan_free(struct plan *p)
{
    if (!p) return;
    mem_free(p->steps);
    mem_free(p->places);
    mem_free(p);
}

double plan_seconds(const struct plan *p, enum phase phase, const struct plan_rates *r)
{
    double sum = 0;
    for (int i = 0; i < p->nsteps; i++) {
        int op = p->tape->nodes[p->steps[i].node].op;
        struct op_cost c = {0};
        if (p->steps[i].phase != phase) continue;
        step_cost(p, NULL, i, &c);
        bool attention = op == OP_ATTN || op == OP_ATTN_BWD;
        double work = (double)c.flops / (attention ? r->attention : r->products);
        double moved = (double)c.bytes / r->bytes;
        sum += work > moved ? work : moved;
    }
    return sum;
}
