#include "tests/lib/check.h"

#include "engine/base/buf.h"
#include "engine/base/fs.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/lockfile.h"
#include "service/store.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

struct check {
    struct store *store;
    const char *dir;
    FILE *out;
    int bad;
};

static void violated(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void violated(struct check *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(c->out, fmt, ap);
    va_end(ap);
    fputc('\n', c->out);
    c->bad++;
}

/* Every row that this query finds is a violation; its first column names it. */
static void none(struct check *c, const char *rule, const char *sql)
{
    struct err e = ERR_INIT;
    int rc;
    struct store_rows *r = store_query(c->store, &e, sql, "");
    if (!r) {
        violated(c, "%s: %s", rule, e.msg);
        return;
    }
    while ((rc = store_next(r, &e)) == 1) violated(c, "%s: %s", rule, store_text(r, 0));
    if (rc < 0) violated(c, "%s: %s", rule, e.msg);
    store_rows_end(r);
}

static bool found(struct check *c, const char *sql, const char *id, const char *value)
{
    struct err e = ERR_INIT;
    struct store_rows *r;
    int rc = store_one(c->store, &r, &e, sql, "tt", id, value);
    if (rc < 0) violated(c, "%s", e.msg);
    if (rc == 1) store_rows_end(r);
    return rc == 1;
}

/* --- rows ----------------------------------------------------------------------------------- */

static void check_rows(struct check *c)
{
    none(c, "I2 a model of a job that did not succeed",
         "SELECT m.id FROM models m JOIN jobs j ON j.seq = m.job WHERE j.state <> 'succeeded'");
    none(c, "I2 two models of one kind from one job",
         "SELECT max(id) FROM models WHERE job IS NOT NULL GROUP BY job, kind HAVING count(*) > 1");
    none(c, "I3 finished_at",
         "SELECT id FROM jobs WHERE (finished_at IS NOT NULL) <> (state IN ('succeeded', 'failed', "
         "'cancelled'))");
    none(c, "I3 lease", "SELECT id FROM jobs WHERE (lease_until IS NOT NULL) <> "
                        "(state = 'running')");
    none(c, "I3 want", "SELECT id FROM jobs WHERE want <> 'none' AND state <> 'running'");
    none(c, "I3 result",
         "SELECT id FROM jobs WHERE (fine_tuned_model IS NOT NULL) <> (state = 'succeeded')");
    none(c, "I5 a gap in the events",
         "SELECT j.id FROM jobs j JOIN events e ON e.job = j.seq GROUP BY j.seq "
         "HAVING max(e.n) <> count(*) OR min(e.n) <> 1");
    none(c, "I5 the last state told is not the state",
         "SELECT id FROM jobs WHERE state IS NOT (SELECT e.state FROM events e WHERE e.job = "
         "jobs.seq AND e.state IS NOT NULL ORDER BY n DESC LIMIT 1)");
    none(c, "I5 something was said after the end",
         "SELECT id FROM jobs WHERE finished_at IS NOT NULL AND state IS NOT (SELECT e.state FROM "
         "events e WHERE e.job = jobs.seq ORDER BY n DESC LIMIT 1)");
    none(c, "I4 more than one final event",
         "SELECT max(j.id) FROM jobs j JOIN events e ON e.job = j.seq WHERE e.state IN "
         "('succeeded', 'failed', 'cancelled') GROUP BY j.seq HAVING count(*) > 1");
    none(c, "a result file without a row",
         "SELECT f.value FROM jobs j, json_each(j.result_files) f WHERE NOT EXISTS "
         "(SELECT 1 FROM files WHERE id = f.value)");
}

/* --- files ---------------------------------------------------------------------------------- */

static void check_content(struct check *c, const char *path, int64_t bytes, const char *sha256)
{
    struct err e = ERR_INIT;
    char hex[65];
    if (fs_size(path, &e) != bytes)
        violated(c, "I7 %s has not its %lld bytes", path, (long long)bytes);
    else if (hash_file_sha256(path, hex, &e) || strcmp(hex, sha256) != 0)
        violated(c, "I7 %s has not its hash", path);
}

static void check_blobs(struct check *c)
{
    struct err e = ERR_INIT;
    struct store_rows *r = store_query(c->store, &e, "SELECT sha256, bytes FROM blobs", "");
    while (r && store_next(r, &e) == 1) {
        char path[FS_PATH_MAX];
        const char *sha = store_text(r, 0);
        snprintf(path, sizeof path, "%s/blobs/%.2s/%s", c->dir, sha, sha);
        check_content(c, path, store_int(r, 1), sha);
    }
    if (e.code) violated(c, "%s", e.msg);
    store_rows_end(r);
}

static void check_models(struct check *c)
{
    struct err e = ERR_INIT;
    struct store_rows *r = store_query(c->store, &e,
                                       "SELECT m.dir, f.path, f.bytes, f.sha256 FROM model_files f "
                                       "JOIN models m ON m.seq = f.model",
                                       "");
    while (r && store_next(r, &e) == 1) {
        char path[FS_PATH_MAX];
        const char *dir = store_text(r, 0);
        bool own = dir[0] != '/';
        snprintf(path, sizeof path, "%s%s%s/%s", own ? c->dir : "", own ? "/" : "", dir,
                 store_text(r, 1));
        check_content(c, path, store_int(r, 2), store_text(r, 3));
    }
    if (e.code) violated(c, "%s", e.msg);
    store_rows_end(r);
}

/* Every entry of dir/sub must be known to the query. */
static void check_entries(struct check *c, const char *sub, const char *rule, const char *sql)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX], **names = NULL;
    int n = 0;
    snprintf(path, sizeof path, "%s/%s", c->dir, sub);
    if (!fs_exists(path)) return;
    if (fs_list(path, &names, &n, &e)) violated(c, "%s", e.msg);
    for (int i = 0; i < n; i++) {
        if (!sql || !found(c, sql, names[i], NULL)) violated(c, "%s: %s", rule, names[i]);
        mem_free(names[i]);
    }
    mem_free(names);
}

