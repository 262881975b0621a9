/* safetensors.h: reading (mapped, fully validated) and atomic writing of .safetensors files.
 *
 * A file is accepted only if all of this holds (reliability 8.1): length >= 8; header <= 16 MiB and
 * inside the file; header is UTF-8 JSON starting with '{', no duplicate keys; <= 200 000 tensors; names
 * <= 512 bytes without control characters; known dtype; rank <= 8, sizes >= 0; product times width
 * equals the span without overflow; spans sorted are contiguous from 0 without hole or overlap and
 * end exactly at the end of the file.
 */
#ifndef GRAFT_SAFETENSORS_H
#define GRAFT_SAFETENSORS_H

#include "engine/base/err.h"
#include "engine/base/fs.h"
#include "engine/core/dtype.h"

#include <stdint.h>

enum { ST_RANK = 8 };

struct st_tensor {
    const char *name;   /* borrowed from the st, as is data */
    enum dtype dtype;
    const char *dtype_name; /* as in the file: also those graft does not compute with (I8, F8_...) */
    int rank;
    int64_t shape[ST_RANK];
    int64_t count, bytes;
    const void *data;
};

/* One model: a single file or all shards of an index. Tensors sorted by name. */
struct st;

struct st *st_open(const char *path, struct err *e);        /* one .safetensors file */
/* model.safetensors, or model.safetensors.index.json and its shards (plain names, all present, no
 * tensor twice, weight_map and shards agree). */
struct st *st_open_model(const char *dir, struct err *e);
void st_close(struct st *s);
int st_count(const struct st *s);
const struct st_tensor *st_at(const struct st *s, int i);
const struct st_tensor *st_find(const struct st *s, const char *name); /* NULL if absent */
const char *st_metadata(const struct st *s, const char *key);          /* NULL if absent */

/* Writing: describe every tensor, then stream its bytes in the order described; the file appears
 * whole under its name at the end (fs_writer). Names are sorted by the caller or not at all: the
 * order given is the order written. Alignment of the data start: 8 bytes, header padded by blanks. */
struct st_writer;
struct st_writer *st_writer_new(const char *path, struct err *e);
int st_writer_add(struct st_writer *w, const char *name, enum dtype dtype, int rank,
                  const int64_t *shape, struct err *e);
int st_writer_meta(struct st_writer *w, const char *key, const char *value, struct err *e);
int st_writer_put(struct st_writer *w, const void *p, size_t bytes, struct err *e);
int st_writer_publish(struct st_writer *w, char sha256[65], struct err *e); /* frees w */
void st_writer_abort(struct st_writer *w);

/* Conversion of n elements between f32, bf16 and f16 (round to nearest even). */
int st_convert(void *to, enum dtype dt_to, const void *from, enum dtype dt_from, int64_t n,
               struct err *e);

#endif
