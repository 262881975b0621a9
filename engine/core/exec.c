#include "engine/core/exec.h"

#include "engine/base/mem.h"
#include "engine/op/op.h"

#include <math.h>
#include <string.h>

enum { ALIGN = 256 };

struct exec *exec_new(const char *device, const op_run_fn *table, int threads, struct err *e)
{
    struct exec *x = mem_zalloc(sizeof *x, e);
    if (!x) return NULL;
    x->device = device;
    x->table = table;
    x->dtypes = 1u << DT_F32;
    x->pool = pool_new(threads, e);
    if (!x->pool) {
        mem_free(x);
        return NULL;
    }
    return x;
}

static void unbind(struct exec *x)
{
    mem_free(x->steps);
    x->steps = NULL;
    x->plan = NULL;
}

void exec_free(struct exec *x)
{
    if (!x) return;
    unbind(x);
    mem_free(x->buffer);
    pool_free(x->pool);
    mem_free(x);
}

static void *param_array(const struct tensor *x)
{
    switch (x->slot) {
    case SLOT_DATA: return x->param->data;
    case SLOT_GRAD: return x->param->grad;
    case SLOT_M: return x->param->m;
    case SLOT_V: return x->param->v;
    case SLOT_NONE: break;
    }
    return NULL;
}

/* Where tensor `id` of plan p lies; NULL: nowhere, because nobody needs it. */
static void *address(const struct exec *x, const struct plan *p, int id)
{
    int root = tape_root(p->tape, id);
    if (root < 0) return NULL;
    const struct tensor *t = &p->tape->tensors[root];
    if (t->param) return param_array(t);
    int64_t offset = p->places[root].offset;
    return offset < 0 ? NULL : (char *)x->buffer + offset;
}

/* The old buffer goes first: its contents are worth nothing and both may not fit. */
static int grow_buffer(struct exec *x, int64_t bytes, struct err *e)
{
    if (bytes <= x->buffer_bytes) return 0;
    mem_free(x->buffer);
    x->buffer_bytes = 0;
    x->buffer = mem_aligned((size_t)bytes, ALIGN, e);
    if (!x->buffer) return err_wrap(e, "the step buffer");
    x->buffer_bytes = bytes;
    return 0;
}

static int resolve(const struct exec *x, const struct plan *p, int index, struct step *s,
                   struct err *e)
{
    const struct plan_step *from = &p->steps[index];
    const struct tensor *tensors = p->tape->tensors;
    const struct node *n = &p->tape->nodes[from->node];
    const char *name = op_table[n->op].name;
    if (!x->table[n->op])
        return err_set(e, E_UNSUPPORTED, "%s cannot be computed on %s", name, x->device);
    s->attrs = n->attrs;
    for (int k = 0; k < n->nin; k++) {
        if (n->in[k] < 0) continue;
        s->tin[k] = &tensors[n->in[k]];
        s->in[k] = address(x, p, n->in[k]);
        if (!s->in[k])
            return err_set(e, E_BUG, "%s reads %s, which has no storage yet", name,
                           s->tin[k]->name);
    }
    for (int k = 0; k < n->nout; k++) {
        if (n->out[k] < 0) continue;
        s->out[k] = address(x, p, n->out[k]);
        s->tout[k] = s->out[k] ? &tensors[n->out[k]] : NULL;
        if (!s->out[k] && tensors[tape_root(p->tape, n->out[k])].param)
            return err_set(e, E_BUG, "%s writes %s, which has no storage yet", name,
                           tensors[n->out[k]].name);
    }
    enum dtype compute = op_compute(n->op, s->tin, s->tout);
    if (!(x->dtypes >> compute & 1))
        return err_set(e, E_UNSUPPORTED, "%s has no %s kernel for %s", name, x->device,
                       dtype_name(compute));
    s->ws = from->ws_offset < 0 ? NULL : (char *)x->buffer + from->ws_offset;
    s->ws_bytes = from->ws_bytes;
    return 0;
}

int exec_bind(struct exec *x, const struct plan *p, struct err *e)
{
    unbind(x);
    if (pool_threads(x->pool) > p->threads)
        return err_set(e, E_BUG, "a plan for %d threads cannot run on %d", p->threads,
                       pool_threads(x->pool));
    if (grow_buffer(x, p->report.step_bytes, e)) return -1;
    x->steps = mem_array(p->nsteps, sizeof *x->steps, e);
    if (!x->steps) return -1;
    for (int i = 0; i < p->nsteps; i++) {
        if (resolve(x, p, i, &x->steps[i], e)) {
            unbind(x);
            return -1;
        }
    }
    x->plan = p;
    return 0;
}

