#include "service/jobreq.h"

#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/config.h"
#include "service/files.h"

#include <stdio.h>
#include <string.h>

/* `supervised` of the OpenAI API means this one. */
static const char DEFAULT_METHOD[] = "lora";

static int check_keys(const json_t *body, struct err *e)
{
    static const char *const known[] = {"model", "training_file", "validation_file", "method",
                                        "hyperparameters", "suffix", "seed", "integrations",
                                        "metadata"};
    const char *key;
    json_t *v;
    if (!json_is_object(body)) return err_set(e, E_ARG, "the body must be a JSON object");
    json_object_foreach((json_t *)(uintptr_t)body, key, v) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known && !found; i++)
            found = str_eq(key, known[i]);
        if (found) continue;
        err_set(e, E_ARG, "unknown field '%.60s'", key);
        return err_param(e, "%.80s", key);
    }
    return 0;
}

static size_t characters(const char *s)
{
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static int check_metadata(const json_t *m, struct err *e)
{
    const char *key;
    json_t *v;
    if (!m || json_is_null(m)) return 0;
    if (!json_is_object(m)) {
        err_set(e, E_ARG, "'metadata' must be an object of strings");
        return err_param(e, "metadata");
    }
    if (json_object_size(m) > 16) {
        err_set(e, E_RANGE, "'metadata' has %zu pairs; at most 16 are allowed",
                json_object_size(m));
        return err_param(e, "metadata");
    }
    json_object_foreach((json_t *)(uintptr_t)m, key, v) {
        if (json_is_string(v) && characters(key) <= 64 && characters(json_string_value(v)) <= 512)
            continue;
        err_set(e, E_ARG, "'metadata' maps keys of at most 64 characters to strings of at most "
                          "512");
        return err_param(e, "metadata.%.64s", key);
    }
    return 0;
}

static int check_suffix(const char *suffix, struct err *e)
{
    if (!suffix || (*suffix && characters(suffix) <= 64)) return 0;
    err_set(e, E_RANGE, "'suffix' must have 1 to 64 characters");
    return err_param(e, "suffix");
}

/* --- method and settings -------------------------------------------------------------------- */

/* method: {"type": T, T: {"hyperparameters": {...}}}. *at names where the settings stood. */
static int find_settings(const json_t *body, const char **type, const json_t **settings,
                         char at[80], struct err *e)
{
    const json_t *method = json_object_get(body, "method");
    const json_t *old = json_object_get(body, "hyperparameters"), *own, *inner;
    *type = "supervised";
    *settings = json_is_null(old) ? NULL : old;
    snprintf(at, 80, "hyperparameters");
    if (!method || json_is_null(method)) return 0;
    if (!json_is_object(method)) {
        err_set(e, E_ARG, "'method' must be an object {\"type\": ...}");
        return err_param(e, "method");
    }
    if (jx_str(method, "type", type, e)) {
        str_copy(e->param, sizeof e->param, "method.type");
        return -1;
    }
    own = json_object_get(method, *type);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)method, key, v) {
        if (str_eq(key, "type") || str_eq(key, *type) || json_is_null(v)) continue;
        err_set(e, E_ARG, "unknown field '%.60s' in 'method', whose type is %.40s", key, *type);
        return err_param(e, "method.%.60s", key);
    }
    if (!own || json_is_null(own)) return 0;
    json_object_foreach((json_t *)(uintptr_t)own, key, v) {
        if (str_eq(key, "hyperparameters")) continue;
        err_set(e, E_ARG, "unknown field '%.60s'", key);
        return err_param(e, "method.%.30s.%.40s", *type, key);
    }
    inner = json_object_get(own, "hyperparameters");
    if (!json_is_object(own) || (inner && !json_is_object(inner) && !json_is_null(inner))) {
        err_set(e, E_ARG, "'method.%.40s' must be {\"hyperparameters\": {...}}", *type);
        return err_param(e, "method.%.40s", *type);
    }
    if (!inner || json_is_null(inner)) return 0;
    if (*settings && json_object_size(*settings)) {
        err_set(e, E_ARG, "give the settings once: in 'method' or in 'hyperparameters'");
        return err_param(e, "hyperparameters");
    }
    *settings = inner;
    snprintf(at, 80, "method.%.40s.hyperparameters", *type);
    return 0;
}

static int resolve_settings(struct service *s, const json_t *body, struct jobreq *r,
                            struct err *e)
{
    const char *type;
    const json_t *asked;
    char at[80], inner[96];
    if (find_settings(body, &type, &asked, at, e)) return -1;
    bool supervised = str_eq(type, "supervised");
    r->settings = s->engine->settings(supervised ? DEFAULT_METHOD : type, asked, e);
    if (!r->settings) {
        str_copy(inner, sizeof inner, e->param);
        if (e->code == E_NOTFOUND) {
            e->code = E_ARG;
            str_copy(e->param, sizeof e->param, "method.type");
        } else if (e->code != E_NOMEM) {
            snprintf(e->param, sizeof e->param, "%.60s%s%.30s", at, *inner ? "." : "", inner);
        }
        return -1;
    }
    r->method = supervised ? DEFAULT_METHOD : type;
    r->echo = jx_pack(e, "{s:s, s:{s:O}}", "type", type, type, "hyperparameters", r->settings);
    return r->echo ? 0 : -1;
}

/* --- what the request refers to ------------------------------------------------------------- */

static int find_model(struct service *s, struct jobreq *r, struct err *e)
{
    struct model m;
    if (models_get(s, r->model, &m, e)) return err_param(e, "model");
    int rc = 0;
    if (str_eq(m.kind, "adapter"))
        rc = err_set(e, E_UNSUPPORTED, "'%s' is an adapter: use the merged model of its job",
                     r->model);
    else
        str_copy(r->model_dir, sizeof r->model_dir, m.dir);
    models_clear(&m);
    return rc ? err_param(e, "model") : 0;
}

