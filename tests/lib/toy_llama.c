#include "tests/lib/toy_llama.h"

#include "engine/op/op.h"

#include <math.h>
#include <stdio.h>

struct builder {
    struct toy_llama *m;
    const struct toy_config *c;
    struct tape *t;
    int layer;
    uint32_t salt;
    struct err *e;
};

static int64_t rows(const struct toy_config *c)
{
    return (int64_t)c->batch * c->time;
}

/* A weight of rank 1 (out = 0) or 2; -1 after a failure. */
static struct param *weight(struct builder *b, const char *name, bool trains, int64_t out,
                            int64_t in)
{
    char full[PARAM_NAME];
    const int64_t shape[] = {out ? out : in, in};
    snprintf(full, sizeof full, "layers.%d.%s", b->layer, name);
    return params_add(&b->m->params, full, trains ? PARAM_TRAINABLE : PARAM_FROZEN, out ? 2 : 1,
                      shape, b->e);
}

static int data(struct builder *b, struct param *p)
{
    return p ? tape_param(b->t, p, SLOT_DATA) : -1;
}

/* y = x w^T [+ add], with its adapter. */
static int linear(struct builder *b, const char *name, int x, int64_t out, int64_t in, int add)
{
    char part[64];
    int r = b->c->rank, w = data(b, weight(b, name, r == 0, out, in));
    int y = op_linear(b->t, x, w, -1, add, 1.0f);
    if (r == 0) return y;
    snprintf(part, sizeof part, "%s.lora_A", name);
    int low = op_dropout(b->t, x, b->c->dropout, ++b->salt);
    low = op_linear(b->t, low, data(b, weight(b, part, true, r, in)), -1, -1, 1.0f);
    snprintf(part, sizeof part, "%s.lora_B", name);
    return op_linear(b->t, low, data(b, weight(b, part, true, out, r)), -1, y, 2.0f);
}

static int norm(struct builder *b, const char *name, int x)
{
    return op_rmsnorm(b->t, x, data(b, weight(b, name, b->c->rank == 0, 0, b->c->width)), 1e-5f);
}

/* [N,H*D] -> rotated (unless it is v) -> [B,T,H,D] */
static int heads(struct builder *b, int x, int64_t n, bool rotate)
{
    const struct toy_config *c = b->c;
    int64_t d = c->width / c->heads;
    if (rotate) {
        x = tape_reshape(b->t, x, 3, (int64_t[]){rows(c), n, d});
        x = op_rope(b->t, x, b->m->pos, b->m->freq);
    }
    return tape_reshape(b->t, x, 4, (int64_t[]){c->batch, c->time, n, d});
}

static int block(struct builder *b, int x)
{
    const struct toy_config *c = b->c;
    int64_t C = c->width, D = C / c->heads, kv = c->kv_heads * D;
    tape_segment_begin(b->t);
    int h = norm(b, "input_norm", x);
    int q = heads(b, linear(b, "q", h, C, C, -1), c->heads, true);
    int k = heads(b, linear(b, "k", h, kv, C, -1), c->kv_heads, true);
    int v = heads(b, linear(b, "v", h, kv, C, -1), c->kv_heads, false);
    int o = op_attn(b->t, q, k, v, b->m->range, 1.0f / sqrtf((float)D));
    x = linear(b, "o", tape_reshape(b->t, o, 2, (int64_t[]){rows(c), C}), C, C, x);
    h = norm(b, "post_norm", x);
    int g = linear(b, "gate", h, c->ffn, C, -1), u = linear(b, "up", h, c->ffn, C, -1);
    x = linear(b, "down", op_swiglu(b->t, g, u), C, c->ffn, x);
    tape_segment_end(b->t);
    return x;
}

static void forward(struct builder *b)
{
    const struct toy_config *c = b->c;
    struct toy_llama *m = b->m;
    struct tape *t = b->t;
    int64_t n = rows(c);
    m->ids = tape_input(t, "ids", DT_I32, 1, &n);
    m->pos = tape_input(t, "pos", DT_I32, 1, &n);
    m->range = tape_input(t, "range", DT_I32, 3, (int64_t[]){c->batch, c->time, 2});
    m->target = tape_input(t, "target", DT_I32, 1, &n);
    m->weight = tape_input(t, "weight", DT_F32, 1, (int64_t[]){1});
    struct param *freq = params_add(&m->params, "freq", PARAM_STATE, 1,
                                    (int64_t[]){c->width / c->heads / 2}, b->e);
    m->freq = data(b, freq);
    b->layer = -1;
    struct param *table = weight(b, "embed", c->rank == 0, c->vocab, c->width);
    int x = op_embed(t, m->ids, data(b, table));
    for (b->layer = 0; b->layer < c->layers; b->layer++) x = block(b, x);
    x = norm(b, "norm", x);
    struct param *head = c->tied ? table : weight(b, "head", c->rank == 0, c->vocab, c->width);
    m->loss = op_linear_ce(t, x, data(b, head), m->target, m->weight, &m->hits);
    tape_output(t, m->loss);
    tape_output(t, m->hits);
}

static void update(struct builder *b)
{
    const struct attrs_adamw a = attrs_adamw(0.9, 0.999, 1e-8, 0);
    struct toy_llama *m = b->m;
    struct tape *t = b->t;
    tape_set_phase(t, PHASE_UPDATE);
    m->hyper = tape_input(t, "hyper", DT_F32, 1, (int64_t[]){8});
    m->acc = tape_input(t, "acc", DT_F32, 1, (int64_t[]){1});
    int acc = m->acc;
    for (int i = 0; i < m->params.n; i++)
        if (m->params.items[i]->kind == PARAM_TRAINABLE)
            acc = op_sumsq(t, tape_param(t, m->params.items[i], SLOT_GRAD), acc);
    int scale = op_clip(t, acc, 1.0f, &m->norm);
    tape_output(t, m->norm);
    for (int i = 0; i < m->params.n; i++)
        if (m->params.items[i]->kind == PARAM_TRAINABLE)
            op_adamw(t, m->params.items[i], m->hyper, scale, &a);
    tape_set_phase(t, PHASE_STEP);
}

int toy_llama_record(struct toy_llama *m, const struct toy_config *c, struct err *e)
{
    struct builder b = {.m = m, .c = c, .e = e};
    err_clear(e);
    *m = (struct toy_llama){.hyper = -1, .acc = -1, .norm = -1};
    params_init(&m->params);
    b.t = m->tape = tape_new(e);
    if (!b.t) return -1;
    forward(&b);
    if (!e->code && c->train && !tape_ok(b.t, e) && !tape_backward(b.t, m->loss, e)) update(&b);
    if (!e->code && !tape_ok(b.t, e)) return 0;
    toy_llama_clear(m);
    return -1;
}

void toy_llama_clear(struct toy_llama *m)
{
    tape_free(m->tape);
    params_clear(&m->params);
    m->tape = NULL;
}
