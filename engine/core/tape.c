#include "engine/core/tape.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/op/op.h"

#include <stdio.h>
#include <string.h>

/* Far above any model; a bound all the same, so that a wrong builder ends in a message. */
enum { TAPE_MAX = 1 << 20 };

static const float one = 1.0f;

struct tape *tape_new(struct err *e)
{
    struct tape *t = mem_zalloc(sizeof *t, e);
    if (!t) return NULL;
    t->one = (struct param){.name = "one", .kind = PARAM_FROZEN, .rank = 1, .shape = {1},
                            .count = 1, .source = &one, .data = (void *)(uintptr_t)&one};
    return t;
}

void tape_free(struct tape *t)
{
    if (!t) return;
    mem_free(t->nodes);
    mem_free(t->tensors);
    mem_free(t);
}

int tape_ok(const struct tape *t, struct err *e)
{
    if (!t->err.code) return 0;
    *e = t->err;
    return -1;
}

int tape_root(const struct tape *t, int x)
{
    return x >= 0 && t->tensors[x].view_of >= 0 ? t->tensors[x].view_of : x;
}

const char *tape_text(const struct tensor *x, char out[TENSOR_TEXT])
{
    int n = snprintf(out, TENSOR_TEXT, "%s", x ? dtype_name(x->dtype) : "none");
    if (!x) return out;
    for (int i = 0; i < x->rank; i++)
        n += snprintf(out + n, (size_t)(TENSOR_TEXT - n), "%c%lld", i ? ',' : '[',
                      (long long)x->shape[i]);
    snprintf(out + n, (size_t)(TENSOR_TEXT - n), x->rank ? "]" : "[]");
    return out;
}

/* The first tensor among ids that stands for a parameter's array, or NULL. */
static const struct tensor *first_param(const struct tape *t, const int *ids, int n)
{
    for (int i = 0; i < n; i++) {
        const struct tensor *x = ids[i] < 0 ? NULL : &t->tensors[tape_root(t, ids[i])];
        if (x && x->param && x->param != &t->one) return x;
    }
    return NULL;
}

const char *tape_where(const struct tape *t, int node, char out[NODE_TEXT])
{
    static const char *const slots[] = {"", "", "gradient of ", "mean of ", "square of "};
    const struct node *n = &t->nodes[node];
    const struct tensor *x = first_param(t, n->in, n->nin);
    if (!x) x = first_param(t, n->out, n->nout);
    int k = snprintf(out, NODE_TEXT, "%s (%s", op_table[n->op].name,
                     n->phase == PHASE_UPDATE ? "update"
                     : n->backward            ? "backward"
                                              : "forward");
    if (n->segment)
        k += snprintf(out + k, (size_t)(NODE_TEXT - k), ", block %d of %d", n->segment,
                      t->nsegments);
    if (x)
        k += snprintf(out + k, (size_t)(NODE_TEXT - k), ", %s%s", slots[x->slot], x->param->name);
    snprintf(out + k, (size_t)(NODE_TEXT - k), ")");
    return out;
}

/* *items has room for one more of `size` bytes afterwards. */
static int grow(struct tape *t, void **items, int n, int *cap, size_t size)
{
    if (n < *cap) return 0;
    if (n >= TAPE_MAX) return err_set(&t->err, E_LIMIT, "the model has more than %d operations", n);
    int want = *cap ? 2 * *cap : 64;
    void *p = mem_realloc(*items, (size_t)want * size, &t->err);
    if (!p) return -1;
    *items = p;
    *cap = want;
    return 0;
}

/* Appends a copy of x; checks and completes count. */
static int add_tensor(struct tape *t, struct tensor x)
{
    x.count = 1;
    for (int i = 0; i < x.rank; i++)
        if (!mul_ok(&x.count, x.count, x.shape[i]) || x.count > TENSOR_COUNT)
            return err_set(&t->err, E_LIMIT, "%s: dimension %d is %lld, which is impossible",
                           x.name, i, (long long)x.shape[i]);
    void *items = t->tensors;
    if (grow(t, &items, t->ntensors, &t->cap_tensors, sizeof x)) return -1;
    t->tensors = items;
    t->tensors[t->ntensors] = x;
    return t->ntensors++;
}

