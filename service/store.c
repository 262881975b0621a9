/* The one file that names sqlite3. */
#include "service/store.h"

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include "schema_sql.h" /* made by mk/embed.mk */

#include <malloc.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

enum {
    CACHE_MAX = 128,
    APPLICATION_ID = 0x67726674,      /* "grft" */
    QUICK_CHECK_MAX_BYTES = 2000 << 20 /* larger files are checked by store_check at leisure */
};

struct store_rows {
    struct store *store;
    const char *sql; /* literals: compared by address */
    sqlite3_stmt *stmt;
    bool busy, cached;
};

struct store {
    sqlite3 *db;
    pthread_mutex_t lock; /* recursive: transactions nest */
    int depth;            /* open transactions; guarded by lock, like all below */
    struct store_rows cache[CACHE_MAX];
    int ncached;
};

/* --- SQLite on mem_* ------------------------------------------------------------------------ */

static void *sq_malloc(int n)
{
    struct err ignored;
    return mem_alloc((size_t)n, &ignored);
}

static void *sq_realloc(void *p, int n)
{
    struct err ignored;
    return mem_realloc(p, (size_t)n, &ignored);
}

static int sq_size(void *p)
{
    return p ? (int)malloc_usable_size(p) : 0;
}

static int sq_roundup(int n)
{
    return (n + 15) & ~15;
}

static int sq_init(void *ctx)
{
    (void)ctx;
    return SQLITE_OK;
}

static void sq_shutdown(void *ctx)
{
    (void)ctx;
}

static void hook_memory(void)
{
    static const sqlite3_mem_methods methods = {sq_malloc,  mem_free, sq_realloc,  sq_size,
                                                sq_roundup, sq_init,  sq_shutdown, NULL};
    /* Once SQLite is initialised these are refused, and are in force already. */
    sqlite3_config(SQLITE_CONFIG_MALLOC, &methods);
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
}

/* --- errors --------------------------------------------------------------------------------- */

static enum errc code_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_CONSTRAINT: return E_CONFLICT;
    case SQLITE_NOMEM: return E_NOMEM;
    case SQLITE_FULL: return E_NOSPACE;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return E_TIMEOUT;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return E_CORRUPT;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM: return E_IO;
    default: return E_BUG;
    }
}

static int db_error(const struct store *s, int rc, struct err *e)
{
    const char *text = s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(rc);
    return err_set(e, code_of(rc), "database: %s", text);
}

static int injected(struct err *e)
{
    return err_set(e, E_IO, "database: injected failure");
}

/* --- statements ----------------------------------------------------------------------------- */

void store_lock(struct store *s)
{
    pthread_mutex_lock(&s->lock);
}

void store_unlock(struct store *s)
{
    pthread_mutex_unlock(&s->lock);
}

static int prepare(struct store *s, const char *sql, sqlite3_stmt **stmt, struct err *e)
{
    if (fault_hit(FAULT_SQL)) return injected(e);
    int rc = sqlite3_prepare_v3(s->db, sql, -1, SQLITE_PREPARE_PERSISTENT, stmt, NULL);
    return rc == SQLITE_OK ? 0 : db_error(s, rc, e);
}

/* An idle cached statement of this text, a new cached one, or one of its own. */
static struct store_rows *rows_for(struct store *s, const char *sql, struct err *e)
{
    struct store_rows *r = NULL;
    for (int i = 0; i < s->ncached && !r; i++)
        if (s->cache[i].sql == sql && !s->cache[i].busy) r = &s->cache[i];
    if (!r && s->ncached < CACHE_MAX) {
        r = &s->cache[s->ncached];
        *r = (struct store_rows){.store = s, .sql = sql, .cached = true};
        if (prepare(s, sql, &r->stmt, e)) return NULL;
        s->ncached++;
    } else if (!r) {
        r = mem_zalloc(sizeof *r, e);
        if (!r) return NULL;
        r->store = s;
        if (prepare(s, sql, &r->stmt, e)) {
            mem_free(r);
            return NULL;
        }
    }
    r->busy = true;
    return r;
}

