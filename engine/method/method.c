#include "engine/method/method.h"

#include "engine/base/buf.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/method/settings.h"

#include <string.h>

const struct method *const method_list[] = {&method_lora, &method_full, NULL};

const struct method *method_find(const char *name, struct err *e)
{
    struct buf names;
    buf_init(&names, 400);
    for (int i = 0; method_list[i]; i++) {
        if (str_eq(method_list[i]->name, name)) {
            buf_clear(&names);
            return method_list[i];
        }
        buf_printf(&names, "%s%s", i ? ", " : "", method_list[i]->name);
    }
    err_set(e, E_NOTFOUND, "no method %.60s; there are: %s", name, buf_str(&names));
    err_param(e, "method");
    buf_clear(&names);
    return NULL;
}

int method_begin(struct adaptation *a, struct err *e)
{
    if (a->method->attach(a, e) || model_alloc(a->model, e) || a->method->init(a, e))
        return err_wrap(e, "method %s", a->method->name);
    return 0;
}

void method_end(struct adaptation *a)
{
    if (a->method) a->method->detach(a);
    *a = (struct adaptation){0};
}

int method_load_adapter(struct adaptation *a, struct model *model, const char *dir,
                        struct err *e)
{
    *a = (struct adaptation){.method = &method_lora, .model = model};
    if (a->method->load(a, dir, e) || model_alloc(model, e)) {
        method_end(a);
        return err_wrap(e, "adapter folder %s", dir);
    }
    return 0;
}

/* By PEFT's rule: the path itself, or a suffix of it that starts after a dot. */
static bool selects(const char *target, const char *path)
{
    size_t n = strlen(target), len = strlen(path);
    if (str_eq(target, path)) return true;
    return n && n < len && path[len - n - 1] == '.' && str_ends(path, target);
}

static int no_such_target(const struct model *m, const char *target, struct err *e)
{
    struct buf names;
    buf_init(&names, 300);
    for (int i = 0; i < m->nsites; i++) {
        const char *dot = strrchr(m->sites[i].path, '.');
        const char *last = dot ? dot + 1 : m->sites[i].path;
        bool seen = false;
        for (int k = 0; k < i && !seen; k++) seen = selects(last, m->sites[k].path);
        if (!seen) buf_printf(&names, "%s%s", i ? ", " : "", last);
    }
    err_set(e, E_ARG, "target_modules: the model has no linear layer %.80s; it has: %s", target,
            buf_str(&names));
    buf_clear(&names);
    return err_param(e, "hyperparameters.target_modules");
}

int method_targets(const struct model *m, const json_t *target, bool *take, struct err *e)
{
    json_t *one;
    size_t k;
    bool all = str_eq(json_string_value(target), "all-linear");
    for (int i = 0; i < m->nsites; i++) take[i] = all;
    if (all) return 0;
    if (!json_array_size(target)) {
        err_set(e, E_ARG, "target_modules must be \"all-linear\" or a list of module names");
        return err_param(e, "hyperparameters.target_modules");
    }
    json_array_foreach(target, k, one) {
        const char *name = json_string_value(one);
        bool found = false;
        for (int i = 0; i < m->nsites; i++) {
            if (!selects(name, m->sites[i].path)) continue;
            take[i] = found = true;
        }
        if (!found) return no_such_target(m, name, e);
    }
    return 0;
}

json_t *method_describe(const struct method *m, struct err *e)
{
    json_t *inputs = json_array(), *out = NULL, *schema = settings_schema(m->properties, e);
    if (!schema || !inputs) goto out;
    for (int i = 0; m->inputs[i]; i++)
        if (json_array_append_new(inputs, json_string(m->inputs[i]))) {
            err_set(e, E_NOMEM, "out of memory");
            goto out;
        }
    out = jx_pack(e, "{s:s, s:s, s:s, s:s, s:O, s:O}", "name", m->name, "title", m->title,
                  "paper", m->paper, "kind", m->kind, "inputs", inputs, "schema", schema);
out:
    json_decref(inputs);
    json_decref(schema);
    return out;
}
