#include "service/cli_job.h"

#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/lockfile.h"

#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { JOB_FILE_MAX = 4 << 20, BAR = 24, PLAIN_MS = 5000 };

/* ---- from a job file to a job ---- */

/* "dir/name.json" -> "name", in characters that an id may have. */
static void stem_of(const char *path, char out[64])
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t n = strcspn(base, ".");
    snprintf(out, 64, "%.*s", (int)(n < 40 ? n : 40), base);
    for (char *c = out; *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789-_", *c | 0x20)) *c = '-';
    if (!*out) str_copy(out, 64, "job");
}

/* The path in o[key], made absolute; null and absent stay. */
static int absolute(json_t *o, const char *key, const char *base, struct err *e)
{
    char joined[FS_PATH_MAX], full[PATH_MAX];
    const char *path = json_string_value(json_object_get(o, key));
    if (!path) return 0;
    if (path[0] == '/' ? !str_copy(joined, sizeof joined, path) : fs_join(joined, base, path, e))
        return err_set(e, E_LIMIT, "the path in %s is too long", key);
    if (!realpath(joined, full)) {
        err_sys(e, "cannot open %s", joined);
        return err_param(e, "%s", key);
    }
    return jx_set(o, key, jx_pack(e, "s", full), e);
}

/* Stores a default under key if there is nothing or null. Takes value. */
static int set_default(json_t *o, const char *key, json_t *value, struct err *e)
{
    json_t *now = json_object_get(o, key);
    if (now && !json_is_null(now)) {
        json_decref(value);
        return 0;
    }
    return jx_set(o, key, value, e);
}

static int complete(json_t *job, const char *path, int threads, struct err *e)
{
    char base[FS_PATH_MAX], stem[64], name[160];
    json_t *model;
    const char *method;
    fs_parent(base, path);
    stem_of(path, stem);
    if (set_default(job, "version", json_integer(1), e) ||
        set_default(job, "id", jx_pack(e, "s", stem), e) ||
        set_default(job, "seed", json_integer(0), e) ||
        set_default(job, "method", jx_pack(e, "s", "lora"), e) ||
        jx_object(job, "model", &model, e) || jx_str(job, "method", &method, e))
        return -1;
    if (absolute(model, "path", base, e)) return err_wrap(e, "model");
    const char *dir = json_string_value(json_object_get(model, "path"));
    const char *slash = dir ? strrchr(dir, '/') : NULL;
    snprintf(name, sizeof name, "local/%.100s", slash ? slash + 1 : "model");
    if (set_default(model, "id", jx_pack(e, "s", name), e) ||
        set_default(model, "init", jx_pack(e, "s", "pretrained"), e))
        return -1;
    snprintf(name, sizeof name, "local/%s", stem);
    if (set_default(job, "result_id", jx_pack(e, "s", name), e) ||
        set_default(job, "validation_file", json_null(), e) ||
        set_default(job, "threads", json_integer(0), e) ||
        (threads >= 0 && jx_set(job, "threads", json_integer(threads), e)) ||
        absolute(job, "training_file", base, e) || absolute(job, "validation_file", base, e))
        return -1;
    const json_t *given = json_object_get(job, "settings");
    return jx_set(job, "settings", engine_settings(method, json_is_null(given) ? NULL : given, e),
                  e);
}

json_t *cli_job_load(const char *path, int threads, struct err *e)
{
    json_t *job = jx_load_file(path, JOB_FILE_MAX, e);
    if (job && json_is_object(job) && !complete(job, path, threads, e)) return job;
    if (job && !json_is_object(job)) err_set(e, E_FORMAT, "a job must be a JSON object");
    json_decref(job);
    return NULL;
}

/* ---- its folder ---- */

/* threads decides nothing: a run may go on with another number of them. */
static bool same_job(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;
    if (json_object_size(a) != json_object_size(b)) return false;
    json_object_foreach((json_t *)a, key, v)
        if (!str_eq(key, "threads") && !json_equal(v, json_object_get(b, key))) return false;
    return true;
}

