/* RoBERTa as a classifier of sequences: every token sees all tokens of its row, the class is read
 * off the first. A checkpoint of another head gets a fresh classifier. */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/model/parts.h"

#include <math.h>
#include <stdio.h>

enum { Q, K, V, O, UP, DOWN, SITES };
enum { CLASSES_MAX = 1 << 20 };

struct config {
    int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
    int64_t max_position_embeddings, vocab_size, type_vocab_size, pad_token_id, num_labels;
    double eps;
    enum act_kind act;
};

struct block {
    struct parts_affine attn_norm, ffn_norm;
    int site; /* index of its first site; they follow as in the enum */
};

struct layout {
    struct config cfg;
    struct param *words, *places, *types;
    struct parts_affine norm, dense, classes; /* the last two: weight and bias of the head */
    struct block blocks[];
};

static int count_labels(struct config *c, const json_t *o, struct err *e)
{
    json_t *names;
    int64_t said = 0;
    c->num_labels = 2; /* transformers' default */
    if (jx_opt_int64(o, "num_labels", 1, CLASSES_MAX, &said, e)) return -1;
    if (hfconfig_given(o, "id2label")) {
        if (jx_object(o, "id2label", &names, e)) return -1;
        c->num_labels = (int64_t)json_object_size(names);
        if (c->num_labels < 1 || c->num_labels > CLASSES_MAX)
            return hfconfig_wrong(e, "id2label", "must hold at least one label");
        if (said && said != c->num_labels)
            return hfconfig_wrong(e, "num_labels", "contradicts 'id2label'");
    } else if (said) {
        c->num_labels = said;
    }
    return 0;
}

static int check_options(const json_t *o, struct err *e)
{
    static const char *const off[] = {"add_cross_attention", "is_decoder", NULL};
    const char *positions = "absolute", *problem = "single_label_classification";
    if (hfconfig_refuse(o, off, e) || jx_opt_str(o, "position_embedding_type", &positions, e) ||
        jx_opt_str(o, "problem_type", &problem, e))
        return -1;
    if (!str_eq(positions, "absolute"))
        return hfconfig_unsupported(e, "position_embedding_type", "must be 'absolute'");
    if (!str_eq(problem, "single_label_classification"))
        return hfconfig_unsupported(e, "problem_type", "must be 'single_label_classification'");
    return 0;
}

static int read_config(struct config *c, struct model *m, struct err *e)
{
    static const struct hf_number numbers[] = {
        {"hidden_size", offsetof(struct config, hidden_size), 1, 1 << 17, HF_REQUIRED},
        {"intermediate_size", offsetof(struct config, intermediate_size), 1, 1 << 20,
         HF_REQUIRED},
        {"num_hidden_layers", offsetof(struct config, num_hidden_layers), 1, 1024, HF_REQUIRED},
        {"num_attention_heads", offsetof(struct config, num_attention_heads), 1, 1024,
         HF_REQUIRED},
        {"max_position_embeddings", offsetof(struct config, max_position_embeddings), 1, 1 << 26,
         HF_REQUIRED},
        {"vocab_size", offsetof(struct config, vocab_size), 1, 1 << 22, HF_REQUIRED},
        {"type_vocab_size", offsetof(struct config, type_vocab_size), 1, 1 << 16, 2},
        {"pad_token_id", offsetof(struct config, pad_token_id), 0, 1 << 22, 1},
    };
    const json_t *o = m->cfg.json;
    *c = (struct config){.eps = 1e-12, .act = ACT_GELU};
    if (hfconfig_numbers(o, numbers, sizeof numbers / sizeof *numbers, c, e) ||
        jx_opt_real(o, "layer_norm_eps", 0, 1, &c->eps, e) ||
        jx_opt_real(o, "initializer_range", 0, 10, &m->init_std, e) ||
        parts_activation(o, "hidden_act", &c->act, e) || check_options(o, e) ||
        count_labels(c, o, e))
        return -1;
    if (m->labels) c->num_labels = m->labels;
    if (c->hidden_size % c->num_attention_heads)
        return hfconfig_wrong(e, "num_attention_heads", "must divide 'hidden_size'");
    if (c->pad_token_id + 1 >= c->max_position_embeddings)
        return hfconfig_wrong(e, "max_position_embeddings", "must exceed 'pad_token_id' + 1:"
                              " positions count from there");
    return 0;
}

static int load_block(struct model *m, const struct config *c, struct block *b, int64_t i,
                      struct err *e)
{
    int64_t C = c->hidden_size, F = c->intermediate_size;
    const struct {
        const char *name;
        int64_t in, out;
    } sites[SITES] = {[Q] = {"attention.self.query", C, C},
                      [K] = {"attention.self.key", C, C},
                      [V] = {"attention.self.value", C, C},
                      [O] = {"attention.output.dense", C, C},
                      [UP] = {"intermediate.dense", C, F},
                      [DOWN] = {"output.dense", F, C}};
    char name[SITE_PATH];
    b->site = m->nsites;
    for (int k = 0; k < SITES; k++) {
        snprintf(name, sizeof name, "roberta.encoder.layer.%lld.%s", (long long)i, sites[k].name);
        if (!model_site(m, name, sites[k].in, sites[k].out, SITE_BIAS, e)) return -1;
    }
    snprintf(name, sizeof name, "roberta.encoder.layer.%lld.attention.output.LayerNorm",
             (long long)i);
    if (parts_norm_load(m, name, C, &b->attn_norm, e)) return -1;
    snprintf(name, sizeof name, "roberta.encoder.layer.%lld.output.LayerNorm", (long long)i);
    return parts_norm_load(m, name, C, &b->ffn_norm, e);
}

