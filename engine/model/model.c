#include "engine/model/model.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"

#include <stdio.h>
#include <string.h>

static const struct arch *const archs[] = {&arch_llama};

/* Buffers that older checkpoints carry and nobody reads: rotary tables are computed. */
static bool is_leftover(const struct model *m, const char *name)
{
    return str_ends(name, ".rotary_emb.inv_freq") ||
           (m->cfg.tie_word_embeddings && str_eq(name, "lm_head.weight"));
}

static int refuse_extra(const struct model *m, struct err *e)
{
    for (int i = 0; i < st_count(m->st); i++) {
        const char *name = st_at(m->st, i)->name;
        if (params_find(&m->params, name) || is_leftover(m, name)) continue;
        return err_set(e, E_FORMAT, "tensor %s is in the file but not in a %s model of this"
                       " config.json", name, hfconfig_family_name(m->cfg.family));
    }
    return 0;
}

struct model *model_open(const char *dir, const struct model_options *o, struct err *e)
{
    struct model *m = mem_zalloc(sizeof *m, e);
    if (!m) return NULL;
    params_init(&m->params);
    arena_init(&m->copies, (size_t)1 << 40);
    m->random = o->random;
    m->seed = o->seed;
    if (!str_copy(m->dir, sizeof m->dir, dir)) {
        err_set(e, E_LIMIT, "the path of the model folder is too long");
        goto fail;
    }
    if (hfconfig_load(&m->cfg, dir, e)) goto fail;
    m->arch = archs[0];
    if (!m->random && !(m->st = st_open_model(dir, e))) goto fail;
    if (m->arch->load(m, e) || (m->st && refuse_extra(m, e))) goto fail;
    return m;
fail:
    err_wrap(e, "model folder %s", dir);
    model_free(m);
    return NULL;
}

void model_free(struct model *m)
{
    if (!m) return;
    params_clear(&m->params);
    arena_clear(&m->copies);
    mem_free(m->sites);
    mem_free(m->layout);
    st_close(m->st);
    hfconfig_clear(&m->cfg);
    mem_free(m);
}

/* As transformers initialises: matrices normal, biases 0, what is left are norms: 1. */
static int fill_random(struct model *m, struct err *e)
{
    double std = 0.02; /* transformers' default */
    if (jx_opt_real(m->cfg.json, "initializer_range", 0, 10, &std, e)) return -1;
    for (int i = 0; i < m->ntensors; i++) {
        struct param *p = m->params.items[i];
        float *v = p->data;
        float rest = str_ends(p->name, ".bias") ? 0.0f : 1.0f;
        if (p->rank > 1)
            rng_fill_normal(v, p->count, (float)std, m->seed, RNG_INIT, (uint32_t)p->index);
        else
            for (int64_t k = 0; k < p->count; k++) v[k] = rest;
    }
    return 0;
}

int model_alloc(struct model *m, struct err *e)
{
    if (params_alloc(&m->params, e) || (m->random && fill_random(m, e))) return -1;
    m->arch->fill(m);
    return 0;
}

int64_t model_parameters(const struct model *m)
{
    int64_t n = 0;
    for (int i = 0; i < m->ntensors; i++) n += m->params.items[i]->count;
    return n;
}

