/* result/: what the user asked for. Written into result.tmp, opened again the way a stranger
 * would, compared with the model that was trained, and only then published. Nothing in it depends
 * on time, place or threads: the same job gives the same bytes. */
#include "engine/base/fault.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/card.h"
#include "engine/fmt/hfdir.h"
#include "engine/fmt/safetensors.h"
#include "engine/job/run.h"
#include "engine/method/settings.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { CARD_ROWS = 12 };

struct exporter {
    struct run *r;
    char tmp[FS_PATH_MAX];     /* result.tmp */
    struct ids probe;          /* tokens on which models are compared */
    float *trained;            /* [probe.n, V] logits of the trained model */
    json_t *checks;            /* of graft.json */
    const char *device;
};

static int put_merged(const struct exporter *x, struct st_writer *w, const struct param *p,
                      struct err *e)
{
    const struct adaptation *a = &x->r->session.adapt;
    enum dtype to = model_stored(a->model, p);
    size_t bytes = (size_t)p->count * dtype_size(to);
    int rc = -1;
    float *f = mem_array(p->count, sizeof *f, e);
    void *out = mem_alloc(bytes, e);
    /* In f32, rounded once. */
    if (f && out && !st_convert(f, DT_F32, p->data, p->dtype, p->count, e) &&
        !a->method->merge(a, p, f, e) && !st_convert(out, to, f, DT_F32, p->count, e))
        rc = st_writer_put(w, out, bytes, e);
    mem_free(f);
    mem_free(out);
    return rc;
}

static int write_weights(const struct exporter *x, const char *dir, struct err *e)
{
    const struct model *m = x->r->session.model;
    char path[FS_PATH_MAX];
    if (fs_join(path, dir, "model.safetensors", e)) return -1;
    struct st_writer *w = st_writer_new(path, e);
    if (!w || st_writer_meta(w, "format", "pt", e)) goto fail;
    for (int i = 0; i < m->ntensors; i++) {
        const struct param *p = m->params.items[i];
        if (st_writer_add(w, p->name, model_stored(m, p), p->rank, p->shape, e)) goto fail;
    }
    for (int i = 0; i < m->ntensors; i++)
        if (put_merged(x, w, m->params.items[i], e)) goto fail;
    return st_writer_publish(w, NULL, e);
fail:
    st_writer_abort(w);
    return -1;
}

static int write_card(const struct exporter *x, const char *dir, bool adapter, struct err *e)
{
    const struct run *r = x->r;
    const struct job *j = &r->job;
    const struct model_task *task = r->session.model->arch->task;
    const char *const tags[] = {"graft", j->method->name};
    char license[64] = "", text[CARD_ROWS][80], title[256], usage[800];
    struct card_row rows[CARD_ROWS];
    int n = 0;
    if (card_base_license(j->model_path, license, e)) return -1;
    snprintf(title, sizeof title, "%s%s", j->result_id, adapter ? "-adapter" : "");
    if (adapter)
        snprintf(usage, sizeof usage,
                 "from peft import PeftModel\nfrom transformers import %s\n\n"
                 "base = %s.from_pretrained(\"%s\")\n"
                 "model = PeftModel.from_pretrained(base, \"%s\")\n",
                 task->auto_class, task->auto_class, j->model_id, title);
    else
        snprintf(usage, sizeof usage,
                 "from transformers import %s, AutoTokenizer\n\n"
                 "model = %s.from_pretrained(\"%s\")\n"
                 "tokenizer = AutoTokenizer.from_pretrained(\"%s\")\n",
                 task->auto_class, task->auto_class, title, title);
#define ROW(label, ...) \
    (snprintf(text[n], sizeof text[n], __VA_ARGS__), \
     rows[n] = (struct card_row){label, text[n]}, n++)
    ROW("method", "%s", j->method->title);
    ROW("rows", "%lld", (long long)dataset_documents(r->train));
    ROW("steps", "%lld", (long long)r->schedule.total);
    ROW("tokens", "%lld", (long long)r->state.tokens);
    ROW("learning rate", "%g", r->schedule.peak);
    ROW("rows per step", "%lld", (long long)(r->schedule.batch * r->schedule.accumulate));
    ROW("seed", "%lld", (long long)j->seed);
    ROW("last training loss", "%.4f", r->state.train_loss);
    if (r->valid) {
        ROW("validation loss before", "%.4f", r->state.before_loss);
        ROW("validation loss after", "%.4f", r->state.valid_loss);
        ROW("validation token accuracy", "%.4f", r->state.valid_accuracy);
    }
#undef ROW
    const struct card c = {.title = title, .base_model = j->model_id,
                           .library_name = adapter ? "peft" : "transformers",
                           .pipeline_tag = task->pipeline, .license = license, .tags = tags,
                           .ntags = 2, .usage = usage, .rows = rows, .nrows = n};
    return card_write(dir, &c, e);
}

