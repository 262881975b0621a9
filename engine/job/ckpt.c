/* Checkpoints: attempts/<n>/checkpoints/step-N/
 *   state.safetensors  <name>, <name>.m, <name>.v of every trained parameter, f32
 *   state.json         counters, samples, and the hash of the job they belong to
 *   metrics.csv        as far as it goes
 *   manifest.json      sizes and hashes; its folder appears whole or not at all
 * The two newest are kept. A new one is published before an old one goes. */
#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/safetensors.h"
#include "engine/job/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CKPT_VERSION = 1, CKPT_KEEP = 2, STATE_MAX_BYTES = 64 << 20 };

static const char *const suffixes[] = {"", ".m", ".v"};

static float *part(const struct param *p, int k)
{
    return k == 0 ? p->data : k == 1 ? p->m : p->v;
}

static int write_tensors(const struct run *r, const char *dir, struct err *e)
{
    const struct params *ps = &r->session.model->params;
    char path[FS_PATH_MAX], name[PARAM_NAME + 4];
    if (fs_join(path, dir, "state.safetensors", e)) return -1;
    struct st_writer *w = st_writer_new(path, e);
    if (!w) return -1;
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        if (p->kind != PARAM_TRAINABLE) continue;
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "%s%s", p->name, suffixes[k]);
            if (st_writer_add(w, name, DT_F32, p->rank, p->shape, e)) goto fail;
        }
    }
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        if (p->kind != PARAM_TRAINABLE) continue;
        for (int k = 0; k < 3; k++)
            if (st_writer_put(w, part(p, k), (size_t)p->count * sizeof(float), e)) goto fail;
    }
    return st_writer_publish(w, NULL, e);
fail:
    st_writer_abort(w);
    return -1;
}

static json_t *number(double x)
{
    return isnan(x) ? json_null() : json_real(x);
}

static int write_state(const struct run *r, const char *dir, struct err *e)
{
    const struct run_state *s = &r->state;
    char path[FS_PATH_MAX];
    json_t *o = jx_pack(e, "{s:i, s:s, s:I, s:f, s:I, s:I, s:b, s:o, s:o, s:o, s:o, s:o, s:O}",
                        "version", CKPT_VERSION, "job", r->job.hash, "step",
                        (json_int_t)s->step, "epoch", schedule_epoch(&r->schedule, s->step),
                        "tokens", (json_int_t)s->tokens, "trained", (json_int_t)s->trained,
                        "begun", s->begun, "train_loss", number(s->train_loss), "valid_loss",
                        number(s->valid_loss), "valid_accuracy", number(s->valid_accuracy),
                        "before_loss", number(s->before_loss), "before_accuracy",
                        number(s->before_accuracy), "samples", s->samples);
    char *text = o ? jx_dump(o, e) : NULL;
    int rc = -1;
    if (text && !fs_join(path, dir, "state.json", e) &&
        !fs_write_file(path, text, strlen(text), e) && !fs_join(path, dir, "metrics.csv", e))
        rc = fs_write_file(path, buf_str(&s->csv), s->csv.len, e);
    mem_free(text);
    json_decref(o);
    return rc;
}

struct found {
    int attempt;
    int64_t step;
};

static int newest_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? 1 : -1;
    return (x->attempt < y->attempt) - (x->attempt > y->attempt);
}

static void folder(const struct run *r, const struct found *f, char out[FS_PATH_MAX])
{
    snprintf(out, FS_PATH_MAX, "%s/attempts/%d/checkpoints/step-%lld", r->dir, f->attempt,
             (long long)f->step);
}

static void free_names(char **names, int n)
{
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
}

static int list_one(const char *job_dir, int attempt, struct found **all, int *n, struct err *e)
{
    char dir[FS_PATH_MAX], **names = NULL;
    int count = 0, rc = -1;
    snprintf(dir, sizeof dir, "%s/attempts/%d/checkpoints", job_dir, attempt);
    if (!fs_is_dir(dir)) return 0;
    if (fs_list(dir, &names, &count, e)) return -1;
    for (int i = 0; i < count; i++) {
        int64_t step;
        if (!str_starts(names[i], "step-") || !str_int64(names[i] + 5, &step) || step < 0)
            continue;
        struct found *grown = mem_realloc(*all, (size_t)(*n + 1) * sizeof **all, e);
        if (!grown) goto out;
        *all = grown;
        grown[(*n)++] = (struct found){attempt, step};
    }
    rc = 0;
out:
    free_names(names, count);
    return rc;
}

