/* A whole life of the service, killed at every named point, and what must hold afterwards.
 *
 * This program plays three parts. `serve ROOT` is a server and its clients in one process: it
 * uploads, registers, runs, pauses, cancels and deletes, and writes a line into ROOT/acks after
 * every answer it got. `serve ROOT finish` is the next server: it lets every job come to its end.
 * `worker DIR ...` is the real worker with the fake engine; crash points of the worker act in first
 * attempts only. The tests kill the first server or a worker at a point, run the second, and check
 * the data folder (tests/lib/check.c) and the bytes of every result.
 * CRASH=all takes every visit of a point instead of a few.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/blob.h"
#include "service/files.h"
#include "service/jobs.h"
#include "service/log.h"
#include "service/models.h"
#include "service/store.h"
#include "service/worker.h"
#include "tests/lib/check.h"
#include "tests/lib/fake_engine.h"
#include "tests/lib/kit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- the server and its clients ------------------------------------------------------------- */

struct life {
    struct kit kit; /* only what kit_* needs: config and service */
    int acks;
};

static void ack(struct life *l, const char *what, const char *id, const char *value)
{
    char line[256];
    struct err e = ERR_INIT;
    int n = snprintf(line, sizeof line, "%s %s%s%s", what, id, *value ? " " : "", value);
    if (fs_append_line(l->acks, line, (size_t)n, &e)) _exit(3);
}

/* The id of an uploaded file; false if the upload was refused. */
static bool upload(struct life *l, const char *name, const char *purpose, const char *text,
                   char id[64])
{
    struct err e = ERR_INIT;
    struct blob_info info = {0};
    char filename[256];
    int fd;
    json_t *o = kit_try_upload(&l->kit, name, purpose, text, NULL, &e);
    if (!o) return false;
    snprintf(id, 64, "%s", kit_id(o));
    json_decref(o);
    if (files_read(l->kit.service, id, &fd, &info, filename, &e)) return false;
    fs_close(fd);
    ack(l, "file", id, info.sha256);
    return true;
}

static void model(struct life *l, const char *body)
{
    struct err e = ERR_INIT;
    json_t *v = json_loads(body, 0, NULL), *o = NULL;
    if (v && models_create(l->kit.service, v, &o, &e) == 0) ack(l, "model", kit_id(o), "");
    json_decref(o);
    json_decref(v);
}

static bool job(struct life *l, const char *file, const char *settings, char id[64])
{
    struct err e = ERR_INIT;
    json_t *o = kit_try_job(&l->kit, file, settings, NULL, &e);
    if (!o) return false;
    snprintf(id, 64, "%s", kit_id(o));
    json_decref(o);
    ack(l, "job", id, "");
    return true;
}

static bool is_final(const char *s)
{
    return str_eq(s, "succeeded") || str_eq(s, "failed") || str_eq(s, "cancelled");
}

/* Until the job has this status, or has ended, or has done `step` steps. */
static void wait_until(struct life *l, const char *id, const char *status, int64_t step)
{
    for (int64_t until = clock_boot_ms() + 15000; clock_boot_ms() < until; clock_sleep_ms(3)) {
        struct err e = ERR_INIT;
        json_t *o = jobs_get(l->kit.service, id, &e);
        if (!o) continue;
        const char *now = json_string_value(json_object_get(o, "status"));
        json_t *p = json_object_get(json_object_get(o, "graft"), "progress");
        bool far = step && json_integer_value(json_object_get(p, "step")) >= step;
        bool ended = is_final(now), there = str_eq(now, status);
        if (ended) ack(l, "state", id, now);
        json_decref(o);
        if (ended || there || far) return;
    }
    fprintf(stderr, "job %s does not become %s\n", id, status);
    _exit(4);
}

static void cancel(struct life *l, const char *id)
{
    struct err e = ERR_INIT;
    json_t *o = jobs_cancel(l->kit.service, id, &e);
    if (o) ack(l, "cancelled", id, "");
    json_decref(o);
}

