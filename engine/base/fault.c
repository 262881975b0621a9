#include "engine/base/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    _Atomic int64_t count;
    _Atomic int64_t nth;
    _Atomic bool persistent;
} classes[FAULT_CLASSES];

static const char *const class_names[FAULT_CLASSES] = {"mem", "file", "sock", "sql", "thread"};
static const int class_errno[FAULT_CLASSES] = {ENOMEM, EIO, ECONNRESET, EIO, EAGAIN};

enum crash_mode { CRASH_KILL, CRASH_EXIT, CRASH_PAUSE, CRASH_ERR };

bool fault_crash_armed;
static struct {
    char name[64];
    _Atomic int64_t left;
    enum crash_mode mode;
} crash;

bool fault_hit(enum fault_class c)
{
    int64_t n = atomic_fetch_add_explicit(&classes[c].count, 1, memory_order_relaxed) + 1;
    int64_t nth = atomic_load_explicit(&classes[c].nth, memory_order_relaxed);
    if (nth == 0) return false;
    bool hit = atomic_load_explicit(&classes[c].persistent, memory_order_relaxed) ? n >= nth
                                                                                  : n == nth;
    if (hit) errno = class_errno[c];
    return hit;
}

void fault_arm(enum fault_class c, int64_t nth, bool persistent)
{
    atomic_store(&classes[c].persistent, persistent);
    atomic_store(&classes[c].nth, nth);
    atomic_store(&classes[c].count, 0);
}

int64_t fault_count(enum fault_class c)
{
    return atomic_load(&classes[c].count);
}

static int parse_fault(const char *s)
{
    const char *colon = strchr(s, ':');
    if (!colon) return -1;
    for (int c = 0; c < FAULT_CLASSES; c++) {
        if (strlen(class_names[c]) != (size_t)(colon - s)) continue;
        if (strncmp(s, class_names[c], (size_t)(colon - s)) != 0) continue;
        char *end;
        long long n = strtoll(colon + 1, &end, 10);
        bool persistent = *end == '+';
        if (persistent) end++;
        if (n < 1 || *end) return -1;
        fault_arm((enum fault_class)c, n, persistent);
        return 0;
    }
    return -1;
}

static int parse_crash(const char *s)
{
    static const char *const modes[] = {"kill", "exit", "pause", "err"};
    const char *colon = strchr(s, ':');
    size_t len = colon ? (size_t)(colon - s) : strlen(s);
    if (len == 0 || len >= sizeof crash.name) return -1;
    memcpy(crash.name, s, len);
    crash.name[len] = 0;
    long long n = 1;
    crash.mode = CRASH_KILL;
    if (colon) {
        char *end;
        n = strtoll(colon + 1, &end, 10);
        if (n < 1 || (*end && *end != ':')) return -1;
        if (*end == ':') {
            int m = 0;
            while (m < 4 && strcmp(end + 1, modes[m]) != 0) m++;
            if (m == 4) return -1;
            crash.mode = (enum crash_mode)m;
        }
    }
    atomic_store(&crash.left, n);
    fault_crash_armed = true;
    return 0;
}

int fault_from_env(void)
{
    const char *f = getenv("GRAFT_FAULT"), *c = getenv("GRAFT_CRASH");
    if (f && *f && parse_fault(f)) {
        fprintf(stderr, "graft: GRAFT_FAULT=%s: want mem|file|sock|sql|thread:N or :N+\n", f);
        return -1;
    }
    if (c && *c && parse_crash(c)) {
        fprintf(stderr, "graft: GRAFT_CRASH=%s: want POINT[:N[:kill|exit|pause|err]]\n", c);
        return -1;
    }
    return 0;
}

bool fault_crash(const char *name)
{
    if (strcmp(name, crash.name) != 0) return false;
    if (atomic_fetch_sub(&crash.left, 1) != 1) return false;
    switch (crash.mode) {
    case CRASH_KILL: kill(getpid(), SIGKILL); break;
    case CRASH_EXIT: _exit(86);
    case CRASH_PAUSE: kill(getpid(), SIGSTOP); break;
    case CRASH_ERR: errno = EIO; return true;
    }
    return false;
}
