#include "engine/fmt/peft.h"

#include "engine/base/arena.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES = 1 << 20, RANK_MAX = 65536, NAME_BYTES = ST_NAME_MAX + 64 };

static const char CONFIG[] = "adapter_config.json", WEIGHTS[] = "adapter_model.safetensors";
static const char PREFIX[] = "base_model.model.";
static const char *const SUFFIX[2] = {".lora_A.weight", ".lora_B.weight"};

/* What peft_read gives out: the arena holds names, targets and factors. */
struct adapter {
    struct peft_adapter pub; /* first: peft_free() gets its address */
    struct arena arena;
    struct peft_module *modules;
    const char **targets;
};

double peft_scaling(const struct peft_adapter *a)
{
    return a->alpha / (a->rslora ? sqrt((double)a->r) : (double)a->r);
}

static bool selects(const char *target, const char *module)
{
    size_t n = strlen(module), m = strlen(target);
    if (strcmp(module, target) == 0) return true;
    return n > m && module[n - m - 1] == '.' && strcmp(module + n - m, target) == 0;
}

bool peft_selects(const struct peft_adapter *a, const char *module)
{
    for (int i = 0; i < a->ntargets; i++)
        if (selects(a->targets[i], module)) return true;
    return false;
}

const struct peft_module *peft_find(const struct peft_adapter *a, const char *module)
{
    for (int i = 0; i < a->nmodules; i++)
        if (strcmp(a->modules[i].name, module) == 0) return &a->modules[i];
    return NULL;
}

/* Targets and modules must agree both ways. */
static int check_targets(const struct peft_adapter *a, enum errc code, struct err *e)
{
    for (int i = 0; i < a->nmodules; i++)
        if (!peft_selects(a, a->modules[i].name))
            return err_set(e, code, "target_modules does not select '%s', which has weights",
                           a->modules[i].name);
    for (int i = 0; i < a->ntargets; i++) {
        int j = 0;
        while (j < a->nmodules && !selects(a->targets[i], a->modules[j].name)) j++;
        if (j == a->nmodules)
            return err_set(e, code, "target_modules names '%.100s', but no such module has weights",
                           a->targets[i]);
    }
    return 0;
}

static json_t *number(double x, struct err *e)
{
    bool whole = x == floor(x) && fabs(x) < 1e15;
    return whole ? jx_pack(e, "I", (json_int_t)x) : jx_pack(e, "f", x);
}

static int write_config(const char *path, const struct peft_adapter *a, struct err *e)
{
    char *text = NULL;
    int rc = -1;
    json_t *o = NULL, *targets = json_array(), *alpha = number(a->alpha, e);
    for (int i = 0; targets && i < a->ntargets; i++) {
        if (!json_array_append_new(targets, json_string(a->targets[i]))) continue;
        json_decref(targets);
        targets = NULL;
    }
    if (!targets) {
        err_set(e, E_NOMEM, "out of memory");
        goto out;
    }
    if (!alpha) goto out;
    o = jx_pack(e, "{s:s, s:s?, s:n, s:s?, s:n, s:b, s:I, s:O, s:f, s:s, s:b, s:O, s:n, s:b, s:b, "
                "s:b, s:n, s:n, s:{}, s:{}}",
                "peft_type", "LORA", "task_type", a->task_type, "auto_mapping",
                "base_model_name_or_path", a->base_model, "revision", "inference_mode", 1, "r",
                (json_int_t)a->r, "lora_alpha", alpha, "lora_dropout", a->dropout, "bias", "none",
                "fan_in_fan_out", (int)a->fan_in_fan_out, "target_modules", targets,
                "modules_to_save",
                "init_lora_weights", 1, "use_rslora", (int)a->rslora, "use_dora", 0,
                "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern");
    if (!o || !(text = jx_dump_pretty(o, e))) goto out;
    rc = fs_write_file(path, text, strlen(text), e);
out:
    mem_free(text);
    json_decref(o);
    json_decref(alpha);
    json_decref(targets);
    return rc;
}

static int key_of(char out[NAME_BYTES], const char *module, int which, struct err *e)
{
    int n = snprintf(out, NAME_BYTES, "%s%s%s", PREFIX, module, SUFFIX[which]);
    if (n < 0 || n >= NAME_BYTES)
        return err_set(e, E_ARG, "the module name '%.60s...' is too long", module);
    return 0;
}

static int describe(struct st_writer *w, const struct peft_adapter *a, struct err *e)
{
    char key[NAME_BYTES];
    if (st_writer_meta(w, "format", "pt", e)) return -1;
    for (int i = 0; i < a->nmodules; i++) {
        const struct peft_module *m = &a->modules[i];
        const int64_t shape[2][2] = {{a->r, m->in}, {m->out, a->r}};
        for (int k = 0; k < 2; k++)
            if (key_of(key, m->name, k, e) || st_writer_add(w, key, DT_F32, 2, shape[k], e))
                return -1;
    }
    return 0;
}

