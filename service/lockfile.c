#include "service/lockfile.h"

#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

int64_t lockfile_process_start(pid_t pid)
{
    char path[64];
    struct buf b;
    struct err ignored;
    int64_t start = -1;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    buf_init(&b, 4096);
    if (fs_read_file(path, &b, &ignored) == 0) {
        /* Field 22. Field 2, in parentheses, may contain anything: count from its end. */
        char *p = strrchr(b.data, ')');
        for (int field = 2; p && field < 22; field++) {
            p = strchr(p, ' ');
            if (p) p++;
        }
        if (p) start = strtoll(p, NULL, 10);
    }
    buf_clear(&b);
    return start;
}

static int open_lock(const char *job_dir, int flags, struct err *e)
{
    char path[FS_PATH_MAX];
    if (fs_join(path, job_dir, "lock", e)) return -1;
    return fs_open(path, flags | O_NOFOLLOW, 0600, e);
}

int lockfile_reserve(const char *job_dir, int wait_ms, struct err *e)
{
    int fd = open_lock(job_dir, O_RDWR | O_CREAT, e);
    if (fd < 0) return -1;
    int64_t until = clock_boot_ms() + wait_ms;
    while (flock(fd, LOCK_EX | LOCK_NB)) {
        if (errno == EWOULDBLOCK && clock_boot_ms() < until) {
            clock_sleep_ms(20);
            continue;
        }
        if (errno == EWOULDBLOCK)
            err_set(e, E_CONFLICT, "another worker has the job");
        else
            err_sys(e, "cannot lock %s/lock", job_dir);
        fs_close(fd);
        return -1;
    }
    return fd;
}

int lockfile_sign(int fd, int attempt, struct err *e)
{
    char text[96];
    /* Always of the same length, so that it replaces the name of the holder before. */
    int n = snprintf(text, sizeof text, "%-10d %-20lld %-10d\n", (int)getpid(),
                     (long long)lockfile_process_start(getpid()), attempt);
    if (lseek(fd, 0, SEEK_SET) < 0) return err_sys(e, "the job's lock");
    return fs_write_all(fd, text, (size_t)n, e);
}

int lockfile_take(const char *job_dir, int attempt, struct err *e)
{
    int fd = lockfile_reserve(job_dir, 5000, e);
    if (fd >= 0 && lockfile_sign(fd, attempt, e)) {
        fs_close(fd);
        return -1;
    }
    return fd;
}

int lockfile_look(const char *job_dir, struct lockfile *l, struct err *e)
{
    char text[96];
    *l = (struct lockfile){0};
    int fd = open_lock(job_dir, O_RDONLY, e);
    if (fd < 0) return e->code == E_NOTFOUND ? 0 : -1;
    l->held = flock(fd, LOCK_SH | LOCK_NB) != 0;
    int64_t n = fs_read(fd, text, sizeof text - 1, e);
    fs_close(fd);
    if (n < 0) return -1;
    text[n] = 0;
    char *p = text;
    long pid = strtol(p, &p, 10);
    long long start = strtoll(p, &p, 10);
    long attempt = strtol(p, &p, 10);
    if (n == 0 || text[n - 1] != '\n') return 0; /* torn: its writer has just died */
    l->pid = (pid_t)pid;
    l->start = start;
    l->attempt = (int)attempt;
    return 0;
}
