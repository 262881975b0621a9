#include "service/validate.h"

#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    INPUT_FD = 3,
    REPORT_MAX = 8 << 20,
    PLAN_MAX = 4 << 20,
    CPU_BASE_S = 60, /* and 1 s for every 10 MB, of a preview every MB */
    CPU_BYTES_PER_S = 10000000,
    CPU_TOKENS_BYTES_PER_S = 1000000,
    WALL_EXTRA_S = 30
};
static const int64_t MEMORY_BASE = 1LL << 30; /* and as much as is read, which may be mapped */
static const char input_path[] = "/proc/self/fd/3";

/* The size that sets the limits; a folder counts as the sum of its files. */
static int64_t input_bytes(int fd)
{
    struct stat st;
    struct err ignored;
    char **names = NULL, path[FS_PATH_MAX], dir[64];
    int64_t sum = 0;
    int n = 0;
    if (fstat(fd, &st)) return 0;
    if (!S_ISDIR(st.st_mode)) return st.st_size;
    snprintf(dir, sizeof dir, "/proc/self/fd/%d", fd);
    if (fs_list(dir, &names, &n, &ignored)) return 0;
    for (int i = 0; i < n; i++) {
        int64_t bytes = fs_join(path, dir, names[i], &ignored) ? -1 : fs_size(path, &ignored);
        if (bytes > 0) sum += bytes;
        mem_free(names[i]);
    }
    mem_free(names);
    return sum;
}

static int64_t cpu_seconds(const char *kind, int64_t bytes)
{
    bool tokens = str_eq(kind, "preview");
    return CPU_BASE_S + bytes / (tokens ? CPU_TOKENS_BYTES_PER_S : CPU_BYTES_PER_S);
}

/* ---- the child ---- */

static int limit(int what, int64_t n)
{
    struct rlimit old, new = {(rlim_t)n, (rlim_t)n};
    if (getrlimit(what, &old)) return -1;
    if (old.rlim_max < new.rlim_max) new.rlim_cur = new.rlim_max = old.rlim_max;
    return setrlimit(what, &new);
}

/* A build with a sanitizer reserves terabytes of addresses for itself. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LIMIT_MEMORY = 0 };
#else
enum { LIMIT_MEMORY = 1 };
#endif

static int confine(const char *kind, int64_t bytes)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0) ||
           limit(RLIMIT_CORE, 0) || limit(RLIMIT_FSIZE, REPORT_MAX) ||
           limit(RLIMIT_NOFILE, 64) || limit(RLIMIT_CPU, cpu_seconds(kind, bytes)) ||
           (LIMIT_MEMORY && limit(RLIMIT_AS, MEMORY_BASE + bytes));
}

static json_t *examine(const char *kind, const char *more, struct err *e)
{
    if (str_eq(kind, "preview")) {
        json_t *ask = jx_parse(more, strlen(more), e);
        json_t *seen = ask ? engine_preview(input_path, ask, e) : NULL;
        json_decref(ask);
        return seen;
    }
    if (str_eq(kind, "model")) return engine_check_model(input_path, e);
    if (!str_eq(kind, "plan")) return engine_check_file(input_path, kind, e);
    json_t *job = jx_load_file(input_path, PLAN_MAX, e);
    json_t *plan = job ? engine_plan(job, more, e) : NULL;
    json_decref(job);
    return plan;
}

int validate_main(int argc, char **argv)
{
    struct err e = ERR_INIT, bad = ERR_INIT;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody reads the report of a dead server's child */
    int64_t bytes;
    if (argc != 5 || !str_int64(argv[3], &bytes) || confine(argv[2], bytes)) return EXIT_TRANSIENT;
    json_t *report = examine(argv[2], argv[4], &e);
    json_t *out = report ? jx_pack(&bad, "{s:o}", "report", report)
                         : jx_pack(&bad, "{s:{s:i, s:s, s:s}}", "error", "code", (int)e.code,
                                   "message", e.msg, "param", e.param);
    char *text = out ? jx_dump(out, &bad) : NULL;
    int rc = text && !fs_write_all(STDOUT_FILENO, text, strlen(text), &bad) ? 0 : EXIT_TRANSIENT;
    mem_free(text);
    json_decref(out);
    return rc;
}

/* ---- the server's side ---- */

struct child {
    pid_t pid;
    int out; /* reading end of its standard output */
};