static int bind_json(sqlite3_stmt *stmt, int i, const json_t *v, struct err *e)
{
    if (!v) return sqlite3_bind_null(stmt, i);
    char *text = jx_dump(v, e);
    int rc = text ? sqlite3_bind_text(stmt, i, text, -1, SQLITE_TRANSIENT) : SQLITE_NOMEM;
    mem_free(text);
    return rc;
}

static int bind_all(struct store_rows *r, const char *binds, va_list ap, struct err *e)
{
    for (int i = 1; binds[i - 1]; i++) {
        const char *text;
        int rc = SQLITE_MISUSE;
        switch (binds[i - 1]) {
        case 't':
            text = va_arg(ap, const char *);
            rc = sqlite3_bind_text(r->stmt, i, text, -1, SQLITE_TRANSIENT);
            break;
        case 'i': rc = sqlite3_bind_int64(r->stmt, i, va_arg(ap, int64_t)); break;
        case 'r': rc = sqlite3_bind_double(r->stmt, i, va_arg(ap, double)); break;
        case 'j': rc = bind_json(r->stmt, i, va_arg(ap, const json_t *), e); break;
        default: break;
        }
        if (rc != SQLITE_OK) return db_error(r->store, rc, e);
    }
    if (sqlite3_bind_parameter_count(r->stmt) != (int)strlen(binds))
        return err_set(e, E_BUG, "database: %d parameters bound to: %s", (int)strlen(binds),
                       sqlite3_sql(r->stmt));
    return 0;
}

static struct store_rows *vquery(struct store *s, struct err *e, const char *sql,
                                 const char *binds, va_list ap)
{
    store_lock(s);
    /* SQLite itself rolls back on a full disk or lack of memory. What follows must then not be
     * committed piece by piece. */
    if (s->depth && sqlite3_get_autocommit(s->db)) {
        err_set(e, E_IO, "database: the transaction was rolled back");
        store_unlock(s);
        return NULL;
    }
    struct store_rows *r = rows_for(s, sql, e);
    if (!r) {
        store_unlock(s);
        return NULL;
    }
    if (bind_all(r, binds, ap, e)) {
        store_rows_end(r);
        return NULL;
    }
    return r;
}

struct store_rows *store_query(struct store *s, struct err *e, const char *sql,
                               const char *binds, ...)
{
    va_list ap;
    va_start(ap, binds);
    struct store_rows *r = vquery(s, e, sql, binds, ap);
    va_end(ap);
    return r;
}

int store_next(struct store_rows *r, struct err *e)
{
    if (fault_hit(FAULT_SQL)) return injected(e);
    int rc = sqlite3_step(r->stmt);
    if (rc == SQLITE_ROW) return 1;
    return rc == SQLITE_DONE ? 0 : db_error(r->store, rc, e);
}

void store_rows_end(struct store_rows *r)
{
    if (!r) return;
    struct store *s = r->store;
    if (r->cached) {
        sqlite3_reset(r->stmt);
        sqlite3_clear_bindings(r->stmt);
        r->busy = false;
    } else {
        sqlite3_finalize(r->stmt);
        mem_free(r);
    }
    store_unlock(s);
}

int store_run(struct store *s, struct err *e, const char *sql, const char *binds, ...)
{
    va_list ap;
    va_start(ap, binds);
    struct store_rows *r = vquery(s, e, sql, binds, ap);
    va_end(ap);
    if (!r) return -1;
    int rc;
    while ((rc = store_next(r, e)) == 1) {}
    int changes = sqlite3_changes(s->db);
    store_rows_end(r);
    return rc ? -1 : changes;
}

int store_one(struct store *s, struct store_rows **out, struct err *e, const char *sql,
              const char *binds, ...)
{
    va_list ap;
    va_start(ap, binds);
    struct store_rows *r = vquery(s, e, sql, binds, ap);
    va_end(ap);
    if (!r) return -1;
    int rc = store_next(r, e);
    if (rc == 1)
        *out = r;
    else
        store_rows_end(r);
    return rc;
}

const char *store_text(struct store_rows *r, int column)
{
    return (const char *)sqlite3_column_text(r->stmt, column);
}

int64_t store_int(struct store_rows *r, int column)
{
    return sqlite3_column_int64(r->stmt, column);
}

