/* The Llama family: Llama, Mistral, Qwen2, Qwen3. Names are those of transformers. */
#include "engine/base/mem.h"
#include "engine/model/llama_config.h"
#include "engine/model/parts.h"

#include <math.h>
#include <stdio.h>

enum { Q, K, V, O, GATE, UP, DOWN, SITES };

struct block {
    struct param *norm1, *norm2;
    struct param *q_norm, *k_norm; /* Qwen3: a norm over each head, or NULL */
    int site;                      /* index of its first site; they follow as in the enum */
};

struct layout {
    struct llama_config cfg;
    struct param *embed, *norm, *head, *freq;
    struct block blocks[];
};

/* Wavelengths longer than the original context are stretched, short ones stay. */
static void llama3_frequencies(const struct llama_config *c, float *f)
{
    float factor = (float)c->rope_factor, low = (float)c->rope_low_freq;
    float high = (float)c->rope_high_freq, old = (float)c->rope_original_max;
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
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

/* The dimension that turns so many times within the original context. */
static double yarn_dimension(const struct llama_config *c, double turns)
{
    return (double)c->head_dim * log((double)c->rope_original_max / (turns * 2 * M_PI)) /
           (2 * log(c->rope_theta));
}

static void yarn_frequencies(const struct llama_config *c, float *f)
{
    double low = yarn_dimension(c, c->rope_beta_fast), high = yarn_dimension(c, c->rope_beta_slow);
    if (c->rope_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)c->head_dim - 1);
    if (low == high) high += 0.001;
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        float power = powf((float)c->rope_theta, (float)(2 * i) / (float)c->head_dim);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1 - fminf(fmaxf(ramp, 0), 1);
        f[i] = 1 / ((float)c->rope_factor * power) * (1 - keep) + 1 / power * keep;
    }
}

/* Frequencies as transformers computes them, in f32 step by step: a rounding that differs is
 * multiplied by the position. */
static void frequencies(const struct llama_config *c, float *f)
{
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        f[i] = 1.0f / powf((float)c->rope_theta, exponent);
        if (c->rope == ROPE_LINEAR) f[i] /= (float)c->rope_factor;
    }
    if (c->rope == ROPE_LLAMA3) llama3_frequencies(c, f);
    if (c->rope == ROPE_YARN) yarn_frequencies(c, f);
}

static int load_block(struct model *m, struct block *b, int64_t i, struct err *e)
{
    const struct llama_config *c = &((struct layout *)m->layout)->cfg;
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
    struct llama_config c;
    if (llama_config_parse(&c, &m->cfg, e)) return -1;
    int64_t table[2] = {c.vocab_size, c.hidden_size};
    struct layout *y = mem_zalloc(sizeof *y + (size_t)c.num_hidden_layers * sizeof *y->blocks, e);
    if (!y) return -1;
    m->layout = y;
    y->cfg = c;
    m->max_length = c.max_position_embeddings;
    m->cache_layers = c.num_hidden_layers;
    m->cache_heads = c.num_key_value_heads;
    m->cache_width = c.head_dim;
    m->window = c.sliding_window;
    m->init_std = c.initializer_range;
    if (!(y->embed = model_tensor(m, "model.embed_tokens.weight", 2, table, e))) return -1;
    for (int64_t i = 0; i < c.num_hidden_layers; i++)
        if (load_block(m, &y->blocks[i], i, e)) return -1;
    if (!(y->norm = model_tensor(m, "model.norm.weight", 1, &c.hidden_size, e))) return -1;
    if (c.tie_word_embeddings) m->tied = y->embed;
    y->head = m->tied ? y->embed : model_tensor(m, "lm_head.weight", 2, table, e);
    if (!y->head) return -1;
    return (y->freq = model_table(m, "rope.inv_freq", c.head_dim / 2, e)) ? 0 : -1;
}

static void llama_fill(struct model *m)
{
    struct layout *y = m->layout;
    frequencies(&y->cfg, y->freq->data);
}

/* What the blocks of one recording share. */
struct run {
    struct pass p;
    const struct llama_config *c;
    int pos, freq; /* pos as [N] */
};

