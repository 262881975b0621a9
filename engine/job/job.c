#include "engine/job/job.h"

#include "engine/base/fs.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/pool.h"
#include "engine/base/str.h"
#include "engine/method/settings.h"

#include <string.h>

enum { JOB_MAX_BYTES = 4 << 20, SEED_MAX = 2147483647, THREADS_MAX = 1024 };

static int only(const json_t *o, const char *const *names, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v) {
        int i = 0;
        while (names[i] && !str_eq(names[i], key)) i++;
        if (names[i]) continue;
        err_set(e, E_ARG, "unknown field %.80s", key);
        return err_param(e, "%.80s", key);
    }
    return 0;
}

static int parse_model(struct job *j, struct err *e)
{
    static const char *const names[] = {"id", "path", "init", NULL};
    json_t *model;
    const char *init = "pretrained";
    if (jx_object(j->json, "model", &model, e)) return -1;
    if (only(model, names, e) || jx_str(model, "id", &j->model_id, e) ||
        jx_str(model, "path", &j->model_path, e) || jx_opt_str(model, "init", &init, e))
        return err_wrap(e, "model");
    j->random = str_eq(init, "random");
    if (j->random || str_eq(init, "pretrained")) return 0;
    err_set(e, E_ARG, "model.init must be pretrained or random");
    return err_param(e, "model.init");
}

/* Everything that decides a byte of the result, and nothing else (not paths, not threads). */
static int hash_job(struct job *j, struct err *e)
{
    json_t *o = jx_pack(e, "{s:i, s:s, s:I, s:s, s:b, s:b, s:O}", "version", 1, "method",
                        j->method->name, "seed", (json_int_t)j->seed, "model", j->model_id,
                        "random", j->random, "bf16", j->bf16, "settings", j->settings);
    char *text = o ? jx_dump(o, e) : NULL;
    int rc = text ? hash_sha256(text, strlen(text), j->hash, e) : -1;
    mem_free(text);
    json_decref(o);
    return rc;
}

static int parse_device(struct job *j, struct err *e)
{
    const char *device = "auto", *precision = "f32";
    if (jx_opt_str(j->json, "device", &device, e) ||
        jx_opt_str(j->json, "precision", &precision, e))
        return -1;
    j->device = str_eq(device, "cuda") ? SESSION_CUDA
                : str_eq(device, "cpu") ? SESSION_CPU : SESSION_AUTO;
    j->bf16 = str_eq(precision, "bf16");
    if (j->device == SESSION_AUTO && !str_eq(device, "auto")) {
        err_set(e, E_ARG, "device must be cpu, cuda or auto");
        return err_param(e, "device");
    }
    if (j->bf16 || str_eq(precision, "f32")) return 0;
    err_set(e, E_ARG, "precision must be f32 or bf16");
    return err_param(e, "precision");
}

static int parse(struct job *j, struct err *e)
{
    static const char *const names[] = {"version", "id", "seed", "model", "method", "settings",
                                        "training_file", "validation_file", "result_id",
                                        "threads", "device", "precision", NULL};
    int64_t version, seed, threads = 0;
    const char *method;
    json_t *settings, *schema;
    if (only(j->json, names, e) || jx_int64(j->json, "version", 1, 1, &version, e) ||
        jx_str(j->json, "id", &j->id, e) || jx_int64(j->json, "seed", 0, SEED_MAX, &seed, e) ||
        parse_model(j, e) || jx_str(j->json, "method", &method, e) ||
        jx_object(j->json, "settings", &settings, e) ||
        jx_str(j->json, "training_file", &j->training_file, e) ||
        jx_opt_str(j->json, "validation_file", &j->validation_file, e) ||
        jx_str(j->json, "result_id", &j->result_id, e) ||
        jx_opt_int64(j->json, "threads", 0, THREADS_MAX, &threads, e) || parse_device(j, e))
        return -1;
    j->seed = (uint64_t)seed;
    j->threads = threads ? (int)threads : pool_default_threads();
    if (!(j->method = method_find(method, e))) return -1;
    if (!(schema = settings_schema(j->method->properties, e))) return -1;
    j->settings = settings_fill(schema, settings, e);
    json_decref(schema);
    return j->settings ? hash_job(j, e) : -1;
}

int job_parse(struct job *j, const json_t *json, struct err *e)
{
    *j = (struct job){.json = json_incref((json_t *)json)};
    if (json_is_object(json) ? parse(j, e) : err_set(e, E_FORMAT, "a job must be a JSON object")) {
        job_clear(j);
        return -1;
    }
    return 0;
}

int job_load(struct job *j, const char *dir, struct err *e)
{
    char path[FS_PATH_MAX];
    *j = (struct job){0};
    if (fs_join(path, dir, "job.json", e)) return -1;
    json_t *json = jx_load_file(path, JOB_MAX_BYTES, e);
    int rc = json ? job_parse(j, json, e) : -1;
    json_decref(json);
    return rc ? err_wrap(e, "job.json") : 0;
}

void job_clear(struct job *j)
{
    json_decref(j->json);
    json_decref(j->settings);
    *j = (struct job){0};
}
