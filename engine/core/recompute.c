#include "engine/core/recompute.h"

#include "engine/base/arena.h"
#include "engine/base/mem.h"
#include "engine/op/op.h"

#include <string.h>

const char *const recompute_names[RECOMPUTE_COUNT] = {"none", "cheap", "block"};

struct pass {
    const struct tape *t;
    struct tape *to;
    enum recompute policy;
    struct arena scratch;
    bool *read;    /* [tensors] per root: the backward pass reads it */
    bool *state;   /* [tensors] per root: some node updates it */
    bool *dropped; /* [tensors] per root: is not kept for the backward pass */
    bool *again;   /* [nodes] may run a second time */
    bool *due;     /* [nodes] about to */
    int *second;   /* [tensors] id after the second run, or -1 */
};

static bool forward(const struct node *n)
{
    return n->phase == PHASE_STEP && !n->backward;
}

static const struct node *maker(const struct pass *g, int root)
{
    int at = root < 0 ? -1 : g->t->tensors[root].producer;
    return at < 0 ? NULL : &g->t->nodes[at];
}

/* ---- what is kept -------------------------------------------------------------------------- */

static void mark_uses(struct pass *g)
{
    for (int i = 0; i < g->t->nnodes; i++) {
        const struct node *n = &g->t->nodes[i];
        for (int k = 0; k < n->nin; k++)
            if (n->in[k] >= 0 && n->backward) g->read[tape_root(g->t, n->in[k])] = true;
        if (op_table[n->op].flags & F_STATE && n->phase == PHASE_STEP)
            g->state[tape_root(g->t, n->in[op_table[n->op].inplace])] = true;
    }
}

/* Whether a second run costs no memory: what it reads is persistent, or read by the backward pass
 * for its own sake, or comes from such a second run. */
static bool there(const struct pass *g, int root)
{
    const struct tensor *x = &g->t->tensors[root];
    return x->param || x->flags & TENSOR_INPUT || g->read[root] ||
           (x->producer >= 0 && g->again[x->producer]);
}

static bool may_run_again(const struct pass *g, const struct node *n)
{
    unsigned flags = op_table[n->op].flags;
    if (!forward(n) || !n->segment || flags & F_STATE) return false;
    if (g->policy == RECOMPUTE_CHEAP && !(flags & F_CHEAP)) return false;
    for (int k = 0; k < n->nin; k++) {
        int x = tape_root(g->t, n->in[k]);
        if (x >= 0 && (g->state[x] || (g->policy == RECOMPUTE_CHEAP && !there(g, x))))
            return false;
    }
    for (int k = 0; k < n->nout; k++) {
        int y = tape_root(g->t, n->out[k]);
        if (y >= 0 && (g->t->tensors[y].param || y != n->out[k])) return false;
    }
    return true;
}

static void choose(struct pass *g)
{
    for (int i = 0; i < g->t->nnodes; i++) {
        const struct node *n = &g->t->nodes[i];
        g->again[i] = may_run_again(g, n);
        for (int k = 0; k < n->nout && g->again[i]; k++)
            if (n->out[k] >= 0)
                g->dropped[n->out[k]] = !(g->t->tensors[n->out[k]].flags & TENSOR_OUTPUT);
    }
    /* What leaves its segment stays: it is what the next one starts from. */
    for (int i = 0; i < g->t->nnodes; i++) {
        const struct node *n = &g->t->nodes[i];
        for (int k = 0; k < n->nin && !n->backward; k++) {
            int x = tape_root(g->t, n->in[k]);
            const struct node *from = maker(g, x);
            if (from && from->segment != n->segment) g->dropped[x] = false;
        }
    }
}

/* ---- the new tape -------------------------------------------------------------------------- */

static int add_tensor(struct pass *g, struct tensor x)
{
    g->to->tensors[g->to->ntensors] = x;
    return g->to->ntensors++;
}

/* The id that stands for x in the backward pass. */
static int second(struct pass *g, int x)
{
    int root = tape_root(g->t, x);
    if (root < 0 || !g->dropped[root]) return x;
    if (g->second[x] < 0) { /* a view of what has run already */
        struct tensor view = g->t->tensors[x];
        view.view_of = g->second[root];
        view.producer = g->to->tensors[view.view_of].producer;
        g->second[x] = add_tensor(g, view);
    }
    return g->second[x];
}

