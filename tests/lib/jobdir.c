#include "tests/lib/jobdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/buf.h"
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

void jobdir_root(char out[64])
{
    snprintf(out, 64, "/tmp/graft-job-XXXXXX");
    assert_non_null(mkdtemp(out));
}

const char *jobdir_make(const char *root, const char *name, const char *method,
                        const char *settings, int threads)
{
    static char dir[FS_PATH_MAX];
    char path[FS_PATH_MAX], text[4096];
    struct err e = ERR_INIT;
    OK(fs_join(dir, root, name, &e));
    OK(fs_mkdirs(dir, &e));
    int n = snprintf(text, sizeof text,
                     "{\"version\": 1, \"id\": \"ftjob-test\", \"seed\": 11, \"model\": {\"id\":"
                     " \"test/tiny\", \"path\": \"" JOBDIR_MODEL "\", \"init\": \"pretrained\"},"
                     " \"method\": \"%s\", \"settings\": {%s}, \"training_file\": \""
                     JOBDIR_DATA "\", \"validation_file\": null, \"result_id\": \"test/out\","
                     " \"threads\": %d}", method, settings, threads);
    assert_in_range(n, 1, sizeof text - 1);
    OK(fs_join(path, dir, "job.json", &e));
    OK(fs_write_file(path, text, (size_t)n, &e));
    return dir;
}

void jobdir_run(const char *dir, int attempt, const struct engine_hooks *hooks,
                enum engine_exit want)
{
    struct err e = ERR_INIT;
    enum engine_exit got = engine_run(dir, attempt, hooks, &e);
    if (got != want) fail_msg("%s: exit %d instead of %d: %s", dir, got, want, e.msg);
}

void jobdir_crash(const char *dir, int attempt, const char *crash)
{
    struct err e = ERR_INIT;
    int status;
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        setenv("GRAFT_CRASH", crash, 1);
        if (fault_from_env()) _exit(3);
        enum engine_exit code = engine_run(dir, attempt, NULL, &e);
        fprintf(stderr, "%s was not reached: exit %d %s\n", crash, code, e.msg);
        _exit(4);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("%s: the child ended with status %x", crash, status);
}

void jobdir_same(const char *a, const char *b)
{
    struct err e = ERR_INIT;
    char **names, **others, x[FS_PATH_MAX], y[FS_PATH_MAX];
    int n, m;
    OK(fs_list(a, &names, &n, &e));
    OK(fs_list(b, &others, &m, &e));
    assert_int_equal(n, m);
    for (int i = 0; i < n; i++) {
        assert_string_equal(names[i], others[i]);
        OK(fs_join(x, a, names[i], &e));
        OK(fs_join(y, b, names[i], &e));
        if (fs_is_dir(x)) {
            jobdir_same(x, y);
        } else {
            struct buf p, q;
            buf_init(&p, 1 << 24);
            buf_init(&q, 1 << 24);
            OK(fs_read_file(x, &p, &e));
            OK(fs_read_file(y, &q, &e));
            if (p.len != q.len || memcmp(p.data, q.data, p.len) != 0)
                fail_msg("%s and %s differ", x, y);
            buf_clear(&p);
            buf_clear(&q);
        }
        mem_free(names[i]);
        mem_free(others[i]);
    }
    mem_free(names);
    mem_free(others);
}

/* Field number `at` of a line of comma-separated fields. */
static const char *field(const char *line, int at)
{
    while (at-- > 0) line = strchr(line, ',') + 1;
    return line;
}

int jobdir_column(const char *dir, const char *name, double *out, int most)
{
    struct err e = ERR_INIT;
    struct buf b;
    char path[FS_PATH_MAX];
    int n = 0, column = 0;
    OK(fs_join(path, dir, "result/metrics.csv", &e));
    buf_init(&b, 1 << 20);
    OK(fs_read_file(path, &b, &e));
    const char *line = buf_str(&b);
    while (strncmp(field(line, column), name, strlen(name)) != 0) column++;
    while ((line = strchr(line, '\n')) && *++line && n < most)
        if (strtol(line, NULL, 10) > 0) out[n++] = strtod(field(line, column), NULL);
    buf_clear(&b);
    return n;
}
