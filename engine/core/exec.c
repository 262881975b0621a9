#include "engine/core/exec.h"

#include "engine/base/mem.h"
#include "engine/core/mirror.h"
#include "engine/op/op.h"

#include <math.h>
#include <string.h>

enum { ALIGN = 256 };

struct exec *exec_new(const struct device *d, int threads, struct err *e)
{
    struct exec *x = mem_zalloc(sizeof *x, e);
    if (!x) return NULL;
    x->device = d;
    x->pool = pool_new(threads, e);
    x->mirrors = mirrors_new(e);
    if (x->pool && x->mirrors) return x;
    pool_free(x->pool);
    mem_free(x->mirrors);
    mem_free(x);
    return NULL;
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
    exec_release(x, x->buffer);
    mirrors_free(x);
    if (x->device->ops) x->device->ops->close(x);
    mem_free(x->state);
    pool_free(x->pool);
    mem_free(x);
}

/* ---- memory -------------------------------------------------------------------------------- */

int exec_alloc(struct exec *x, size_t bytes, void **p, struct err *e)
{
    if (x->device->ops) return x->device->ops->alloc(x, bytes, p, e);
    void *new = mem_aligned(bytes ? bytes : 1, ALIGN, e);
    if (new) *p = new;
    return new ? 0 : -1;
}

void exec_release(struct exec *x, void *p)
{
    if (x->device->ops) x->device->ops->free(x, p);
    else mem_free(p);
}

int exec_put(struct exec *x, void *to, const void *from, size_t bytes, struct err *e)
{
    if (!bytes) return 0;
    if (x->device->ops) return x->device->ops->write(x, to, from, bytes, e);
    memcpy(to, from, bytes);
    return 0;
}

int exec_get(struct exec *x, void *to, const void *from, size_t bytes, struct err *e)
{
    if (!bytes) return 0;
    if (x->device->ops) return x->device->ops->read(x, to, from, bytes, e);
    memcpy(to, from, bytes);
    return 0;
}

/* ---- bind ---------------------------------------------------------------------------------- */

/* Where a tensor of plan p lies that is no parameter; NULL: nowhere, because nobody needs it. */
static void *planned_address(const struct exec *x, const struct plan *p, int root)
{
    int64_t offset = p->places[root].offset;
    return offset < 0 ? NULL : (char *)x->buffer + offset;
}

/* The same for any tensor. */
static int address(struct exec *x, const struct plan *p, int id, void **at, struct err *e)
{
    int root = tape_root(p->tape, id);
    const struct tensor *t = &p->tape->tensors[root];
    if (t->param) return mirror_find(x, t->param, t->slot, at, e);
    *at = planned_address(x, p, root);
    return 0;
}

/* The old buffer goes first: its contents are worth nothing and both may not fit. */
static int grow_buffer(struct exec *x, int64_t bytes, struct err *e)
{
    void *buffer;
    if (bytes <= x->buffer_bytes) return 0;
    exec_release(x, x->buffer);
    x->buffer = NULL;
    x->buffer_bytes = 0;
    if (exec_alloc(x, (size_t)bytes, &buffer, e)) return err_wrap(e, "the step buffer");
    x->buffer = buffer;
    x->buffer_bytes = bytes;
    return 0;
}

static int resolve_input(struct exec *x, const struct plan *p, const struct node *n, int k,
                         struct step *s, struct err *e)
{
    void *at;
    if (n->in[k] < 0) return 0;
    s->tin[k] = &p->tape->tensors[n->in[k]];
    if (address(x, p, n->in[k], &at, e)) return -1;
    s->in[k] = at;
    if (at) return 0;
    return err_set(e, E_BUG, "%s reads %s, which has no storage yet", op_table[n->op].name,
                   s->tin[k]->name);
}

