#include "tests/lib/kit.h"

#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "service/files.h"
#include "service/jobs.h"
#include "service/log.h"
#include "service/models.h"
#include "tests/lib/fake_engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fine(int rc, const struct err *e)
{
    if (rc) fail_msg("%s: %s", e->where, e->msg);
}

static void put(const char *root, const char *name, const char *text)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    fine(fs_join(path, root, name, &e) || fs_write_file(path, text, strlen(text), &e), &e);
}

void kit_begin(struct kit *k)
{
    char dir[FS_PATH_MAX];
    struct err e = ERR_INIT;
    memset(k, 0, sizeof *k);
    log_set_level(getenv("KIT_LOG") ? LOG_DEBUG : LOG_OFF);
    snprintf(k->root, sizeof k->root, "/tmp/graft-test-XXXXXX");
    assert_non_null(mkdtemp(k->root));
    config_default(&k->config);
    snprintf(k->config.data_dir, sizeof k->config.data_dir, "%s/data", k->root);
    snprintf(k->config.model_roots, sizeof k->config.model_roots, "%s/models", k->root);
    k->config.poll_ms = 10;
    k->config.retry_ms = 20;
    fine(fs_join(dir, k->root, "models/base", &e) || fs_mkdirs(dir, &e), &e);
    put(dir, "config.json", "{\"model_type\": \"fake\"}\n");
    put(dir, "model.safetensors", "weights");
    put(dir, "pytorch_model.bin", "pickle");
    put(dir, ".hidden", "hidden");
}

void kit_open(struct kit *k)
{
    struct err e = ERR_INIT;
    k->service = service_open(&k->config, &fake_engine_calls, &e);
    fine(k->service ? 0 : -1, &e);
}

void kit_reopen(struct kit *k)
{
    service_close(k->service);
    k->service = NULL;
    kit_open(k);
}

void kit_end(struct kit *k)
{
    struct err e = ERR_INIT;
    service_close(k->service);
    k->service = NULL;
    fine(fs_rmtree(k->root, &e), &e);
}

json_t *kit_try_upload(struct kit *k, const char *name, const char *purpose, const char *text,
                       const struct idem *idem, struct err *e)
{
    struct files_new n = {.filename = name, .purpose = purpose};
    json_t *file = NULL, *report = NULL;
    struct blob_writer *w = blob_writer_new(k->service->blobs, 1 << 20, e);
    if (!w) return NULL;
    if (blob_writer_put(w, text, strlen(text), e)) {
        blob_writer_abort(w);
        return NULL;
    }
    int rc = files_create(k->service, w, &n, idem, &file, &report, e);
    json_decref(report);
    return rc ? NULL : file;
}

json_t *kit_upload(struct kit *k, const char *name, const char *purpose, const char *text)
{
    struct err e = ERR_INIT;
    json_t *file = kit_try_upload(k, name, purpose, text, NULL, &e);
    fine(file ? 0 : -1, &e);
    return file;
}

void kit_model(struct kit *k)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    json_t *model = NULL;
    fine(fs_join(path, k->root, "models/base", &e), &e);
    json_t *body = json_pack("{s:s}", "path", path);
    fine(models_create(k->service, body, &model, &e), &e);
    assert_string_equal(kit_id(model), "default/base");
    json_decref(body);
    json_decref(model);
}

json_t *kit_try_job(struct kit *k, const char *file_id, const char *settings,
                    const struct idem *idem, struct err *e)
{
    json_t *job = NULL, *report = NULL, *hyper = jx_parse(settings, strlen(settings), e);
    if (!hyper) return NULL;
    json_t *body = jx_pack(e, "{s:s, s:s, s:i, s:{s:s, s:{s:o}}}", "model", "default/base",
                           "training_file", file_id, "seed", 7, "method", "type", "lora", "lora",
                           "hyperparameters", hyper);
    if (!body) return NULL;
    int rc = jobs_create(k->service, body, idem, &job, &report, e);
    json_decref(body);
    json_decref(report);
    return rc ? NULL : job;
}

void kit_job(struct kit *k, const char *settings, char id[64])
{
    struct err e = ERR_INIT;
    json_t *file = kit_upload(k, "train.jsonl", "fine-tune", "{\"text\": \"hello\"}\n");
    json_t *job = kit_try_job(k, kit_id(file), settings, NULL, &e);
    fine(job ? 0 : -1, &e);
    snprintf(id, 64, "%s", kit_id(job));
    json_decref(file);
    json_decref(job);
}

const char *kit_id(const json_t *o)
{
    return json_string_value(json_object_get(o, "id"));
}

json_t *kit_wait(struct kit *k, const char *id, const char *status)
{
    int64_t until = clock_boot_ms() + 20000;
    for (;;) {
        struct err e = ERR_INIT;
        json_t *job = jobs_get(k->service, id, &e);
        fine(job ? 0 : -1, &e);
        const char *now = json_string_value(json_object_get(job, "status"));
        if (strcmp(now, status) == 0) return job;
        bool final = !strcmp(now, "succeeded") || !strcmp(now, "failed") ||
                     !strcmp(now, "cancelled");
        if (final || clock_boot_ms() > until) {
            char *text = json_dumps(job, 0);
            fail_msg("waited for %s: %s", status, text);
        }
        json_decref(job);
        clock_sleep_ms(5);
    }
}
