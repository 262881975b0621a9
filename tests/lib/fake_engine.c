#include "tests/lib/fake_engine.h"

#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* --- what the server asks ------------------------------------------------------------------- */

static const struct {
    const char *name;
    int64_t value, max;
} knobs[] = {{"steps", 10, 100000}, {"step_ms", 0, 10000},  {"checkpoint_every", 3, 100000},
             {"exit_code", -1, 255}, {"exit_step", -1, 100000}, {"kill_signal", 0, 64},
             {"only_attempt", 0, 1000}};
enum { KNOBS = sizeof knobs / sizeof *knobs };

static json_t *fake_settings(const char *method, const json_t *settings, struct err *e)
{
    const char *key;
    json_t *v, *out;
    if (strcmp(method, "lora") != 0) {
        err_set(e, E_NOTFOUND, "there is no method '%s'; there is: lora", method);
        return NULL;
    }
    if (!(out = json_object())) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    json_object_foreach((json_t *)(uintptr_t)settings, key, v) {
        int i = 0;
        while (i < KNOBS && strcmp(key, knobs[i].name) != 0) i++;
        if (i < KNOBS) continue;
        err_set(e, E_ARG, "unknown setting %s", key);
        err_param(e, "%s", key);
        goto fail;
    }
    for (int i = 0; i < KNOBS; i++) {
        int64_t n = knobs[i].value;
        if (jx_opt_int64(settings, knobs[i].name, -1, knobs[i].max, &n, e) ||
            jx_set(out, knobs[i].name, json_integer(n), e))
            goto fail;
    }
    return out;
fail:
    json_decref(out);
    return NULL;
}

static json_t *fake_methods(struct err *e)
{
    return jx_pack(e, "[{s:s}]", "name", "lora");
}

static json_t *fake_check_model(const char *dir, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, "config.json", e)) return NULL;
    if (!fs_exists(path)) {
        err_set(e, E_FORMAT, "config.json is missing");
        return NULL;
    }
    return jx_pack(e, "{s:s}", "model_type", "fake");
}

/* jsonl: every line must parse; anything else is fine. */
static json_t *fake_check_file(const char *path, const char *kind, struct err *e)
{
    struct buf b;
    json_t *problems = json_array(), *out = NULL;
    int line = 0;
    buf_init(&b, 64 << 20);
    if (!problems || fs_read_file(path, &b, e)) goto out;
    for (char *p = b.data, *nl; str_eq(kind, "jsonl") && p && *p; p = nl ? nl + 1 : NULL) {
        struct err bad = ERR_INIT;
        nl = strchr(p, '\n');
        line++;
        json_t *v = jx_parse(p, nl ? (size_t)(nl - p) : strlen(p), &bad);
        if (!v) json_array_append_new(problems, jx_pack(e, "{s:i, s:s}", "line", line, "reason",
                                                        bad.msg));
        json_decref(v);
    }
    out = jx_pack(e, "{s:b, s:i, s:O}", "ok", json_array_size(problems) == 0, "rows", line,
                  "problems", problems);
out:
    buf_clear(&b);
    json_decref(problems);
    return out;
}

static json_t *fake_plan(const json_t *job, const char *cache_dir, struct err *e)
{
    (void)job;
    (void)cache_dir;
    return jx_pack(e, "{s:i}", "peak_bytes", 1);
}

const struct engine_calls fake_engine_calls = {.methods = fake_methods, .settings = fake_settings,
                                               .check_model = fake_check_model,
                                               .check_file = fake_check_file, .plan = fake_plan};

/* --- what the worker runs ------------------------------------------------------------------- */

struct fake {
    const char *dir;
    int attempt;
    int64_t v[KNOBS];
    int64_t step;
    uint64_t value;
    int events, metrics;
};
enum { STEPS, STEP_MS, EVERY, EXIT_CODE, EXIT_STEP, KILL_SIGNAL, ONLY_ATTEMPT };

static uint64_t advance(uint64_t value, int64_t step)
{
    return value * 6364136223846793005u + 1442695040888963407u + (uint64_t)step;
}