/* A file that was uploaded for another purpose has not been looked at yet. */
static int check_data(struct service *s, const char *id, const char *field, json_t **report,
                      struct err *e)
{
    struct store_rows *r;
    char sha[65] = "", path[FS_PATH_MAX];
    int rc = store_one(s->store, &r, e,
                       "SELECT sha256, status = 'processed' AND purpose = 'fine-tune' FROM files "
                       "WHERE id = ?",
                       "t", id);
    if (rc < 0) return -1;
    if (rc == 0) {
        err_set(e, E_NOTFOUND, "there is no file '%.80s'", id);
        return err_param(e, "%s", field);
    }
    bool checked = store_int(r, 1) != 0, known = store_text(r, 0) != NULL;
    if (known) str_copy(sha, sizeof sha, store_text(r, 0));
    store_rows_end(r);
    if (!known) return err_set(e, E_NOMEM, "out of memory");
    if (checked) return 0;
    if (blob_path(s->blobs, sha, path, e) || files_check(s, path, "jsonl", report, e))
        return err_param(e, "%s", field);
    return 0;
}

/* --- names ---------------------------------------------------------------------------------- */

static bool alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/* Appends "-" and at most `max` characters of s; what is not legal in a name becomes '-'. */
static void append_part(char *name, size_t cap, const char *s, size_t max)
{
    size_t n = strlen(name);
    bool gap = n > 0;
    for (; *s && max && n + 2 < cap; s++) {
        if (!alnum(*s) && *s != '.' && *s != '_') {
            gap = n > 0;
            continue;
        }
        if ((*s == '.' || *s == '_') && (gap || n == 0 || !alnum(name[n - 1]))) continue;
        if (gap) name[n++] = '-';
        gap = false;
        name[n++] = *s;
        max--;
    }
    while (n && !alnum(name[n - 1])) n--;
    name[n] = 0;
}

int jobreq_result_id(char out[MODELS_ID_MAX + 1], const char *model, const char *method,
                     const char *suffix, struct err *e)
{
    enum { NAME_MAX_ = 96 - 8 /* "-adapter" */ };
    char random[QUEUE_ID_MAX], name[NAME_MAX_ + 1] = "";
    const char *slash = strrchr(model, '/');
    if (service_new_id(random, sizeof random, "", e)) return -1;
    random[6] = 0;
    append_part(name, sizeof name, slash ? slash + 1 : model, 32);
    append_part(name, sizeof name, method, 20);
    if (suffix) append_part(name, sizeof name, suffix, 22);
    append_part(name, sizeof name, random, 6);
    snprintf(out, MODELS_ID_MAX + 1, "default/%s", name);
    return models_id_ok(out) ? 0 : err_set(e, E_BUG, "made an illegal model id: %s", out);
}

/* --- the whole ------------------------------------------------------------------------------ */

static int parse(struct service *s, const json_t *body, struct jobreq *r, json_t **report,
                 struct err *e)
{
    const json_t *integrations = json_object_get(body, "integrations");
    uint32_t seed;
    if (check_keys(body, e) || jx_str(body, "model", &r->model, e) ||
        jx_str(body, "training_file", &r->training_file, e) ||
        jx_opt_str(body, "validation_file", &r->validation_file, e) ||
        jx_opt_str(body, "suffix", &r->suffix, e) || check_suffix(r->suffix, e))
        return -1;
    r->metadata = json_object_get(body, "metadata");
    if (json_is_null(r->metadata)) r->metadata = NULL;
    if (check_metadata(r->metadata, e)) return -1;
    if (json_array_size(integrations) || (integrations && !json_is_array(integrations) &&
                                          !json_is_null(integrations))) {
        err_set(e, E_UNSUPPORTED, "graft has no integrations: leave the list empty");
        return err_param(e, "integrations");
    }
    if (hash_random(&seed, sizeof seed, e)) return -1;
    r->seed = seed & INT32_MAX;
    if (jx_opt_int64(body, "seed", 0, INT32_MAX, &r->seed, e) ||
        resolve_settings(s, body, r, e) || find_model(s, r, e) ||
        check_data(s, r->training_file, "training_file", report, e))
        return -1;
    if (r->validation_file && check_data(s, r->validation_file, "validation_file", report, e))
        return -1;
    return jobreq_result_id(r->result_id, r->model, r->method, r->suffix, e);
}

int jobreq_parse(struct service *s, const json_t *body, struct jobreq *r, json_t **report,
                 struct err *e)
{
    struct jobreq new = {0};
    if (parse(s, body, &new, report, e)) {
        jobreq_clear(&new);
        return -1;
    }
    *r = new;
    return 0;
}

void jobreq_clear(struct jobreq *r)
{
    json_decref(r->settings);
    json_decref(r->echo);
    *r = (struct jobreq){0};
}

json_t *jobreq_job(const struct service *s, const struct jobreq *r, const char *id,
                   const char *training, const char *validation, struct err *e)
{
    return jx_pack(e, "{s:i, s:s, s:I, s:{s:s, s:s, s:s}, s:s, s:O, s:s, s:s?, s:s, s:I}",
                   "version", 1, "id", id, "seed", (json_int_t)r->seed, "model", "id", r->model,
                   "path", r->model_dir, "init", "pretrained", "method", r->method, "settings",
                   r->settings, "training_file", training, "validation_file", validation,
                   "result_id", r->result_id, "threads", (json_int_t)s->config->job_threads);
}
