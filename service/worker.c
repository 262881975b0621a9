#include "service/worker.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/lockfile.h"
#include "service/log.h"
#include "service/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct worker {
    const char *dir;
    char attempt_dir[FS_PATH_MAX];
    int attempt;
    int lock_fd, listen_fd, signal_fd, stop_fd;
    pthread_t control;
    _Atomic int want;          /* enum engine_want, as the server last said */
    _Atomic bool preempt;      /* SIGTERM came; stays */
    pthread_mutex_t lock;      /* guards what follows */
    struct engine_progress progress;
    char phase[32];
};

/* --- hooks of the engine -------------------------------------------------------------------- */

static void on_progress(void *ctx, const struct engine_progress *p)
{
    struct worker *w = ctx;
    (void)CRASHPOINT("worker.progress");
    pthread_mutex_lock(&w->lock);
    w->progress = *p;
    str_copy(w->phase, sizeof w->phase, p->phase ? p->phase : "");
    w->progress.phase = w->phase;
    pthread_mutex_unlock(&w->lock);
}

static enum engine_want on_want(void *ctx)
{
    struct worker *w = ctx;
    enum engine_want want = (enum engine_want)atomic_load(&w->want);
    if (want == WANT_CANCEL || want == WANT_PAUSE) return want;
    return atomic_load(&w->preempt) ? WANT_PREEMPT : WANT_NONE;
}

/* --- the control thread --------------------------------------------------------------------- */

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *report(struct worker *w, struct err *e)
{
    struct engine_progress p;
    char phase[sizeof w->phase];
    pthread_mutex_lock(&w->lock);
    p = w->progress;
    memcpy(phase, w->phase, sizeof phase);
    pthread_mutex_unlock(&w->lock);
    return jx_pack(e, "{s:i, s:i, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:I, s:o}", "attempt",
                   w->attempt, "pid", (int)getpid(), "phase", phase, "step", (json_int_t)p.step,
                   "total_steps", (json_int_t)p.total_steps, "epoch", number(p.epoch),
                   "train_loss", number(p.train_loss), "learning_rate", number(p.learning_rate),
                   "grad_norm", number(p.grad_norm), "tokens_per_s", number(p.tokens_per_s),
                   "tokens", (json_int_t)p.tokens, "eta_s", number(p.eta_s));
}

static void hear(struct worker *w, const json_t *line)
{
    const char *want = json_string_value(json_object_get(line, "want"));
    if (json_integer_value(json_object_get(line, "attempt")) != w->attempt || !want) return;
    atomic_store(&w->want, str_eq(want, "cancel")  ? WANT_CANCEL
                           : str_eq(want, "pause") ? WANT_PAUSE
                                                   : WANT_NONE);
}

/* Answers every line that has come. False: the connection is of no more use. */
static bool serve(struct worker *w, struct wire *c)
{
    struct err e = ERR_INIT;
    json_t *line;
    int rc;
    while ((rc = wire_receive(c, &line, &e)) == 1) {
        hear(w, line);
        json_decref(line);
        json_t *answer = report(w, &e);
        rc = answer ? wire_send(c, answer, &e) : -1;
        json_decref(answer);
        if (rc) return false;
    }
    return rc == 0;
}