static int write_weights(const char *path, const struct peft_adapter *a, struct err *e)
{
    struct st_writer *w = st_writer_new(path, e);
    if (!w || describe(w, a, e)) goto fail;
    for (int i = 0; i < a->nmodules; i++) {
        const struct peft_module *m = &a->modules[i];
        if (st_writer_put(w, m->A, (size_t)(a->r * m->in) * sizeof(float), e) ||
            st_writer_put(w, m->B, (size_t)(m->out * a->r) * sizeof(float), e))
            goto fail;
    }
    return st_writer_publish(w, NULL, e);
fail:
    st_writer_abort(w);
    return -1;
}

int peft_write(const char *dir, const struct peft_adapter *a, struct err *e)
{
    char config[FS_PATH_MAX], weights[FS_PATH_MAX];
    struct err ignored;
    if (check_targets(a, E_BUG, e) || fs_join(config, dir, CONFIG, e) ||
        fs_join(weights, dir, WEIGHTS, e))
        return -1;
    if (!write_weights(weights, a, e) && !write_config(config, a, e)) return 0;
    fs_unlink(config, &ignored);
    fs_unlink(weights, &ignored);
    return -1;
}

static bool switched_off(const json_t *v)
{
    bool empty = (json_is_object(v) && json_object_size(v) == 0) ||
                 (json_is_array(v) && json_array_size(v) == 0) ||
                 (json_is_string(v) && json_string_length(v) == 0);
    return json_is_null(v) || json_is_false(v) || empty;
}

/* Settings whose value changes nothing about a finished LoRA. */
static bool harmless(const char *key)
{
    static const char *const keys[] = {
        "auto_mapping", "revision",     "inference_mode", "peft_version",      "layers_pattern",
        "megatron_core", "loftq_config", "runtime_config", "qalora_group_size",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0) return true;
    return false;
}

static bool applied(const char *key)
{
    static const char *const keys[] = {
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout",
        "use_rslora", "fan_in_fan_out", "target_modules", "bias", "init_lora_weights",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0) return true;
    return false;
}

static int refuse(struct err *e, const char *key, const char *why)
{
    err_set(e, E_UNSUPPORTED, "'%.60s' %s", key, why);
    return err_param(e, "%s", key);
}

static int check_settings(json_t *o, struct err *e)
{
    const char *key, *type, *bias = "none";
    json_t *v;
    if (jx_str(o, "peft_type", &type, e) || jx_opt_str(o, "bias", &bias, e)) return -1;
    if (strcmp(type, "LORA") != 0) return refuse(e, "peft_type", "must be LORA");
    if (strcmp(bias, "none") != 0) return refuse(e, "bias", "must be 'none'");
    /* "pissa", "corda" and the like would rework the base weights when PEFT loads them. */
    v = json_object_get(o, "init_lora_weights");
    if (v && !json_is_boolean(v) && !str_eq(json_string_value(v), "gaussian"))
        return refuse(e, "init_lora_weights", "must be true, false or 'gaussian'");
    json_object_foreach(o, key, v)
        if (!applied(key) && !harmless(key) && !switched_off(v))
            return refuse(e, key, "is set, which graft does not apply");
    return 0;
}

static int copy_string(struct adapter *a, const char *s, const char **out, struct err *e)
{
    *out = s ? arena_strdup(&a->arena, s, e) : NULL;
    return s && !*out ? -1 : 0;
}

static int read_targets(struct adapter *a, const json_t *o, struct err *e)
{
    json_t *list = json_object_get(o, "target_modules");
    if (json_is_string(list))
        return refuse(e, "target_modules", "is a regular expression; give a list of modules");
    if (jx_array(o, "target_modules", &list, e)) return -1;
    size_t n = json_array_size(list);
    a->targets = arena_alloc(&a->arena, n * sizeof *a->targets, e);
    if (!a->targets) return -1;
    for (size_t i = 0; i < n; i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (!s || !*s) {
            err_set(e, E_ARG, "'target_modules' must hold non-empty strings");
            return err_param(e, "target_modules");
        }
        if (copy_string(a, s, &a->targets[i], e)) return -1;
    }
    a->pub.targets = a->targets;
    a->pub.ntargets = (int)n;
    return 0;
}

static int read_config(struct adapter *a, json_t *o, struct err *e)
{
    const char *base = NULL, *task = NULL;
    struct peft_adapter *p = &a->pub;
    if (!json_is_object(o)) return err_set(e, E_FORMAT, "not a JSON object");
    if (check_settings(o, e) || jx_int64(o, "r", 1, RANK_MAX, &p->r, e) ||
        jx_real(o, "lora_alpha", 0, 1e9, &p->alpha, e) ||
        jx_opt_real(o, "lora_dropout", 0, 1, &p->dropout, e) ||
        jx_opt_bool(o, "use_rslora", &p->rslora, e) ||
        jx_opt_bool(o, "fan_in_fan_out", &p->fan_in_fan_out, e) ||
        jx_opt_str(o, "task_type", &task, e) ||
        jx_opt_str(o, "base_model_name_or_path", &base, e))
        return -1;
    if (copy_string(a, base, &p->base_model, e) || copy_string(a, task, &p->task_type, e))
        return -1;
    return read_targets(a, o, e);
}