static int resolve_output(struct exec *x, const struct plan *p, const struct node *n, int k,
                          struct step *s, struct err *e)
{
    if (n->out[k] < 0) return 0;
    if (address(x, p, n->out[k], &s->out[k], e)) return -1;
    s->tout[k] = s->out[k] ? &p->tape->tensors[n->out[k]] : NULL;
    if (s->out[k] || !p->tape->tensors[tape_root(p->tape, n->out[k])].param) return 0;
    return err_set(e, E_BUG, "%s writes %s, which has no storage yet", op_table[n->op].name,
                   p->tape->tensors[n->out[k]].name);
}

static int resolve(struct exec *x, const struct plan *p, int index, struct step *s, struct err *e)
{
    const struct plan_step *from = &p->steps[index];
    const struct node *n = &p->tape->nodes[from->node];
    if (!x->device->table[n->op])
        return err_set(e, E_UNSUPPORTED, "%s cannot be computed on %s", op_table[n->op].name,
                       x->device->name);
    s->attrs = n->attrs;
    for (int k = 0; k < n->nin; k++)
        if (resolve_input(x, p, n, k, s, e)) return -1;
    for (int k = 0; k < n->nout; k++)
        if (resolve_output(x, p, n, k, s, e)) return -1;
    enum dtype compute = op_compute(n->op, s->tin, s->tout);
    if (compute != DT_F32 && !(x->device->dtypes >> compute & 1))
        return err_set(e, E_UNSUPPORTED, "%s has no %s kernel for %s", op_table[n->op].name,
                       x->device->name, dtype_name(compute));
    s->ws = from->ws_offset < 0 ? NULL : (char *)x->buffer + from->ws_offset;
    s->ws_bytes = from->ws_bytes;
    return 0;
}

static uint64_t mix(uint64_t h, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (; bytes; p += 8) {
        uint64_t word = 0;
        size_t n = bytes < 8 ? bytes : 8;
        memcpy(&word, p, n);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
        bytes -= n;
    }
    return h;
}

static uint64_t mix_tensor(uint64_t h, const struct tensor *t)
{
    if (!t) return mix(h, "", 1);
    h = mix(h, &t->dtype, sizeof t->dtype);
    h = mix(h, &t->rank, sizeof t->rank);
    return mix(h, t->shape, (size_t)t->rank * sizeof *t->shape);
}

/* Of all that the steps of the bound plan do but the contents of memory: two plans with the same
 * hash do the same, whatever became of the first. */
static uint64_t hash_steps(const struct exec *x, const struct plan *p)
{
    uint64_t h = 0x243F6A8885A308D3u;
    for (int i = 0; i < p->nsteps; i++) {
        const struct step *s = &x->steps[i];
        const struct node *n = &p->tape->nodes[p->steps[i].node];
        const int what[] = {n->op, (int)n->phase, n->accum, n->accum_later};
        h = mix(h, what, sizeof what);
        h = mix(h, n->attrs, op_table[n->op].attr_bytes);
        h = mix(h, s->in, sizeof s->in);
        h = mix(h, s->out, sizeof s->out);
        h = mix(h, &s->ws, sizeof s->ws);
        for (int k = 0; k < NODE_IN; k++) h = mix_tensor(h, s->tin[k]);
        for (int k = 0; k < NODE_OUT; k++) h = mix_tensor(h, s->tout[k]);
    }
    return h;
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
    x->hash = x->device->ops ? hash_steps(x, p) : 0;
    return 0;
}

/* The tensor, after checking that it exists. */
static const struct tensor *transfer(const struct exec *x, int id, struct err *e)
{
    const struct tape *t = x->plan ? x->plan->tape : NULL;
    if (t && id >= 0 && id < t->ntensors) return &t->tensors[id];
    err_set(e, E_BUG, "there is no tensor %d in the bound plan", id);
    return NULL;
}

static size_t tensor_bytes(const struct tensor *t)
{
    return (size_t)t->count * dtype_size(t->dtype);
}