/* One connection at a time: a new server takes the place of a dead one. */
static void accept_new(struct worker *w, struct wire *c)
{
    int fd = fault_hit(FAULT_SOCK) ? -1 : accept4(w->listen_fd, NULL, NULL,
                                                  SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    wire_close(c);
    wire_open(c, fd);
}

static void *control(void *arg)
{
    struct worker *w = arg;
    struct wire c;
    wire_open(&c, -1);
    for (;;) {
        struct pollfd p[] = {{w->stop_fd, POLLIN, 0},
                             {w->signal_fd, POLLIN, 0},
                             {w->listen_fd, POLLIN, 0},
                             {c.fd, POLLIN, 0}};
        if (poll(p, 4, -1) < 0 && errno != EINTR) break;
        if (p[0].revents) break;
        if (p[1].revents) {
            struct signalfd_siginfo info;
            if (read(w->signal_fd, &info, sizeof info) > 0) atomic_store(&w->preempt, true);
        }
        if (p[3].revents && !serve(w, &c)) wire_close(&c);
        if (p[2].revents) accept_new(w, &c);
    }
    wire_close(&c);
    return NULL;
}

/* --- becoming a worker ---------------------------------------------------------------------- */

static void nothing(int sig)
{
    (void)sig;
}

static int take_signals(struct worker *w, struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    /* Libraries may have started threads before main(), which do not have this mask: a handler
     * keeps the signal from ending the process there. The runner blocks it before exec. */
    struct sigaction act = {.sa_handler = nothing};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    w->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    w->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (w->signal_fd < 0 || w->stop_fd < 0) return err_sys(e, "cannot watch for signals");
    return 0;
}

/* Best effort each: none of them is needed for a right result. */
static void harden(void)
{
    struct err ignored;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    /* The kernel shall prefer this process to the server when memory runs out. */
    int fd = fs_open("/proc/self/oom_score_adj", O_WRONLY, 0, &ignored);
    if (fd >= 0) fs_write_all(fd, "500", 3, &ignored);
    fs_close(fd);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static int start_control(struct worker *w, struct err *e)
{
    w->listen_fd = wire_listen(w->attempt_dir, e);
    if (w->listen_fd < 0) return -1;
    int rc = fault_hit(FAULT_THREAD) ? EAGAIN : pthread_create(&w->control, NULL, control, w);
    if (rc == 0) return 0;
    errno = rc;
    return err_sys(e, "cannot start the control thread");
}

static void stop_control(struct worker *w)
{
    uint64_t one = 1;
    while (write(w->stop_fd, &one, sizeof one) < 0 && errno == EINTR) {}
    pthread_join(w->control, NULL);
}

/* The engine writes exit.json itself when it got so far; this one says the same for failures
 * before and after. */
static void write_exit(struct worker *w, enum engine_exit code, const struct err *why)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    bool bad = why->code != E_OK;
    if (fs_join(path, w->attempt_dir, "exit.json", &e) || fs_exists(path)) return;
    json_t *o = jx_pack(&e, "{s:i, s:i, s:i, s:I, s:I, s:s?, s:s?, s:s?}", "version", 1, "attempt",
                        w->attempt, "code", (int)code, "step", (json_int_t)w->progress.step,
                        "tokens", (json_int_t)w->progress.tokens, "error",
                        bad ? err_name(why->code) : NULL, "message", bad ? why->msg : NULL,
                        "param", bad && *why->param ? why->param : NULL);
    char *text = o ? jx_dump(o, &e) : NULL;
    (void)CRASHPOINT("worker.before_exit_json");
    if (!text || fs_write_file(path, text, strlen(text), &e))
        log_err(LOG_ERROR, NULL, "exit.json could not be written", &e, NULL);
    mem_free(text);
    json_decref(o);
}

static int parse(int argc, char **argv, struct worker *w, struct err *e)
{
    int64_t n = 0;
    int64_t fd = -1;
    bool ok = (argc == 4 || argc == 6) && str_eq(argv[2], "--attempt") &&
              str_int64(argv[3], &n) && n > 0 && n < 1000000;
    if (ok && argc == 6) ok = str_eq(argv[4], "--lock") && str_int64(argv[5], &fd) && fd > 2;
    if (!ok) return err_set(e, E_ARG, "usage: graft worker DIR --attempt N [--lock DESCRIPTOR]");
    w->lock_fd = (int)fd;
    char name[32];
    snprintf(name, sizeof name, "attempts/%d", (int)n);
    w->dir = argv[1];
    w->attempt = (int)n;
    return fs_join(w->attempt_dir, w->dir, name, e);
}

/* 0: the job is ours. A finished attempt is never run again. */
static int take_job(struct worker *w, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_mkdirs(w->attempt_dir, e)) return -1;
    (void)CRASHPOINT("worker.without_name");
    if (w->lock_fd < 0)
        w->lock_fd = lockfile_take(w->dir, w->attempt, e);
    else if (lockfile_sign(w->lock_fd, w->attempt, e))
        return -1;
    if (w->lock_fd < 0) return -1;
    (void)CRASHPOINT("worker.locked");
    if (fs_join(path, w->attempt_dir, "exit.json", e)) return -1;
    return fs_exists(path) ? err_set(e, E_CONFLICT, "attempt %d has ended already", w->attempt)
                           : 0;
}

static enum engine_exit run_job(struct worker *w, worker_run_fn run)
{
    struct err why = ERR_INIT;
    struct engine_hooks hooks = {.ctx = w, .progress = on_progress, .want = on_want};
    enum engine_exit code = EXIT_TRANSIENT;
    if (start_control(w, &why) == 0) {
        harden(); /* after listening, which goes through /proc/self */
        (void)CRASHPOINT("worker.listening");
        code = run(w->dir, w->attempt, &hooks, &why);
        stop_control(w);
    }
    write_exit(w, code, &why);
    (void)CRASHPOINT("worker.after_exit_json");
    return code;
}

int worker_main(int argc, char **argv, worker_run_fn run)
{
    struct worker w = {.lock_fd = -1, .listen_fd = -1, .signal_fd = -1, .stop_fd = -1,
                       .progress = {.phase = "", .train_loss = NAN, .eta_s = NAN}};
    struct err e = ERR_INIT;
    int code = WORKER_NOT_MINE;
    umask(077);
    pthread_mutex_init(&w.lock, NULL);
    if (parse(argc, argv, &w, &e) || take_signals(&w, &e) || take_job(&w, &e)) {
        log_err(LOG_ERROR, NULL, "the worker cannot take the job", &e, NULL);
    } else {
        code = (int)run_job(&w, run);
    }
    fs_close(w.listen_fd);
    fs_close(w.signal_fd);
    fs_close(w.stop_fd);
    fs_close(w.lock_fd);
    pthread_mutex_destroy(&w.lock);
    return code;
}
