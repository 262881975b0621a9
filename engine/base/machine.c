#include "engine/base/machine.h"

#include "engine/base/fs.h"
#include "engine/base/str.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_MAX = 1 << 20 };

/* A file of the kernel as text into b (cleared by the caller). */
static int slurp(const char *root, const char *path, struct buf *b, struct err *e)
{
    char full[FS_PATH_MAX];
    buf_init(b, FILE_MAX);
    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full)
        return err_set(e, E_LIMIT, "path too long: %.80s...", path);
    return fs_read_file(full, b, e);
}

/* The number after `key` at the start of a line; -1 if there is none ("max"). */
static int64_t field(const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        char *end;
        line += *line == '\n';
        if (strncmp(line, key, n)) continue;
        long long v = strtoll(line + n, &end, 10);
        return end == line + n ? -1 : v;
    }
    return -1;
}

/* A field of a file that may be missing. */
static int64_t number(const char *root, const char *path, const char *key)
{
    struct err ignored = ERR_INIT;
    struct buf b;
    int64_t v = slurp(root, path, &b, &ignored) ? -1 : field(buf_str(&b), key);
    buf_clear(&b);
    return v;
}

struct group_files {
    const char *mount, *limit, *usage, *inactive, *active;
};
static const struct group_files v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                      "memory.usage_in_bytes", "total_inactive_file ",
                                      "total_active_file "};
static const struct group_files v2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                      "inactive_file ", "active_file "};

static int64_t group_number(const char *root, const char *dir, const char *file, const char *key)
{
    char path[FS_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", dir, file) >= (int)sizeof path) return -1;
    return number(root, path, key);
}

static void limit_by(const char *root, const char *dir, const struct group_files *f,
                     struct machine_memory *m)
{
    int64_t limit = group_number(root, dir, f->limit, "");
    int64_t usage = group_number(root, dir, f->usage, "");
    if (limit < 0) return;
    if (limit < m->total) m->total = limit;
    if (usage < 0) return;
    int64_t inactive = group_number(root, dir, "memory.stat", f->inactive);
    int64_t active = group_number(root, dir, "memory.stat", f->active);
    int64_t left = limit - usage + (inactive > 0 ? inactive : 0) + (active > 0 ? active : 0);
    if (left < m->free) m->free = left > 0 ? left : 0;
}

/* The group and all above it: each limits what is below. Inside a container the path may be one of
 * the host's that cannot be seen; then the mount itself is the group. */
static void limit_by_all(const char *root, const char *group, const struct group_files *f,
                         struct machine_memory *m)
{
    char dir[FS_PATH_MAX];
    if (snprintf(dir, sizeof dir, "%s%s", f->mount, group) >= (int)sizeof dir) return;
    for (;;) {
        size_t n = strlen(dir);
        while (n && dir[n - 1] == '/') dir[--n] = 0;
        limit_by(root, dir, f, m);
        char *slash = strrchr(dir, '/');
        if (n <= strlen(f->mount) || !slash) return;
        *slash = 0;
    }
}

/* Lines of /proc/self/cgroup: "0::/path" (v2), "7:memory:/path" (v1). */
static void limit_by_groups(const char *root, char *text, struct machine_memory *m)
{
    for (char *line = text, *next; line && *line; line = next) {
        if ((next = strchr(line, '\n'))) *next++ = 0;
        char *kinds = strchr(line, ':'), *path = kinds ? strchr(kinds + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        if (!kinds[1]) limit_by_all(root, path, &v2, m);
        else if (strstr(kinds + 1, "memory")) limit_by_all(root, path, &v1, m);
    }
}

/* Resident bytes of this process; -1 if the kernel does not tell. */
static int64_t resident(const char *root)
{
    struct err ignored = ERR_INIT;
    struct buf b;
    char *end;
    int64_t pages = -1;
    if (!slurp(root, "/proc/self/statm", &b, &ignored)) {
        strtoll(buf_str(&b), &end, 10);
        pages = strtoll(end, NULL, 10);
    }
    buf_clear(&b);
    return pages > 0 ? pages * sysconf(_SC_PAGESIZE) : -1;
}

int machine_memory(const char *root, struct machine_memory *m, struct err *e)
{
    struct err none = ERR_INIT;
    struct buf b;
    int64_t total = number(root, "/proc/meminfo", "MemTotal:");
    int64_t available = number(root, "/proc/meminfo", "MemAvailable:");
    int64_t used = resident(root);
    if (total < 0 || available < 0 || used < 0)
        return err_set(e, E_UNSUPPORTED, "/proc does not tell how much memory there is");
    *m = (struct machine_memory){total * 1024, available * 1024, used};
    if (!slurp(root, "/proc/self/cgroup", &b, &none) && b.len) limit_by_groups(root, b.data, m);
    buf_clear(&b);
    return 0;
}

void machine_cpu(const char *root, char out[MACHINE_CPU])
{
    struct err ignored = ERR_INIT;
    struct buf b;
    const char *name = NULL;
    if (!slurp(root, "/proc/cpuinfo", &b, &ignored)) name = strstr(buf_str(&b), "model name");
    if (name) name = strchr(name, ':');
    size_t n = name ? strcspn(name, "\n") : 0;
    if (n > 2) snprintf(out, MACHINE_CPU, "%.*s", (int)(n - 2), name + 2);
    else str_copy(out, MACHINE_CPU, "unknown");
    buf_clear(&b);
}