static void check_folders(struct check *c)
{
    struct err e = ERR_INIT;
    char blobs[FS_PATH_MAX], **names = NULL;
    int n = 0;
    snprintf(blobs, sizeof blobs, "%s/blobs", c->dir);
    if (fs_list(blobs, &names, &n, &e)) violated(c, "%s", e.msg);
    for (int i = 0; i < n; i++) {
        char sub[FS_PATH_MAX];
        snprintf(sub, sizeof sub, "blobs/%s", names[i]);
        check_entries(c, sub, "I7 a blob without a row",
                      "SELECT 1 FROM blobs WHERE sha256 = ? AND ? IS NULL");
        mem_free(names[i]);
    }
    mem_free(names);
    check_entries(c, "spool", "I7 a left-over upload", NULL);
    check_entries(c, "jobs", "a job folder without a row",
                  "SELECT 1 FROM jobs WHERE id = ? AND ? IS NULL");
    check_entries(c, "models", "a model folder without a row",
                  "SELECT 1 FROM models WHERE dir = 'models/' || ? AND ? IS NULL");
}

/* I11: whoever holds a job's lock must be the worker of its running attempt. */
static void check_workers(struct check *c)
{
    struct err e = ERR_INIT;
    struct store_rows *r = store_query(c->store, &e, "SELECT id, state, attempt FROM jobs", "");
    while (r && store_next(r, &e) == 1) {
        char dir[FS_PATH_MAX], job_json[FS_PATH_MAX];
        struct lockfile l;
        struct err ignored = ERR_INIT;
        snprintf(dir, sizeof dir, "%s/jobs/%s", c->dir, store_text(r, 0));
        snprintf(job_json, sizeof job_json, "%s/job.json", dir);
        if (!fs_exists(job_json)) violated(c, "I1 no folder of job %s", store_text(r, 0));
        if (lockfile_look(dir, &l, &ignored)) continue;
        if (l.held && (!str_eq(store_text(r, 1), "running") || l.attempt != store_int(r, 2)))
            violated(c, "I11 a worker of job %s lives, which is %s", store_text(r, 0),
                     store_text(r, 1));
    }
    if (e.code) violated(c, "%s", e.msg);
    store_rows_end(r);
}