static bool valid(const struct tape *t, int x)
{
    return x >= 0 && x < t->ntensors;
}

/* A tensor of the caller's shape, without storage of its own yet. */
static int shaped(struct tape *t, const char *name, struct tensor x, int rank,
                  const int64_t *shape)
{
    if (rank < 0 || rank > TENSOR_RANK)
        return err_set(&t->err, E_ARG, "%s has %d dimensions; at most %d are possible", name,
                       rank, TENSOR_RANK);
    str_copy(x.name, sizeof x.name, name);
    x.rank = rank;
    memset(x.shape, 0, sizeof x.shape);
    if (rank) memcpy(x.shape, shape, (size_t)rank * sizeof *shape);
    return add_tensor(t, x);
}

int tape_input(struct tape *t, const char *name, enum dtype dtype, int rank,
               const int64_t *shape)
{
    if (t->err.code) return -1;
    struct tensor x = {.dtype = dtype, .flags = TENSOR_INPUT, .view_of = -1, .producer = -1};
    return shaped(t, name, x, rank, shape);
}

int tape_param(struct tape *t, struct param *p, enum param_slot slot)
{
    static const char *const prefix[] = {"", "", "grad ", "m ", "v "};
    char name[PARAM_NAME + 8];
    if (t->err.code) return -1;
    if (slot == SLOT_NONE || (slot != SLOT_DATA && p->kind != PARAM_TRAINABLE))
        return err_set(&t->err, E_BUG, "%s has no %s: it is not trainable", p->name,
                       slot == SLOT_NONE ? "such array" : prefix[slot]);
    for (int i = 0; i < t->ntensors; i++)
        if (t->tensors[i].param == p && t->tensors[i].slot == slot) return i;
    snprintf(name, sizeof name, "%s%s", prefix[slot], p->name);
    struct tensor x = {.dtype = slot == SLOT_DATA ? param_dtype(p) : DT_F32, .view_of = -1,
                       .producer = -1, .param = p, .slot = slot};
    return shaped(t, name, x, p->rank, p->shape);
}

int tape_one(struct tape *t)
{
    return tape_param(t, &t->one, SLOT_DATA);
}

int tape_reshape(struct tape *t, int x, int rank, const int64_t *shape)
{
    if (t->err.code) return -1;
    if (!valid(t, x)) return err_set(&t->err, E_BUG, "reshape: there is no tensor %d", x);
    struct tensor from = t->tensors[x], view = from;
    if (rank == from.rank && memcmp(shape, from.shape, (size_t)rank * sizeof *shape) == 0)
        return x;
    view.flags = 0;
    view.param = NULL;
    view.slot = SLOT_NONE;
    view.view_of = tape_root(t, x);
    int id = shaped(t, from.name, view, rank, shape);
    if (id < 0 || t->tensors[id].count == from.count) return id;
    char a[TENSOR_TEXT], b[TENSOR_TEXT];
    return err_set(&t->err, E_ARG, "reshape: %s %s cannot become %s: the element counts differ",
                   from.name, tape_text(&from, a), tape_text(&t->tensors[id], b));
}

void tape_output(struct tape *t, int x)
{
    if (t->err.code) return;
    if (!valid(t, x)) {
        err_set(&t->err, E_BUG, "output: there is no tensor %d", x);
        return;
    }
    t->tensors[tape_root(t, x)].flags |= TENSOR_OUTPUT;
}

void tape_name(struct tape *t, int x, const char *name)
{
    if (t->err.code || !valid(t, x)) return;
    str_copy(t->tensors[x].name, sizeof t->tensors[x].name, name);
}

void tape_segment_begin(struct tape *t)
{
    if (t->err.code) return;
    if (t->segment) err_set(&t->err, E_BUG, "segment %d was not ended", t->segment);
    t->segment = ++t->nsegments;
}