static void shape_text(char out[96], int rank, const int64_t *shape)
{
    int n = snprintf(out, 96, "[");
    for (int i = 0; i < rank && n < 80; i++)
        n += snprintf(out + n, 96 - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(out + n, 96 - (size_t)n, "]");
}

static int from_file(struct model *m, struct param *p, struct err *e)
{
    const struct st_tensor *s = st_find(m->st, p->name);
    if (!s) return err_set(e, E_FORMAT, "tensor %s is missing from the file", p->name);
    bool same = s->rank == p->rank;
    for (int i = 0; same && i < p->rank; i++) same = s->shape[i] == p->shape[i];
    if (!same) {
        char in_file[96], wanted[96];
        shape_text(in_file, s->rank, s->shape);
        shape_text(wanted, p->rank, p->shape);
        return err_set(e, E_FORMAT, "tensor %s has shape %s, but config.json makes it %s", p->name,
                       in_file, wanted);
    }
    if (!str_eq(s->dtype_name, "F32") && !str_eq(s->dtype_name, "F16") &&
        !str_eq(s->dtype_name, "BF16"))
        return err_set(e, E_UNSUPPORTED, "tensor %s is of type %s; F32, F16 and BF16 are supported",
                       p->name, s->dtype_name);
    p->dtype0 = s->dtype;
    p->source = s->data;
    if ((uintptr_t)s->data % dtype_size(s->dtype) == 0) return 0;
    /* Some old writers do not align; kernels need it. */
    if (!(p->source = arena_alloc(&m->copies, (size_t)s->bytes, e))) return -1;
    memcpy((void *)p->source, s->data, (size_t)s->bytes);
    return 0;
}

struct param *model_tensor(struct model *m, const char *name, int rank, const int64_t *shape,
                           struct err *e)
{
    struct param *p = params_add(&m->params, name, PARAM_FROZEN, rank, shape, e);
    if (!p || (m->st && from_file(m, p, e))) return NULL;
    m->ntensors = m->params.n;
    return p;
}

struct param *model_table(struct model *m, const char *name, int64_t n, struct err *e)
{
    return params_add(&m->params, name, PARAM_FROZEN, 1, &n, e);
}

struct site *model_site(struct model *m, const char *path, int64_t in, int64_t out, bool bias,
                        struct err *e)
{
    char name[PARAM_NAME];
    int64_t shape[2] = {out, in};
    if (m->nsites == m->cap_sites) {
        int cap = m->cap_sites ? 2 * m->cap_sites : 32;
        struct site *grown = mem_realloc(m->sites, (size_t)cap * sizeof *grown, e);
        if (!grown) return NULL;
        m->sites = grown;
        m->cap_sites = cap;
    }
    struct site *s = &m->sites[m->nsites];
    *s = (struct site){.in = in, .out = out, .index = m->nsites};
    if (!str_copy(s->path, sizeof s->path, path)) {
        err_set(e, E_LIMIT, "module path %s is too long", path);
        return NULL;
    }
    snprintf(name, sizeof name, "%s.weight", path);
    if (!(s->w = model_tensor(m, name, 2, shape, e))) return NULL;
    snprintf(name, sizeof name, "%s.bias", path);
    if (bias && !(s->bias = model_tensor(m, name, 1, &out, e))) return NULL;
    m->nsites++;
    return s;
}

int model_record(struct model *m, struct tape *t, const struct model_shape *s,
                 struct model_io *io, struct err *e)
{
    for (int i = 0; i < m->nsites; i++) m->sites[i].train = s->train;
    *io = (struct model_io){-1, -1, -1, -1, -1, -1, -1, -1, -1};
    m->arch->record(m, t, s, io);
    return tape_ok(t, e);
}

int model_cache_init(struct model_cache *c, const struct model *m, int64_t B, int64_t S,
                     struct err *e)
{
    int64_t shape[4] = {B, S, m->cfg.num_key_value_heads, m->cfg.head_dim};
    char name[PARAM_NAME];
    params_init(&c->params);
    c->B = B;
    c->S = S;
    for (int64_t i = 0; i < 2 * m->cfg.num_hidden_layers; i++) {
        snprintf(name, sizeof name, "cache.%lld.%s", (long long)(i / 2), i % 2 ? "v" : "k");
        if (!params_add(&c->params, name, PARAM_STATE, 4, shape, e)) goto fail;
    }
    if (params_alloc(&c->params, e)) goto fail;
    return 0;
fail:
    params_clear(&c->params);
    return -1;
}

void model_cache_clear(struct model_cache *c)
{
    params_clear(&c->params);
}