static int write_job(const char *dir, const json_t *job, struct err *e)
{
    char path[FS_PATH_MAX];
    int rc = -1;
    if (fs_mkdirs(dir, e) || fs_join(path, dir, "job.json", e)) return -1;
    if (fs_exists(path)) {
        json_t *old = jx_load_file(path, JOB_FILE_MAX, e);
        if (!old) return -1;
        bool same = same_job(job, old);
        json_decref(old);
        if (!same)
            return err_set(e, E_CONFLICT, "%s holds another job: remove it or name another"
                           " folder with --dir", dir);
    }
    char *text = jx_dump_pretty(job, e);
    if (text) rc = fs_write_file(path, text, strlen(text), e);
    mem_free(text);
    return rc;
}

static int next_attempt(const char *dir, int *out, struct err *e)
{
    char path[FS_PATH_MAX], **names = NULL;
    int n = 0;
    int64_t highest = 0, number;
    if (fs_join(path, dir, "attempts", e)) return -1;
    if (fs_is_dir(path) && fs_list(path, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        if (str_int64(names[i], &number) && number > highest) highest = number;
        mem_free(names[i]);
    }
    mem_free(names);
    *out = (int)highest + 1;
    return 0;
}

/* ---- what the person sees ---- */

struct screen {
    bool tty;
    bool line;        /* a progress line is on the terminal */
    int64_t told_ms;
    sigset_t stop;    /* blocked signals that ask for an end */
};

static void clear_line(struct screen *s)
{
    if (s->line) fputs("\r\033[K", stderr);
    s->line = false;
}

static void on_progress(void *ctx, const struct engine_progress *p)
{
    struct screen *s = ctx;
    int64_t now = clock_boot_ms();
    char eta[32] = "";
    if (!str_eq(p->phase, "training")) {
        if (!s->tty) return;
        clear_line(s);
        fprintf(stderr, "%s...", p->phase);
        s->line = true;
        fflush(stderr);
        return;
    }
    if (!s->tty && now - s->told_ms < PLAIN_MS && p->step != p->total_steps) return;
    s->told_ms = now;
    if (isfinite(p->eta_s))
        snprintf(eta, sizeof eta, "  ETA %d:%02d", (int)p->eta_s / 60, (int)p->eta_s % 60);
    clear_line(s);
    if (s->tty) {
        int full = p->total_steps ? (int)(BAR * p->step / p->total_steps) : 0;
        fprintf(stderr, "[%.*s%*s] ", full, "########################", BAR - full, "");
    }
    fprintf(stderr, "step %lld/%lld  loss %.4f  %.0f tokens/s%s", (long long)p->step,
            (long long)p->total_steps, p->train_loss, p->tokens_per_s, eta);
    if (!s->tty) fputc('\n', stderr);
    s->line = s->tty;
    fflush(stderr);
}

static void on_event(void *ctx, const char *level, const char *type, const char *message,
                     json_t *data)
{
    struct screen *s = ctx;
    /* The progress line shows the training loss of every step already. */
    if (str_eq(type, "metrics") && !json_object_get(data, "valid_loss")) return;
    if (str_eq(json_string_value(json_object_get(data, "kind")), "checkpoint")) return;
    clear_line(s);
    if (str_eq(level, "info")) fprintf(stderr, "%s\n", message);
    else fprintf(stderr, "%s: %s\n", level, message);
}

static enum engine_want on_want(void *ctx)
{
    struct screen *s = ctx;
    const struct timespec now = {0};
    return sigtimedwait(&s->stop, NULL, &now) > 0 ? WANT_PREEMPT : WANT_NONE;
}

int cli_job_run(const char *path, const char *dir, int threads, struct err *e)
{
    char beside[FS_PATH_MAX], stem[64], folder[FS_PATH_MAX];
    struct screen s = {.tty = isatty(STDERR_FILENO)};
    const struct engine_hooks hooks = {&s, on_progress, on_event, on_want};
    int attempt, lock = -1, code = EXIT_USER;
    json_t *job = cli_job_load(path, threads, e);
    if (!job) return EXIT_USER;
    if (!dir) {
        fs_parent(folder, path);
        stem_of(path, stem);
        snprintf(beside, sizeof beside, "%s/%s-job", folder, stem);
        dir = beside;
    }
    if (write_job(dir, job, e) || next_attempt(dir, &attempt, e) ||
        (lock = lockfile_take(dir, attempt, e)) < 0)
        goto out;
    /* Blocked before the engine starts its threads, which inherit it. */
    sigemptyset(&s.stop);
    sigaddset(&s.stop, SIGINT);
    sigaddset(&s.stop, SIGTERM);
    sigprocmask(SIG_BLOCK, &s.stop, NULL);
    code = engine_run(dir, attempt, &hooks, e);
    sigprocmask(SIG_UNBLOCK, &s.stop, NULL);
    clear_line(&s);
    if (code == EXIT_DONE) printf("%s/result\n", dir);
    if (code == EXIT_PREEMPTED) fprintf(stderr, "run the same command again to go on\n");
out:
    fs_close(lock);
    json_decref(job);
    return code;
}

/* ---- plans ---- */

static int cache_folder(char out[FS_PATH_MAX], struct err *e)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg && xdg[0] == '/') return fs_join(out, xdg, "graft", e);
    if (home && home[0] == '/') return fs_join(out, home, ".cache/graft", e);
    return err_set(e, E_ARG, "neither XDG_CACHE_HOME nor HOME names a folder");
}