static void wish(struct life *l, const char *id, json_t *(*act)(struct service *, const char *,
                                                                struct err *))
{
    struct err e = ERR_INIT;
    json_decref(act(l->kit.service, id, &e));
}

static void live(struct life *l)
{
    char train[64], spare[64], config[64], id[64], text[512];
    struct err e = ERR_INIT;
    if (upload(l, "spare", "batch", "some bytes", spare)) {
        ack(l, "deleting", spare, "");
        if (files_delete(l->kit.service, spare, &e) == 0) ack(l, "deleted", spare, "");
    }
    snprintf(text, sizeof text, "{\"path\": \"%s/base\"}", l->kit.config.model_roots);
    model(l, text);
    if (upload(l, "config.json", "model", "{\"model_type\": \"fake\"}", config)) {
        snprintf(text, sizeof text, "{\"id\": \"me/mine\", \"files\": [{\"path\": \"config.json\", "
                                    "\"file\": \"%s\"}]}", config);
        model(l, text);
        snprintf(text, sizeof text, "{\"id\": \"me/gone\", \"files\": [{\"path\": \"config.json\", "
                                    "\"file\": \"%s\"}]}", config);
        json_t *v = json_loads(text, 0, NULL), *o = NULL;
        if (models_create(l->kit.service, v, &o, &e) == 0)
            models_delete(l->kit.service, "me/gone", &e);
        json_decref(o);
        json_decref(v);
    }
    if (!upload(l, "t.jsonl", "fine-tune", "{\"text\": \"x\"}\n", train)) return;
    if (job(l, train, "{\"steps\": 7, \"step_ms\": 2}", id)) wait_until(l, id, "", 0);
    if (job(l, train, "{\"steps\": 150, \"step_ms\": 5}", id)) {
        wait_until(l, id, "", 3);
        wish(l, id, jobs_pause);
        wait_until(l, id, "paused", 0);
        wish(l, id, jobs_resume);
        wait_until(l, id, "running", 0);
        cancel(l, id);
        wait_until(l, id, "", 0);
    }
    if (job(l, train, "{\"exit_code\": 20, \"exit_step\": 4, \"only_attempt\": 1}", id))
        wait_until(l, id, "", 0);
}

/* The next server: everything that was begun comes to its end. */
static void finish(struct life *l)
{
    struct err e = ERR_INIT;
    struct page p = {.limit = 100};
    json_t *list = jobs_list(l->kit.service, &p, NULL, &e), *o;
    size_t i;
    json_array_foreach(json_object_get(list, "data"), i, o) {
        const char *id = kit_id(o), *now = json_string_value(json_object_get(o, "status"));
        if (str_eq(now, "pausing")) wait_until(l, id, "paused", 0);
        if (str_eq(now, "paused") || str_eq(now, "pausing")) wish(l, id, jobs_resume);
        wait_until(l, id, "", 0);
    }
    json_decref(list);
}

static int serve(const char *root, bool finishing)
{
    struct life l = {0};
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    struct config *c = &l.kit.config;
    log_set_level(getenv("KIT_LOG") ? LOG_DEBUG : LOG_OFF);
    config_default(c);
    snprintf(c->data_dir, sizeof c->data_dir, "%s/data", root);
    snprintf(c->model_roots, sizeof c->model_roots, "%s/models", root);
    c->poll_ms = 5;
    c->retry_ms = 5;
    c->lease_s = 1;
    c->job_attempts = 5;
    snprintf(path, sizeof path, "%s/acks", root);
    l.acks = fs_open(path, O_WRONLY | O_CREAT | O_APPEND, 0600, &e);
    /* A start may fail at an injected error; the next one is without it. */
    for (int i = 0; i < 2 && !l.kit.service; i++) {
        l.kit.service = service_open(c, &fake_engine_calls, &e);
        if (l.kit.service && service_start(l.kit.service, &e)) {
            service_close(l.kit.service);
            l.kit.service = NULL;
        }
    }
    if (!l.kit.service) {
        fprintf(stderr, "%s\n", e.msg);
        return 2;
    }
    if (!finishing) live(&l);
    finish(&l);
    service_close(l.kit.service);
    return 0;
}

