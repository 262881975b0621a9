/* The functions of engine.h that run and plan jobs. */
#include "engine/engine.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/job/estimate.h"
#include "engine/job/profile.h"
#include "engine/job/run.h"
#include "engine/method/settings.h"

#include <stdio.h>
#include <string.h>

enum { GRAFT_JSON_MAX = 1 << 20 };

static int announce(struct run *r, struct err *e)
{
    const struct params *ps = &r->session.model->params;
    int64_t trainable = params_count(ps, PARAM_TRAINABLE);
    int64_t all = model_parameters(r->session.model);
    int64_t cut = dataset_truncated(r->train), skipped = dataset_skipped(r->train);
    int64_t valid = r->valid ? dataset_count(r->valid) : 0, rows = dataset_documents(r->train);
    int64_t lost = dataset_cut_tokens(r->train);
    json_t *data = jx_pack(e, "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I,"
                           " s:s, s:I}", "kind", "start", "model", r->job.model_id, "method",
                           r->job.method->name, "parameters", (json_int_t)all,
                           "trainable_parameters", (json_int_t)trainable, "rows",
                           (json_int_t)rows, "packed_rows", (json_int_t)r->schedule.rows,
                           "validation_rows", (json_int_t)valid, "rows_truncated",
                           (json_int_t)cut, "tokens_truncated", (json_int_t)lost, "rows_skipped",
                           (json_int_t)skipped, "total_steps", (json_int_t)r->schedule.total,
                           "max_length", (json_int_t)r->max_length, "recompute",
                           recompute_names[r->session.graphs.recompute], "peak_bytes",
                           (json_int_t)r->peak_bytes);
    if (journal_event(&r->journal, "info", "message", data, e,
                      "Training %s with %s: %lld of %lld parameters, %lld rows, %lld steps",
                      r->job.model_id, r->job.method->name, (long long)trainable, (long long)all,
                      (long long)rows, (long long)r->schedule.total))
        return -1;
    if (!cut && !skipped) return 0;
    return journal_event(&r->journal, "warn", "message", NULL, e,
                         "%lld rows were cut at %lld tokens, which lost %lld, and %lld rows had "
                         "nothing to train on", (long long)cut, (long long)r->max_length,
                         (long long)lost, (long long)skipped);
}

static enum engine_exit run_phases(struct run *r, struct err *e)
{
    if (ckpt_sweep(r->dir, e) || job_load(&r->job, r->dir, e) || run_load(r, false, e) ||
        announce(r, e) || ckpt_resume(r, e))
        return run_exit_code(e);
    enum engine_exit code = train_run(r, e);
    if (code != EXIT_DONE) return code;
    if (export_run(r, e)) return run_exit_code(e);
    return EXIT_DONE;
}

/* The counters of a result that an earlier attempt published. */
static void counters_of_result(struct run *r, const char *result)
{
    char path[FS_PATH_MAX];
    struct err ignored = ERR_INIT;
    if (fs_join(path, result, "graft.json", &ignored)) return;
    json_t *o = jx_load_file(path, GRAFT_JSON_MAX, &ignored);
    const json_t *metrics = json_object_get(o, "metrics");
    r->state.step = json_integer_value(json_object_get(metrics, "steps"));
    r->state.tokens = json_integer_value(json_object_get(metrics, "tokens"));
    json_decref(o);
}

/* The last words of an attempt. A failure to write them must not hide why it ended. */
static enum engine_exit finish(struct run *r, enum engine_exit code, struct err *e)
{
    struct err late = ERR_INIT;
    int rc = 0;
    if (code == EXIT_DONE)
        rc = journal_event(&r->journal, "info", "message", jx_pack(&late, "{s:s}", "kind", "end"),
                           &late, "The result is complete");
    else if (code == EXIT_PAUSED || code == EXIT_PREEMPTED)
        rc = journal_event(&r->journal, "info", "message", NULL, &late, "Stopped at step %lld",
                           (long long)r->state.step);
    else
        rc = journal_event(&r->journal, code == EXIT_CANCELLED ? "info" : "error", "message",
                           NULL, &late, "%s", e->msg);
    if (journal_exit(&r->journal, code, r->state.step, r->state.tokens, e, &late) || rc) {
        if (code != EXIT_DONE && code != EXIT_PAUSED && code != EXIT_PREEMPTED) return code;
        *e = late;
        return run_exit_code(e);
    }
    return code;
}