static int load_head(struct model *m, struct layout *y, struct err *e)
{
    const struct config *c = &y->cfg;
    int64_t dense[2] = {c->hidden_size, c->hidden_size};
    int64_t classes[2] = {c->num_labels, c->hidden_size};
    y->dense.w = model_fresh(m, "classifier.dense.weight", 2, dense, e);
    if (!y->dense.w || !(y->dense.b = model_fresh(m, "classifier.dense.bias", 1, dense, e)))
        return -1;
    y->classes.w = model_fresh(m, "classifier.out_proj.weight", 2, classes, e);
    if (!y->classes.w) return -1;
    y->classes.b = model_fresh(m, "classifier.out_proj.bias", 1, classes, e);
    return y->classes.b ? 0 : -1;
}

static int roberta_load(struct model *m, struct err *e)
{
    struct config c;
    if (read_config(&c, m, e)) return -1;
    int64_t C = c.hidden_size;
    struct layout *y =
        mem_zalloc(sizeof *y + (size_t)c.num_hidden_layers * sizeof *y->blocks, e);
    if (!y) return -1;
    m->layout = y;
    y->cfg = c;
    m->first_place = c.pad_token_id + 1;
    m->max_length = c.max_position_embeddings - m->first_place;
    const struct {
        const char *name;
        int64_t rows;
        struct param **out;
    } tables[] = {
        {"roberta.embeddings.word_embeddings.weight", c.vocab_size, &y->words},
        {"roberta.embeddings.position_embeddings.weight", c.max_position_embeddings, &y->places},
        {"roberta.embeddings.token_type_embeddings.weight", c.type_vocab_size, &y->types},
    };
    for (int k = 0; k < 3; k++)
        if (!(*tables[k].out =
                  model_tensor(m, tables[k].name, 2, (int64_t[]){tables[k].rows, C}, e)))
            return -1;
    if (parts_norm_load(m, "roberta.embeddings.LayerNorm", C, &y->norm, e)) return -1;
    for (int64_t i = 0; i < c.num_hidden_layers; i++)
        if (load_block(m, &c, &y->blocks[i], i, e)) return -1;
    return load_head(m, y, e);
}

static void roberta_fill(struct model *m)
{
    const struct layout *y = m->layout;
    parts_zero_row(y->words, y->cfg.pad_token_id);
    parts_zero_row(y->places, y->cfg.pad_token_id);
}

static int block(const struct pass *p, const struct layout *y, int64_t i, int x)
{
    const struct config *c = &y->cfg;
    const struct block *b = &y->blocks[i];
    struct site *s = p->m->sites + b->site;
    int64_t H = c->num_attention_heads, D = c->hidden_size / H;
    const struct parts_heads heads = {.count = H, .width = D, .scale = 1 / sqrt((double)D),
                                      .layer = i, .range = p->io->range};
    int qkv[3];
    tape_segment_begin(p->t);
    for (int k = 0; k < 3; k++) qkv[k] = parts_split(p, site_apply(p->t, s + k, x, -1), H, D);
    x = site_apply(p->t, s + O, parts_attn(p, &heads, qkv[0], qkv[1], qkv[2]), x);
    x = parts_norm(p, x, &b->attn_norm, c->eps);
    int h = op_act(p->t, site_apply(p->t, s + UP, x, -1), c->act);
    x = parts_norm(p, site_apply(p->t, s + DOWN, h, x), &b->ffn_norm, c->eps);
    tape_segment_end(p->t);
    return x;
}

static int linear(struct tape *t, int x, const struct parts_affine *l)
{
    return op_linear(t, x, tape_param(t, l->w, SLOT_DATA), tape_param(t, l->b, SLOT_DATA), -1, 1);
}

static void roberta_record(struct model *m, struct tape *t, const struct model_shape *s,
                           struct model_io *io)
{
    const struct layout *y = m->layout;
    const struct pass p = {.m = m, .t = t, .s = s, .io = io};
    int64_t B = s->B, N = B * s->T, C = y->cfg.hidden_size;
    parts_text_inputs(&p, true);
    io->types = tape_input(t, "types", DT_I32, 1, &N);
    int types = op_embed(t, io->types, tape_param(t, y->types, SLOT_DATA));
    int x = op_add(t, parts_embed(&p, y->words, y->places), types);
    x = parts_norm(&p, x, &y->norm, y->cfg.eps);
    for (int64_t i = 0; i < y->cfg.num_hidden_layers; i++) x = block(&p, y, i, x);
    /* The first token of each row is the first C columns of all its tokens. */
    x = tape_reshape(t, x, 2, (int64_t[]){B, s->T * C});
    x = op_act(t, linear(t, op_slice(t, x, 0, C), &y->dense), ACT_TANH);
    parts_class_head(&p, linear(t, x, &y->classes));
}

/* Heads of other tasks, and tables. */
static const char *const ignored[] = {"lm_head.*", "roberta.pooler.*", "pooler.*",
                                      "*embeddings.position_ids",
                                      "*embeddings.token_type_ids", NULL};

const struct arch arch_roberta = {
    .model_type = "roberta",
    .task = &task_seq_cls,
    .architectures = (const char *const[]){"RobertaForSequenceClassification",
                                           "RobertaForMaskedLM", "RobertaModel", NULL},
    .prefix = "roberta.",
    .ignored = ignored,
    .load = roberta_load,
    .fill = roberta_fill,
    .record = roberta_record,
};
