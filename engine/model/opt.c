/* OPT: positions count from 2; the norms stand before (most sizes) or after (350m) attention and
 * feed-forward, and words may be narrower than the model (350m). */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/model/parts.h"

#include <math.h>
#include <stdio.h>

enum { Q, K, V, O, FC1, FC2, SITES };
enum { FIRST_PLACE = 2 };

#define EPS 1e-5 /* torch.nn.LayerNorm's */

struct config {
    int64_t hidden_size, num_hidden_layers, num_attention_heads, ffn_dim;
    int64_t max_position_embeddings, vocab_size, word_embed_proj_dim, pad_token_id;
    bool norm_before, no_last_norm, affine, bias, tied;
    enum act_kind act;
};

struct block {
    struct parts_affine attn_norm, ffn_norm;
    int site; /* index of its first site; they follow as in the enum */
};

struct layout {
    struct config cfg;
    struct param *words, *places, *head;
    int in, out;                 /* sites between words and model, or -1 */
    struct parts_affine norm;    /* w is NULL: none */
    struct parts_affine plain;   /* ones and zeros, for norms without weights */
    struct block blocks[];
};

static int read_config(struct config *c, struct model *m, struct err *e)
{
    static const struct hf_number numbers[] = {
        {"hidden_size", offsetof(struct config, hidden_size), 1, 1 << 17, HF_REQUIRED},
        {"num_hidden_layers", offsetof(struct config, num_hidden_layers), 1, 1024, HF_REQUIRED},
        {"num_attention_heads", offsetof(struct config, num_attention_heads), 1, 1024,
         HF_REQUIRED},
        {"ffn_dim", offsetof(struct config, ffn_dim), 1, 1 << 20, HF_REQUIRED},
        {"max_position_embeddings", offsetof(struct config, max_position_embeddings), 1, 1 << 26,
         HF_REQUIRED},
        {"vocab_size", offsetof(struct config, vocab_size), 1, 1 << 22, HF_REQUIRED},
        {"word_embed_proj_dim", offsetof(struct config, word_embed_proj_dim), 1, 1 << 17, 0},
        {"pad_token_id", offsetof(struct config, pad_token_id), 0, 1 << 22, 1},
    };
    const json_t *o = m->cfg.json;
    *c = (struct config){.norm_before = true, .affine = true, .bias = true, .tied = true,
                         .act = ACT_RELU};
    if (hfconfig_numbers(o, numbers, sizeof numbers / sizeof *numbers, c, e) ||
        jx_opt_bool(o, "do_layer_norm_before", &c->norm_before, e) ||
        jx_opt_bool(o, "_remove_final_layer_norm", &c->no_last_norm, e) ||
        jx_opt_bool(o, "layer_norm_elementwise_affine", &c->affine, e) ||
        jx_opt_bool(o, "enable_bias", &c->bias, e) ||
        jx_opt_bool(o, "tie_word_embeddings", &c->tied, e) ||
        jx_opt_real(o, "init_std", 0, 10, &m->init_std, e) ||
        parts_activation(o, "activation_function", &c->act, e))
        return -1;
    if (c->hidden_size % c->num_attention_heads)
        return hfconfig_wrong(e, "num_attention_heads", "must divide 'hidden_size'");
    if (!c->word_embed_proj_dim) c->word_embed_proj_dim = c->hidden_size;
    return 0;
}

static int load_norm(struct model *m, const struct config *c, const char *path,
                     struct parts_affine *out, struct err *e)
{
    return c->affine ? parts_norm_load(m, path, c->hidden_size, out, e) : 0;
}

static int load_block(struct model *m, const struct config *c, struct block *b, int64_t i,
                      struct err *e)
{
    int64_t C = c->hidden_size, F = c->ffn_dim;
    const struct {
        const char *name;
        int64_t in, out;
    } sites[SITES] = {[Q] = {"self_attn.q_proj", C, C},   [K] = {"self_attn.k_proj", C, C},
                      [V] = {"self_attn.v_proj", C, C},   [O] = {"self_attn.out_proj", C, C},
                      [FC1] = {"fc1", C, F},              [FC2] = {"fc2", F, C}};
    char name[SITE_PATH];
    b->site = m->nsites;
    for (int k = 0; k < SITES; k++) {
        snprintf(name, sizeof name, "model.decoder.layers.%lld.%s", (long long)i, sites[k].name);
        if (!model_site(m, name, sites[k].in, sites[k].out, c->bias ? SITE_BIAS : 0, e))
            return -1;
    }
    snprintf(name, sizeof name, "model.decoder.layers.%lld.self_attn_layer_norm", (long long)i);
    if (load_norm(m, c, name, &b->attn_norm, e)) return -1;
    snprintf(name, sizeof name, "model.decoder.layers.%lld.final_layer_norm", (long long)i);
    return load_norm(m, c, name, &b->ffn_norm, e);
}

