/* The backward pass: tape_backward and tape_grad of tape.h.
 *
 * Nodes are visited last to first; each node's rule turns the cotangent of its output into
 * contributions to the gradients of its inputs. Invariants:
 *  (1) Gradients are kept per storage (root tensor): a contribution to a view is a view of it.
 *  (2) A rule may return an id that others hold too (ADD returns dy twice), so contributions are
 *      added into existing bytes only if these were written by this pass and are the pending
 *      gradient of exactly one tensor. Everyone who reads the old value was recorded before, and
 *      so runs before. Otherwise the sum is a new tensor.
 *  (3) A gradient is pending until its producer has been visited; then it is let go, unless the
 *      caller of tape_grad asked for it.
 */
#include "engine/core/tape.h"

#include "engine/base/mem.h"
#include "engine/op/op.h"

#include <string.h>

struct pass {
    struct tape *t;
    int nodes, tensors; /* sizes of the tape before this pass */
    bool to_slots;      /* gradients of trainable parameters go to their grad slots */
    bool *needs;        /* [tensors] per root: depends on something that wants a gradient */
    bool *keep;         /* [tensors] per root: invariant (3) */
    int *grads;         /* [tensors] per root: id of the pending gradient, or -1 */
};

static void pass_clear(struct pass *g)
{
    mem_free(g->needs);
    mem_free(g->keep);
    mem_free(g->grads);
}

static int pass_init(struct pass *g, struct tape *t, bool to_slots, struct err *e)
{
    *g = (struct pass){.t = t, .nodes = t->nnodes, .tensors = t->ntensors, .to_slots = to_slots};
    g->needs = mem_array(t->ntensors, sizeof *g->needs, e);
    g->keep = mem_array(t->ntensors, sizeof *g->keep, e);
    g->grads = mem_array(t->ntensors, sizeof *g->grads, e);
    if (!g->needs || !g->keep || !g->grads) return -1;
    for (int i = 0; i < t->ntensors; i++) g->grads[i] = -1;
    return 0;
}

static bool trains(const struct tensor *x)
{
    return x->slot == SLOT_DATA && x->param->kind == PARAM_TRAINABLE;
}

/* From the tensors already marked forward to everything computed from them. */
static void spread_needs(struct pass *g)
{
    for (int i = 0; i < g->nodes; i++) {
        const struct node *n = &g->t->nodes[i];
        bool any = false;
        for (int k = 0; k < n->nin; k++)
            any = any || (n->in[k] >= 0 && g->needs[tape_root(g->t, n->in[k])]);
        for (int k = 0; k < n->nout && any; k++) g->needs[tape_root(g->t, n->out[k])] = true;
    }
}

static int like(struct tape *t, int x, int shape_of)
{
    struct tensor s = t->tensors[shape_of];
    return tape_reshape(t, x, s.rank, s.shape);
}

/* Invariant (2). */
static bool owned(const struct pass *g, int grad)
{
    int root = tape_root(g->t, grad), holders = 0;
    if (g->t->tensors[root].producer < g->nodes) return false;
    for (int i = 0; i < g->tensors; i++)
        holders += g->grads[i] >= 0 && tape_root(g->t, g->grads[i]) == root;
    return holders == 1;
}

/* Whether the node that makes c can write into target instead: nobody else uses c, and target is
 * there by then (a sum of the same rule's other contributions comes later). `from`: the first node
 * that may be changed; din: all contributions of the rule that made c. */
static bool movable(const struct pass *g, int c, int from, const int *din, int target)
{
    const struct tape *t = g->t;
    int made_by = t->tensors[c].producer, uses = 0;
    if (t->tensors[c].view_of >= 0 || made_by < from) return false;
    if (t->tensors[tape_root(t, target)].producer >= made_by) return false;
    const struct node *maker = &t->nodes[made_by];
    if (!(op_table[maker->op].flags & F_ACCUM)) return false;
    for (int i = 0; i < NODE_IN; i++) uses += din[i] >= 0 && tape_root(t, din[i]) == c;
    for (int i = made_by + 1; i < t->nnodes; i++)
        for (int k = 0; k < t->nodes[i].nin; k++)
            uses += tape_root(t, t->nodes[i].in[k]) == c;
    return uses == 1;
}