/* The tensor, after checking that it exists and has `bytes` bytes. */
static const struct tensor *transfer(const struct exec *x, int id, size_t bytes, struct err *e)
{
    const struct tape *t = x->plan ? x->plan->tape : NULL;
    if (!t || id < 0 || id >= t->ntensors) {
        err_set(e, E_BUG, "there is no tensor %d in the bound plan", id);
        return NULL;
    }
    const struct tensor *tensor = &t->tensors[id];
    size_t size = (size_t)tensor->count * dtype_size(tensor->dtype);
    if (bytes == size) return tensor;
    err_set(e, E_BUG, "%s has %zu bytes, not %zu", tensor->name, size, bytes);
    return NULL;
}

int exec_write(struct exec *x, int tensor, const void *from, size_t bytes, struct err *e)
{
    const struct tensor *t = transfer(x, tensor, bytes, e);
    if (!t) return -1;
    int root = tape_root(x->plan->tape, tensor);
    const struct tensor *owner = &x->plan->tape->tensors[root];
    if (owner->param ? owner->param->kind == PARAM_FROZEN : !(owner->flags & TENSOR_INPUT))
        return err_set(e, E_BUG, "%s is not for the host to write", t->name);
    void *to = address(x, x->plan, tensor);
    if (!to && owner->param) return err_set(e, E_BUG, "%s has no storage yet", t->name);
    if (to && bytes) memcpy(to, from, bytes);
    return 0;
}

int exec_read(struct exec *x, int tensor, void *to, size_t bytes, struct err *e)
{
    const struct tensor *t = transfer(x, tensor, bytes, e);
    if (!t) return -1;
    const struct tensor *owner = &x->plan->tape->tensors[tape_root(x->plan->tape, tensor)];
    const void *from = address(x, x->plan, tensor);
    if (!from || (!owner->param && !(owner->flags & TENSOR_OUTPUT)))
        return err_set(e, E_BUG, "%s is not kept for the host to read", t->name);
    if (bytes) memcpy(to, from, bytes);
    return 0;
}

static void fill_nan(void *p, int64_t bytes)
{
    const uint32_t signalling = 0x7fa00000u;
    for (int64_t i = 0; i + 4 <= bytes; i += 4) memcpy((char *)p + i, &signalling, 4);
}

/* Whatever the step must overwrite: its workspace, and outputs that are neither added to nor
 * share bytes with an input. */
static void poison(const struct step *s)
{
    if (s->ws) fill_nan(s->ws, s->ws_bytes);
    for (int k = 0; k < NODE_OUT; k++) {
        bool keep = !s->out[k] || s->accum >> k & 1;
        for (int i = 0; i < NODE_IN; i++) keep = keep || s->in[i] == s->out[k];
        if (keep) continue;
        fill_nan(s->out[k], s->tout[k]->count * (int64_t)dtype_size(s->tout[k]->dtype));
    }
}

static int check_output(const struct step *s, int k, bool neginf, const char *op, int node,
                        struct err *e)
{
    const struct tensor *t = s->tout[k];
    const float *y = s->out[k];
    if (!y || t->dtype != DT_F32) return 0;
    for (int64_t i = 0; i < t->count; i++) {
        if (isfinite(y[i]) || (neginf && y[i] == -INFINITY)) continue;
        return err_set(e, E_NUMERIC, "%s (node %d) gave %g at element %lld of %s", op, node,
                       (double)y[i], (long long)i, t->name);
    }
    return 0;
}

static int check_step(const struct exec *x, int index, struct err *e)
{
    int node = x->plan->steps[index].node;
    const struct op_info *op = &op_table[x->plan->tape->nodes[node].op];
    for (int k = 0; k < NODE_OUT; k++)
        if (check_output(&x->steps[index], k, op->flags & F_NEGINF, op->name, node, e))
            return -1;
    return 0;
}

int exec_run(struct exec *x, enum phase phase, int micro, struct err *e)
{
    if (!x->plan) return err_set(e, E_BUG, "no plan is bound");
    for (int i = 0; i < x->plan->nsteps; i++) {
        struct step *s = &x->steps[i];
        if (x->plan->steps[i].phase != phase) continue;
        const struct node *n = &x->plan->tape->nodes[x->plan->steps[i].node];
        s->accum = n->accum | (micro > 0 ? n->accum_later : 0u);
        if (x->poison) poison(s);
        if (x->table[n->op](s, x, e))
            return err_wrap(e, "%s (node %d)", op_table[n->op].name, x->plan->steps[i].node);
        if (x->check && check_step(x, i, e)) return -1;
    }
    return 0;
}