static void print_bytes(const char *label, double x)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    for (; x >= 1024 && u < 4; u++) x /= 1024;
    printf("  %-22s %8.*f %s\n", label, u ? 1 : 0, x, units[u]);
}

static void print_all_bytes(const json_t *o)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v) {
        print_bytes(key, json_number_value(v));
    }
}

static void print_seconds(const char *label, double s)
{
    if (s < 120) printf("  %-22s %8.3g s\n", label, s);
    else printf("  %-22s %8lld:%02lld:%02lld\n", label, (long long)s / 3600, (long long)s / 60 % 60,
                (long long)s % 60);
}

static void print_plan(const json_t *p)
{
    printf("memory\n");
    print_bytes("peak", json_number_value(json_object_get(p, "peak_bytes")));
    print_all_bytes(json_object_get(p, "bytes"));
    print_bytes("free", json_number_value(json_object_get(p, "free_bytes")));
    printf("  %-22s %8s\n", "recompute", json_string_value(json_object_get(p, "recompute")));
    printf("work\n  %-22s %8lld\n  %-22s %8lld\n  %-22s %8.4g\n", "rows",
           (long long)json_integer_value(json_object_get(p, "rows")), "steps",
           (long long)json_integer_value(json_object_get(p, "steps")), "operations per step",
           json_number_value(json_object_get(p, "flops_per_step")));
    print_seconds("time per step", json_number_value(json_object_get(p, "seconds_per_step")));
    print_seconds("time of all steps", json_number_value(json_object_get(p, "seconds")));
    printf("disk\n");
    print_all_bytes(json_object_get(p, "results"));
}

int cli_job_plan(const char *path, bool json, struct err *e)
{
    char cache[FS_PATH_MAX];
    char *text = NULL;
    int code = EXIT_USER;
    json_t *job = cli_job_load(path, -1, e);
    json_t *p = job && !cache_folder(cache, e) ? engine_plan(job, cache, e) : NULL;
    if (!p || (json && !(text = jx_dump_pretty(p, e)))) goto out;
    const char *advice = json_string_value(json_object_get(p, "advice"));
    if (json) printf("%s\n", text);
    else print_plan(p);
    if (advice && !json) printf("does not fit\n  %s\n", advice);
    code = advice ? EXIT_DEVMEM : EXIT_DONE;
out:
    mem_free(text);
    json_decref(job);
    json_decref(p);
    return code;
}