/* --- one case ------------------------------------------------------------------------------- */

/* Cases run in processes of their own, several at a time: these end theirs. */
enum { CASE_FINE, CASE_NOT_REACHED, CASE_BROKEN };

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    _exit(CASE_BROKEN);
}

static void make_root(char root[64])
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    /* Processes die here, not machines: memory keeps what a disk would, and is faster. */
    snprintf(root, 64, "%s/graft-crash-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(root)) die("cannot make %s", root);
    snprintf(path, sizeof path, "%s/models/base", root);
    if (fs_mkdirs(path, &e)) die("%s", e.msg);
    snprintf(path, sizeof path, "%s/models/base/config.json", root);
    if (fs_write_file(path, "{}", 2, &e)) die("%s", e.msg);
}

/* The wait status of one server process. */
static int run(const char *root, bool finishing, const char *server_crash, const char *worker_crash)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        char *argv[] = {(char *)(uintptr_t)"crash_test", (char *)(uintptr_t)"serve",
                        (char *)(uintptr_t)root,
                        (char *)(uintptr_t)(finishing ? "finish" : "live"), NULL};
        if (server_crash) setenv("GRAFT_CRASH", server_crash, 1);
        if (worker_crash) setenv("GRAFT_WORKER_CRASH", worker_crash, 1);
        execv("/proc/self/exe", argv);
        _exit(9);
    }
    if (waitpid(pid, &status, 0) != pid) die("no server process");
    return status;
}

/* A job that succeeded has the bytes of an undisturbed run. */
static int check_results(const char *root)
{
    char dir[FS_PATH_MAX], path[FS_PATH_MAX], **names = NULL;
    struct err e = ERR_INIT;
    int n = 0, bad = 0;
    snprintf(dir, sizeof dir, "%s/data/jobs", root);
    if (!fs_exists(dir)) return 0;
    if (fs_list(dir, &names, &n, &e)) die("%s", e.msg);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s/result/merged/model.safetensors", dir, names[i]);
        json_t *o = fs_exists(path) ? jx_load_file(path, 4096, &e) : NULL;
        if (o) {
            char want[32];
            int64_t steps = json_integer_value(json_object_get(o, "step"));
            snprintf(want, sizeof want, "%llu", (unsigned long long)fake_engine_value(steps));
            bool right = str_eq(want, json_string_value(json_object_get(o, "value")));
            if (!right) fprintf(stderr, "job %s: wrong bytes\n", names[i]);
            bad += !right;
        }
        json_decref(o);
        mem_free(names[i]);
    }
    mem_free(names);
    return bad;
}

/* After the crash: a second server ends all, then everything must hold. */
static void recover(const char *root, const char *what, const char *second_crash)
{
    char data[128], acks[128];
    struct err e = ERR_INIT;
    int status;
    if (second_crash) {
        status = run(root, true, second_crash, NULL);
        if (!WIFSIGNALED(status)) die("%s: %s was not reached", what, second_crash);
    }
    status = run(root, true, NULL, NULL);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) die("%s: no recovery in %s", what, root);
    snprintf(data, sizeof data, "%s/data", root);
    snprintf(acks, sizeof acks, "%s/acks", root);
    if (check_data(data, acks, stderr) + check_results(root)) die("%s: see %s", what, root);
    if (fs_rmtree(root, &e)) die("%s", e.msg);
}

