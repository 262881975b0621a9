/* LoRA (arXiv:2106.09685): y = x W^T + s (d(x) A^T) B^T, s = alpha / r; A and B are trained. */
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "engine/fmt/peft.h"
#include "engine/method/method.h"
#include "engine/method/settings.h"
#include "engine/op/op.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char properties[] =
"{\"r\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 4096, \"default\": 16,"
"  \"description\": \"Rank of the adapters.\"},"
" \"lora_alpha\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 65536,"
"  \"default\": 32, \"description\": \"The adapter's output is scaled by lora_alpha / r.\"},"
" \"lora_dropout\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 0.95, \"default\": 0,"
"  \"description\": \"Dropout of the adapter's input.\"},"
" \"target_modules\": {\"type\": [\"string\", \"array\"], \"items\": {\"type\": \"string\"},"
"  \"maxItems\": 4096, \"default\": \"all-linear\", \"description\": \"Which linear layers get an"
" adapter: all-linear, or a list of module names such as q_proj or full paths.\"},"
" \"init_lora_weights\": {\"type\": \"string\", \"enum\": [\"kaiming\", \"gaussian\"],"
"  \"default\": \"kaiming\", \"description\": \"Initial A: uniform within 1/sqrt(inputs), or"
" normal with deviation 1/r. B starts at zero.\"},"
" \"learning_rate\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 10,"
"  \"default\": 2e-4, \"description\": \"Peak learning rate.\"}}";

static const char *const inputs[] = {"text", "completion", "messages", NULL};

struct pair {
    struct param *A, *B; /* [r, in], [out, r] */
    float scale, dropout;
};

struct lora {
    int64_t r;
    double alpha, dropout;
    struct pair *pairs;         /* [nsites]; A is NULL where a site has no adapter */
    struct peft_adapter *saved; /* after load: owns the values */
};

static int lora_apply(struct tape *t, struct site *s, int x, int add)
{
    const struct pair *p = s->adapter;
    int y = site_linear(t, s, x, add);
    int d = s->train ? op_dropout(t, x, p->dropout, (uint32_t)s->index) : x;
    int h = op_linear(t, d, tape_param(t, p->A, SLOT_DATA), -1, -1, 1.0f);
    return op_linear(t, h, tape_param(t, p->B, SLOT_DATA), -1, y, p->scale);
}

static struct lora *lora_new(struct adaptation *a, struct err *e)
{
    struct lora *l = mem_zalloc(sizeof *l, e);
    if (!l) return NULL;
    a->state = l;
    l->pairs = mem_array(a->model->nsites, sizeof *l->pairs, e);
    return l->pairs ? l : NULL;
}

static int hook(struct adaptation *a, struct site *s, enum param_kind kind, struct err *e)
{
    struct lora *l = a->state;
    struct pair *p = &l->pairs[s->index];
    char name[PARAM_NAME];
    snprintf(name, sizeof name, "%s.lora_A.weight", s->path);
    if (!(p->A = params_add(&a->model->params, name, kind, 2, (int64_t[]){l->r, s->in}, e)))
        return -1;
    snprintf(name, sizeof name, "%s.lora_B.weight", s->path);
    if (!(p->B = params_add(&a->model->params, name, kind, 2, (int64_t[]){s->out, l->r}, e)))
        return -1;
    p->scale = (float)(l->alpha / (double)l->r);
    p->dropout = (float)l->dropout;
    s->adapter = p;
    s->apply = lora_apply;
    return 0;
}

static int lora_attach(struct adaptation *a, struct err *e)
{
    struct model *m = a->model;
    struct lora *l = lora_new(a, e);
    if (!l) return -1;
    l->r = settings_int(a->settings, "r");
    l->alpha = settings_real(a->settings, "lora_alpha");
    l->dropout = settings_real(a->settings, "lora_dropout");
    bool *take = mem_array(m->nsites, sizeof *take, e);
    if (!take) return -1;
    int rc = method_targets(m, json_object_get(a->settings, "target_modules"), take, e);
    for (int i = 0; i < m->nsites && !rc; i++)
        if (take[i]) rc = hook(a, &m->sites[i], PARAM_TRAINABLE, e);
    mem_free(take);
    return rc;
}

static int lora_init(struct adaptation *a, struct err *e)
{
    (void)e;
    const struct lora *l = a->state;
    bool gaussian = str_eq(settings_str(a->settings, "init_lora_weights"), "gaussian");
    for (int i = 0; i < a->model->nsites; i++) {
        struct param *A = l->pairs[i].A;
        if (!A) continue;
        /* Kaiming-uniform with a = sqrt(5), as PEFT has it, is this bound. */
        float bound = (float)(1.0 / sqrt((double)A->shape[1]));
        if (gaussian)
            rng_fill_normal(A->data, A->count, 1.0f / (float)l->r, a->seed, RNG_INIT,
                            (uint32_t)A->index);
        else
            rng_fill_uniform(A->data, A->count, -bound, bound, a->seed, RNG_INIT,
                             (uint32_t)A->index);
    }
    return 0;
}