uint64_t fake_engine_value(int64_t steps)
{
    uint64_t value = 1;
    for (int64_t i = 1; i <= steps; i++) value = advance(value, i);
    return value;
}

static int path_in(const struct fake *f, char out[FS_PATH_MAX], struct err *e, int attempt,
                   const char *name)
{
    int n = snprintf(out, FS_PATH_MAX, "%s/attempts/%d/%s", f->dir, attempt, name);
    return n < FS_PATH_MAX ? 0 : err_set(e, E_LIMIT, "path too long");
}

static int say(struct fake *f, const char *message, struct err *e)
{
    char line[256];
    int n = snprintf(line, sizeof line,
                     "{\"created_at\":%lld,\"level\":\"info\",\"type\":\"message\","
                     "\"message\":\"%s %lld\",\"data\":null}",
                     (long long)clock_unix_ms(), message, (long long)f->step);
    return fs_append_line(f->events, line, (size_t)n, e);
}

static int measure(struct fake *f, struct err *e)
{
    char line[128];
    int n = snprintf(line, sizeof line, "{\"step\":%lld,\"loss\":%g}", (long long)f->step,
                     1.0 / (double)f->step);
    return fs_append_line(f->metrics, line, (size_t)n, e);
}

static int write_value(const char *dir, const char *name, const struct fake *f, struct err *e)
{
    char path[FS_PATH_MAX], text[128];
    int n = snprintf(text, sizeof text, "{\"step\":%lld,\"value\":\"%llu\"}", (long long)f->step,
                     (unsigned long long)f->value);
    return fs_mkdirs(dir, e) || fs_join(path, dir, name, e) ||
                   fs_write_file(path, text, (size_t)n, e)
               ? -1
               : 0;
}

static int checkpoint(struct fake *f, struct err *e)
{
    char tmp[FS_PATH_MAX], name[64], path[FS_PATH_MAX];
    snprintf(name, sizeof name, "checkpoints/step-%lld", (long long)f->step);
    if (path_in(f, path, e, f->attempt, name) || fs_exists(path)) return 0;
    if (path_in(f, tmp, e, f->attempt, "ckpt.tmp") || fs_rmtree(tmp, e) ||
        write_value(tmp, "state.json", f, e) || fs_publish_dir(tmp, path, e))
        return -1;
    return say(f, "checkpoint", e);
}

static int resume(struct fake *f, struct err *e)
{
    for (int a = 1; a <= f->attempt; a++) {
        char dir[FS_PATH_MAX], at[FS_PATH_MAX], file[FS_PATH_MAX], **names = NULL;
        int n = 0;
        if (path_in(f, dir, e, a, "checkpoints")) return -1;
        if (!fs_exists(dir)) continue;
        if (fs_list(dir, &names, &n, e)) return -1;
        for (int i = 0; i < n; i++) {
            struct err bad = ERR_INIT;
            const char *value;
            int64_t step;
            if (fs_join(at, dir, names[i], &bad) == 0 && fs_check_dir(at, true, &bad) == 0 &&
                fs_join(file, at, "state.json", &bad) == 0) {
                json_t *o = jx_load_file(file, 4096, &bad);
                if (o && !jx_int64(o, "step", 0, INT64_MAX, &step, &bad) &&
                    !jx_str(o, "value", &value, &bad) && step > f->step) {
                    f->step = step;
                    f->value = strtoull(value, NULL, 10);
                }
                json_decref(o);
            }
            mem_free(names[i]);
        }
        mem_free(names);
    }
    return say(f, "starting from step", e);
}

static int export(struct fake *f, struct err *e)
{
    char tmp[FS_PATH_MAX], part[FS_PATH_MAX], done[FS_PATH_MAX], csv[FS_PATH_MAX];
    if (fs_join(done, f->dir, "result", e)) return -1;
    if (fs_exists(done)) return 0;
    if (path_in(f, tmp, e, f->attempt, "result.tmp") || fs_rmtree(tmp, e)) return -1;
    if (fs_join(part, tmp, "merged", e) || write_value(part, "model.safetensors", f, e) ||
        write_value(part, "config.json", f, e) || fs_join(part, tmp, "adapter", e) ||
        write_value(part, "adapter_model.safetensors", f, e) ||
        fs_join(csv, tmp, "metrics.csv", e) || fs_write_file(csv, "step,loss\n1,1\n", 14, e))
        return -1;
    return fs_publish_dir(tmp, done, e);
}