static int wrong_size(const struct tensor *t, size_t bytes, struct err *e)
{
    return err_set(e, E_BUG, "%s has %zu bytes, not %zu", t->name, tensor_bytes(t), bytes);
}

int exec_write(struct exec *x, int tensor, const void *from, size_t bytes, struct err *e)
{
    const struct tensor *t = transfer(x, tensor, e);
    if (!t) return -1;
    if (bytes != tensor_bytes(t)) return wrong_size(t, bytes, e);
    int root = tape_root(x->plan->tape, tensor);
    const struct tensor *owner = &x->plan->tape->tensors[root];
    if (owner->param ? owner->param->kind == PARAM_FROZEN : !(owner->flags & TENSOR_INPUT))
        return err_set(e, E_BUG, "%s is not for the host to write", t->name);
    void *to;
    if (address(x, x->plan, tensor, &to, e)) return -1;
    if (!to && owner->param) return err_set(e, E_BUG, "%s has no storage yet", t->name);
    return to ? exec_put(x, to, from, bytes, e) : 0;
}

/* n floats from the n bf16 that lie in the upper half of their place. */
static void widen(void *place, int64_t n)
{
    char *p = place;
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, p + 2 * (n + i), sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(p + 4 * i, &bits, sizeof bits);
    }
}

int exec_read(struct exec *x, int tensor, void *to, size_t bytes, struct err *e)
{
    const struct tensor *t = transfer(x, tensor, e);
    if (!t) return -1;
    size_t size = tensor_bytes(t);
    bool wide = t->dtype == DT_BF16 && bytes == 2 * size;
    if (bytes != size && !wide) return wrong_size(t, bytes, e);
    const struct tensor *owner = &x->plan->tape->tensors[tape_root(x->plan->tape, tensor)];
    void *from;
    if (address(x, x->plan, tensor, &from, e)) return -1;
    if (!from || (!owner->param && !(owner->flags & TENSOR_OUTPUT)))
        return err_set(e, E_BUG, "%s is not kept for the host to read", t->name);
    if (exec_get(x, (char *)to + (wide ? size : 0), from, size, e)) return -1;
    if (wide) widen(to, t->count);
    return 0;
}

/* ---- run ----------------------------------------------------------------------------------- */

/* A signalling NaN as f32, and as two of bf16. */
static int fill_nan(struct exec *x, void *p, int64_t bytes, struct err *e)
{
    const uint32_t signalling = 0x7fa07fa0u;
    if (x->device->ops) return x->device->ops->fill(x, p, (size_t)bytes, e);
    for (int64_t i = 0; i < bytes; i += 4)
        memcpy((char *)p + i, &signalling, (size_t)(bytes - i < 4 ? bytes - i : 4));
    return 0;
}

/* Whatever the step must overwrite: its workspace, and outputs that are neither added to nor
 * share bytes with an input. */
static int poison(struct exec *x, const struct step *s, struct err *e)
{
    if (s->ws && fill_nan(x, s->ws, s->ws_bytes, e)) return -1;
    for (int k = 0; k < NODE_OUT; k++) {
        bool keep = !s->out[k] || s->accum >> k & 1;
        for (int i = 0; i < NODE_IN; i++) keep = keep || s->in[i] == s->out[k];
        int64_t size = keep ? 0 : (int64_t)dtype_size(s->tout[k]->dtype);
        if (!keep && fill_nan(x, s->out[k], s->tout[k]->count * size, e)) return -1;
    }
    return 0;
}

/* The first element that should not be, -1: none. */
static int inspect(struct exec *x, const void *p, const struct tensor *t, bool neginf, int64_t *at,
                   struct err *e)
{
    const float *y = p;
    *at = -1;
    if (t->dtype != DT_F32 && t->dtype != DT_BF16) return 0;
    if (x->device->ops) return x->device->ops->inspect(x, p, t, neginf, at, e);
    for (int64_t i = 0; i < t->count && *at < 0 && t->dtype == DT_F32; i++)
        if (!isfinite(y[i]) && !(neginf && y[i] == -INFINITY)) *at = i;
    return 0;
}