bool store_is_null(struct store_rows *r, int column)
{
    return sqlite3_column_type(r->stmt, column) == SQLITE_NULL;
}

json_t *store_json(struct store_rows *r, int column, struct err *e)
{
    if (store_is_null(r, column)) return json_null();
    const char *text = store_text(r, column);
    if (!text) {
        err_set(e, E_NOMEM, "out of memory while reading the database");
        return NULL;
    }
    json_t *v = jx_parse(text, strlen(text), e);
    if (!v && e->code == E_FORMAT) e->code = E_CORRUPT;
    return v;
}

/* --- transactions --------------------------------------------------------------------------- */

static int simple(struct store *s, const char *sql, struct err *e)
{
    if (fault_hit(FAULT_SQL)) return injected(e);
    int rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? 0 : db_error(s, rc, e);
}

int store_begin(struct store *s, struct err *e)
{
    store_lock(s);
    if (simple(s, s->depth ? "SAVEPOINT inner" : "BEGIN IMMEDIATE", e)) {
        store_unlock(s);
        return -1;
    }
    s->depth++;
    return 0;
}

/* Never fails from the caller's view: what cannot be rolled back was rolled back by SQLite. */
static void undo(struct store *s)
{
    if (!sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, s->depth > 1 ? "ROLLBACK TO inner; RELEASE inner" : "ROLLBACK", NULL,
                     NULL, NULL);
    s->depth--;
    store_unlock(s);
}

int store_commit(struct store *s, struct err *e)
{
    if (s->depth == 1 && CRASHPOINT("store.before_commit")) {
        injected(e);
        undo(s);
        return -1;
    }
    if (sqlite3_get_autocommit(s->db)) {
        err_set(e, E_IO, "database: the transaction was rolled back");
        undo(s);
        return -1;
    }
    if (simple(s, s->depth > 1 ? "RELEASE inner" : "COMMIT", e)) {
        undo(s);
        return -1;
    }
    bool outermost = --s->depth == 0;
    store_unlock(s);
    if (outermost) (void)CRASHPOINT("store.after_commit");
    return 0;
}

void store_rollback(struct store *s)
{
    undo(s);
}

/* --- opening -------------------------------------------------------------------------------- */

/* Locks and shared memory do not work over a network: two servers would damage the file. */
static int refuse_network(const char *path, struct err *e)
{
    static const long magics[] = {0x6969 /* NFS */, 0xff534d42 /* CIFS */, 0xfe534d42 /* SMB2 */,
                                  0x517b /* SMB */, 0x564c /* NCP */, 0x01021997 /* 9P */};
    char dir[FS_PATH_MAX];
    struct statfs st;
    fs_parent(dir, path);
    if (statfs(dir, &st)) return err_sys(e, "cannot look at %s", dir);
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
        if ((unsigned)st.f_type == (unsigned)magics[i])
            return err_set(e, E_UNSUPPORTED,
                           "%s is on a network file system; the data folder needs a local one",
                           dir);
    return 0;
}

static int pragma_int(struct store *s, const char *sql, int64_t *out, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s, &r, e, sql, "");
    if (rc < 0) return -1;
    *out = rc ? store_int(r, 0) : 0;
    if (rc) store_rows_end(r);
    return 0;
}

static int check_one(struct store *s, const char *sql, struct err *e)
{
    struct store_rows *r;
    int rc = store_one(s, &r, e, sql, "");
    if (rc < 0) return -1;
    const char *text = rc ? store_text(r, 0) : "ok";
    int bad = !text || strcmp(text, "ok") != 0;
    if (bad) err_set(e, E_CORRUPT, "the database is damaged: %s", text ? text : "?");
    if (rc) store_rows_end(r);
    return bad ? -1 : 0;
}

int store_check(struct store *s, struct err *e)
{
    struct store_rows *r;
    if (check_one(s, "PRAGMA integrity_check(1)", e)) return -1;
    int rc = store_one(s, &r, e, "PRAGMA foreign_key_check", "");
    if (rc < 1) return rc;
    err_set(e, E_CORRUPT, "a row of %s refers to a row of %s that does not exist",
            store_text(r, 0), store_text(r, 2));
    store_rows_end(r);
    return -1;
}

