#include "engine/model/model.h"

#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

static const struct arch *const archs[] = {
    &arch_llama, &arch_mistral, &arch_qwen2,   &arch_qwen3,
    &arch_gpt2,  &arch_opt,     &arch_roberta, &arch_vit,   &arch_timm,
};

const struct model_task task_causal_lm = {"CAUSAL_LM", "text-generation", "AutoModelForCausalLM"};
const struct model_task task_seq_cls = {"SEQ_CLS", "text-classification",
                                        "AutoModelForSequenceClassification"};
const struct model_task task_image_cls = {NULL, "image-classification",
                                          "AutoModelForImageClassification"};

static int unknown_type(const struct hf_config *c, struct err *e)
{
    struct buf names;
    buf_init(&names, 300);
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        buf_printf(&names, "%s%s", i ? ", " : "", archs[i]->model_type);
    err_set(e, E_UNSUPPORTED, "'model_type' is '%.40s'; graft adapts %s", c->model_type,
            buf_str(&names));
    buf_clear(&names);
    return err_param(e, "model_type");
}

/* By model_type; the class that wrote the file must be one whose tensors the builder knows. */
static int pick_arch(struct model *m, struct err *e)
{
    const struct hf_config *c = &m->cfg;
    size_t i = 0, n = sizeof archs / sizeof *archs;
    while (i < n && !str_eq(archs[i]->model_type, c->model_type)) i++;
    if (i == n) return unknown_type(c, e);
    m->arch = archs[i];
    if (!c->architecture || !m->arch->architectures) return 0;
    for (const char *const *a = m->arch->architectures; *a; a++)
        if (str_eq(*a, c->architecture)) return 0;
    err_set(e, E_UNSUPPORTED, "'architectures' is '%.60s'; for %s only %s is supported",
            c->architecture, c->model_type, m->arch->architectures[0]);
    return err_param(e, "architectures");
}

static bool is_ignored(const struct model *m, const char *name)
{
    for (const char *const *p = m->arch->ignored; p && *p; p++)
        if (fnmatch(*p, name, 0) == 0) return true;
    return false;
}

/* A copy of the embedding that serves as the head. One that differs contradicts config.json:
 * whether it counts depends on the version of transformers. */
static int check_copy(const struct model *m, const struct st_tensor *t, struct err *e)
{
    const struct param *w = m->tied;
    if (t->dtype == w->dtype0 && t->count == w->count && t->rank == w->rank &&
        memcmp(t->data, w->source, (size_t)t->bytes) == 0)
        return 0;
    err_set(e, E_FORMAT, "tensor %s is not %s, to which 'tie_word_embeddings' ties it", t->name,
            w->name);
    return err_param(e, "tie_word_embeddings");
}

static int refuse_extra(const struct model *m, struct err *e)
{
    for (int i = 0; i < st_count(m->st); i++) {
        const char *name = st_at(m->st, i)->name;
        if (params_find(&m->params, name) || is_ignored(m, name)) continue;
        if (m->tied && str_eq(name, "lm_head.weight")) {
            if (check_copy(m, st_at(m->st, i), e)) return -1;
            continue;
        }
        return err_set(e, E_FORMAT, "tensor %s is in the file but not in a %s model of this"
                       " config.json", name, m->cfg.model_type);
    }
    return 0;
}

/* A checkpoint of the base model alone has no name with its prefix. */
static bool is_bare(const struct model *m)
{
    for (int i = 0; i < st_count(m->st); i++)
        if (str_starts(st_at(m->st, i)->name, m->arch->prefix)) return false;
    return true;
}