/* Checkpoints of all attempts, newest first. */
static int list(const struct run *r, struct found **all, int *n, struct err *e)
{
    *all = NULL;
    *n = 0;
    for (int a = 1; a <= r->attempt; a++)
        if (list_one(r->dir, a, all, n, e)) {
            mem_free(*all);
            *all = NULL;
            return -1;
        }
    if (*n) qsort(*all, (size_t)*n, sizeof **all, newest_first);
    return 0;
}

static int prune(const struct run *r, struct err *e)
{
    struct found *all;
    char dir[FS_PATH_MAX];
    int n, rc = 0;
    if (list(r, &all, &n, e)) return -1;
    for (int i = CKPT_KEEP; i < n && !rc; i++) {
        folder(r, &all[i], dir);
        rc = fs_rmtree(dir, e);
    }
    mem_free(all);
    return rc;
}

int ckpt_write(struct run *r, struct err *e)
{
    struct found f = {r->attempt, r->state.step};
    char dir[FS_PATH_MAX], tmp[FS_PATH_MAX];
    int64_t started = clock_mono_ns();
    folder(r, &f, dir);
    if (fs_is_dir(dir)) return 0; /* asked to pause right after saving this step */
    if (snprintf(tmp, sizeof tmp, "%s.tmp", dir) >= (int)sizeof tmp)
        return err_set(e, E_LIMIT, "the path of the job folder is too long");
    if (fs_rmtree(tmp, e) || fs_mkdirs(tmp, e)) return -1;
    if (CRASHPOINT("job.checkpoint_begun")) return err_set(e, E_IO, "crash point");
    if (exec_pull(r->session.exec, &r->session.model->params, e) || write_tensors(r, tmp, e) ||
        write_state(r, tmp, e))
        goto fail;
    if (CRASHPOINT("job.checkpoint_filled")) return err_set(e, E_IO, "crash point");
    if (fs_publish_dir(tmp, dir, e)) goto fail;
    if (CRASHPOINT("job.checkpoint_written")) return err_set(e, E_IO, "crash point");
    if (prune(r, e)) goto fail;
    return journal_event(&r->journal, "info", "message",
                         jx_pack(e, "{s:s, s:I, s:o, s:o, s:o}", "kind", "checkpoint", "step",
                                 (json_int_t)f.step, "train_loss", number(r->state.train_loss),
                                 "valid_loss", number(r->state.valid_loss),
                                 "valid_mean_token_accuracy", number(r->state.valid_accuracy)),
                         e, "Checkpoint at step %lld written in %.1f s", (long long)f.step,
                         (double)(clock_mono_ns() - started) * 1e-9);
fail:
    return err_wrap(e, "checkpoint at step %lld", (long long)f.step);
}

static int read_tensors(struct run *r, const char *dir, struct err *e)
{
    const struct params *ps = &r->session.model->params;
    char path[FS_PATH_MAX], name[PARAM_NAME + 4];
    int rc = -1, seen = 0;
    if (fs_join(path, dir, "state.safetensors", e)) return -1;
    struct st *st = st_open(path, e);
    if (!st) return -1;
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        if (p->kind != PARAM_TRAINABLE) continue;
        for (int k = 0; k < 3; k++, seen++) {
            snprintf(name, sizeof name, "%s%s", p->name, suffixes[k]);
            const struct st_tensor *t = st_find(st, name);
            if (!t || t->dtype != DT_F32 || t->count != p->count) {
                err_set(e, E_CORRUPT, "tensor %s is missing or of another size", name);
                goto out;
            }
            memcpy(part(p, k), t->data, (size_t)p->count * sizeof(float));
        }
    }
    rc = seen == st_count(st) ? exec_push(r->session.exec, ps, e)
                              : err_set(e, E_CORRUPT, "a tensor belongs to no parameter");