/* --- what clients were told ----------------------------------------------------------------- */

static void check_ack(struct check *c, const char *what, const char *id, const char *value,
                      const char *all)
{
    char deleting[160];
    snprintf(deleting, sizeof deleting, "deleting %s\n", id);
    if (str_eq(what, "file")) {
        if (!strstr(all, deleting) &&
            !found(c, "SELECT 1 FROM files WHERE id = ? AND sha256 = ?", id, value))
            violated(c, "I1 file %s was acknowledged and is not there", id);
    } else if (str_eq(what, "deleting")) {
        return;
    } else if (str_eq(what, "deleted")) {
        if (found(c, "SELECT 1 FROM files WHERE id = ? AND ? = ''", id, value))
            violated(c, "file %s was deleted and is there", id);
    } else if (str_eq(what, "model")) {
        if (!found(c, "SELECT 1 FROM models WHERE id = ? AND ? = ''", id, value))
            violated(c, "I1 model %s was acknowledged and is not there", id);
    } else if (str_eq(what, "job")) {
        if (!found(c, "SELECT 1 FROM jobs WHERE id = ? AND ? = ''", id, value))
            violated(c, "I1 job %s was acknowledged and is not there", id);
    } else if (str_eq(what, "cancelled")) {
        if (!found(c, "SELECT 1 FROM jobs WHERE id = ? AND ? = '' AND (state = 'cancelled' OR "
                      "want = 'cancel')", id, value))
            violated(c, "I10 job %s was cancelled and is not", id);
    } else if (str_eq(what, "state")) {
        if (!found(c, "SELECT 1 FROM jobs WHERE id = ? AND state = ?", id, value))
            violated(c, "I4 job %s was %s and is not", id, value);
    } else {
        violated(c, "cannot read the line: %s", what);
    }
}

/* Copies the next word of the line at p; returns what is behind it. */
static const char *word(const char *p, char *out, size_t cap)
{
    p += strspn(p, " ");
    size_t n = strcspn(p, " \n");
    snprintf(out, cap, "%.*s", (int)n, p);
    return p + n;
}

static void check_acks(struct check *c, const char *path)
{
    struct err e = ERR_INIT;
    struct buf b;
    buf_init(&b, 1 << 20);
    if (fs_exists(path) && fs_read_file(path, &b, &e)) violated(c, "%s", e.msg);
    for (const char *p = buf_str(&b); *p;) {
        char what[16] = "", id[96] = "", value[96] = "";
        size_t n = strcspn(p, "\n");
        if (!p[n]) break; /* torn by the crash: nobody read that reply */
        const char *rest = word(word(word(p, what, sizeof what), id, sizeof id), value,
                                sizeof value);
        if (rest != p + n) violated(c, "cannot read the line: %.*s", (int)n, p);
        check_ack(c, what, id, value, buf_str(&b));
        p += n + 1;
    }
    buf_clear(&b);
}

int check_data(const char *data_dir, const char *acks, FILE *out)
{
    char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    struct check c = {.dir = data_dir, .out = out};
    snprintf(path, sizeof path, "%s/graft.db", data_dir);
    if (!(c.store = store_open(path, &e))) {
        violated(&c, "I12 %s", e.msg);
        return c.bad;
    }
    if (store_check(c.store, &e)) violated(&c, "I12 %s", e.msg);
    check_rows(&c);
    check_blobs(&c);
    check_models(&c);
    check_folders(&c);
    check_workers(&c);
    if (acks) check_acks(&c, acks);
    store_close(c.store);
    return c.bad;
}