/* Logits of a result, opened from its files, against those of the trained model. */
static int check(struct exporter *x, const char *name, const char *dir, const char *adapter,
                 struct err *e)
{
    const struct job *j = &x->r->job;
    const struct model *m = x->r->session.model;
    const struct session_options o = {.dir = dir, .random = adapter && j->random,
                                      .seed = j->seed, .threads = j->threads};
    enum dtype stored = adapter ? DT_F32 : model_stored(m, m->params.items[0]);
    double limit = stored == DT_BF16 || j->bf16 ? 1e-1 : stored == DT_F16 ? 2e-2 : 1e-4;
    double diff = 0, norm = 0, worst = 0;
    struct session s = {0};
    float *got = NULL;
    int rc = -1;
    if (session_open(&s, &o, e) || session_ready(&s, adapter, e) ||
        !(got = session_logits(&s, x->probe.v, x->probe.n, e)))
        goto out;
    int64_t n = x->probe.n * s.model->cfg.vocab_size;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)got[i] - x->trained[i];
        diff += d * d;
        norm += (double)x->trained[i] * x->trained[i];
        if (!(fabs(d) <= worst)) worst = fabs(d);
    }
    double relative = norm > 0 ? sqrt(diff / norm) : sqrt(diff);
    if (!(relative <= limit)) {
        err_set(e, E_NUMERIC, "its logits differ from the trained model's by %.3g (limit %g)",
                relative, limit);
        goto out;
    }
    rc = jx_set(x->checks, name,
                jx_pack(e, "{s:f, s:f}", "logits_relative_l2", relative, "logits_largest", worst),
                e);
out:
    mem_free(got);
    session_close(&s);
    return rc ? err_wrap(e, "checking the exported %s", name) : 0;
}

static int sub(const struct exporter *x, const char *name, char out[FS_PATH_MAX], struct err *e)
{
    return fs_join(out, x->tmp, name, e) || fs_mkdirs(out, e) ? -1 : 0;
}

static int export_adapter(struct exporter *x, struct err *e)
{
    const struct run *r = x->r;
    const struct adaptation *a = &r->session.adapt;
    char dir[FS_PATH_MAX];
    if (!a->method->save) return 0;
    if (sub(x, "adapter", dir, e) || a->method->save(a, dir, r->job.model_id, e) ||
        write_card(x, dir, true, e))
        return err_wrap(e, "adapter");
    return check(x, "adapter", r->job.model_path, dir, e);
}

static int export_merged(struct exporter *x, struct err *e)
{
    char dir[FS_PATH_MAX];
    if (sub(x, "merged", dir, e) || hfdir_copy(x->r->job.model_path, dir, e) ||
        write_weights(x, dir, e) || write_card(x, dir, false, e))
        return err_wrap(e, "merged model");
    return check(x, "merged", dir, NULL, e);
}

static int take_probe(struct exporter *x, struct err *e)
{
    struct example ex = dataset_get(x->r->train, 0);
    int64_t n = ex.n < EXPORT_PROBE ? ex.n : EXPORT_PROBE;
    if (ids_append(&x->probe, ex.ids, n, e)) return -1;
    x->trained = session_logits(&x->r->session, x->probe.v, n, e);
    if (!x->trained || exec_pull(x->r->session.exec, &x->r->session.model->params, e)) return -1;
    x->device = x->r->session.exec->device->name;
    exec_free(x->r->session.exec);
    x->r->session.exec = x->r->session.graphs.exec = NULL;
    return 0;
}

static json_t *file_hash(const char *path, struct err *e)
{
    char hex[65];
    if (!path) return json_null();
    return hash_file_sha256(path, hex, e) ? NULL : jx_pack(e, "{s:s}", "sha256", hex);
}

/* SHA-256 of every file of the base that decides the result. */
static json_t *base_hashes(const struct run *r, struct err *e)
{
    char path[FS_PATH_MAX], hex[65], **names = NULL;
    int n = 0;
    json_t *o = json_object();
    if (!o || fs_list(r->job.model_path, &names, &n, e)) goto fail;
    for (int i = 0; i < n; i++) {
        bool weights = str_ends(names[i], ".safetensors") && !r->job.random;
        if (!weights && !str_eq(names[i], "config.json") && !str_eq(names[i], "tokenizer.json"))
            continue;
        if (fs_join(path, r->job.model_path, names[i], e) || hash_file_sha256(path, hex, e) ||
            jx_set(o, names[i], jx_pack(e, "s", hex), e))
            goto fail;
    }
    goto out;
fail:
    json_decref(o);
    o = NULL;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return o;
}

static json_t *number(double v)
{
    return isnan(v) ? json_null() : json_real(v);
}