/* Kills (hangs, fails) at visits 1 and 4 of the point, or at all; stops at one not reached. */
static int at_point(const char *point, bool in_worker, const char *mode)
{
    bool all = getenv("CRASH") != NULL;
    int reached = 0, most = all ? 200 : str_eq(mode, ":err") ? 1 : 4;
    for (int n = 1; n <= most; n = all ? n + 1 : n * 4) {
        char root[64], crash[128], what[200];
        make_root(root);
        snprintf(crash, sizeof crash, "%s:%d%s", point, n, mode);
        snprintf(what, sizeof what, "%s %s", in_worker ? "worker" : "server", crash);
        int status = run(root, false, in_worker ? NULL : crash, in_worker ? crash : NULL);
        bool killed = WIFSIGNALED(status);
        if (!killed && (!WIFEXITED(status) || WEXITSTATUS(status)))
            die("%s: status %x in %s", what, status, root);
        recover(root, what, NULL);
        reached += killed;
        if (!killed) break; /* not reached; or not told: a server survives its workers and errors */
    }
    return reached ? CASE_FINE : CASE_NOT_REACHED;
}

/* --- cases side by side --------------------------------------------------------------------- */

struct pool {
    int running, broken, missed;
};
enum { SIDE_BY_SIDE = 4 };

static void collect_one(struct pool *p)
{
    int status;
    if (wait(&status) < 0) return;
    p->running--;
    if (!WIFEXITED(status) || WEXITSTATUS(status) == CASE_BROKEN) p->broken++;
    if (WIFEXITED(status) && WEXITSTATUS(status) == CASE_NOT_REACHED) p->missed++;
}

static void start_case(struct pool *p, const char *point, bool in_worker, const char *mode)
{
    const char *only = getenv("POINT");
    if (only && strcmp(only, point) != 0) return;
    if (p->running == SIDE_BY_SIDE) collect_one(p);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int rc = at_point(point, in_worker, mode);
        if (rc == CASE_NOT_REACHED && !*mode && !in_worker)
            fprintf(stderr, "%s is never reached\n", point);
        _exit(rc);
    }
    p->running++;
}

static void end_cases(struct pool *p)
{
    while (p->running) collect_one(p);
    assert_int_equal(p->broken, 0);
}

static int compare(const void *a, const void *b)
{
    return strcmp(a, b);
}

enum { POINTS_MAX = 128, NAME_MAX_ = 64 };

/* Every CRASHPOINT("...") of service/ and engine/base, from the sources. */
static int collect(char names[POINTS_MAX][NAME_MAX_])
{
    static const char *const dirs[] = {"service", "engine/base"};
    int count = 0, unique = 0;
    for (int d = 0; d < 2; d++) {
        char **files, path[FS_PATH_MAX];
        int n;
        struct err e = ERR_INIT;
        assert_int_equal(fs_list(dirs[d], &files, &n, &e), 0);
        for (int i = 0; i < n; i++) {
            static const char mark[] = "CRASHPOINT(\"";
            struct buf b;
            buf_init(&b, 1 << 20);
            fs_join(path, dirs[d], files[i], &e);
            if (str_ends(files[i], ".c") && fs_read_file(path, &b, &e) == 0) {
                for (const char *p = b.data; p && (p = strstr(p, mark)); p++) {
                    p += sizeof mark - 1;
                    assert_true(count < POINTS_MAX);
                    snprintf(names[count++], NAME_MAX_, "%.*s", (int)strcspn(p, "\""), p);
                }
            }
            buf_clear(&b);
            mem_free(files[i]);
        }
        mem_free(files);
    }
    qsort(names, (size_t)count, NAME_MAX_, compare);
    for (int i = 0; i < count; i++)
        if (i == 0 || strcmp(names[unique - 1], names[i]) != 0)
            memmove(names[unique++], names[i], NAME_MAX_);
    return unique;
}

static bool in_list(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(name, *list) == 0) return true;
    return false;
}

