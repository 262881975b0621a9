/* Workers as processes of this machine: fork, exec, pidfd, Unix socket. */
#include "service/runner.h"

#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"
#include "service/config.h"
#include "service/lockfile.h"
#include "service/log.h"
#include "service/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KILL_WAIT_MS = 5000, NAME_WAIT_MS = 5000, CHILD_LOCK = 3 };

/* --- processes ------------------------------------------------------------------------------ */

static bool gone(int pidfd, int timeout_ms)
{
    struct pollfd p = {pidfd, POLLIN, 0};
    return poll(&p, 1, timeout_ms) == 1;
}

/* A descriptor of exactly the process that started at `start`: a pid alone may be a stranger's by
 * now. -1 without an error if it is gone. */
static int open_process(pid_t pid, int64_t start)
{
    if (pid <= 0) return -1;
    int fd = pidfd_open(pid, 0);
    if (fd < 0) return -1;
    if (lockfile_process_start(pid) == start) return fd;
    close(fd);
    return -1;
}

static int kill_process(pid_t pid, int pidfd, struct err *e)
{
    /* Its whole group, as long as the number is certainly its own. */
    if (!gone(pidfd, 0)) kill(-pid, SIGKILL);
    pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
    if (gone(pidfd, KILL_WAIT_MS)) return 0;
    return err_set(e, E_TIMEOUT, "process %d does not die", (int)pid);
}

static int attempt_dir(const struct runner_worker *w, char out[FS_PATH_MAX], struct err *e)
{
    int n = snprintf(out, FS_PATH_MAX, "%s/attempts/%d", w->job_dir, w->attempt);
    return n < FS_PATH_MAX ? 0 : err_set(e, E_LIMIT, "path too long: %.80s...", w->job_dir);
}

/* Whoever holds the job's lock. 1: it has this very attempt and *pidfd is open. 0: nobody is left
 * (a holder with another attempt has been killed). */
static int settle_holder(struct runner_worker *w, int *pidfd, struct err *e)
{
    struct lockfile l;
    int64_t until = clock_boot_ms() + NAME_WAIT_MS;
    for (;;) {
        if (lockfile_look(w->job_dir, &l, e)) return -1;
        w->began = w->began || l.attempt == w->attempt;
        if (!l.held) return 0;
        int fd = open_process(l.pid, l.start);
        if (fd >= 0) {
            w->pid = l.pid;
            if (l.attempt == w->attempt) {
                *pidfd = fd;
                return 1;
            }
            log_event(LOG_WARN, NULL, "killing the worker of a stale attempt",
                      LOG_FIELDS(LOG_S("job", w->job_id), LOG_N("attempt", l.attempt)));
            int rc = kill_process(l.pid, fd, e);
            close(fd);
            return rc;
        }
        /* It has inherited the lock but not yet written its name, or is just going. */
        if (clock_boot_ms() > until)
            return err_set(e, E_TIMEOUT, "the lock of job %s is held by an unknown process",
                           w->job_id);
        clock_sleep_ms(10);
    }
}

/* --- starting ------------------------------------------------------------------------------- */

struct launch {
    char program[FS_PATH_MAX], attempt[16];
    char threads[64], blas[64], memory[64], crash[256], fault[256];
    char *argv[8], *env[8];
    int log_fd, lock_fd;
};

/* Only the child's own settings: the server's environment (keys!) stays behind, but for the limit
 * of memory of every process, which the engine knows. Tests hand faults
 * to the worker as GRAFT_WORKER_CRASH and GRAFT_WORKER_FAULT. */
static void make_environment(struct launch *l, const struct config *c)
{
    const char *crash = getenv("GRAFT_WORKER_CRASH"), *fault = getenv("GRAFT_WORKER_FAULT");
    const char *memory = getenv("GRAFT_MEMORY");
    int n = 0;
    l->env[n++] = (char *)(uintptr_t)"PATH=/usr/bin:/bin";
    l->env[n++] = (char *)(uintptr_t)"LANG=C.UTF-8";
    if (c->job_threads) {
        snprintf(l->threads, sizeof l->threads, "OMP_NUM_THREADS=%lld", (long long)c->job_threads);
        snprintf(l->blas, sizeof l->blas, "OPENBLAS_NUM_THREADS=%lld", (long long)c->job_threads);
        l->env[n++] = l->threads;
        l->env[n++] = l->blas;
    }
    if (memory) {
        snprintf(l->memory, sizeof l->memory, "GRAFT_MEMORY=%s", memory);
        l->env[n++] = l->memory;
    }
    if (crash) {
        snprintf(l->crash, sizeof l->crash, "GRAFT_CRASH=%s", crash);
        l->env[n++] = l->crash;
    }
    if (fault) {
        snprintf(l->fault, sizeof l->fault, "GRAFT_FAULT=%s", fault);
        l->env[n++] = l->fault;
    }
    l->env[n] = NULL;
}

static int prepare(struct launch *l, const struct config *c, const struct runner_worker *w,
                   struct err *e)
{
    char dir[FS_PATH_MAX], log[FS_PATH_MAX];
    if (attempt_dir(w, dir, e) || fs_mkdirs(dir, e) || fs_join(log, dir, "log.txt", e)) return -1;
    /* /proc/self/exe in the child is this very binary, even if its file has been replaced. */
    str_copy(l->program, sizeof l->program, *c->worker_path ? c->worker_path : "/proc/self/exe");
    snprintf(l->attempt, sizeof l->attempt, "%d", w->attempt);
    char *argv[] = {l->program, (char *)(uintptr_t)"worker", (char *)(uintptr_t)w->job_dir,
                    (char *)(uintptr_t)"--attempt", l->attempt, (char *)(uintptr_t)"--lock",
                    (char *)(uintptr_t)"3", NULL};
    memcpy(l->argv, argv, sizeof argv);
    make_environment(l, c);
    l->log_fd = fs_open(log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600, e);
    if (l->log_fd < 0) return -1;
    l->lock_fd = lockfile_reserve(w->job_dir, 0, e);
    return l->lock_fd < 0 ? -1 : 0;
}