/* The node that makes c writes into target from now on. */
static void move(struct pass *g, int c, int target, bool accum)
{
    struct tape *t = g->t;
    int to = like(t, target, c);
    if (to < 0) return;
    struct node *maker = &t->nodes[t->tensors[c].producer];
    for (int k = 0; k < maker->nout; k++) {
        if (maker->out[k] != c) continue;
        maker->out[k] = to;
        if (accum) maker->accum |= (uint8_t)(1u << k);
    }
    t->tensors[c].producer = -1;
}

/* A parameter's gradient has storage of its own. accum bits of its writers are set by settle(),
 * because LINEAR_CE writes long before the backward nodes. */
static void into_slot(struct pass *g, int x, int c, int from, const int *din)
{
    struct tape *t = g->t;
    int slot = tape_param(t, t->tensors[x].param, SLOT_GRAD);
    if (slot < 0) return;
    if (!movable(g, c, from, din, slot)) {
        int copy[NODE_IN] = {op_scale(t, c, -1, 1.0f), -1, -1, -1, -1, -1, -1, -1};
        c = copy[0];
        if (c < 0 || !movable(g, c, t->nnodes - 1, copy, slot)) return;
    }
    move(g, c, slot, false);
}

static void into_pending(struct pass *g, int x, int c, int from, const int *din)
{
    struct tape *t = g->t;
    int old = g->grads[x];
    if (old < 0) {
        g->grads[x] = like(t, c, x);
    } else if (owned(g, old) && movable(g, c, from, din, old)) {
        move(g, c, old, true);
    } else {
        g->grads[x] = op_add(t, old, like(t, c, x));
    }
}

static int check_rule(struct pass *g, const struct node *n, const int *dout)
{
    struct err *e = &g->t->err;
    const struct op_info *op = &op_table[n->op];
    if (!op->grad) return err_set(e, E_UNSUPPORTED, "%s has no gradient", op->name);
    for (int k = 1; k < n->nout; k++)
        if (dout[k] >= 0)
            return err_set(e, E_UNSUPPORTED, "%s: no gradient flows through output %d", op->name,
                           k);
    return 0;
}

static int visit(struct pass *g, int index)
{
    struct tape *t = g->t;
    const struct node n = t->nodes[index]; /* a copy: recording moves the array */
    int dout[NODE_OUT] = {-1, -1, -1, -1}, din[NODE_IN], from = t->nnodes;
    bool want[NODE_IN] = {0}, asked = false, any = false;
    for (int k = 0; k < n.nout; k++) {
        int d = g->grads[tape_root(t, n.out[k])];
        if (d >= 0) dout[k] = like(t, d, n.out[k]);
        asked = asked || d >= 0;
    }
    for (int k = 0; k < NODE_IN; k++) {
        din[k] = -1;
        want[k] = n.in[k] >= 0 && g->needs[tape_root(t, n.in[k])];
        any = any || want[k];
    }
    if (!asked || !any) return 0;
    if (check_rule(g, &n, dout)) return -1;
    t->phase = n.phase;
    t->segment = n.segment;
    op_table[n.op].grad(t, &n, dout, want, din);
    for (int k = 0; k < n.nin && !t->err.code; k++) {
        if (!want[k]) continue;
        int x = tape_root(t, n.in[k]);
        if (din[k] < 0) {
            err_set(&t->err, E_UNSUPPORTED, "%s has no gradient for input %d (%s)",
                    op_table[n.op].name, k, t->tensors[x].name);
        } else if (g->to_slots && trains(&t->tensors[x])) {
            /* LINEAR_CE's own output may move too: it makes dw while running forward. */
            int first = t->tensors[din[k]].producer == index ? index : from;
            into_slot(g, x, din[k], first, din);
        } else {
            into_pending(g, x, din[k], from, din);
        }
    }
    for (int k = 0; k < n.nout; k++) {
        int y = tape_root(t, n.out[k]);
        if (!g->keep[y]) g->grads[y] = -1;
    }
    for (int i = from; i < t->nnodes; i++) t->nodes[i].backward = true;
    return t->err.code ? -1 : 0;
}

static int visit_all(struct pass *g, int y, int dy)
{
    struct tape *t = g->t;
    enum phase phase = t->phase;
    int segment = t->segment;
    g->grads[tape_root(t, y)] = like(t, dy, tape_root(t, y));
    for (int i = g->nodes - 1; i >= 0 && !t->err.code; i--) visit(g, i);
    t->phase = phase;
    t->segment = segment;
    return t->err.code ? -1 : 0;
}

