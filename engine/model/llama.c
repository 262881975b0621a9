/* The Llama family: Llama, Mistral, Qwen2, Qwen3. Names are those of transformers. */
#include "engine/base/mem.h"
#include "engine/model/model.h"
#include "engine/op/op.h"

#include <math.h>
#include <stdio.h>

enum { Q, K, V, O, GATE, UP, DOWN, SITES };

struct block {
    struct param *norm1, *norm2;
    struct param *q_norm, *k_norm; /* Qwen3: a norm over each head, or NULL */
    int site;                      /* index of its first site; they follow as in the enum */
};

struct layout {
    struct param *embed, *norm, *head, *freq;
    struct block blocks[];
};

/* Frequencies as transformers computes them, in f32 step by step: a rounding that differs is
 * multiplied by the position. */
static void frequencies(const struct hf_config *c, float *f)
{
    int64_t half = c->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        f[i] = 1.0f / powf((float)c->rope_theta, exponent);
    }
    if (c->rope == HF_ROPE_LINEAR)
        for (int64_t i = 0; i < half; i++) f[i] /= (float)c->rope_factor;
    if (c->rope != HF_ROPE_LLAMA3) return;
    float factor = (float)c->rope_factor, low = (float)c->rope_low_freq;
    float high = (float)c->rope_high_freq, old = (float)c->rope_original_max;
    for (int64_t i = 0; i < half; i++) {
        float wavelength = 6.283185307179586f / f[i];
        if (wavelength < old / high) continue;
        if (wavelength > old / low) {
            f[i] /= factor;
        } else {
            float smooth = (old / wavelength - low) / (high - low);
            f[i] = (1 - smooth) * f[i] / factor + smooth * f[i];
        }
    }
}

static int load_block(struct model *m, struct block *b, int64_t i, struct err *e)
{
    const struct hf_config *c = &m->cfg;
    int64_t C = c->hidden_size, F = c->intermediate_size, D = c->head_dim;
    int64_t wide = c->num_attention_heads * D, narrow = c->num_key_value_heads * D;
    const struct {
        const char *name;
        int64_t in, out;
        bool bias;
    } sites[SITES] = {
        [Q] = {"self_attn.q_proj", C, wide, c->qkv_bias},
        [K] = {"self_attn.k_proj", C, narrow, c->qkv_bias},
        [V] = {"self_attn.v_proj", C, narrow, c->qkv_bias},
        [O] = {"self_attn.o_proj", wide, C, c->o_bias},
        [GATE] = {"mlp.gate_proj", C, F, c->mlp_bias},
        [UP] = {"mlp.up_proj", C, F, c->mlp_bias},
        [DOWN] = {"mlp.down_proj", F, C, c->mlp_bias},
    };
    const struct {
        const char *name;
        int64_t n;
        struct param **out;
    } norms[] = {
        {"input_layernorm", C, &b->norm1},
        {"post_attention_layernorm", C, &b->norm2},
        {"self_attn.q_norm", c->qk_norm ? D : 0, &b->q_norm},
        {"self_attn.k_norm", c->qk_norm ? D : 0, &b->k_norm},
    };
    char name[PARAM_NAME];
    b->site = m->nsites;
    for (int k = 0; k < SITES; k++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)i, sites[k].name);
        if (!model_site(m, name, sites[k].in, sites[k].out, sites[k].bias, e)) return -1;
    }
    for (size_t k = 0; k < sizeof norms / sizeof *norms; k++) {
        if (!norms[k].n) continue;
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)i, norms[k].name);
        if (!(*norms[k].out = model_tensor(m, name, 1, &norms[k].n, e))) return -1;
    }
    return 0;
}

static int llama_load(struct model *m, struct err *e)
{
    const struct hf_config *c = &m->cfg;
    int64_t table[2] = {c->vocab_size, c->hidden_size};
    struct layout *y = mem_zalloc(sizeof *y + (size_t)c->num_hidden_layers * sizeof *y->blocks, e);
    if (!y) return -1;
    m->layout = y;
    if (!(y->embed = model_tensor(m, "model.embed_tokens.weight", 2, table, e)))
        return -1;
    for (int64_t i = 0; i < c->num_hidden_layers; i++)
        if (load_block(m, &y->blocks[i], i, e)) return -1;
    if (!(y->norm = model_tensor(m, "model.norm.weight", 1, &c->hidden_size, e)))
        return -1;
    y->head = c->tie_word_embeddings
                  ? y->embed
                  : model_tensor(m, "lm_head.weight", 2, table, e);
    if (!y->head) return -1;
    return (y->freq = model_table(m, "rope.inv_freq", c->head_dim / 2, e)) ? 0 : -1;
}