static void clear_launch(struct launch *l)
{
    fs_close(l->log_fd);
    fs_close(l->lock_fd);
}

/* Between fork and exec of a process with threads: system calls only. */
static void become_worker(const struct launch *l)
{
    sigset_t mask;
    int null = open("/dev/null", O_RDONLY);
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM); /* until the worker waits for it: see take_signals() there */
    sigaddset(&mask, SIGINT);
    setpgid(0, 0);
    umask(077);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (null < 0 || dup2(null, 0) < 0 || dup2(l->log_fd, 1) < 0 || dup2(l->log_fd, 2) < 0)
        _exit(126);
    /* dup2 onto itself would leave the descriptor to be closed by exec. */
    if (l->lock_fd == CHILD_LOCK ? fcntl(CHILD_LOCK, F_SETFD, 0) : dup2(l->lock_fd, CHILD_LOCK) < 0)
        _exit(126);
    close_range(CHILD_LOCK + 1, ~0u, 0);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    execve(l->program, l->argv, l->env);
    _exit(127);
}

static int local_start(const struct config *c, struct runner_worker *w, struct err *e)
{
    struct launch l = {.log_fd = -1, .lock_fd = -1};
    int pidfd = -1, rc = settle_holder(w, &pidfd, e);
    if (rc < 0) return -1;
    if (rc == 1) {
        close(pidfd);
        return err_set(e, E_CONFLICT, "attempt %d of %s runs already", w->attempt, w->job_id);
    }
    if (prepare(&l, c, w, e)) {
        clear_launch(&l);
        return -1;
    }
    if (CRASHPOINT("runner.before_fork")) {
        clear_launch(&l);
        return err_set(e, E_IO, "injected failure");
    }
    pid_t pid = fault_hit(FAULT_THREAD) ? -1 : fork();
    if (pid == 0) become_worker(&l);
    clear_launch(&l);
    if (pid < 0) return err_sys(e, "cannot start a process");
    (void)CRASHPOINT("runner.forked");
    w->pid = pid;
    w->child = true;
    w->began = true;
    w->pidfd = pidfd_open(pid, 0);
    if (w->pidfd >= 0) return 0;
    err_sys(e, "cannot watch process %d", (int)pid);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return -1;
}

static int local_adopt(const struct config *c, struct runner_worker *w, struct err *e)
{
    (void)c;
    int rc = settle_holder(w, &w->pidfd, e);
    if (rc == 1) w->child = false;
    return rc;
}

/* --- watching ------------------------------------------------------------------------------- */

static void converse(struct runner_worker *w, enum queue_want want, struct runner_news *n)
{
    static const char *const words[] = {"none", "pause", "cancel"};
    struct err e = ERR_INIT;
    char dir[FS_PATH_MAX];
    json_t *line;
    int rc = 0;
    if (w->wire.fd < 0) {
        if (attempt_dir(w, dir, &e)) return;
        int fd = wire_connect(dir, &e);
        if (fd < 0) return; /* not listening yet, or no more */
        wire_open(&w->wire, fd);
    }
    while ((rc = wire_receive(&w->wire, &line, &e)) == 1) {
        if (json_integer_value(json_object_get(line, "attempt")) == w->attempt) {
            json_decref(n->progress);
            n->progress = line;
        } else {
            json_decref(line);
        }
    }
    line = rc < 0 ? NULL : jx_pack(&e, "{s:i, s:s}", "attempt", w->attempt, "want", words[want]);
    if (!line || wire_send(&w->wire, line, &e)) wire_close(&w->wire);
    json_decref(line);
}

static int local_poll(struct runner_worker *w, enum queue_want want, struct runner_news *n,
                      struct err *e)
{
    converse(w, want, n);
    if (!gone(w->pidfd, 0)) return 0;
    if (w->child) waitpid(w->pid, &w->status, 0);
    w->child = false;
    n->ended = true;
    n->exited = w->status >= 0 && WIFEXITED(w->status);
    n->code = n->exited ? WEXITSTATUS(w->status) : 0;
    n->signal = w->status >= 0 && WIFSIGNALED(w->status) ? WTERMSIG(w->status) : 0;
    /* exit.json was synced before the process ended, so it counts more than how it then ended. */
    return runner_read_exit(w, n, e);
}

static int local_stop(struct runner_worker *w, struct err *e)
{
    if (w->pidfd < 0) return 0;
    if (kill_process(w->pid, w->pidfd, e)) return -1;
    if (w->child) waitpid(w->pid, &w->status, 0);
    w->child = false;
    return 0;
}

static void local_release(struct runner_worker *w)
{
    wire_close(&w->wire);
    if (w->pidfd >= 0) close(w->pidfd);
    w->pidfd = -1;
}

const struct runner runner_local = {
    .name = "local",
    .start = local_start,
    .adopt = local_adopt,
    .poll = local_poll,
    .stop = local_stop,
    .release = local_release,
};