static int norm(const struct run *r, int x, const struct param *w)
{
    int id = tape_param(r->p.t, (struct param *)w, SLOT_DATA);
    return op_rmsnorm(r->p.t, x, id, (float)r->c->rms_norm_eps);
}

/* x[N, heads*D] -> [B, T, heads, D], normed if w and rotated. */
static int rotated(const struct run *r, int x, int64_t count, const struct param *w)
{
    int64_t N = r->p.s->B * r->p.s->T, D = r->c->head_dim;
    if (w) x = norm(r, tape_reshape(r->p.t, x, 2, (int64_t[]){N * count, D}), w);
    x = tape_reshape(r->p.t, x, 3, (int64_t[]){N, count, D});
    return parts_split(&r->p, op_rope(r->p.t, x, r->pos, r->freq), count, D);
}

static int attention(const struct run *r, const struct block *b, int64_t layer, int h)
{
    const struct llama_config *c = r->c;
    const struct pass *p = &r->p;
    struct site *s = p->m->sites + b->site;
    int64_t H = c->num_attention_heads, G = c->num_key_value_heads, D = c->head_dim;
    /* yarn scales queries and keys alike, here in one place */
    const struct parts_heads heads = {
        .count = H, .width = D, .layer = layer,
        .scale = c->rope_attention * c->rope_attention / sqrt((double)D),
        .range = c->slides[layer] ? p->io->window : p->io->range};
    int q = rotated(r, site_apply(p->t, s + Q, h, -1), H, b->q_norm);
    int k = rotated(r, site_apply(p->t, s + K, h, -1), G, b->k_norm);
    int v = parts_split(p, site_apply(p->t, s + V, h, -1), G, D);
    return parts_attn(p, &heads, q, k, v);
}

static int block(const struct run *r, const struct block *b, int64_t layer, int x)
{
    struct tape *t = r->p.t;
    struct site *s = r->p.m->sites + b->site;
    tape_segment_begin(t);
    int o = attention(r, b, layer, norm(r, x, b->norm1));
    x = site_apply(t, s + O, o, x);
    int h = norm(r, x, b->norm2);
    int gate = site_apply(t, s + GATE, h, -1);
    int up = site_apply(t, s + UP, h, -1);
    x = site_apply(t, s + DOWN, op_swiglu(t, gate, up), x);
    tape_segment_end(t);
    return x;
}

static void llama_record(struct model *m, struct tape *t, const struct model_shape *s,
                         struct model_io *io)
{
    const struct layout *y = m->layout;
    int64_t B = s->B, T = s->T, N = B * T;
    struct run r = {.p = {.m = m, .t = t, .s = s, .io = io}, .c = &y->cfg};
    parts_text_inputs(&r.p, false);
    if (m->window) io->window = tape_input(t, "window", DT_I32, 3, (int64_t[]){B, T, 2});
    r.pos = tape_reshape(t, io->pos, 1, &N);
    r.freq = tape_param(t, y->freq, SLOT_DATA);
    int x = op_embed(t, io->ids, tape_param(t, y->embed, SLOT_DATA));
    for (int64_t i = 0; i < y->cfg.num_hidden_layers; i++) x = block(&r, &y->blocks[i], i, x);
    parts_lm_head(&r.p, norm(&r, x, y->norm), y->head);
}

/* Rotary tables are computed; older checkpoints carry them. */
static const char *const ignored[] = {"*.rotary_emb.inv_freq", NULL};

#define ARCH(type, ...) \
    {.model_type = type, .task = &task_causal_lm, .prefix = "model.", .ignored = ignored, \
     .architectures = (const char *const[]){__VA_ARGS__, NULL}, .load = llama_load, \
     .fill = llama_fill, .record = llama_record}
const struct arch arch_llama = ARCH("llama", "LlamaForCausalLM");
const struct arch arch_mistral = ARCH("mistral", "MistralForCausalLM");
const struct arch arch_qwen2 = ARCH("qwen2", "Qwen2ForCausalLM");
const struct arch arch_qwen3 = ARCH("qwen3", "Qwen3ForCausalLM");