static int load_projections(struct model *m, struct layout *y, struct err *e)
{
    int64_t C = y->cfg.hidden_size, W = y->cfg.word_embed_proj_dim;
    y->in = y->out = -1;
    if (W == C) return 0;
    y->in = m->nsites;
    y->out = m->nsites + 1;
    return model_site(m, "model.decoder.project_in", W, C, 0, e) &&
                   model_site(m, "model.decoder.project_out", C, W, 0, e)
               ? 0
               : -1;
}

/* The tables that stand for the weights of norms that have none. */
static int plain_norms(struct model *m, struct layout *y, struct err *e)
{
    const struct config *c = &y->cfg;
    if (c->affine) return 0;
    if (!(y->plain.w = model_table(m, "norm.ones", c->hidden_size, e)) ||
        !(y->plain.b = model_table(m, "norm.zeros", c->hidden_size, e)))
        return -1;
    for (int64_t i = 0; i < c->num_hidden_layers; i++)
        y->blocks[i].attn_norm = y->blocks[i].ffn_norm = y->plain;
    if (c->norm_before && !c->no_last_norm) y->norm = y->plain;
    return 0;
}

static int opt_load(struct model *m, struct err *e)
{
    struct config c;
    if (read_config(&c, m, e)) return -1;
    int64_t words[2] = {c.vocab_size, c.word_embed_proj_dim};
    int64_t places[2] = {c.max_position_embeddings + FIRST_PLACE, c.hidden_size};
    struct layout *y =
        mem_zalloc(sizeof *y + (size_t)c.num_hidden_layers * sizeof *y->blocks, e);
    if (!y) return -1;
    m->layout = y;
    y->cfg = c;
    m->max_length = c.max_position_embeddings;
    m->cache_layers = c.num_hidden_layers;
    m->cache_heads = c.num_attention_heads;
    m->cache_width = c.hidden_size / c.num_attention_heads;
    m->first_place = FIRST_PLACE;
    if (!(y->words = model_tensor(m, "model.decoder.embed_tokens.weight", 2, words, e)) ||
        !(y->places = model_tensor(m, "model.decoder.embed_positions.weight", 2, places, e)) ||
        load_projections(m, y, e))
        return -1;
    for (int64_t i = 0; i < c.num_hidden_layers; i++)
        if (load_block(m, &c, &y->blocks[i], i, e)) return -1;
    if (c.norm_before && !c.no_last_norm &&
        load_norm(m, &c, "model.decoder.final_layer_norm", &y->norm, e))
        return -1;
    if (c.tied) m->tied = y->words;
    y->head = c.tied ? y->words : model_tensor(m, "lm_head.weight", 2, words, e);
    return y->head ? plain_norms(m, y, e) : -1;
}

static void opt_fill(struct model *m)
{
    const struct layout *y = m->layout;
    parts_zero_row(y->words, y->cfg.pad_token_id);
    if (!y->plain.w) return;
    float *ones = y->plain.w->data, *zeros = y->plain.b->data;
    for (int64_t i = 0; i < y->cfg.hidden_size; i++) {
        ones[i] = 1;
        zeros[i] = 0;
    }
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
    int h = c->norm_before ? parts_norm(p, x, &b->attn_norm, EPS) : x;
    for (int k = 0; k < 3; k++) qkv[k] = parts_split(p, site_apply(p->t, s + k, h, -1), H, D);
    x = site_apply(p->t, s + O, parts_attn(p, &heads, qkv[0], qkv[1], qkv[2]), x);
    if (!c->norm_before) x = parts_norm(p, x, &b->attn_norm, EPS);
    h = c->norm_before ? parts_norm(p, x, &b->ffn_norm, EPS) : x;
    x = site_apply(p->t, s + FC2, op_act(p->t, site_apply(p->t, s + FC1, h, -1), c->act), x);
    if (!c->norm_before) x = parts_norm(p, x, &b->ffn_norm, EPS);
    tape_segment_end(p->t);
    return x;
}

static void opt_record(struct model *m, struct tape *t, const struct model_shape *s,
                       struct model_io *io)
{
    const struct layout *y = m->layout;
    const struct pass p = {.m = m, .t = t, .s = s, .io = io};
    parts_text_inputs(&p, true);
    int x = op_embed(t, io->ids, tape_param(t, y->words, SLOT_DATA));
    int places = op_embed(t, io->place, tape_param(t, y->places, SLOT_DATA));
    x = y->in < 0 ? op_add(t, x, places) : site_apply(t, m->sites + y->in, x, places);
    for (int64_t i = 0; i < y->cfg.num_hidden_layers; i++) x = block(&p, y, i, x);
    if (y->norm.w) x = parts_norm(&p, x, &y->norm, EPS);
    if (y->out >= 0) x = site_apply(t, m->sites + y->out, x, -1);
    parts_lm_head(&p, x, y->head);
}

const struct arch arch_opt = {
    .model_type = "opt",
    .task = &task_causal_lm,
    .architectures = (const char *const[]){"OPTForCausalLM", "OPTModel", NULL},
    .prefix = "model.",
    .load = opt_load,
    .fill = opt_fill,
    .record = opt_record,
};
