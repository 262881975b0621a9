#include "engine/model/parts.h"

#include "engine/base/jx.h"

#include <stdio.h>
#include <string.h>

void parts_text_inputs(const struct pass *p, bool places)
{
    int64_t B = p->s->B, T = p->s->T, N = B * T;
    p->io->ids = tape_input(p->t, "ids", DT_I32, 1, &N);
    p->io->pos = tape_input(p->t, "pos", DT_I32, 2, (int64_t[]){B, T});
    p->io->range = tape_input(p->t, "range", DT_I32, 3, (int64_t[]){B, T, 2});
    if (places) p->io->place = tape_input(p->t, "place", DT_I32, 1, &N);
}

static int data(const struct pass *p, const struct param *w)
{
    return tape_param(p->t, (struct param *)w, SLOT_DATA);
}

int parts_embed(const struct pass *p, const struct param *words, const struct param *places)
{
    int x = op_embed(p->t, p->io->ids, data(p, words));
    return op_add(p->t, x, op_embed(p->t, p->io->place, data(p, places)));
}

static void record_loss(const struct pass *p, int64_t targets)
{
    static const int64_t one = 1;
    p->io->target = tape_input(p->t, "target", DT_I32, 1, &targets);
    p->io->weight = tape_input(p->t, "weight", DT_F32, 1, &one);
}

static void loss_outputs(const struct pass *p)
{
    tape_output(p->t, p->io->loss);
    tape_output(p->t, p->io->hits);
}

void parts_lm_head(const struct pass *p, int x, struct param *head)
{
    struct model_io *io = p->io;
    if (p->s->rows) {
        io->idx = tape_input(p->t, "idx", DT_I32, 1, &p->s->rows);
        io->logits = op_linear(p->t, op_rows(p->t, x, io->idx), data(p, head), -1, -1, 1.0f);
        tape_output(p->t, io->logits);
        return;
    }
    record_loss(p, p->s->B * p->s->T);
    io->loss = op_linear_ce(p->t, x, data(p, head), io->target, io->weight, &io->hits);
    loss_outputs(p);
}

void parts_class_head(const struct pass *p, int logits)
{
    struct model_io *io = p->io;
    if (p->s->rows) {
        io->logits = logits;
        tape_output(p->t, logits);
        return;
    }
    record_loss(p, p->s->B);
    io->loss = op_ce(p->t, logits, io->target, io->weight, &io->hits);
    loss_outputs(p);
}

int parts_norm_load(struct model *m, const char *path, int64_t n, struct parts_affine *out,
                    struct err *e)
{
    char name[PARAM_NAME];
    snprintf(name, sizeof name, "%s.weight", path);
    if (!(out->w = model_tensor(m, name, 1, &n, e))) return -1;
    snprintf(name, sizeof name, "%s.bias", path);
    return (out->b = model_tensor(m, name, 1, &n, e)) ? 0 : -1;
}

int parts_norm(const struct pass *p, int x, const struct parts_affine *n, double eps)
{
    return op_layernorm(p->t, x, data(p, n->w), data(p, n->b), (float)eps);
}

int parts_split(const struct pass *p, int x, int64_t count, int64_t width)
{
    return tape_reshape(p->t, x, 4, (int64_t[]){p->s->B, p->s->T, count, width});
}

int parts_attn(const struct pass *p, const struct parts_heads *h, int q, int k, int v)
{
    int64_t N = p->s->B * p->s->T;
    if (p->s->cache) {
        struct param **kv = p->s->cache->params.items + 2 * h->layer;
        k = op_kv_store(p->t, data(p, kv[0]), k, p->io->pos);
        v = op_kv_store(p->t, data(p, kv[1]), v, p->io->pos);
    }
    int o = op_attn(p->t, q, k, v, h->range, (float)h->scale);
    return tape_reshape(p->t, o, 2, (int64_t[]){N, h->count * h->width});
}

int parts_activation(const json_t *o, const char *key, enum act_kind *kind, struct err *e)
{
    static const struct {
        const char *name;
        enum act_kind kind;
    } names[] = {
        {"gelu", ACT_GELU},           {"gelu_new", ACT_GELU_TANH},
        {"gelu_fast", ACT_GELU_TANH}, {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"quick_gelu", ACT_QUICK_GELU}, {"relu", ACT_RELU},
        {"silu", ACT_SILU},           {"swish", ACT_SILU},
        {"tanh", ACT_TANH},
    };
    const char *name = NULL;
    if (jx_opt_str(o, key, &name, e)) return -1;
    if (!name) return 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].name, name) != 0) continue;
        *kind = names[i].kind;
        return 0;
    }
    return hfconfig_unsupported(e, key, "must be gelu, gelu_new, gelu_fast, gelu_pytorch_tanh,"
                                " quick_gelu, relu, silu or tanh");
}

void parts_zero_row(const struct param *table, int64_t row)
{
    int64_t rows = table->shape[0], width = table->count / rows;
    if (table->source || row < 0 || row >= rows) return;
    memset((float *)table->data + row * width, 0, (size_t)width * sizeof(float));
}