static int prepare(struct fake *f, struct err *e)
{
    char path[FS_PATH_MAX];
    json_t *job, *settings;
    if (fs_join(path, f->dir, "job.json", e) || !(job = jx_load_file(path, 1 << 20, e))) return -1;
    int rc = jx_object(job, "settings", &settings, e);
    for (int i = 0; rc == 0 && i < KNOBS; i++)
        rc = jx_int64(settings, knobs[i].name, -1, INT64_MAX, &f->v[i], e);
    json_decref(job);
    if (rc || path_in(f, path, e, f->attempt, "checkpoints") || fs_mkdirs(path, e) ||
        path_in(f, path, e, f->attempt, "events.jsonl"))
        return -1;
    f->events = fs_open(path, O_WRONLY | O_APPEND | O_CREAT, 0600, e);
    if (f->events < 0 || path_in(f, path, e, f->attempt, "metrics.jsonl")) return -1;
    f->metrics = fs_open(path, O_WRONLY | O_APPEND | O_CREAT, 0600, e);
    return f->metrics < 0 ? -1 : resume(f, e);
}

static enum engine_exit stop(struct fake *f, enum engine_want want, struct err *e)
{
    if (want == WANT_CANCEL) {
        err_set(e, E_CANCELLED, "cancelled");
        return EXIT_CANCELLED;
    }
    if (checkpoint(f, e)) return EXIT_TRANSIENT;
    err_set(e, E_CANCELLED, "asked to stop");
    return want == WANT_PAUSE ? EXIT_PAUSED : EXIT_PREEMPTED;
}

static enum engine_exit train(struct fake *f, const struct engine_hooks *h, struct err *e)
{
    bool acts = f->v[ONLY_ATTEMPT] <= 0 || f->v[ONLY_ATTEMPT] == f->attempt;
    while (f->step < f->v[STEPS]) {
        enum engine_want want = h->want ? h->want(h->ctx) : WANT_NONE;
        if (want != WANT_NONE) return stop(f, want, e);
        f->step++;
        f->value = advance(f->value, f->step);
        struct engine_progress p = {.phase = "training", .step = f->step,
                                    .total_steps = f->v[STEPS], .train_loss = 1.0 / (double)f->step,
                                    .tokens = f->step * 7, .eta_s = NAN};
        if (h->progress) h->progress(h->ctx, &p);
        if (measure(f, e)) return EXIT_TRANSIENT;
        if (acts && f->step == f->v[EXIT_STEP]) {
            clock_sleep_ms(60); /* the step becomes known before the end */
            if (f->v[KILL_SIGNAL] > 0) raise((int)f->v[KILL_SIGNAL]);
            if (f->v[EXIT_CODE] >= 0) {
                err_set(e, E_NUMERIC, "fake failure at step %lld", (long long)f->step);
                return (enum engine_exit)f->v[EXIT_CODE];
            }
        }
        if (f->v[EVERY] > 0 && f->step % f->v[EVERY] == 0 && checkpoint(f, e))
            return EXIT_TRANSIENT;
        if (f->v[STEP_MS] > 0) clock_sleep_ms(f->v[STEP_MS]);
    }
    return export(f, e) ? EXIT_TRANSIENT : EXIT_DONE;
}

enum engine_exit fake_engine_run(const char *dir, int attempt, const struct engine_hooks *hooks,
                                 struct err *e)
{
    struct fake f = {.dir = dir, .attempt = attempt, .value = 1, .events = -1, .metrics = -1};
    enum engine_exit code = prepare(&f, e) ? EXIT_TRANSIENT : train(&f, hooks, e);
    fs_close(f.events);
    fs_close(f.metrics);
    return code;
}