static void add_node(struct pass *g, struct node n)
{
    g->to->nodes[g->to->nnodes++] = n;
}

static void run_again(struct pass *g, int index)
{
    struct node n = g->t->nodes[index];
    n.backward = true;
    for (int k = 0; k < n.nin; k++) n.in[k] = second(g, n.in[k]);
    for (int k = 0; k < n.nout; k++) {
        if (n.out[k] < 0) continue;
        struct tensor y = g->t->tensors[n.out[k]];
        y.flags = 0;
        y.producer = g->to->nnodes;
        n.out[k] = g->second[n.out[k]] = add_tensor(g, y);
    }
    add_node(g, n);
}

/* Runs again whatever of its segment the value of `root` needs and has not run yet. */
static void provide(struct pass *g, int root)
{
    const struct tape *t = g->t;
    if (root < 0 || !g->dropped[root] || g->second[root] >= 0) return;
    int last = t->tensors[root].producer, first = last;
    g->due[last] = true;
    for (int i = last; i >= 0 && t->nodes[i].segment == t->nodes[last].segment; i--) {
        if (!g->due[i]) continue;
        first = i;
        for (int k = 0; k < t->nodes[i].nin; k++) {
            int x = tape_root(t, t->nodes[i].in[k]);
            if (x >= 0 && g->dropped[x] && g->second[x] < 0) g->due[t->tensors[x].producer] = true;
        }
    }
    for (int i = first; i <= last; i++) {
        if (g->due[i]) run_again(g, i);
        g->due[i] = false;
    }
}

static void rewrite(struct pass *g)
{
    const struct tape *t = g->t;
    for (int i = 0; i < t->nnodes; i++) {
        struct node n = t->nodes[i];
        for (int k = 0; k < n.nin && n.backward; k++) {
            provide(g, tape_root(t, n.in[k]));
            n.in[k] = second(g, n.in[k]);
        }
        for (int k = 0; k < n.nout; k++)
            if (n.out[k] >= 0 && t->tensors[n.out[k]].producer == i)
                g->to->tensors[n.out[k]].producer = g->to->nnodes;
        add_node(g, n);
    }
}

/* A copy without nodes, with room for a second run of everything. */
static struct tape *begin(const struct tape *t, struct err *e)
{
    struct tape *to = tape_new(e);
    if (!to) return NULL;
    to->cap_nodes = 2 * t->nnodes;
    to->cap_tensors = 2 * t->ntensors;
    to->nodes = mem_array(to->cap_nodes, sizeof *to->nodes, e);
    to->tensors = mem_array(to->cap_tensors, sizeof *to->tensors, e);
    if (!to->nodes || !to->tensors) {
        tape_free(to);
        return NULL;
    }
    to->ntensors = t->ntensors;
    to->nsegments = t->nsegments;
    to->compute = t->compute;
    for (int i = 0; i < t->ntensors; i++) {
        to->tensors[i] = t->tensors[i];
        if (t->tensors[i].param == &t->one) to->tensors[i].param = &to->one;
    }
    return to;
}

struct tape *recompute_tape(const struct tape *t, enum recompute policy, struct err *e)
{
    size_t tensors = (size_t)t->ntensors, nodes = (size_t)t->nnodes;
    struct pass g = {.t = t, .policy = policy};
    if (tape_ok(t, e) || !(g.to = begin(t, e))) return NULL;
    arena_init(&g.scratch, (size_t)1 << 30);
    g.read = arena_alloc(&g.scratch, tensors * sizeof *g.read, e);
    g.state = arena_alloc(&g.scratch, tensors * sizeof *g.state, e);
    g.dropped = arena_alloc(&g.scratch, tensors * sizeof *g.dropped, e);
    g.again = arena_alloc(&g.scratch, nodes * sizeof *g.again, e);
    g.due = arena_alloc(&g.scratch, nodes * sizeof *g.due, e);
    g.second = arena_alloc(&g.scratch, tensors * sizeof *g.second, e);
    if (g.read && g.state && g.dropped && g.again && g.due && g.second) {
        for (size_t i = 0; i < tensors; i++) g.second[i] = -1;
        mark_uses(&g);
        if (policy != RECOMPUTE_NONE) choose(&g);
        rewrite(&g);
    } else {
        tape_free(g.to);
        g.to = NULL;
    }
    arena_clear(&g.scratch);
    return g.to;
}