/* Met only by a server that finds what another one left, or a worker that fell silent (see below),
 * or only by workers, which alone publish folders. */
static const char *const not_in_a_first_life[] = {
    "supervisor.recovered", "supervisor.adopted",   "supervisor.rescue", "fs.dir_before_manifest",
    "fs.dir_before_rename", "fs.dir_renamed", NULL};

static bool of_server(const char *point)
{
    return !str_starts(point, "worker.") && !in_list(point, not_in_a_first_life);
}

static void the_server_may_be_killed_at_every_point(void **state)
{
    (void)state;
    static char names[POINTS_MAX][NAME_MAX_];
    struct pool p = {0};
    int n = collect(names);
    assert_true(n > 40);
    for (int i = 0; i < n; i++)
        if (of_server(names[i])) start_case(&p, names[i], false, "");
    end_cases(&p);
    assert_int_equal(p.missed, 0);
}

static void the_next_server_may_be_killed_while_it_recovers(void **state)
{
    (void)state;
    static const struct { const char *first, *worker, *second; } rows[] = {
        {"supervisor.started:1", NULL, "supervisor.recovered:1"},
        {"queue.wish:1", NULL, "supervisor.adopted:1"},
        {"supervisor.claimed:1", NULL, "supervisor.recovered:1"},
        {"supervisor.finished:1", NULL, "service.swept:1"},
        {"queue.beat:2", NULL, "queue.finish:1"},
        {"results.registered:1", NULL, "results.registered:1"},
        {"supervisor.rescue:1", "worker.progress:5:pause", NULL},
        {"store.migrated:1", NULL, "store.migrated:1"},
    };
    struct pool p = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (p.running == SIDE_BY_SIDE) collect_one(&p);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            char root[64], what[128];
            make_root(root);
            snprintf(what, sizeof what, "%s then %s", rows[i].first,
                     rows[i].second ? rows[i].second : "nothing");
            int status = run(root, false, rows[i].first, rows[i].worker);
            if (!WIFSIGNALED(status)) die("%s was not reached", rows[i].first);
            recover(root, what, rows[i].second);
            _exit(CASE_FINE);
        }
        p.running++;
    }
    end_cases(&p);
}

static void a_worker_may_die_or_hang_at_every_point(void **state)
{
    (void)state;
    static const char *const points[] = {
        "worker.without_name", "worker.locked", "worker.listening",
        "worker.progress", "worker.before_exit_json", "worker.after_exit_json", "fs.file_written",
        "fs.file_synced", "fs.file_renamed", "fs.dir_before_manifest", "fs.dir_before_rename",
        "fs.dir_renamed"};
    struct pool p = {0};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        start_case(&p, points[i], true, "");
        start_case(&p, points[i], true, ":pause");
    }
    end_cases(&p);
}

static void errors_at_every_point_are_survived(void **state)
{
    (void)state;
    static char names[POINTS_MAX][NAME_MAX_];
    struct pool p = {0};
    int n = collect(names);
    for (int i = 0; i < n; i++)
        if (of_server(names[i])) start_case(&p, names[i], false, ":err");
    end_cases(&p);
}

int main(int argc, char **argv)
{
    bool worker = argc > 1 && str_eq(argv[1], "worker");
    /* A worker's crash point is for its first attempt: the next shall get further. */
    bool first = argc > 4 && str_eq(argv[4], "1");
    if ((!worker || first) && fault_from_env()) return 2;
    mem_hook_libraries();
    if (worker) return worker_main(argc - 1, argv + 1, fake_engine_run);
    if (argc > 3 && str_eq(argv[1], "serve")) return serve(argv[2], str_eq(argv[3], "finish"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_server_may_be_killed_at_every_point),
        cmocka_unit_test(the_next_server_may_be_killed_while_it_recovers),
        cmocka_unit_test(a_worker_may_die_or_hang_at_every_point),
        cmocka_unit_test(errors_at_every_point_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