static int settle(struct store *s, struct err *e)
{
    static const char *const pragmas[] = {
        "PRAGMA journal_mode = WAL",   "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON",
        "PRAGMA trusted_schema = OFF", "PRAGMA mmap_size = 0",      "PRAGMA temp_store = MEMORY",
    };
    sqlite3_busy_timeout(s->db, 5000);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, NULL);
    for (size_t i = 0; i < sizeof pragmas / sizeof *pragmas; i++)
        if (simple(s, pragmas[i], e)) return -1;
    return 0;
}

/* Applies the migrations behind "-- migration N" lines that the database does not have yet. */
static int migrate(struct store *s, int64_t version, struct err *e)
{
    static const char mark[] = "\n-- migration ";
    const char *at = (const char *)schema_sql;
    int64_t latest = 0;
    for (const char *p = at; (p = strstr(p, mark)); p++) latest++;
    if (version > latest)
        return err_set(e, E_UNSUPPORTED,
                       "the data folder was written by a newer graft (schema %lld; this one knows "
                       "%lld): use that version",
                       (long long)version, (long long)latest);
    for (int64_t n = 1; (at = strstr(at, mark)); n++) {
        at += sizeof mark - 1;
        if (n <= version) continue;
        const char *end = strstr(at, mark);
        size_t len = end ? (size_t)(end - at) : strlen(at);
        char *sql = mem_printf(e, "-- %.*s\n; PRAGMA application_id = %d; PRAGMA user_version = %d",
                               (int)len, at, APPLICATION_ID, (int)n);
        if (!sql) return -1;
        if (store_begin(s, e)) {
            mem_free(sql);
            return -1;
        }
        int rc = simple(s, sql, e);
        mem_free(sql);
        if (rc == 0 && CRASHPOINT("store.migrated")) rc = injected(e);
        if (rc) {
            store_rollback(s);
            return err_wrap(e, "migration %lld", (long long)n);
        }
        if (store_commit(s, e)) return -1;
    }
    return 0;
}

static int inspect(struct store *s, const char *path, struct err *e)
{
    int64_t app, version, pages, page_size, objects;
    if (pragma_int(s, "PRAGMA application_id", &app, e) ||
        pragma_int(s, "PRAGMA user_version", &version, e) ||
        pragma_int(s, "PRAGMA page_count", &pages, e) ||
        pragma_int(s, "PRAGMA page_size", &page_size, e) ||
        pragma_int(s, "SELECT count(*) FROM sqlite_schema", &objects, e))
        return -1;
    /* A crash before the first migration leaves an empty file of ours without the mark. */
    bool fresh = objects == 0 && app == 0 && version == 0;
    if (!fresh && app != APPLICATION_ID)
        return err_set(e, E_ARG, "%s is a database of another program", path);
    if (settle(s, e)) return -1;
    if (!fresh && pages * page_size <= QUICK_CHECK_MAX_BYTES &&
        check_one(s, "PRAGMA quick_check(1)", e))
        return -1;
    return migrate(s, version, e);
}

struct store *store_open(const char *path, struct err *e)
{
    bool memory = str_eq(path, ":memory:");
    if (!memory && refuse_network(path, e)) return NULL;
    hook_memory();
    struct store *s = mem_zalloc(sizeof *s, e);
    if (!s) return NULL;
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&s->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    int rc = fault_hit(FAULT_SQL) ? SQLITE_IOERR
                                  : sqlite3_open_v2(path, &s->db,
                                                    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                                                        SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW,
                                                    NULL);
    if (rc != SQLITE_OK) {
        db_error(s, rc, e);
        goto fail;
    }
    sqlite3_extended_result_codes(s->db, 1);
    if (inspect(s, path, e)) goto fail;
    return s;
fail:
    err_wrap(e, "%s", path);
    store_close(s);
    return NULL;
}

void store_close(struct store *s)
{
    if (!s) return;
    for (int i = 0; i < s->ncached; i++) sqlite3_finalize(s->cache[i].stmt);
    sqlite3_close(s->db);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}
