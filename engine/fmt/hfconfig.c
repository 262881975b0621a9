#include "engine/fmt/hfconfig.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"

#include <stdio.h>
#include <string.h>

enum { CONFIG_BYTES = 4 << 20 };

int hfconfig_unsupported(struct err *e, const char *key, const char *what)
{
    err_set(e, E_UNSUPPORTED, "'%s' %s", key, what);
    return err_param(e, "%s", key);
}

int hfconfig_wrong(struct err *e, const char *key, const char *what)
{
    err_set(e, E_ARG, "'%s' %s", key, what);
    return err_param(e, "%s", key);
}

int hfconfig_inside(struct err *e, const char *object)
{
    char field[sizeof e->param];
    memcpy(field, e->param, sizeof field);
    snprintf(e->param, sizeof e->param, "%s.%.60s", object, field);
    return err_wrap(e, "%s", object);
}

bool hfconfig_among(const char *const *list, const char *key)
{
    while (*list && strcmp(*list, key) != 0) list++;
    return *list;
}

bool hfconfig_given(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v);
}

int hfconfig_refuse(const json_t *o, const char *const *keys, struct err *e)
{
    for (; *keys; keys++)
        if (hfconfig_given(o, *keys) && !json_is_false(json_object_get(o, *keys)))
            return hfconfig_unsupported(e, *keys, "is set, which graft does not do");
    return 0;
}

int hfconfig_numbers(const json_t *o, const struct hf_number *list, size_t n, void *into,
                     struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        const struct hf_number *k = &list[i];
        int64_t v = k->fallback;
        if (v == HF_REQUIRED ? jx_int64(o, k->key, k->lo, k->hi, &v, e)
                             : jx_opt_int64(o, k->key, k->lo, k->hi, &v, e))
            return -1;
        memcpy((char *)into + k->at, &v, sizeof v);
    }
    return 0;
}

static int read_family(struct hf_config *c, const json_t *o, struct err *e)
{
    const json_t *list = json_object_get(o, "architectures");
    if (!hfconfig_given(o, "model_type") && hfconfig_given(o, "architecture")) {
        c->model_type = "timm";
        return jx_str(o, "architecture", &c->architecture, e);
    }
    if (jx_str(o, "model_type", &c->model_type, e)) return -1;
    if (!hfconfig_given(o, "architectures") || json_array_size(list) == 0) return 0;
    c->architecture = json_string_value(json_array_get(list, 0));
    return c->architecture ? 0 : hfconfig_wrong(e, "architectures", "must hold names");
}

static int read_tokens(struct hf_config *c, const json_t *o, struct err *e)
{
    const json_t *eos = json_object_get(o, "eos_token_id");
    c->bos = -1;
    if (jx_opt_int64(o, "bos_token_id", 0, c->vocab_size - 1, &c->bos, e)) return -1;
    if (!json_is_array(eos)) {
        if (!hfconfig_given(o, "eos_token_id")) return 0;
        c->neos = 1;
        return jx_int64(o, "eos_token_id", 0, c->vocab_size - 1, &c->eos[0], e);
    }
    if (json_array_size(eos) > HF_EOS_MAX)
        return hfconfig_wrong(e, "eos_token_id", "must not have more than 16 entries");
    for (size_t i = 0; i < json_array_size(eos); i++) {
        const json_t *v = json_array_get(eos, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) >= c->vocab_size)
            return hfconfig_wrong(e, "eos_token_id",
                                  "must hold integers between 0 and 'vocab_size' - 1");
        c->eos[c->neos++] = json_integer_value(v);
    }
    return 0;
}

static int read_dtype(struct hf_config *c, const json_t *o, struct err *e)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"float32", DT_F32}, {"bfloat16", DT_BF16}, {"float16", DT_F16}};
    const char *key = hfconfig_given(o, "dtype") ? "dtype" : "torch_dtype", *name = "float32";
    if (jx_opt_str(o, key, &name, e)) return -1;
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(names[i].name, name) != 0) continue;
        c->dtype = names[i].dtype;
        return 0;
    }
    return hfconfig_unsupported(e, key, "must be float32, bfloat16 or float16");
}

int hfconfig_parse(struct hf_config *out, const json_t *o, struct err *e)
{
    struct hf_config c = {0};
    if (!json_is_object(o)) return err_set(e, E_FORMAT, "not a JSON object");
    if (read_family(&c, o, e) ||
        jx_opt_int64(o, "vocab_size", 1, 1 << 22, &c.vocab_size, e) ||
        (c.vocab_size && read_tokens(&c, o, e)) || read_dtype(&c, o, e))
        return -1;
    if (hfconfig_given(o, "quantization_config"))
        return hfconfig_unsupported(e, "quantization_config",
                                    "is set: give the unquantised checkpoint");
    c.json = json_incref((json_t *)(uintptr_t)o);
    *out = c;
    return 0;
}

int hfconfig_load(struct hf_config *c, const char *dir, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, "config.json", e)) return -1;
    json_t *o = jx_load_file(path, CONFIG_BYTES, e);
    if (!o) return -1;
    int rc = hfconfig_parse(c, o, e);
    json_decref(o);
    return rc ? err_wrap(e, "%s", path) : 0;
}

void hfconfig_clear(struct hf_config *c)
{
    json_decref(c->json);
    *c = (struct hf_config){0};
}
