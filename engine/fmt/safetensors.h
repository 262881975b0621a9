/* safetensors.h: reading (mapped, fully validated) and atomic writing of .safetensors files.
 *
 * A file is accepted only if all of this holds (reliability 8.1): length >= 8; header <= 16 MiB
 * and inside the file; header is UTF-8 JSON starting with '{', no duplicate keys; <= 200 000
 * tensors; names <= 512 bytes without control characters; each entry has dtype, shape and
 * data_offsets and nothing else; known dtype; rank <= 8, sizes >= 0; product times width equals the
 * span without overflow; spans sorted are contiguous from 0 without hole or overlap and end exactly
 * at the end of the file. Any broken rule is E_FORMAT (E_LIMIT for the stated maxima), and the
 * message names the tensor.
 *
 * Bytes are little-endian, as the format says and as every machine graft runs on has them.
 * A st is immutable once open: several threads may read it.
 */
#ifndef GRAFT_SAFETENSORS_H
#define GRAFT_SAFETENSORS_H

#include "engine/base/err.h"
#include "engine/base/fs.h"
#include "engine/core/dtype.h"

#include <stdint.h>

enum { ST_RANK = 8, ST_NAME_MAX = 512, ST_TENSORS_MAX = 200000, ST_HEADER_MAX = 16 << 20 };

struct st_tensor {
    const char *name;       /* borrowed from the st, as is data */
    enum dtype dtype;       /* DT_COUNT: one that graft does not compute with (I8, F8_E4M3, ...) */
    const char *dtype_name; /* as in the file */
    int rank;
    int64_t shape[ST_RANK];
    int64_t count, bytes;
    const void *data;       /* aligned to its element; copied where the file has it unaligned */
};

/* One model: a single file or all shards of an index. Tensors sorted by name. */
struct st;

struct st *st_open(const char *path, struct err *e);        /* one .safetensors file */
/* model.safetensors, or else model.safetensors.index.json and its shards (plain names, all
 * present, no tensor twice, weight_map and shards agree). */
struct st *st_open_model(const char *dir, struct err *e);
void st_close(struct st *s); /* NULL is fine */
int st_count(const struct st *s);
const struct st_tensor *st_at(const struct st *s, int i);
const struct st_tensor *st_find(const struct st *s, const char *name); /* NULL if absent */
/* A string of __metadata__ (of the first shard), NULL if absent. */
const char *st_metadata(const struct st *s, const char *key);

/* NULL, or what is wrong with a tensor name. */
const char *st_name_fault(const char *name);

/* Writing: describe every tensor, then stream its bytes in the order described; the file appears
 * whole under its name at the end (fs_writer). The order given is the order written, and what the
 * reader would refuse cannot be written. Alignment of the data start: 8 bytes, header padded by
 * blanks. Calls out of order, and bytes too many or too few, are E_BUG. */
struct st_writer;
struct st_writer *st_writer_new(const char *path, struct err *e);
int st_writer_add(struct st_writer *w, const char *name, enum dtype dtype, int rank,
                  const int64_t *shape, struct err *e);
int st_writer_meta(struct st_writer *w, const char *key, const char *value, struct err *e);
int st_writer_put(struct st_writer *w, const void *p, size_t bytes, struct err *e);
/* Frees w in every case. sha256 may be NULL. On failure nothing of the file remains. */
int st_writer_publish(struct st_writer *w, char sha256[65], struct err *e);
void st_writer_abort(struct st_writer *w); /* NULL is fine */

/* A whole model: dir/model.safetensors, or model-00001-of-0000N.safetensors and
 * model.safetensors.index.json if the tensors take more than shard_bytes; {"format": "pt"}. */
struct st_entry {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[ST_RANK];
};
/* Puts the bytes of entry i into w, in as many pieces as it likes. Entries come in order. */
typedef int (*st_fill_fn)(void *ctx, int i, struct st_writer *w, struct err *e);
struct st_model {
    const char *dir;          /* exists, and holds no model yet */
    const struct st_entry *v;
    int n;
    int64_t shard_bytes;      /* 0: ST_SHARD_BYTES. A larger tensor gets a shard to itself */
    st_fill_fn fill;
    void *ctx;
};
#define ST_SHARD_BYTES INT64_C(5000000000)
int st_write_model(const struct st_model *m, struct err *e); /* on failure no file remains */

/* Conversion of n elements between f32, bf16 and f16 (round to nearest even; NaN stays NaN, made
 * quiet where the type changes). Neither side needs alignment; they must not overlap. */
int st_convert(void *to, enum dtype dt_to, const void *from, enum dtype dt_from, int64_t n,
               struct err *e);

#endif