struct order {
    const char *kind;
    const char *more; /* one more argument: see validate_main */
    int input;        /* becomes INPUT_FD */
    int64_t bytes;    /* of all that is read: sets the limits */
};

/* Only async-signal-safe calls between fork and exec: other threads may hold any lock. */
static void become_child(int input, int out, char *const argv[], char *const env[])
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    int null = open("/dev/null", O_RDONLY);
    /* Out of the way of the numbers that are about to be taken. */
    int in2 = fcntl(input, F_DUPFD, 10), out2 = fcntl(out, F_DUPFD, 10);
    bool ok = null >= 0 && in2 >= 0 && out2 >= 0 && dup2(null, STDIN_FILENO) >= 0 &&
              dup2(out2, STDOUT_FILENO) >= 0 && dup2(in2, INPUT_FD) >= 0 &&
              !close_range(INPUT_FD + 1, ~0u, 0);
    if (ok) execve("/proc/self/exe", argv, env);
    _exit(127);
}

static int start(struct child *c, const struct order *o, struct err *e)
{
    const char *limit = getenv("GRAFT_MEMORY");
    char bytes[24], memory[64];
    char *argv[] = {"graft", "worker", "--validate", (char *)(uintptr_t)o->kind, bytes,
                    (char *)(uintptr_t)o->more, NULL};
    /* The linear algebra library would start a thread per core, each with its own memory. */
    char *env[] = {"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "OPENBLAS_NUM_THREADS=1",
                   limit ? memory : NULL, NULL};
    int fd[2];
    snprintf(memory, sizeof memory, "GRAFT_MEMORY=%s", limit ? limit : "");
    snprintf(bytes, sizeof bytes, "%lld", (long long)o->bytes);
    if (pipe2(fd, O_CLOEXEC)) return err_sys(e, "cannot make a pipe");
    c->pid = fork();
    if (c->pid == 0) become_child(o->input, fd[1], argv, env);
    fs_close(fd[1]);
    if (c->pid < 0) {
        err_sys(e, "cannot start a process");
        fs_close(fd[0]);
        return -1;
    }
    c->out = fd[0];
    return 0;
}

/* Everything the child writes, until it closes its end or `until` passes. */
static int collect(struct child *c, struct buf *b, int64_t until, struct err *e)
{
    for (;;) {
        struct pollfd p = {.fd = c->out, .events = POLLIN};
        int64_t left = until - clock_boot_ms();
        int n = left > 0 ? poll(&p, 1, left > 1000 ? 1000 : (int)left) : 0;
        if (left <= 0) return err_set(e, E_TIMEOUT, "the check did not end in time");
        if (n < 0 && errno != EINTR) return err_sys(e, "cannot wait for a process");
        if (n <= 0) continue;
        char *to = buf_room(b, 65536 < b->max - b->len ? 65536 : b->max - b->len);
        if (!to || b->len == b->max) return err_set(e, E_LIMIT, "the report is too long");
        int64_t got = fs_read(c->out, to, 65536 < b->max - b->len ? 65536 : b->max - b->len, e);
        if (got < 0) return -1;
        if (got == 0) return 0;
        b->len += (size_t)got;
        b->data[b->len] = 0;
    }
}

static int died(int status, int64_t cpu_s, struct err *e)
{
    int sig = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (sig == SIGXCPU || sig == SIGKILL)
        return err_set(e, E_LIMIT, "checking this takes more than %lld s of processor time or "
                       "more memory than allowed", (long long)cpu_s);
    if (sig)
        return err_set(e, E_FORMAT, "this cannot be read: the check ended by signal %d", sig);
    if (WEXITSTATUS(status) == 127) return err_set(e, E_IO, "cannot start the checking process");
    return err_set(e, E_IO, "the checking process failed with code %d", WEXITSTATUS(status));
}

/* The name under which the child knew the input says nothing to the user: "DIR/x" becomes "x",
 * "folder DIR: x" becomes "folder: x" and "FILE: x" becomes "x". */
static void drop_input_path(char *s)
{
    size_t n = sizeof input_path - 1;
    for (char *p; (p = strstr(s, input_path));) {
        char *end = p + n;
        if (*end == '/')
            end++;
        else if (p > s && p[-1] == ' ')
            p--;
        else if (str_starts(end, ": "))
            end += 2;
        memmove(p, end, strlen(end) + 1);
    }
}