static int load_config(struct adapter *a, const char *path, struct err *e)
{
    json_t *o = jx_load_file(path, CONFIG_BYTES, e);
    if (!o) return -1;
    int rc = read_config(a, o, e);
    json_decref(o);
    return rc ? err_wrap(e, "%s", path) : 0;
}

/* 0 or 1: the name is <PREFIX><module><SUFFIX[i]>; -1: it is not. */
static int which_factor(const char *name)
{
    if (!str_starts(name, PREFIX)) return -1;
    for (int i = 0; i < 2; i++)
        if (str_ends(name, SUFFIX[i]) &&
            strlen(name) > sizeof PREFIX - 1 + strlen(SUFFIX[i]))
            return i;
    return -1;
}

static const float *factor(struct adapter *a, const struct st_tensor *t, struct err *e)
{
    float *x = arena_alloc(&a->arena, (size_t)t->count * sizeof *x, e);
    if (!x) return NULL;
    return st_convert(x, DT_F32, t->data, t->dtype, t->count, e) ? NULL : x;
}

static int add_module(struct adapter *a, const struct st *s, const struct st_tensor *A,
                      struct err *e)
{
    char key[NAME_BYTES];
    struct peft_module *m = &a->modules[a->pub.nmodules];
    size_t n = strlen(A->name) - (sizeof PREFIX - 1) - strlen(SUFFIX[0]);
    m->name = arena_strndup(&a->arena, A->name + sizeof PREFIX - 1, n, e);
    if (!m->name || key_of(key, m->name, 1, e)) return -1;
    const struct st_tensor *B = st_find(s, key);
    if (!B) return err_set(e, E_FORMAT, "'%s' has no lora_B", m->name);
    if (A->rank != 2 || B->rank != 2 || A->shape[0] != a->pub.r || B->shape[1] != a->pub.r)
        return err_set(e, E_FORMAT, "'%s': lora_A must be [r, in] and lora_B [out, r], r = %lld",
                       m->name, (long long)a->pub.r);
    m->in = A->shape[1];
    m->out = B->shape[0];
    m->A = factor(a, A, e);
    m->B = m->A ? factor(a, B, e) : NULL;
    if (!m->B) return err_wrap(e, "%s", m->name);
    a->pub.nmodules++;
    return 0;
}

static int read_modules(struct adapter *a, const struct st *s, struct err *e)
{
    char key[NAME_BYTES];
    a->modules = arena_alloc(&a->arena, (size_t)st_count(s) * sizeof *a->modules, e);
    if (!a->modules) return -1;
    a->pub.modules = a->modules;
    for (int i = 0; i < st_count(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        int which = which_factor(t->name);
        if (which < 0)
            return err_set(e, E_UNSUPPORTED, "tensor '%.200s' is not a LoRA factor", t->name);
        if (which == 0 && add_module(a, s, t, e)) return -1;
    }
    if (2 * a->pub.nmodules == st_count(s)) return check_targets(&a->pub, E_FORMAT, e);
    for (int i = 0; i < st_count(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        size_t n = strlen(t->name) - strlen(SUFFIX[1]);
        if (which_factor(t->name) != 1) continue;
        snprintf(key, sizeof key, "%.*s%s", (int)n, t->name, SUFFIX[0]);
        if (!st_find(s, key)) return err_set(e, E_FORMAT, "'%.200s' has no lora_A", t->name);
    }
    return err_set(e, E_BUG, "factors do not pair");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct peft_module *)a)->name, ((const struct peft_module *)b)->name);
}

struct peft_adapter *peft_read(const char *dir, struct err *e)
{
    char config[FS_PATH_MAX], weights[FS_PATH_MAX];
    struct st *s = NULL;
    struct adapter *a = NULL;
    int64_t bytes = 0;
    bool done = false;
    if (fs_join(config, dir, CONFIG, e) || fs_join(weights, dir, WEIGHTS, e)) return NULL;
    if (!(s = st_open(weights, e)) || !(a = mem_zalloc(sizeof *a, e))) goto out;
    for (int i = 0; i < st_count(s); i++) bytes += 4 * st_at(s, i)->count + 1024;
    arena_init(&a->arena, (size_t)bytes + 16 * CONFIG_BYTES);
    if (load_config(a, config, e)) goto out;
    if (read_modules(a, s, e)) {
        err_wrap(e, "%s", weights);
        goto out;
    }
    qsort(a->modules, (size_t)a->pub.nmodules, sizeof *a->modules, by_name);
    done = true;
out:
    st_close(s);
    if (done) return &a->pub;
    peft_free(a ? &a->pub : NULL);
    return NULL;
}

void peft_free(struct peft_adapter *p)
{
    struct adapter *a = (struct adapter *)p;
    if (!a) return;
    arena_clear(&a->arena);
    mem_free(a);
}
