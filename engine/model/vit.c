/* The Vision Transformer (arXiv:2010.11929) as a classifier: images are cut into patches, a class
 * token goes before them, and the class is read off what becomes of it. One builder for the
 * checkpoints of transformers, of timm and of the authors (vit_npz.c). */
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/model/vit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Tensors by their names in the file, and where the module differs from it, the module. */
static const struct naming {
    const char *class_token, *dist_token, *places, *patches, *pre_norm, *norm, *head, *dist_head;
    const char *norm1, *norm2;    /* in a block */
    const char *block, *modules;  /* the stack, as its tensors and its modules are named */
    const char *sites[VIT_SITES], *paths[VIT_SITES];
    const char *image_key;        /* what config.json calls the size of an image */
} transformers = {
    .class_token = "vit.embeddings.cls_token",
    .places = "vit.embeddings.position_embeddings",
    .patches = "vit.embeddings.patch_embeddings.projection",
    .norm = "vit.layernorm",
    .head = "classifier",
    .norm1 = "layernorm_before",
    .norm2 = "layernorm_after",
    .block = "vit.encoder.layer",
    .modules = "vit.layers",
    .sites = {"attention.attention.query", "attention.attention.key",
              "attention.attention.value", "attention.output.dense", "intermediate.dense",
              "output.dense"},
    .paths = {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
              "mlp.fc1", "mlp.fc2"},
    .image_key = "image_size",
}, timm = {
    .class_token = "cls_token",
    .dist_token = "dist_token",
    .places = "pos_embed",
    .patches = "patch_embed.proj",
    .pre_norm = "norm_pre",
    .norm = "norm",
    .head = "head",
    .dist_head = "head_dist",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .block = "blocks",
    .modules = "blocks",
    .sites = {"attn.qkv", "attn.qkv", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"},
    .paths = {"attn.qkv", "attn.qkv", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"},
    .image_key = "img_size",
};

static void name_of(char out[PARAM_NAME], const char *stack, int64_t block, const char *part)
{
    snprintf(out, PARAM_NAME, "%s.%lld.%s", stack, (long long)block, part);
}

/* ---- loading ---- */

static int load_sites(struct model *m, const struct naming *n, struct vit_layout *y, int64_t i,
                      struct err *e)
{
    const struct vit_config *c = &y->cfg;
    int64_t C = c->hidden_size, F = c->intermediate_size;
    const int64_t in[VIT_SITES] = {C, C, C, C, C, F}, out[VIT_SITES] = {C, C, C, C, F, C};
    char path[PARAM_NAME], tensor[PARAM_NAME];
    for (int k = 0; k < VIT_SITES; k++) {
        bool fused = str_eq(n->sites[k], n->sites[VIT_Q]) && n == &timm;
        y->blocks[i].site[k] = m->nsites - (fused && k > 0);
        if (fused && k > 0) continue;
        name_of(path, n->modules, i, n->paths[k]);
        name_of(tensor, n->block, i, n->sites[k]);
        unsigned flags = k > VIT_V || c->qkv_bias ? SITE_BIAS : 0;
        struct site *s = model_site(m, tensor, in[k], fused ? 3 * C : out[k], flags, e);
        if (!s) return -1;
        str_copy(s->path, sizeof s->path, path);
    }
    return 0;
}

static int load_block(struct model *m, const struct naming *n, struct vit_layout *y, int64_t i,
                      struct err *e)
{
    char name[PARAM_NAME];
    struct vit_block *b = &y->blocks[i];
    name_of(name, n->block, i, n->norm1);
    if (parts_norm_load(m, name, y->cfg.hidden_size, &b->norm1, e)) return -1;
    if (load_sites(m, n, y, i, e)) return -1;
    name_of(name, n->block, i, n->norm2);
    return parts_norm_load(m, name, y->cfg.hidden_size, &b->norm2, e);
}

static int load_places(struct model *m, const struct naming *n, struct vit_layout *y,
                       struct err *e)
{
    const struct vit_config *c = &y->cfg;
    int64_t rows = vit_patches(c) + (c->bare_places ? 0 : vit_prefixes(c));
    y->places = model_tensor(m, n->places, 3, (int64_t[]){1, rows, c->hidden_size}, e);
    if (y->places) return 0;
    return e->code == E_FORMAT ? err_param(e, "%s", n->image_key) : -1;
}

static int load_patches(struct model *m, const struct naming *n, struct vit_layout *y,
                        struct err *e)
{
    const struct vit_config *c = &y->cfg;
    int64_t S = c->patch_size, C = c->hidden_size;
    char name[PARAM_NAME];
    snprintf(name, sizeof name, "%s.weight", n->patches);
    y->patches.w = model_tensor(m, name, 4, (int64_t[]){C, c->num_channels, S, S}, e);
    if (!y->patches.w) return -1;
    if (c->pre_norm) return parts_norm_load(m, n->pre_norm, C, &y->pre_norm, e);
    snprintf(name, sizeof name, "%s.bias", n->patches);
    return (y->patches.b = model_tensor(m, name, 1, &C, e)) ? 0 : -1;
}

static int load_head(struct model *m, const char *path, const struct vit_config *c,
                     struct parts_affine *head, struct err *e)
{
    char name[PARAM_NAME];
    if (!c->labels) return 0;
    snprintf(name, sizeof name, "%s.weight", path);
    head->w = model_fresh(m, name, 2, (int64_t[]){c->labels, c->hidden_size}, e);
    if (!head->w) return -1;
    snprintf(name, sizeof name, "%s.bias", path);
    return (head->b = model_fresh(m, name, 1, &c->labels, e)) ? 0 : -1;
}

static int load(struct model *m, const struct naming *n, const struct vit_config *c,
                struct err *e)
{
    const int64_t token[3] = {1, 1, c->hidden_size};
    struct vit_layout *y =
        mem_zalloc(sizeof *y + (size_t)c->num_hidden_layers * sizeof *y->blocks, e);
    if (!y) return -1;
    m->layout = y;
    y->cfg = *c;
    m->max_length = vit_patches(c) + vit_prefixes(c);
    m->init_std = c->initializer_range;
    if (m->labels) y->cfg.labels = m->labels;
    m->classes = y->cfg.labels;
    memcpy(m->image, (int64_t[3]){c->num_channels, c->image[0], c->image[1]}, sizeof m->image);
    if (!(y->class_token = model_tensor(m, n->class_token, 3, token, e))) return -1;
    if (c->distilled && !(y->dist_token = model_tensor(m, n->dist_token, 3, token, e))) return -1;
    if (load_places(m, n, y, e) || load_patches(m, n, y, e)) return -1;
    for (int64_t i = 0; i < c->num_hidden_layers; i++)
        if (load_block(m, n, y, i, e)) return -1;
    if (parts_norm_load(m, n->norm, c->hidden_size, &y->norm, e) ||
        load_head(m, n->head, &y->cfg, &y->head, e) ||
        (c->distilled && load_head(m, n->dist_head, &y->cfg, &y->dist_head, e)))
        return -1;
    return *m->npz ? vit_npz_load(m, y, e) : 0;
}

static int vit_load(struct model *m, struct err *e)
{
    struct vit_config c;
    return vit_config_parse(&c, &m->cfg, e) ? -1 : load(m, &transformers, &c, e);
}

static int timm_load(struct model *m, struct err *e)
{
    struct vit_config c;
    return vit_config_parse_timm(&c, &m->cfg, m->st, e) ? -1 : load(m, &timm, &c, e);
}

/* ---- recording ---- */

static int data(const struct pass *p, struct param *w)
{
    return w ? tape_param(p->t, w, SLOT_DATA) : -1;
}

/* w as a matrix of its first dimension, or of one row of the given width. */
static int matrix(const struct pass *p, struct param *w, int64_t rows)
{
    return tape_reshape(p->t, data(p, w), 2, (int64_t[]){rows, w->count / rows});
}

static int add_places(const struct pass *p, const struct vit_layout *y, int x)
{
    int64_t C = y->cfg.hidden_size, rows = y->places->shape[1], N = p->s->B * rows;
    p->io->place = tape_input(p->t, "place", DT_I32, 1, &N);
    int places = op_embed(p->t, p->io->place, matrix(p, y->places, rows));
    return op_add(p->t, tape_reshape(p->t, x, 2, (int64_t[]){N, C}), places);
}

/* The image as [B*T, C]. */
static int embed(const struct pass *p, const struct vit_layout *y)
{
    const struct vit_config *c = &y->cfg;
    int64_t B = p->s->B, C = c->hidden_size, P = vit_patches(c);
    p->io->image = tape_input(p->t, "image", DT_F32, 4,
                              (int64_t[]){B, c->num_channels, c->image[0], c->image[1]});
    int x = op_patches(p->t, p->io->image, c->patch_size);
    x = op_linear(p->t, x, matrix(p, y->patches.w, C), data(p, y->patches.b), -1, 1.0f);
    if (c->bare_places) x = add_places(p, y, x);
    x = tape_reshape(p->t, x, 3, (int64_t[]){B, P, C});
    if (c->distilled) x = op_prefix(p->t, matrix(p, y->dist_token, 1), x);
    x = op_prefix(p->t, matrix(p, y->class_token, 1), x);
    if (!c->bare_places) x = add_places(p, y, x);
    x = tape_reshape(p->t, x, 2, (int64_t[]){B * p->s->T, C});
    return c->pre_norm ? parts_norm(p, x, &y->pre_norm, c->eps) : x;
}

static int attention(const struct pass *p, const struct vit_layout *y, int64_t i, int h)
{
    const struct vit_config *c = &y->cfg;
    int64_t C = c->hidden_size, H = c->num_attention_heads, D = C / H;
    const int *site = y->blocks[i].site;
    struct site *s = p->m->sites;
    bool fused = site[VIT_Q] == site[VIT_K];
    const struct parts_heads heads = {.count = H, .width = D, .scale = 1 / sqrt((double)D),
                                      .layer = i, .range = p->io->range};
    int qkv[3], all = fused ? site_apply(p->t, s + site[VIT_Q], h, -1) : -1;
    for (int k = 0; k < 3; k++) {
        qkv[k] = fused ? op_slice(p->t, all, k * C, C) : site_apply(p->t, s + site[k], h, -1);
        qkv[k] = parts_split(p, qkv[k], H, D);
    }
    return parts_attn(p, &heads, qkv[0], qkv[1], qkv[2]);
}

static int block(const struct pass *p, const struct vit_layout *y, int64_t i, int x)
{
    const struct vit_config *c = &y->cfg;
    const struct vit_block *b = &y->blocks[i];
    struct site *s = p->m->sites;
    tape_segment_begin(p->t);
    int o = attention(p, y, i, parts_norm(p, x, &b->norm1, c->eps));
    x = site_apply(p->t, s + b->site[VIT_O], o, x);
    int h = site_apply(p->t, s + b->site[VIT_UP], parts_norm(p, x, &b->norm2, c->eps), -1);
    x = site_apply(p->t, s + b->site[VIT_DOWN], op_act(p->t, h, c->act), x);
    tape_segment_end(p->t);
    return x;
}

/* The logits that a head reads off the token at `at` of each row. x[B,T*C]. */
static int classify(const struct pass *p, const struct vit_layout *y, int x, int64_t at,
                    const struct parts_affine *head)
{
    int64_t C = y->cfg.hidden_size;
    int h = parts_norm(p, op_slice(p->t, x, at * C, C), &y->norm, y->cfg.eps);
    return op_linear(p->t, h, data(p, head->w), data(p, head->b), -1, 1.0f);
}

static void vit_record(struct model *m, struct tape *t, const struct model_shape *s,
                       struct model_io *io)
{
    const struct vit_layout *y = m->layout;
    struct model_shape shape = *s;
    const struct pass p = {.m = m, .t = t, .s = &shape, .io = io};
    shape.T = m->max_length;
    if (!y->cfg.labels) {
        if (!t->err.code)
            err_set(&t->err, E_UNSUPPORTED,
                    "the model has no head: say how many labels it is to tell apart");
        return;
    }
    io->range = tape_input(t, "range", DT_I32, 3, (int64_t[]){s->B, shape.T, 2});
    int x = embed(&p, y);
    for (int64_t i = 0; i < y->cfg.num_hidden_layers; i++) x = block(&p, y, i, x);
    /* The norm is over one token's columns, so those that nobody reads are left out. */
    x = tape_reshape(t, x, 2, (int64_t[]){s->B, shape.T * y->cfg.hidden_size});
    int logits = classify(&p, y, x, 0, &y->head);
    if (y->cfg.distilled)
        logits = op_scale(t, op_add(t, logits, classify(&p, y, x, 1, &y->dist_head)), -1, 0.5f);
    parts_class_head(&p, logits);
}

static const char *const vit_classes[] = {"ViTForImageClassification", "ViTModel", NULL};
static const char *const vit_ignored[] = {"vit.pooler.*", "pooler.*", NULL};

static const char *const timm_apart[] = {"patch_embed.proj", NULL};

const struct arch arch_vit = {.model_type = "vit", .task = &task_image_cls,
                              .architectures = vit_classes, .prefix = "vit.",
                              .ignored = vit_ignored, .npz = true, .load = vit_load,
                              .record = vit_record};
const struct arch arch_timm = {.model_type = "timm", .task = &task_image_cls, .prefix = "",
                               .apart = timm_apart, .npz = true, .load = timm_load,
                               .record = vit_record};