enum engine_exit engine_run(const char *dir, int attempt, const struct engine_hooks *hooks,
                            struct err *e)
{
    struct run *r = mem_zalloc(sizeof *r, e);
    char result[FS_PATH_MAX];
    struct err ignored = ERR_INIT;
    enum engine_exit code = EXIT_DONE;
    if (!r) return run_exit_code(e);
    r->attempt = attempt;
    if (attempt < 1) {
        err_set(e, E_ARG, "attempts are numbered from 1");
        code = run_exit_code(e);
    } else if (snprintf(r->dir, sizeof r->dir, "%s", dir) >= (int)sizeof r->dir ||
               fs_join(result, dir, "result", e) ||
               journal_open(&r->journal, dir, attempt, hooks, e)) {
        code = run_exit_code(e);
    } else {
        if (fs_is_dir(result) && !fs_check_dir(result, false, &ignored))
            counters_of_result(r, result);
        else
            code = run_phases(r, e);
        code = finish(r, code, e);
        journal_close(&r->journal);
    }
    run_close(r);
    mem_free(r);
    return code;
}

static json_t *plan_parts(const struct estimate *x, struct err *e)
{
    json_t *o = json_object();
    for (int i = 0; i < PART_COUNT; i++)
        if (!o || jx_set(o, estimate_names[i], json_integer(x->part[i]), e)) {
            json_decref(o);
            return NULL;
        }
    return o;
}

static json_t *plan_answer(const struct run *r, const struct estimate_fit *f,
                           const struct estimate_time *t, struct err *e)
{
    const struct estimate *x = &f->e;
    json_t *o = jx_pack(e, "{s:I, s:o, s:b, s:I, s:I, s:s, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I}",
                        "peak_bytes", (json_int_t)x->peak, "bytes", plan_parts(x, e), "fits",
                        f->fits, "free_bytes", (json_int_t)f->memory.free, "memory_bytes",
                        (json_int_t)f->memory.total, "recompute", recompute_names[x->recompute],
                        "flops_per_step", (json_int_t)x->flops, "seconds_per_step", t->step,
                        "seconds", t->job, "steps", (json_int_t)r->schedule.total, "rows",
                        (json_int_t)dataset_documents(r->train), "result_bytes",
                        (json_int_t)(x->adapter + x->merged), "parameters",
                        (json_int_t)model_parameters(r->session.model), "trainable_parameters",
                        (json_int_t)params_count(&r->session.model->params, PARAM_TRAINABLE));
    json_t *disk = jx_pack(e, "{s:I, s:I}", "merged", (json_int_t)x->merged, "checkpoint",
                           (json_int_t)x->checkpoint);
    struct err why = ERR_INIT;
    if (!o || !disk || (x->adapter && jx_set(disk, "adapter", json_integer(x->adapter), e)) ||
        jx_set(o, "results", json_incref(disk), e) ||
        (estimate_refuse(f, &why) && jx_set(o, "advice", jx_pack(e, "s", why.msg), e))) {
        json_decref(o);
        o = NULL;
    }
    json_decref(disk);
    return o;
}

json_t *engine_plan(const json_t *job, const char *cache_dir, struct err *e)
{
    struct run *r = mem_zalloc(sizeof *r, e);
    struct estimate_fit f;
    struct estimate_time t;
    struct plan_rates rates;
    json_t *out = NULL;
    if (!r) return NULL;
    /* Measuring comes last: its own memory is no part of the job. */
    if (!job_parse(&r->job, job, e) && !run_load(r, true, e) && !estimate_fit(r, &f, e) &&
        !profile_get(cache_dir, r->job.threads, &rates, e) &&
        !estimate_seconds(r, &rates, &t, e))
        out = plan_answer(r, &f, &t, e);
    run_close(r);
    mem_free(r);
    return out;
}

json_t *engine_methods(struct err *e)
{
    json_t *out = json_array();
    if (!out) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    for (int i = 0; method_list[i]; i++) {
        json_t *one = method_describe(method_list[i], e);
        if (one && !json_array_append_new(out, one)) continue;
        json_decref(out);
        return NULL;
    }
    return out;
}

json_t *engine_settings(const char *method, const json_t *settings, struct err *e)
{
    const struct method *m = method_find(method, e);
    json_t *schema = m ? settings_schema(m->properties, e) : NULL;
    json_t *out = schema ? settings_fill(schema, settings, e) : NULL;
    json_decref(schema);
    return out;
}
