/* form.h: the fields and files of a form body, read while it arrives.
 *
 * multipart/form-data: a file part goes straight to a new blob (hashed while written, not visible
 * until published); plain fields stay in memory. Parts may come in any order and need no
 * Content-Length. application/x-www-form-urlencoded: fields only.
 * Limits: a field 64 kB, all fields 1 MB, a file and the whole body as given at init.
 * form_clear drops every file that was not taken: nothing is left behind.
 */
#ifndef GRAFT_FORM_H
#define GRAFT_FORM_H

#include "engine/base/arena.h"
#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "service/multipart.h"

#include <stdbool.h>
#include <stdint.h>

enum { FORM_FIELDS = 512, FORM_FILES = 4, FORM_FIELD_BYTES = 65536, FORM_TEXT_BYTES = 1 << 20 };

struct blobs;
struct blob_writer;

struct form_field {
    const char *name, *value;
};

struct form_file {
    const char *name, *filename;
    struct blob_writer *w; /* NULL once taken */
    int64_t size;
};

struct form {
    struct form_field field[FORM_FIELDS];
    int nfield;
    struct form_file file[FORM_FILES];
    int nfile;
    struct arena *arena; /* NULL: not initialised */
    struct blobs *blobs;
    int64_t file_max;
    size_t text;
    struct multipart *parser; /* NULL: urlencoded */
    struct buf value;         /* of the field that is being read, or the urlencoded body */
    const char *name;
    bool in_file;
};

/* content_type decides; E_ARG if it is neither. */
int form_init(struct form *f, const char *content_type, struct blobs *b, int64_t file_max,
              struct arena *a, struct err *e);
int form_put(struct form *f, const char *s, size_t n, struct err *e);
int form_finish(struct form *f, struct err *e);
void form_clear(struct form *f);

const char *form_field(const struct form *f, const char *name); /* the first; NULL */
struct form_file *form_file(struct form *f, const char *name);  /* the first; NULL */

#endif
