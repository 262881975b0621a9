/* GPT-2. Its linear layers are stored [in, out]; query, key and value are one of them. */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/model/parts.h"

#include <math.h>
#include <stdio.h>

enum { ATTN, PROJ, FC, OUT, SITES };

struct config {
    int64_t n_embd, n_layer, n_head, n_inner, n_positions, vocab_size;
    double eps;
    bool scale_by_width, scale_by_layer, tied;
    enum act_kind act;
};

struct block {
    struct parts_affine norm1, norm2;
    int site; /* index of its first site; they follow as in the enum */
};

struct layout {
    struct config cfg;
    struct param *words, *places, *head;
    struct parts_affine norm;
    struct block blocks[];
};

static int read_config(struct config *c, struct model *m, struct err *e)
{
    static const char *const off[] = {"add_cross_attention", NULL};
    static const struct hf_number numbers[] = {
        {"n_embd", offsetof(struct config, n_embd), 1, 1 << 17, HF_REQUIRED},
        {"n_layer", offsetof(struct config, n_layer), 1, 1024, HF_REQUIRED},
        {"n_head", offsetof(struct config, n_head), 1, 1024, HF_REQUIRED},
        {"n_positions", offsetof(struct config, n_positions), 1, 1 << 26, HF_REQUIRED},
        {"vocab_size", offsetof(struct config, vocab_size), 1, 1 << 22, HF_REQUIRED},
        {"n_inner", offsetof(struct config, n_inner), 1, 1 << 20, 0},
    };
    const json_t *o = m->cfg.json;
    *c = (struct config){.eps = 1e-5, .scale_by_width = true, .tied = true, .act = ACT_GELU_TANH};
    if (hfconfig_refuse(o, off, e) ||
        hfconfig_numbers(o, numbers, sizeof numbers / sizeof *numbers, c, e) ||
        jx_opt_real(o, "layer_norm_epsilon", 0, 1, &c->eps, e) ||
        jx_opt_bool(o, "scale_attn_weights", &c->scale_by_width, e) ||
        jx_opt_bool(o, "scale_attn_by_inverse_layer_idx", &c->scale_by_layer, e) ||
        jx_opt_bool(o, "tie_word_embeddings", &c->tied, e) ||
        jx_opt_real(o, "initializer_range", 0, 10, &m->init_std, e) ||
        parts_activation(o, "activation_function", &c->act, e))
        return -1;
    if (c->n_embd % c->n_head) return hfconfig_wrong(e, "n_head", "must divide 'n_embd'");
    if (!c->n_inner) c->n_inner = 4 * c->n_embd;
    return 0;
}

static int load_block(struct model *m, const struct config *c, struct block *b, int64_t i,
                      struct err *e)
{
    int64_t C = c->n_embd, F = c->n_inner;
    const struct {
        const char *name;
        int64_t in, out;
    } sites[SITES] = {[ATTN] = {"attn.c_attn", C, 3 * C},
                      [PROJ] = {"attn.c_proj", C, C},
                      [FC] = {"mlp.c_fc", C, F},
                      [OUT] = {"mlp.c_proj", F, C}};
    char name[SITE_PATH];
    b->site = m->nsites;
    for (int k = 0; k < SITES; k++) {
        snprintf(name, sizeof name, "transformer.h.%lld.%s", (long long)i, sites[k].name);
        if (!model_site(m, name, sites[k].in, sites[k].out, SITE_BIAS | SITE_WT, e)) return -1;
    }
    snprintf(name, sizeof name, "transformer.h.%lld.ln_1", (long long)i);
    if (parts_norm_load(m, name, C, &b->norm1, e)) return -1;
    snprintf(name, sizeof name, "transformer.h.%lld.ln_2", (long long)i);
    return parts_norm_load(m, name, C, &b->norm2, e);
}