out:
    st_close(st);
    return rc;
}

/* A number, or NaN for null. */
static double real(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static int read_state(struct run *r, const char *dir, int64_t step, struct err *e)
{
    struct run_state *s = &r->state;
    char path[FS_PATH_MAX];
    const char *hash;
    int64_t version, at;
    json_t *samples;
    int rc = -1;
    if (fs_join(path, dir, "state.json", e)) return -1;
    json_t *o = jx_load_file(path, STATE_MAX_BYTES, e);
    if (!o || jx_int64(o, "version", CKPT_VERSION, CKPT_VERSION, &version, e) ||
        jx_str(o, "job", &hash, e) || jx_int64(o, "step", step, step, &at, e) ||
        jx_int64(o, "tokens", 0, INT64_MAX, &s->tokens, e) ||
        jx_int64(o, "trained", 0, INT64_MAX, &s->trained, e) ||
        jx_bool(o, "begun", &s->begun, e) || jx_array(o, "samples", &samples, e))
        goto out;
    if (!str_eq(hash, r->job.hash)) {
        err_set(e, E_CORRUPT, "it belongs to a job with other settings");
        goto out;
    }
    s->step = at;
    s->train_loss = real(o, "train_loss");
    s->valid_loss = real(o, "valid_loss");
    s->valid_accuracy = real(o, "valid_accuracy");
    s->before_loss = real(o, "before_loss");
    s->before_accuracy = real(o, "before_accuracy");
    json_decref(s->samples);
    s->samples = json_incref(samples);
    buf_clear(&s->csv);
    if (!fs_join(path, dir, "metrics.csv", e)) rc = fs_read_file(path, &s->csv, e);
out:
    json_decref(o);
    return rc;
}

int ckpt_resume(struct run *r, struct err *e)
{
    struct found *all;
    char dir[FS_PATH_MAX];
    int n, rc = 0;
    if (list(r, &all, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        struct err why = ERR_INIT;
        folder(r, &all[i], dir);
        if (!fs_check_dir(dir, true, &why)) {
            rc = read_tensors(r, dir, e) || read_state(r, dir, all[i].step, e);
            if (rc) err_wrap(e, "checkpoint at step %lld", (long long)all[i].step);
            else
                rc = journal_event(&r->journal, "info", "message", NULL, e,
                                   "Going on from the checkpoint at step %lld",
                                   (long long)all[i].step);
            break;
        }
        if (why.code != E_CORRUPT && why.code != E_FORMAT && why.code != E_NOTFOUND) {
            *e = why;
            rc = err_wrap(e, "checkpoint at step %lld", (long long)all[i].step);
            break;
        }
        /* Damaged: say so and fall back on the one before; the damaged one must not count as
         * the newest again. */
        rc = journal_event(&r->journal, "warn", "message", NULL, e,
                           "The checkpoint at step %lld is damaged and is left out: %s",
                           (long long)all[i].step, why.msg);
        if (rc || (rc = fs_rmtree(dir, e))) break;
    }
    mem_free(all);
    return rc;
}

int ckpt_sweep(const char *job_dir, struct err *e)
{
    char dir[FS_PATH_MAX], path[FS_PATH_MAX], **attempts = NULL;
    int n = 0, rc = 0;
    if (fs_join(dir, job_dir, "attempts", e)) return -1;
    if (!fs_is_dir(dir)) return 0;
    if (fs_list(dir, &attempts, &n, e)) return -1;
    for (int i = 0; i < n && !rc; i++) {
        char **names = NULL;
        int count = 0;
        snprintf(dir, sizeof dir, "%s/attempts/%s/checkpoints", job_dir, attempts[i]);
        if (!fs_is_dir(dir)) continue;
        rc = fs_list(dir, &names, &count, e);
        for (int k = 0; k < count && !rc; k++)
            if (str_ends(names[k], ".tmp"))
                rc = fs_join(path, dir, names[k], e) || fs_rmtree(path, e) ? -1 : 0;
        free_names(names, count);
    }
    free_names(attempts, n);
    return rc;
}
