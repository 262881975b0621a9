/* The weights of the original ViT: a .npz whose arrays have the layout of Flax. Kernels are stored
 * [in, out], with a dimension for the heads, and convolutions [y, x, in, out]. All of it turns into
 * the layout of PyTorch here, once. */
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/npz.h"
#include "engine/model/vit.h"

#include <stdio.h>
#include <string.h>

/* More than the largest ViT there is (22B), in f32. */
#define MOST_BYTES ((int64_t)1 << 37)

struct loader {
    struct model *m;
    const struct vit_config *c;
    struct npz *z;
    bool *used; /* [npz_count] */
    struct err *e;
};

/* One array and where it goes: seen as [a, i, c], it becomes [c, i, a] at row `at` of p. */
struct piece {
    const char *name;
    int rank;
    int64_t shape[4];
    int64_t a, i, c;
    struct param *p;
    int64_t at;
};

static const struct npz_array *find(struct loader *l, const struct piece *w)
{
    const struct npz_array *x = npz_find(l->z, w->name);
    if (!x) {
        err_set(l->e, E_FORMAT, "array %s is missing from the file", w->name);
        return NULL;
    }
    if (x->rank != w->rank || memcmp(x->shape, w->shape, (size_t)x->rank * sizeof *x->shape)) {
        char in_file[96], wanted[96];
        model_shape_text(in_file, x->rank, x->shape);
        model_shape_text(wanted, w->rank, w->shape);
        err_set(l->e, E_FORMAT, "array %s has shape %s, but config.json makes it %s", w->name,
                in_file, wanted);
        return NULL;
    }
    if (x->dtype != DT_F32 && x->dtype != DT_F16) {
        err_set(l->e, E_UNSUPPORTED, "array %s is of type %s; F32 and F16 are supported", w->name,
                dtype_name(x->dtype));
        return NULL;
    }
    l->used[x - npz_at(l->z, 0)] = true;
    return x;
}

/* The f32 storage of a parameter, made when its first piece comes. */
static float *storage(struct loader *l, struct param *p)
{
    if (p->source) return (float *)(uintptr_t)p->source;
    p->source = arena_alloc(&l->m->copies, (size_t)p->count * sizeof(float), l->e);
    p->dtype0 = DT_F32;
    return (float *)(uintptr_t)p->source;
}

static int put(struct loader *l, const struct piece *w)
{
    const struct npz_array *x = find(l, w);
    float *to = x ? storage(l, w->p) : NULL, *flat = NULL;
    if (!to || !(flat = mem_array(x->count, sizeof *flat, l->e))) return -1;
    int rc = st_convert(flat, DT_F32, x->data, x->dtype, x->count, l->e);
    to += w->at * w->i * w->a;
    for (int64_t a = 0; !rc && a < w->a; a++)
        for (int64_t i = 0; i < w->i; i++)
            for (int64_t c = 0; c < w->c; c++)
                to[(c * w->i + i) * w->a + a] = flat[(a * w->i + i) * w->c + c];
    mem_free(flat);
    return rc;
}

/* An array that is taken as it is. */
static int copy(struct loader *l, const char *name, int rank, const int64_t *shape,
                struct param *p)
{
    struct piece w = {.name = name, .rank = rank, .a = p->count, .i = 1, .c = 1, .p = p};
    memcpy(w.shape, shape, (size_t)rank * sizeof *shape);
    return put(l, &w);
}

static int put_norm(struct loader *l, const char *path, const struct parts_affine *n)
{
    char name[PARAM_NAME];
    snprintf(name, sizeof name, "%s/scale", path);
    if (copy(l, name, 1, n->w->shape, n->w)) return -1;
    snprintf(name, sizeof name, "%s/bias", path);
    return copy(l, name, 1, n->b->shape, n->b);
}

/* path/kernel [in, out] and path/bias [out]. */
static int put_dense(struct loader *l, const char *path, struct param *w, struct param *b)
{
    char name[PARAM_NAME];
    int64_t out = w->shape[0], in = w->shape[1];
    snprintf(name, sizeof name, "%s/kernel", path);
    const struct piece k = {name, 2, {in, out}, in, 1, out, w, 0};
    if (put(l, &k)) return -1;
    snprintf(name, sizeof name, "%s/bias", path);
    return copy(l, name, 1, &out, b);
}

/* q, k, v: kernel [C, H, D], bias [H, D]; each takes C rows of the site's weight. out: kernel
 * [H, D, C], bias [C]. */