/* The child's answer: its report, or its error as if it had happened here. */
static json_t *answer(const struct buf *b, struct err *e)
{
    struct err bad = ERR_INIT;
    const char *message = "", *param = "";
    int64_t code = 0;
    json_t *err, *v = jx_parse(buf_str(b), b->len, &bad), *report = NULL;
    if (v) report = json_incref(json_object_get(v, "report"));
    if (!report) {
        err = json_object_get(v, "error");
        if (!json_is_object(err) || jx_int64(err, "code", 1, E_COUNT - 1, &code, &bad) ||
            jx_str(err, "message", &message, &bad) || jx_str(err, "param", &param, &bad)) {
            err_set(e, E_IO, "the checking process gave no report");
        } else if (code == E_NOMEM) {
            err_set(e, E_LIMIT, "checking this takes more memory than allowed");
        } else {
            /* What a folder lacks is a fault of its content: the thing itself was found. */
            err_set(e, code == E_NOTFOUND ? E_FORMAT : (enum errc)code, "%s", message);
            drop_input_path(e->msg);
            if (*param) err_param(e, "%s", param);
        }
    }
    json_decref(v);
    return report;
}

static json_t *run(const struct order *o, struct err *e)
{
    struct child c = {.out = -1};
    struct buf b;
    json_t *report = NULL;
    int status = 0;
    int64_t cpu_s = cpu_seconds(o->kind, o->bytes);
    if (start(&c, o, e)) return NULL;
    buf_init(&b, REPORT_MAX);
    int rc = collect(&c, &b, clock_boot_ms() + (cpu_s + WALL_EXTRA_S) * 1000, e);
    if (rc) kill(c.pid, SIGKILL);
    while (waitpid(c.pid, &status, 0) < 0 && errno == EINTR) continue;
    if (!rc && status) rc = died(status, cpu_s, e);
    if (!rc) report = answer(&b, e);
    fs_close(c.out);
    buf_clear(&b);
    return report;
}

static json_t *examine_fd(const char *kind, int fd, struct err *e)
{
    const struct order o = {.kind = kind, .more = "", .input = fd, .bytes = input_bytes(fd)};
    json_t *report = fd < 0 ? NULL : run(&o, e);
    fs_close(fd);
    return report;
}

json_t *validate_file(const char *path, const char *kind, struct err *e)
{
    return examine_fd(kind, fs_open(path, O_RDONLY, 0, e), e);
}

json_t *validate_model(const char *dir, struct err *e)
{
    return examine_fd("model", fs_open(dir, O_RDONLY | O_DIRECTORY, 0, e), e);
}

/* Of a file or folder that a job names; what cannot be opened is the engine's to report. */
static int64_t named_bytes(const char *path)
{
    struct err ignored = ERR_INIT;
    int fd = path ? fs_open(path, O_RDONLY, 0, &ignored) : -1;
    int64_t n = fd < 0 ? 0 : input_bytes(fd);
    fs_close(fd);
    return n;
}

json_t *validate_plan(const json_t *job, const char *cache_dir, struct err *e)
{
    const json_t *model = json_object_get(job, "model");
    struct order o = {.kind = "plan", .more = cache_dir};
    /* Every token of the data is kept, in 5 bytes, and twice while they are packed; measuring the
     * device starts a thread per core, each with its stack. */
    o.bytes = named_bytes(json_string_value(json_object_get(model, "path"))) +
              12 * named_bytes(json_string_value(json_object_get(job, "training_file"))) +
              ((int64_t)sysconf(_SC_NPROCESSORS_ONLN) << 24);
    json_t *plan = NULL;
    char *text = jx_dump(job, e);
    o.input = text ? memfd_create("graft-plan", MFD_CLOEXEC) : -1;
    if (text && o.input < 0) err_sys(e, "cannot make a file in memory");
    if (o.input >= 0 && !fs_write_all(o.input, text, strlen(text), e)) plan = run(&o, e);
    fs_close(o.input);
    mem_free(text);
    return plan;
}

json_t *validate_preview(const char *path, const json_t *ask, struct err *e)
{
    char *text = jx_dump(ask, e);
    int fd = text ? fs_open(path, O_RDONLY, 0, e) : -1;
    const struct order o = {.kind = "preview", .more = text, .input = fd,
                            .bytes = input_bytes(fd)};
    json_t *seen = fd < 0 ? NULL : run(&o, e);
    fs_close(fd);
    mem_free(text);
    return seen;
}
