/* store.h: the one connection to SQLite. No other file of graft names sqlite3.
 *
 * One connection, used by one thread at a time under a recursive lock, is both the only writer
 * and the only reader: with SQLite 3.40.1 two connections may corrupt the log (reliability,
 * section 2), a read is tens of microseconds, and every list is bounded by a page. A transaction
 * holds the lock from store_begin to store_commit or store_rollback; both nest (savepoints): the
 * outermost commit is the durable one (WAL, synchronous=FULL), an inner rollback undoes the inner
 * part only. Every call passes FAULT_SQL; SQLite's memory comes from mem_*.
 *
 * SQL is always a literal: no text of a user is ever part of a statement.
 */
#ifndef GRAFT_STORE_H
#define GRAFT_STORE_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct store;
struct store_rows; /* a running query */

/* Creates or migrates the database. Refuses a newer schema, a foreign file and a damaged one
 * (quick_check). ":memory:" is for tests. */
struct store *store_open(const char *path, struct err *e);
void store_close(struct store *s); /* NULL is fine; outstanding transactions are rolled back */

int store_begin(struct store *s, struct err *e);  /* on failure the lock is not held */
int store_commit(struct store *s, struct err *e); /* on failure rolled back; ends it either way */
void store_rollback(struct store *s);
/* Holds everybody else off across several transactions; nests. */
void store_lock(struct store *s);
void store_unlock(struct store *s);

/* binds: one letter per ? of the statement: t text (const char *, NULL is NULL), i int64_t,
 * r double, j json_t * as compact text (NULL is NULL). */
/* Runs a statement to its end. Rows changed, or -1. A violated constraint or trigger is
 * E_CONFLICT. */
int store_run(struct store *s, struct err *e, const char *sql, const char *binds, ...);
/* One row wanted: 1 found, 0 none, -1 failed; the values are read from *out until
 * store_rows_end(), which is needed after 1 only. */
int store_one(struct store *s, struct store_rows **out, struct err *e, const char *sql,
              const char *binds, ...);

/* Many rows: rows = store_query(...); while ((n = store_next(rows, e)) == 1) ...; store_rows_end.
 * The lock is held until store_rows_end. NULL on failure. */
struct store_rows *store_query(struct store *s, struct err *e, const char *sql,
                               const char *binds, ...);
int store_next(struct store_rows *r, struct err *e); /* 1, 0 at the end, -1 */
void store_rows_end(struct store_rows *r);           /* NULL is fine */

/* Columns count from 0. Text is borrowed until the next store_next or end; NULL stays NULL. */
const char *store_text(struct store_rows *r, int column);
int64_t store_int(struct store_rows *r, int column);
bool store_is_null(struct store_rows *r, int column);
/* New reference; NULL with E_CORRUPT or E_NOMEM. A NULL column is JSON null. */
json_t *store_json(struct store_rows *r, int column, struct err *e);

/* PRAGMA integrity_check and foreign_key_check: E_CORRUPT names the first finding. */
int store_check(struct store *s, struct err *e);

#endif