static float value_at(struct exec *x, const void *p, enum dtype type, int64_t at)
{
    unsigned char raw[4] = {0};
    struct err ignored = ERR_INIT;
    float v;
    size_t size = dtype_size(type);
    /* A bf16 is the upper half of a float. */
    exec_get(x, raw + 4 - size, (const char *)p + (size_t)at * size, size, &ignored);
    memcpy(&v, raw, sizeof v);
    return v;
}

static int check_step(struct exec *x, int index, struct err *e)
{
    int node = x->plan->steps[index].node;
    const struct op_info *op = &op_table[x->plan->tape->nodes[node].op];
    const struct step *s = &x->steps[index];
    char where[NODE_TEXT];
    for (int k = 0; k < NODE_OUT; k++) {
        int64_t at = -1;
        if (!s->out[k]) continue;
        if (inspect(x, s->out[k], s->tout[k], op->flags & F_NEGINF, &at, e)) return -1;
        if (at < 0) continue;
        return err_set(e, E_NUMERIC, "%s gave %g at element %lld of %s",
                       tape_where(x->plan->tape, node, where),
                       (double)value_at(x, s->out[k], s->tout[k]->dtype, at), (long long)at,
                       s->tout[k]->name);
    }
    return 0;
}

static int run_step(struct exec *x, int index, int micro, struct err *e)
{
    const struct device *d = x->device;
    struct step *s = &x->steps[index];
    int node = x->plan->steps[index].node;
    const struct node *n = &x->plan->tape->nodes[node];
    char where[NODE_TEXT];
    s->accum = n->accum | (micro > 0 ? n->accum_later : 0u);
    if (x->poison && poison(x, s, e)) return -1;
    if (d->table[n->op](s, x, e) || (x->trace && d->ops && d->ops->sync(x, e)))
        return err_wrap(e, "%s", tape_where(x->plan->tape, node, where));
    return x->check ? check_step(x, index, e) : 0;
}

static int run_steps(struct exec *x, enum phase phase, int micro, struct err *e)
{
    for (int i = 0; i < x->plan->nsteps; i++)
        if (x->plan->steps[i].phase == phase && run_step(x, i, micro, e)) return -1;
    return 0;
}

int exec_run(struct exec *x, enum phase phase, int micro, struct err *e)
{
    static const char *const names[PHASE_COUNT] = {"forward and backward", "update"};
    const struct device_ops *ops = x->device->ops;
    const uint32_t what[] = {phase, micro > 0};
    bool alone = x->check || x->poison || x->trace, replayed = false;
    if (!x->plan) return err_set(e, E_BUG, "no plan is bound");
    if (!ops) return run_steps(x, phase, micro, e);
    uint64_t key = alone ? 0 : mix(x->hash, what, sizeof what) | 1;
    if (ops->begin(x, key, &replayed, e)) return err_wrap(e, "%s", names[phase]);
    if (replayed) return 0;
    int rc = run_steps(x, phase, micro, e);
    struct err late = ERR_INIT;
    if (ops->end(x, rc != 0, &late) && !rc) {
        *e = late;
        rc = err_wrap(e, "%s", names[phase]);
    }
    return rc;
}

int exec_call(struct exec *x, int op, const struct step *s, struct err *e)
{
    const struct device_ops *ops = x->device->ops;
    bool replayed = false;
    unbind(x);
    if (ops && ops->begin(x, 0, &replayed, e)) return -1;
    int rc = x->device->table[op](s, x, e);
    struct err late = ERR_INIT;
    if (ops && (ops->end(x, rc != 0, &late) || ops->sync(x, &late)) && !rc) {
        *e = late;
        rc = -1;
    }
    return rc;
}