/* The .npz of the folder, unless it has weights of the usual kind. */
static int find_npz(struct model *m, struct err *e)
{
    char **names = NULL;
    int n = 0, found = 0, last = 0, rc = 0;
    bool usual = false;
    if (fs_list(m->dir, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        usual = usual || strstr(names[i], ".safetensors");
        if (!str_ends(names[i], ".npz")) continue;
        found++;
        last = i;
    }
    if (!usual && found > 1)
        rc = err_set(e, E_CONFLICT, "%d .npz files: one is a model", found);
    else if (!usual && found)
        rc = fs_join(m->npz, m->dir, names[last], e);
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return rc;
}

static int open_weights(struct model *m, struct err *e)
{
    if (m->random) return 0;
    if (m->arch->npz && find_npz(m, e)) return -1;
    if (*m->npz) return 0;
    if (!(m->st = st_open_model(m->dir, e))) return -1;
    m->bare = is_bare(m);
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
    m->labels = o->labels;
    m->init_std = 0.02; /* transformers' default */
    if (!str_copy(m->dir, sizeof m->dir, dir)) {
        err_set(e, E_LIMIT, "the path of the model folder is too long");
        goto fail;
    }
    if (hfconfig_load(&m->cfg, dir, e) || pick_arch(m, e)) goto fail;
    if (m->labels && m->arch->task == &task_causal_lm) {
        err_set(e, E_ARG, "a model of type %s has no classes: 'labels' is for classifiers",
                m->cfg.model_type);
        err_param(e, "labels");
        goto fail;
    }
    if (open_weights(m, e)) goto fail;
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
static void fill_fresh(struct model *m)
{
    for (int i = 0; i < m->ntensors; i++) {
        struct param *p = m->params.items[i];
        float *v = p->data;
        float rest = str_ends(p->name, ".bias") ? 0.0f : 1.0f;
        if (p->source) continue;
        if (p->rank > 1)
            rng_fill_normal(v, p->count, (float)m->init_std, m->seed, RNG_INIT,
                            (uint32_t)p->index);
        else
            for (int64_t k = 0; k < p->count; k++) v[k] = rest;
    }
}

int model_alloc(struct model *m, struct err *e)
{
    if (params_alloc(&m->params, e)) return -1;
    fill_fresh(m);
    if (m->arch->fill) m->arch->fill(m);
    return 0;
}

int64_t model_parameters(const struct model *m)
{
    int64_t n = 0;
    for (int i = 0; i < m->ntensors; i++) n += m->params.items[i]->count;
    return n;
}

int model_expect(const struct model *m, const struct model_task *task, struct err *e)
{
    if (m->arch->task == task) return 0;
    return err_set(e, E_UNSUPPORTED, "the model is for %s; this needs one for %s",
                   m->arch->task->pipeline, task->pipeline);
}

void model_shape_text(char out[96], int rank, const int64_t *shape)
{
    int n = snprintf(out, 96, "[");
    for (int i = 0; i < rank && n < 80; i++)
        n += snprintf(out + n, 96 - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(out + n, 96 - (size_t)n, "]");
}

static int from_file(struct model *m, struct param *p, const struct st_tensor *s, struct err *e)
{
    bool same = s->rank == p->rank;
    for (int i = 0; same && i < p->rank; i++) same = s->shape[i] == p->shape[i];
    if (!same) {
        char in_file[96], wanted[96];
        model_shape_text(in_file, s->rank, s->shape);
        model_shape_text(wanted, p->rank, p->shape);
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

static struct param *add(struct model *m, const char *name, bool fresh, int rank,
                         const int64_t *shape, struct err *e)
{
    const char *stored = name;
    if (m->bare && str_starts(name, m->arch->prefix)) stored += strlen(m->arch->prefix);
    struct param *p = params_add(&m->params, stored, PARAM_FROZEN, rank, shape, e);
    if (!p) return NULL;
    bool look = m->st && !(fresh && m->labels);
    const struct st_tensor *s = look ? st_find(m->st, stored) : NULL;
    if (m->st && !s && !fresh) {
        err_set(e, E_FORMAT, "tensor %s is missing from the file", stored);
        return NULL;
    }
    if (s && from_file(m, p, s, e)) return NULL;
    m->ntensors = m->params.n;
    return p;
}

struct param *model_tensor(struct model *m, const char *name, int rank, const int64_t *shape,
                           struct err *e)
{
    return add(m, name, false, rank, shape, e);
}

struct param *model_fresh(struct model *m, const char *name, int rank, const int64_t *shape,
                          struct err *e)
{
    return add(m, name, true, rank, shape, e);
}

enum dtype model_stored(const struct model *m, const struct param *p)
{
    return p->source ? p->dtype0 : m->cfg.dtype;
}

struct param *model_table(struct model *m, const char *name, int64_t n, struct err *e)
{
    return params_add(&m->params, name, PARAM_FROZEN, 1, &n, e);
}

struct site *model_site(struct model *m, const char *path, int64_t in, int64_t out,
                        unsigned flags, struct err *e)
{
    char name[PARAM_NAME];
    bool wt = flags & SITE_WT;
    int64_t shape[2] = {wt ? in : out, wt ? out : in};
    if (m->nsites == m->cap_sites) {
        int cap = m->cap_sites ? 2 * m->cap_sites : 32;
        struct site *grown = mem_realloc(m->sites, (size_t)cap * sizeof *grown, e);
        if (!grown) return NULL;
        m->sites = grown;
        m->cap_sites = cap;
    }
    struct site *s = &m->sites[m->nsites];
    *s = (struct site){.in = in, .out = out, .wt = wt, .index = m->nsites};
    if (!str_copy(s->path, sizeof s->path, path)) {
        err_set(e, E_LIMIT, "module path %s is too long", path);
        return NULL;
    }
    snprintf(name, sizeof name, "%s.weight", path);
    if (!(s->w = model_tensor(m, name, 2, shape, e))) return NULL;
    snprintf(name, sizeof name, "%s.bias", path);
    if ((flags & SITE_BIAS) && !(s->bias = model_tensor(m, name, 1, &out, e))) return NULL;
    m->nsites++;
    return s;
}

int model_record(struct model *m, struct tape *t, const struct model_shape *s,
                 struct model_io *io, struct err *e)
{
    for (int i = 0; i < m->nsites; i++) m->sites[i].train = s->train;
    memset(io, 0xff, sizeof *io); /* every id is -1: none */
    m->arch->record(m, t, s, io);
    return tape_ok(t, e);
}

int model_cache_init(struct model_cache *c, const struct model *m, int64_t B, int64_t S,
                     struct err *e)
{
    int64_t shape[4] = {B, S, m->cache_heads, m->cache_width};
    char name[PARAM_NAME];
    params_init(&c->params);
    if (model_expect(m, &task_causal_lm, e)) return -1;
    c->B = B;
    c->S = S;
    for (int64_t i = 0; i < 2 * m->cache_layers; i++) {
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