static int put_attention(struct loader *l, const char *block, const struct vit_block *b)
{
    static const char *const parts[] = {"query", "key", "value", "out"};
    int64_t H = l->c->num_attention_heads, C = l->c->hidden_size, D = C / H;
    bool fused = b->site[VIT_Q] == b->site[VIT_K];
    char path[PARAM_NAME], name[PARAM_NAME + 8];
    for (int k = 0; k < 4; k++) {
        const struct site *s = &l->m->sites[b->site[k]];
        int64_t at = fused && k < 3 ? k * C : 0;
        struct piece w = {name, 3, {C, H, D}, C, 1, C, s->w, at};
        struct piece bias = {name, 2, {H, D}, 1, 1, C, s->bias, at};
        if (k == 3) {
            memcpy(w.shape, (int64_t[3]){H, D, C}, 3 * sizeof *w.shape);
            bias.rank = 1;
            bias.shape[0] = C;
        }
        snprintf(path, sizeof path, "%s/MultiHeadDotProductAttention_1/%s", block, parts[k]);
        snprintf(name, sizeof name, "%s/kernel", path);
        if (put(l, &w)) return -1;
        snprintf(name, sizeof name, "%s/bias", path);
        if (put(l, &bias)) return -1;
    }
    return 0;
}

static int put_block(struct loader *l, int64_t i, const struct vit_block *b)
{
    char block[64], path[PARAM_NAME];
    snprintf(block, sizeof block, "Transformer/encoderblock_%lld", (long long)i);
    snprintf(path, sizeof path, "%s/LayerNorm_0", block);
    if (put_norm(l, path, &b->norm1) || put_attention(l, block, b)) return -1;
    snprintf(path, sizeof path, "%s/LayerNorm_2", block);
    if (put_norm(l, path, &b->norm2)) return -1;
    for (int k = 0; k < 2; k++) {
        const struct site *s = &l->m->sites[b->site[VIT_UP + k]];
        snprintf(path, sizeof path, "%s/MlpBlock_3/Dense_%d", block, k);
        if (put_dense(l, path, s->w, s->bias)) return -1;
    }
    return 0;
}

static int put_embeddings(struct loader *l, const struct vit_layout *y)
{
    int64_t C = l->c->hidden_size, S = l->c->patch_size, I = l->c->num_channels;
    const struct piece w = {"embedding/kernel", 4, {S, S, I, C}, S * S, I, C, y->patches.w, 0};
    if (copy(l, "cls", 3, y->class_token->shape, y->class_token) || put(l, &w) ||
        copy(l, "embedding/bias", 1, &C, y->patches.b))
        return -1;
    if (!copy(l, "Transformer/posembed_input/pos_embedding", 3, y->places->shape, y->places))
        return 0;
    return l->e->code == E_FORMAT ? err_param(l->e, "image_size") : -1;
}

/* A head for other labels starts fresh, and then what leads to the old one is left out as well. */
static int put_head(struct loader *l, const struct vit_layout *y)
{
    static const char *const old[] = {"head/kernel", "head/bias", "pre_logits/kernel",
                                      "pre_logits/bias"};
    bool fresh = l->m->labels || !y->head.w || !npz_find(l->z, "head/kernel");
    for (int k = 0; k < 4; k++) {
        const struct npz_array *x = npz_find(l->z, old[k]);
        if (x && !fresh && k >= 2) {
            err_set(l->e, E_UNSUPPORTED,
                    "array %s: a layer before the head is built only for a new head", old[k]);
            return err_param(l->e, "labels");
        }
        if (x) l->used[x - npz_at(l->z, 0)] = true;
    }
    return fresh ? 0 : put_dense(l, "head", y->head.w, y->head.b);
}

static int refuse_variant(const struct vit_config *c, struct err *e)
{
    if (c->qkv_bias && !c->pre_norm && !c->distilled && !c->bare_places) return 0;
    return err_set(e, E_UNSUPPORTED, "config.json describes a variant that has no .npz");
}

int vit_npz_load(struct model *m, const struct vit_layout *y, struct err *e)
{
    struct loader l = {.m = m, .c = &y->cfg, .e = e};
    int rc = -1;
    if (refuse_variant(&y->cfg, e) || !(l.z = npz_open(m->npz, MOST_BYTES, e))) goto out;
    if (!(l.used = mem_array(npz_count(l.z), sizeof *l.used, e))) goto out;
    if (put_embeddings(&l, y)) goto out;
    for (int64_t i = 0; i < y->cfg.num_hidden_layers; i++)
        if (put_block(&l, i, &y->blocks[i])) goto out;
    if (put_norm(&l, "Transformer/encoder_norm", &y->norm) || put_head(&l, y)) goto out;
    for (int i = 0; i < npz_count(l.z); i++) {
        if (l.used[i]) continue;
        err_set(e, E_FORMAT, "array %s is in the file but not in a ViT of this config.json",
                npz_at(l.z, i)->name);
        goto out;
    }
    rc = 0;
out:
    mem_free(l.used);
    npz_close(l.z);
    return rc;
}