static void llama_fill(struct model *m)
{
    frequencies(&m->cfg, ((struct layout *)m->layout)->freq->data);
}

/* What the blocks of one recording share. */
struct pass {
    struct model *m;
    struct tape *t;
    const struct model_shape *s;
    const struct model_io *io;
    int pos, freq; /* pos as [N] */
};

static int norm(const struct pass *p, int x, const struct param *w)
{
    int id = tape_param(p->t, (struct param *)w, SLOT_DATA);
    return op_rmsnorm(p->t, x, id, (float)p->m->cfg.rms_norm_eps);
}

/* x[N, heads*D] -> [B, T, heads, D], normed if w, rotated if `rotate`. */
static int heads(const struct pass *p, int x, int64_t count, const struct param *w, bool rotate)
{
    int64_t B = p->s->B, T = p->s->T, D = p->m->cfg.head_dim;
    if (w) x = norm(p, tape_reshape(p->t, x, 2, (int64_t[]){B * T * count, D}), w);
    if (rotate) {
        x = tape_reshape(p->t, x, 3, (int64_t[]){B * T, count, D});
        x = op_rope(p->t, x, p->pos, p->freq);
    }
    return tape_reshape(p->t, x, 4, (int64_t[]){B, T, count, D});
}

static int attention(const struct pass *p, const struct block *b, int64_t layer, int h)
{
    const struct hf_config *c = &p->m->cfg;
    struct site *s = p->m->sites + b->site;
    int q = heads(p, site_apply(p->t, s + Q, h, -1), c->num_attention_heads, b->q_norm, true);
    int k = heads(p, site_apply(p->t, s + K, h, -1), c->num_key_value_heads, b->k_norm, true);
    int v = heads(p, site_apply(p->t, s + V, h, -1), c->num_key_value_heads, NULL, false);
    if (p->s->cache) {
        struct param **kv = p->s->cache->params.items + 2 * layer;
        k = op_kv_store(p->t, tape_param(p->t, kv[0], SLOT_DATA), k, p->io->pos);
        v = op_kv_store(p->t, tape_param(p->t, kv[1], SLOT_DATA), v, p->io->pos);
    }
    int o = op_attn(p->t, q, k, v, p->io->range, (float)(1.0 / sqrt((double)c->head_dim)));
    int64_t rows = p->s->B * p->s->T, width = c->num_attention_heads * c->head_dim;
    return tape_reshape(p->t, o, 2, (int64_t[]){rows, width});
}

static int block(const struct pass *p, const struct block *b, int64_t layer, int x)
{
    struct site *s = p->m->sites + b->site;
    tape_segment_begin(p->t);
    int o = attention(p, b, layer, norm(p, x, b->norm1));
    x = site_apply(p->t, s + O, o, x);
    int h = norm(p, x, b->norm2);
    int gate = site_apply(p->t, s + GATE, h, -1);
    int up = site_apply(p->t, s + UP, h, -1);
    x = site_apply(p->t, s + DOWN, op_swiglu(p->t, gate, up), x);
    tape_segment_end(p->t);
    return x;
}

static void llama_record(struct model *m, struct tape *t, const struct model_shape *s,
                         struct model_io *io)
{
    const struct layout *y = m->layout;
    int64_t B = s->B, T = s->T, N = B * T, one = 1;
    io->ids = tape_input(t, "ids", DT_I32, 1, &N);
    io->pos = tape_input(t, "pos", DT_I32, 2, (int64_t[]){B, T});
    io->range = tape_input(t, "range", DT_I32, 3, (int64_t[]){B, T, 2});
    struct pass p = {.m = m, .t = t, .s = s, .io = io,
                     .pos = tape_reshape(t, io->pos, 1, &N),
                     .freq = tape_param(t, y->freq, SLOT_DATA)};
    int x = op_embed(t, io->ids, tape_param(t, y->embed, SLOT_DATA));
    for (int64_t i = 0; i < m->cfg.num_hidden_layers; i++) x = block(&p, &y->blocks[i], i, x);
    x = norm(&p, x, y->norm);
    int head = tape_param(t, y->head, SLOT_DATA);
    if (s->rows) {
        io->idx = tape_input(t, "idx", DT_I32, 1, &s->rows);
        io->logits = op_linear(t, op_rows(t, x, io->idx), head, -1, -1, 1.0f);
        tape_output(t, io->logits);
        return;
    }
    io->target = tape_input(t, "target", DT_I32, 1, &N);
    io->weight = tape_input(t, "weight", DT_F32, 1, &one);
    io->loss = op_linear_ce(t, x, head, io->target, io->weight, &io->hits);
    tape_output(t, io->loss);
    tape_output(t, io->hits);
}

const struct arch arch_llama = {"llama", llama_load, llama_fill, llama_record};
