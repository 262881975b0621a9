#include "engine/base/machine.h"

#include "engine/base/fs.h"
#include "engine/base/str.h"

#include <errno.h>
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

/* A field of a file; -1 if there is no such file, or none that this process may read. */
static int number(const char *root, const char *path, const char *key, int64_t *out,
                  struct err *e)
{
    struct err why = ERR_INIT;
    struct buf b;
    *out = -1;
    int rc = slurp(root, path, &b, &why);
    if (!rc) *out = field(buf_str(&b), key);
    buf_clear(&b);
    if (!rc || why.sys == ENOENT || why.sys == EACCES) return 0;
    *e = why;
    return -1;
}

struct group_files {
    const char *mount, *limit, *usage, *inactive, *active;
};
static const struct group_files v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                      "memory.usage_in_bytes", "total_inactive_file ",
                                      "total_active_file "};
static const struct group_files v2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                      "inactive_file ", "active_file "};

static int limit_by(const char *root, const char *dir, const struct group_files *f,
                    struct machine_memory *m, struct err *e)
{
    const char *const names[4][2] = {{f->limit, ""}, {f->usage, ""},
                                     {"memory.stat", f->inactive}, {"memory.stat", f->active}};
    char path[FS_PATH_MAX];
    int64_t v[4];
    for (int i = 0; i < 4; i++)
        if (fs_join(path, dir, names[i][0], e) || number(root, path, names[i][1], &v[i], e))
            return -1;
    if (v[0] < 0) return 0;
    if (v[0] < m->total) m->total = v[0];
    if (v[1] < 0) return 0;
    int64_t left = v[0] - v[1] + (v[2] > 0 ? v[2] : 0) + (v[3] > 0 ? v[3] : 0);
    if (left < m->free) m->free = left > 0 ? left : 0;
    return 0;
}

/* The group and all above it: each limits what is below. Inside a container the path may be one of
 * the host's that cannot be seen; then the mount itself is the group. */
static int limit_by_all(const char *root, const char *group, const struct group_files *f,
                        struct machine_memory *m, struct err *e)
{
    char dir[FS_PATH_MAX];
    if (snprintf(dir, sizeof dir, "%s%s", f->mount, group) >= (int)sizeof dir)
        return err_set(e, E_LIMIT, "path too long: %.80s...", dir);
    for (;;) {
        size_t n = strlen(dir);
        while (n && dir[n - 1] == '/') dir[--n] = 0;
        if (limit_by(root, dir, f, m, e)) return -1;
        char *slash = strrchr(dir, '/');
        if (n <= strlen(f->mount) || !slash) return 0;
        *slash = 0;
    }
}

/* Lines of /proc/self/cgroup: "0::/path" (v2), "7:memory:/path" (v1). */
static int limit_by_groups(const char *root, char *text, struct machine_memory *m, struct err *e)
{
    for (char *line = text, *next; line && *line; line = next) {
        if ((next = strchr(line, '\n'))) *next++ = 0;
        char *kinds = strchr(line, ':'), *path = kinds ? strchr(kinds + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        const struct group_files *f = !kinds[1] ? &v2 : strstr(kinds + 1, "memory") ? &v1 : NULL;
        if (f && limit_by_all(root, path, f, m, e)) return -1;
    }
    return 0;
}

int machine_memory(const char *root, struct machine_memory *m, struct err *e)
{
    struct err why = ERR_INIT;
    struct buf b;
    int64_t total, available, pages = 0;
    char *end;
    if (number(root, "/proc/meminfo", "MemTotal:", &total, e) ||
        number(root, "/proc/meminfo", "MemAvailable:", &available, e))
        return -1;
    if (total < 0 || available < 0)
        return err_set(e, E_UNSUPPORTED, "/proc does not tell how much memory there is");
    if (!slurp(root, "/proc/self/statm", &b, e)) {
        strtoll(buf_str(&b), &end, 10);
        pages = strtoll(end, NULL, 10);
    }
    buf_clear(&b);
    if (!pages) return -1;
    struct machine_memory all = {total * 1024, available * 1024, pages * sysconf(_SC_PAGESIZE)};
    int rc = slurp(root, "/proc/self/cgroup", &b, &why);
    if (!rc && b.len) rc = limit_by_groups(root, b.data, &all, &why);
    buf_clear(&b);
    if (rc && why.sys != ENOENT) {
        *e = why;
        return -1;
    }
    *m = all;
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