static json_t *measurements(const struct run *r, struct err *e)
{
    const struct run_state *s = &r->state;
    const struct params *ps = &r->session.model->params;
    json_t *o = jx_pack(e, "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "steps",
                        (json_int_t)s->step, "tokens", (json_int_t)s->tokens, "trained_tokens",
                        (json_int_t)s->trained, "rows", (json_int_t)dataset_documents(r->train),
                        "packed_rows", (json_int_t)r->schedule.rows,
                        "rows_truncated", (json_int_t)dataset_truncated(r->train),
                        "tokens_truncated", (json_int_t)dataset_cut_tokens(r->train),
                        "rows_skipped", (json_int_t)dataset_skipped(r->train), "parameters",
                        (json_int_t)model_parameters(r->session.model), "trainable_parameters",
                        (json_int_t)params_count(ps, PARAM_TRAINABLE));
    if (!o) return NULL;
    if (jx_set(o, "train_loss", number(s->train_loss), e) ||
        jx_set(o, "valid_loss", number(s->valid_loss), e) ||
        jx_set(o, "valid_accuracy", number(s->valid_accuracy), e) ||
        jx_set(o, "before",
               jx_pack(e, "{s:o, s:o}", "valid_loss", number(s->before_loss), "valid_accuracy",
                       number(s->before_accuracy)), e)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int write_json(const struct exporter *x, const char *name, const json_t *v, struct err *e)
{
    char path[FS_PATH_MAX];
    int rc = -1;
    char *text = jx_dump_pretty(v, e), *line = text ? mem_printf(e, "%s\n", text) : NULL;
    if (line && !fs_join(path, x->tmp, name, e))
        rc = fs_write_file(path, line, strlen(line), e);
    mem_free(line);
    mem_free(text);
    return rc;
}

/* graft.json, also beside the weights: each folder is a repository of its own on the hub. */
static int write_graft_json(const struct exporter *x, struct err *e)
{
    const struct job *j = &x->r->job;
    int rc = -1;
    json_t *o = jx_pack(e, "{s:i, s:s, s:s, s:s, s:I, s:{s:s, s:s}, s:s, s:O}", "version", 1,
                        "graft", GRAFT_VERSION, "device", x->device, "method",
                        j->method->name, "seed", (json_int_t)j->seed, "model", "id", j->model_id,
                        "init", j->random ? "random" : "pretrained", "result_id", j->result_id,
                        "settings", j->settings);
    if (!o || jx_set(json_object_get(o, "model"), "files", base_hashes(x->r, e), e) ||
        jx_set(o, "training_file", file_hash(j->training_file, e), e) ||
        jx_set(o, "validation_file", file_hash(j->validation_file, e), e) ||
        jx_set(o, "metrics", measurements(x->r, e), e) ||
        jx_set(o, "samples", json_incref(x->r->state.samples), e) ||
        jx_set(o, "checks", json_incref(x->checks), e) ||
        write_json(x, "graft.json", o, e) || write_json(x, "merged/graft.json", o, e))
        goto out;
    rc = j->method->save ? write_json(x, "adapter/graft.json", o, e) : 0;
out:
    json_decref(o);
    return rc;
}

static int fill(struct exporter *x, struct err *e)
{
    const struct run_state *s = &x->r->state;
    char path[FS_PATH_MAX];
    if (!(x->checks = json_object())) return err_set(e, E_NOMEM, "out of memory");
    if (take_probe(x, e) || export_adapter(x, e)) return -1;
    if (CRASHPOINT("job.adapter_written")) return err_set(e, E_IO, "crash point");
    if (export_merged(x, e) || write_json(x, "samples.json", s->samples, e) ||
        fs_join(path, x->tmp, "metrics.csv", e) ||
        fs_write_file(path, buf_str(&s->csv), s->csv.len, e))
        return -1;
    return write_graft_json(x, e);
}

int export_run(struct run *r, struct err *e)
{
    struct exporter x = {.r = r};
    char path[FS_PATH_MAX];
    int rc = -1;
    run_progress(r, "exporting");
    if (fs_join(x.tmp, r->dir, "result.tmp", e) || fs_join(path, r->dir, "result", e) ||
        fs_rmtree(x.tmp, e) || fs_rmtree(path, e) || fs_mkdirs(x.tmp, e) || fill(&x, e))
        goto out;
    if (CRASHPOINT("job.before_result")) {
        err_set(e, E_IO, "crash point job.before_result");
        goto out;
    }
    if (fs_publish_dir(x.tmp, path, e)) goto out;
    if (CRASHPOINT("job.result_published")) {
        err_set(e, E_IO, "crash point job.result_published");
        goto out;
    }
    rc = 0;
out:
    ids_clear(&x.probe);
    mem_free(x.trained);
    json_decref(x.checks);
    return rc ? err_wrap(e, "result") : 0;
}
