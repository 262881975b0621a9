/* blob.h: content-addressed files, DATA/blobs/ab/abcdef... named by SHA-256, immutable.
 *
 * A writer spools into DATA/spool while hashing. blob_publish() moves the spool file to its place
 * and inserts the row of table `blobs`; rows of other tables that name the hash are its references.
 * Publishing and dropping happen under the store's lock, so an upload of the same bytes can never
 * lose its file to a deletion. A crash leaves at most a file without a row, for blob_sweep().
 */
#ifndef GRAFT_BLOB_H
#define GRAFT_BLOB_H

#include "engine/base/err.h"
#include "engine/base/fs.h"
#include "service/store.h"

#include <stddef.h>
#include <stdint.h>

enum { BLOB_GIT_MAX = 1 << 20 }; /* files up to this size also get their git blob id */

struct blobs;
struct blob_writer;

struct blob_info {
    int64_t bytes;
    char sha256[65];
    char git_sha1[41]; /* "" above BLOB_GIT_MAX */
};

struct blobs *blob_open(const char *data_dir, struct store *store, struct err *e);
void blob_close(struct blobs *b);

/* One thread at a time per writer. E_LIMIT once more than max_bytes are put. */
struct blob_writer *blob_writer_new(struct blobs *b, int64_t max_bytes, struct err *e);
int blob_writer_put(struct blob_writer *w, const void *p, size_t n, struct err *e);
/* No more bytes: hashes are known and the spool file is on disk. Calling it again is fine. */
int blob_writer_end(struct blob_writer *w, struct blob_info *info, struct err *e);
const char *blob_writer_path(const struct blob_writer *w); /* the spool file, to look inside */
void blob_writer_abort(struct blob_writer *w);             /* frees; NULL is fine */

/* Within a transaction, after blob_writer_end: the blob exists once that commits. Does not free
 * w; the spool file is gone from it. */
int blob_publish(struct blob_writer *w, struct err *e);
/* Within no transaction: removes row and file if no other row refers to the blob, and a file whose
 * publication was rolled back. */
int blob_drop(struct blobs *b, const char *sha256, struct err *e);

int blob_path(const struct blobs *b, const char *sha256, char out[FS_PATH_MAX], struct err *e);
int blob_read(const struct blobs *b, const char *sha256, struct err *e); /* descriptor or -1 */
/* At start, before anything is written: removes spool files and blobs without a row. */
int blob_sweep(struct blobs *b, struct err *e);

#endif