static int lora_load(struct adaptation *a, const char *dir, struct err *e)
{
    struct lora *l = lora_new(a, e);
    if (!l || !(l->saved = peft_read(dir, e))) return -1;
    const struct peft_adapter *f = l->saved;
    int found = 0;
    l->r = f->r;
    l->alpha = peft_scaling(f) * (double)f->r;
    for (int i = 0; i < a->model->nsites; i++) {
        struct site *s = &a->model->sites[i];
        const struct peft_module *w = peft_find(f, s->path);
        if (!w != !peft_selects(f, s->path))
            return err_set(e, E_FORMAT, "the adapter's config %s %s, but its file %s it",
                           w ? "leaves out" : "selects", s->path, w ? "has" : "lacks");
        if (!w) continue;
        if (w->in != s->in || w->out != s->out)
            return err_set(e, E_FORMAT,
                           "the adapter of %s is for [%lld, %lld], the model has [%lld, %lld]",
                           s->path, (long long)w->out, (long long)w->in, (long long)s->out,
                           (long long)s->in);
        if (hook(a, s, PARAM_FROZEN, e)) return -1;
        l->pairs[i].A->source = w->A;
        l->pairs[i].B->source = w->B;
        found++;
    }
    if (found != f->nmodules)
        return err_set(e, E_FORMAT, "the adapter has %d modules, of which the model knows %d",
                       f->nmodules, found);
    return 0;
}

static const char *last_part(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

static bool selected(const char **targets, int n, const char *path)
{
    for (int k = 0; k < n; k++)
        if (str_eq(targets[k], last_part(path))) return true;
    return false;
}

/* Fills targets[] with what selects exactly the adapted sites: last parts of paths, as people and
 * other tools write them, or else full paths. */
static int pick_targets(const struct lora *l, const struct model *m, const char **targets)
{
    int n = 0;
    bool exact = true;
    for (int i = 0; i < m->nsites; i++)
        if (l->pairs[i].A && !selected(targets, n, m->sites[i].path))
            targets[n++] = last_part(m->sites[i].path);
    for (int i = 0; i < m->nsites; i++)
        if (!l->pairs[i].A && selected(targets, n, m->sites[i].path)) exact = false;
    for (const char *const *p = m->arch->apart; p && *p; p++)
        if (selected(targets, n, *p)) exact = false;
    if (exact) return n;
    n = 0;
    for (int i = 0; i < m->nsites; i++)
        if (l->pairs[i].A) targets[n++] = m->sites[i].path;
    return n;
}

static int lora_save(const struct adaptation *a, const char *dir, const char *base_id,
                     struct err *e)
{
    const struct lora *l = a->state;
    const struct model *m = a->model;
    bool wt = false;
    int rc = -1, n = 0;
    struct peft_module *modules = mem_array(m->nsites, sizeof *modules, e);
    const char **targets = mem_array(m->nsites, sizeof *targets, e);
    if (!modules || !targets) goto out;
    for (int i = 0; i < m->nsites; i++) {
        const struct site *s = &m->sites[i];
        if (!l->pairs[i].A) continue;
        wt = wt || s->wt;
        modules[n++] = (struct peft_module){s->path, s->in, s->out, l->pairs[i].A->data,
                                            l->pairs[i].B->data};
    }
    struct peft_adapter f = {.base_model = base_id, .task_type = m->arch->task->peft, .r = l->r,
                             .alpha = l->alpha, .dropout = l->dropout,
                             .fan_in_fan_out = wt, .targets = targets,
                             .ntargets = pick_targets(l, m, targets), .modules = modules,
                             .nmodules = n};
    rc = peft_write(dir, &f, e);
out:
    mem_free(modules);
    mem_free(targets);
    return rc;
}

static int lora_merge(const struct adaptation *a, const struct param *p, float *w, struct err *e)
{
    const struct lora *l = a->state;
    const struct site *s = a->model->sites, *end = s + a->model->nsites;
    while (s < end && s->w != p) s++;
    if (s == end || !l->pairs[s->index].A) return 0;
    const struct pair *f = &l->pairs[s->index];
    int64_t out = s->out, in = s->in, down = s->wt ? 1 : in, right = s->wt ? out : 1;
    float *delta = mem_array(in, sizeof *delta, e);
    if (!delta) return -1;
    const float *A = f->A->data, *B = f->B->data;
    for (int64_t o = 0; o < out; o++) {
        memset(delta, 0, (size_t)in * sizeof *delta);
        for (int64_t k = 0; k < l->r; k++)
            for (int64_t i = 0; i < in; i++) delta[i] += B[o * l->r + k] * A[k * in + i];
        for (int64_t i = 0; i < in; i++) w[o * down + i * right] += f->scale * delta[i];
    }
    mem_free(delta);
    return 0;
}

static void lora_detach(struct adaptation *a)
{
    struct lora *l = a->state;
    if (!l) return;
    for (int i = 0; l->pairs && i < a->model->nsites; i++) {
        if (a->model->sites[i].adapter != &l->pairs[i]) continue;
        a->model->sites[i].adapter = NULL;
        a->model->sites[i].apply = NULL;
    }
    peft_free(l->saved);
    mem_free(l->pairs);
    mem_free(l);
    a->state = NULL;
}

const struct method method_lora = {
    .name = "lora",
    .title = "LoRA: low-rank adapters",
    .paper = "https://arxiv.org/abs/2106.09685",
    .kind = "adapter",
    .inputs = inputs,
    .properties = properties,
    .attach = lora_attach,
    .init = lora_init,
    .save = lora_save,
    .merge = lora_merge,
    .load = lora_load,
    .detach = lora_detach,
};