void tape_segment_end(struct tape *t)
{
    if (t->err.code) return;
    if (!t->segment) err_set(&t->err, E_BUG, "there is no segment to end");
    t->segment = 0;
}

void tape_set_phase(struct tape *t, enum phase p)
{
    t->phase = p;
}

/* "linear(F32[4,8], F32[3,9]): <what the rule said>" */
static int refuse(struct tape *t, const struct op_info *op, const struct tensor *const *in,
                  int nin)
{
    char text[320], one_in[TENSOR_TEXT];
    int n = snprintf(text, sizeof text, "%s(", op->name);
    for (int i = 0; i < nin && n < (int)sizeof text; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%s", i ? ", " : "",
                      tape_text(in[i], one_in));
    return err_wrap(&t->err, "%s)", text);
}

/* Checks the inputs' ids and presence; in receives pointers, NULL where left out. */
static int look_up(struct tape *t, const struct op_info *op, const int *ids, int nin,
                   const struct tensor **in)
{
    if (nin < op->least_in || nin > op->most_in)
        return err_set(&t->err, E_BUG, "%s takes %d to %d inputs, not %d", op->name,
                       op->least_in, op->most_in, nin);
    for (int i = 0; i < nin; i++) {
        if (!valid(t, ids[i]) && (ids[i] != -1 || i < op->least_in))
            return err_set(&t->err, E_BUG, "%s: input %d is no tensor (%d)", op->name, i, ids[i]);
        in[i] = ids[i] < 0 ? NULL : &t->tensors[ids[i]];
    }
    if (!(op->flags & F_STATE)) return 0;
    const struct tensor *state = &t->tensors[tape_root(t, ids[op->inplace])];
    if (state->param && state->param->kind == PARAM_FROZEN)
        return err_set(&t->err, E_BUG, "%s would write to %s, which is frozen", op->name,
                       state->name);
    return 0;
}

static int add_node(struct tape *t, const struct node *n)
{
    void *items = t->nodes;
    if (grow(t, &items, t->nnodes, &t->cap_nodes, sizeof *n)) return -1;
    t->nodes = items;
    t->nodes[t->nnodes++] = *n;
    return 0;
}

int tape_record(struct tape *t, int op, const void *attrs, size_t attr_bytes, const int *in,
                int nin, int *out)
{
    if (t->err.code) return -1;
    if (op < 0 || op >= OP_COUNT) return err_set(&t->err, E_BUG, "there is no operation %d", op);
    const struct op_info *info = &op_table[op];
    const struct tensor *tin[NODE_IN] = {0};
    struct tensor made[NODE_OUT] = {0};
    struct node n = {.op = op, .phase = t->phase, .nin = (uint8_t)nin, .nout = info->nout,
                     .segment = t->segment};
    if (attrs && attr_bytes != info->attr_bytes)
        return err_set(&t->err, E_BUG, "%s: attributes of %zu bytes", info->name, attr_bytes);
    if (attrs) memcpy(n.attrs, attrs, attr_bytes);
    if (look_up(t, info, in, nin, tin)) return -1;
    if (info->shape(n.attrs, tin, made, &t->err)) return refuse(t, info, tin, nin);
    for (int i = 0; i < NODE_IN; i++) n.in[i] = i < nin ? in[i] : -1;
    for (int i = 0; i < NODE_OUT; i++) n.out[i] = -1;
    for (int i = 0; i < info->nout; i++) {
        made[i].view_of = i == 0 && info->flags & F_STATE ? tape_root(t, in[info->inplace]) : -1;
        made[i].producer = t->nnodes;
        snprintf(made[i].name, sizeof made[i].name, i ? "%s.%d:%d" : "%s.%d", info->name,
                 t->nnodes, i);
        n.out[i] = add_tensor(t, made[i]);
        if (n.out[i] < 0) return -1;
    }
    if (add_node(t, &n)) return -1;
    if (out) memcpy(out, n.out, info->nout * sizeof *out);
    return n.out[0];
}