/* Writers of a grad slot in execution order: the first overwrites in the first micro-batch. */
static int settle(struct tape *t, struct err *e)
{
    bool *written = mem_array(t->ntensors, sizeof *written, e);
    if (!written) return -1;
    for (int i = 0; i < t->nnodes; i++) {
        struct node *n = &t->nodes[i];
        for (int k = 0; k < n->nout; k++) {
            int slot = tape_root(t, n->out[k]);
            if (slot < 0 || t->tensors[slot].slot != SLOT_GRAD) continue;
            uint8_t bit = (uint8_t)(1u << k);
            if (written[slot]) n->accum |= bit;
            else n->accum_later |= bit;
            written[slot] = true;
        }
    }
    mem_free(written);
    return 0;
}

static bool has_backward(const struct tape *t)
{
    for (int i = 0; i < t->nnodes; i++)
        for (int k = 0; k < t->nodes[i].nout; k++)
            if (t->tensors[tape_root(t, t->nodes[i].out[k])].slot == SLOT_GRAD) return true;
    return false;
}

/* A failure inside sticks to the tape like any other. */
static int finish(struct tape *t, struct pass *g, int rc, struct err *e)
{
    pass_clear(g);
    if (t->err.code) *e = t->err;
    else if (rc) t->err = *e;
    return t->err.code ? -1 : 0;
}

static int backward(struct pass *g, int loss, struct err *e)
{
    struct tape *t = g->t;
    for (int i = 0; i < g->tensors; i++)
        g->needs[i] = trains(&t->tensors[i]);
    spread_needs(g);
    if (!g->needs[tape_root(t, loss)])
        return err_set(e, E_ARG, "the loss does not depend on any trainable parameter");
    if (visit_all(g, loss, tape_one(t))) return -1;
    return settle(t, e);
}

int tape_backward(struct tape *t, int loss, struct err *e)
{
    struct pass g;
    if (tape_ok(t, e)) return -1;
    if (loss < 0 || loss >= t->ntensors || t->tensors[loss].dtype != DT_F32 ||
        t->tensors[loss].rank != 1 || t->tensors[loss].count != 1)
        return err_set(e, E_BUG, "a loss is one f32 number");
    if (has_backward(t)) return err_set(e, E_BUG, "the tape has a backward pass already");
    int rc = pass_init(&g, t, true, e);
    if (!rc) rc = backward(&g, loss, e);
    return finish(t, &g, rc, e);
}

static int check_grad(const struct tape *t, int y, int dy, const int *x, int nx, struct err *e)
{
    char a[TENSOR_TEXT], b[TENSOR_TEXT];
    bool ok = y >= 0 && y < t->ntensors && dy >= 0 && dy < t->ntensors;
    for (int i = 0; i < nx; i++) ok = ok && x[i] >= 0 && x[i] < t->ntensors;
    if (!ok) return err_set(e, E_BUG, "a gradient is asked of a tensor that does not exist");
    const struct tensor *ty = &t->tensors[y], *td = &t->tensors[dy];
    if (td->dtype == ty->dtype && td->dtype != DT_I32 && td->rank == ty->rank &&
        memcmp(td->shape, ty->shape, sizeof td->shape) == 0)
        return 0;
    return err_set(e, E_BUG, "the cotangent %s does not fit %s", tape_text(td, a),
                   tape_text(ty, b));
}

int tape_grad(struct tape *t, int y, int dy, const int *x, int nx, int *dx, struct err *e)
{
    struct pass g;
    if (tape_ok(t, e) || check_grad(t, y, dy, x, nx, e)) return -1;
    int rc = pass_init(&g, t, false, e);
    if (!rc) {
        for (int i = 0; i < nx; i++)
            g.needs[tape_root(t, x[i])] = g.keep[tape_root(t, x[i])] = true;
        spread_needs(&g);
        rc = visit_all(&g, y, dy);
    }
    for (int i = 0; i < nx && !rc; i++) {
        int d = g.grads[tape_root(t, x[i])];
        dx[i] = d < 0 ? -1 : like(t, d, x[i]);
    }
    return finish(t, &g, rc, e);
}
