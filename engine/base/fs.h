/* fs.h: counted file calls, and the one way to publish a file or folder.
 *
 * Lint forbids raw open/read/write/rename/fsync/unlink elsewhere. Every call passes FAULT_FILE.
 * Publishing (reliability): write a temporary name -> fsync -> close -> rename -> fsync of the
 * folder. A reader therefore sees the whole file or none. Paths are UTF-8, relative ones are
 * relative to the working directory.
 */
#ifndef GRAFT_FS_H
#define GRAFT_FS_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FS_PATH_MAX = 1024 };

/* Descriptors: -1 on failure. Always O_CLOEXEC. */
int fs_open(const char *path, int flags, int mode, struct err *e);
int64_t fs_read(int fd, void *p, size_t n, struct err *e); /* short counts possible; 0 at end */
int fs_write_all(int fd, const void *p, size_t n, struct err *e);
int fs_fsync(int fd, struct err *e);
int fs_close(int fd); /* 0 or -1 with errno; only a writer needs to look */

int64_t fs_size(const char *path, struct err *e); /* bytes of a regular file, -1 on failure */
bool fs_exists(const char *path);
bool fs_is_dir(const char *path);
int fs_mkdirs(const char *path, struct err *e);   /* like mkdir -p, mode 0700 */
int fs_rename(const char *from, const char *to, struct err *e);
int fs_link(const char *from, const char *to, struct err *e); /* a second name of the same bytes */
int fs_unlink(const char *path, struct err *e);   /* a missing file is fine */
int fs_rmtree(const char *path, struct err *e);   /* never follows links; missing is fine */
int fs_sync_dir(const char *path, struct err *e);
int64_t fs_free_bytes(const char *path, struct err *e);

/* The folder that a path lies in: "a/b" -> "a", "/a" -> "/", "a" -> ".". */
void fs_parent(char out[FS_PATH_MAX], const char *path);
/* Joins with one '/'. Fails with E_LIMIT if the result does not fit. */
int fs_join(char out[FS_PATH_MAX], const char *dir, const char *name, struct err *e);
/* A name that may become one path component: [A-Za-z0-9._-]{1,255}, not starting with '.'. */
bool fs_safe_name(const char *name);

/* The whole file into b (which has its own maximum). */
int fs_read_file(const char *path, struct buf *b, struct err *e);
/* Entries of a folder, "." and ".." left out, sorted by bytes; free names[i] and names. */
int fs_list(const char *path, char ***names, int *n, struct err *e);

/* Read-only private mapping of a regular file. Only for files that never shrink. */
struct fs_map {
    const unsigned char *data;
    size_t size;
};
int fs_map(const char *path, struct fs_map *m, struct err *e);
void fs_unmap(struct fs_map *m);

/* A file being written beside its final name; SHA-256 and size are known when it is published. */
struct fs_writer;
struct fs_writer *fs_writer_new(const char *path, struct err *e);
int fs_writer_put(struct fs_writer *w, const void *p, size_t n, struct err *e);
/* Publishes. sha256 may be NULL. On failure nothing of the new file remains and an older file
 * under that name is untouched, with one exception: if the last call of all fails, the sync of
 * the folder after the rename, the new file is there, whole, but a power cut may still bring the
 * older one back. Frees w in every case. */
int fs_writer_publish(struct fs_writer *w, char sha256[65], struct err *e);
void fs_writer_abort(struct fs_writer *w); /* NULL is fine */

/* All of it in one call. */
int fs_write_file(const char *path, const void *p, size_t n, struct err *e);

/* Publishes a complete folder: writes `manifest.json` (size and SHA-256 of every file below
 * `tmp`, sorted) last, then renames tmp to path and syncs the parent. path must not exist. If that
 * last sync fails, the call fails and the folder is there, as with fs_writer_publish. */
int fs_publish_dir(const char *tmp, const char *path, struct err *e);
/* 0 if the manifest parses and every file has its size (and, if hashes, its SHA-256). */
int fs_check_dir(const char *path, bool hashes, struct err *e);

/* Appends one line ('\n' added) with a single write to a log opened O_APPEND. */
int fs_append_line(int fd, const char *line, size_t n, struct err *e);

#endif