static int gpt2_load(struct model *m, struct err *e)
{
    struct config c;
    if (read_config(&c, m, e)) return -1;
    int64_t words[2] = {c.vocab_size, c.n_embd}, places[2] = {c.n_positions, c.n_embd};
    struct layout *y = mem_zalloc(sizeof *y + (size_t)c.n_layer * sizeof *y->blocks, e);
    if (!y) return -1;
    m->layout = y;
    y->cfg = c;
    m->max_length = c.n_positions;
    m->cache_layers = c.n_layer;
    m->cache_heads = c.n_head;
    m->cache_width = c.n_embd / c.n_head;
    if (!(y->words = model_tensor(m, "transformer.wte.weight", 2, words, e)) ||
        !(y->places = model_tensor(m, "transformer.wpe.weight", 2, places, e)))
        return -1;
    for (int64_t i = 0; i < c.n_layer; i++)
        if (load_block(m, &c, &y->blocks[i], i, e)) return -1;
    if (parts_norm_load(m, "transformer.ln_f", c.n_embd, &y->norm, e)) return -1;
    if (c.tied) m->tied = y->words;
    y->head = c.tied ? y->words : model_tensor(m, "lm_head.weight", 2, words, e);
    return y->head ? 0 : -1;
}

/* Fresh projections into the residual stream start smaller, by the number of them. */
static void gpt2_fill(struct model *m)
{
    const struct layout *y = m->layout;
    float shrink = (float)(1 / sqrt(2 * (double)y->cfg.n_layer));
    for (int64_t i = 0; i < y->cfg.n_layer; i++)
        for (int k = PROJ; k <= OUT; k += OUT - PROJ) {
            const struct param *w = m->sites[y->blocks[i].site + k].w;
            float *v = w->data;
            for (int64_t n = 0; !w->source && n < w->count; n++) v[n] *= shrink;
        }
}

static int block(const struct pass *p, const struct layout *y, int64_t i, int x)
{
    const struct config *c = &y->cfg;
    const struct block *b = &y->blocks[i];
    struct site *s = p->m->sites + b->site;
    int64_t C = c->n_embd, H = c->n_head, D = C / H;
    struct parts_heads h = {.count = H, .width = D, .scale = 1, .layer = i,
                            .range = p->io->range};
    int qkv[3];
    if (c->scale_by_width) h.scale /= sqrt((double)D);
    if (c->scale_by_layer) h.scale /= (double)(i + 1);
    tape_segment_begin(p->t);
    int a = site_apply(p->t, s + ATTN, parts_norm(p, x, &b->norm1, c->eps), -1);
    for (int k = 0; k < 3; k++) qkv[k] = parts_split(p, op_slice(p->t, a, k * C, C), H, D);
    x = site_apply(p->t, s + PROJ, parts_attn(p, &h, qkv[0], qkv[1], qkv[2]), x);
    int f = site_apply(p->t, s + FC, parts_norm(p, x, &b->norm2, c->eps), -1);
    x = site_apply(p->t, s + OUT, op_act(p->t, f, c->act), x);
    tape_segment_end(p->t);
    return x;
}

static void gpt2_record(struct model *m, struct tape *t, const struct model_shape *s,
                        struct model_io *io)
{
    const struct layout *y = m->layout;
    const struct pass p = {.m = m, .t = t, .s = s, .io = io};
    parts_text_inputs(&p, true);
    int x = parts_embed(&p, y->words, y->places);
    for (int64_t i = 0; i < y->cfg.n_layer; i++) x = block(&p, y, i, x);
    parts_lm_head(&p, parts_norm(&p, x, &y->norm, y->cfg.eps), y->head);
}

/* Tables of the causal mask, in older checkpoints. */
static const char *const ignored[] = {"*.attn.bias", "*.attn.masked_bias", NULL};

const struct arch arch_gpt2 = {
    .model_type = "gpt2",
    .task = &task_causal_lm,
    .architectures = (const char *const[]){"GPT2LMHeadModel", "GPT2Model", NULL},
    .prefix = "transformer.",
    .ignored = ignored,
    .load = gpt2_load,
    .fill = gpt2_fill,
    .record = gpt2_record,
};
