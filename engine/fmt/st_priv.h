/* st_priv.h: what safetensors.c, st_model.c and st_write.c share. Nobody else includes this.
 *
 * A struct st is built by st_add() once per file and made readable by st_finish(). Names live in
 * the arena, data in the mappings (or in `copies` where the file has it unaligned).
 */
#ifndef GRAFT_ST_PRIV_H
#define GRAFT_ST_PRIV_H

#include "engine/base/arena.h"
#include "engine/base/fs.h"
#include "engine/fmt/safetensors.h"

#include <jansson.h>

struct st {
    struct st_tensor *v;
    int n, cap;
    struct fs_map *maps;
    int nmaps;
    void **copies;
    int ncopies;
    struct arena names;
    json_t *meta; /* of the first file, or NULL */
};

struct st *st_new(int files, struct err *e); /* room for that many mappings */
int st_add(struct st *s, const char *path, struct err *e);
int st_finish(struct st *s, struct err *e);

/* Parses with the number of values bounded, so that 16 MiB of "[],[],..." cannot become
 * gigabytes of parser objects. */
json_t *st_parse(const char *text, size_t n, struct err *e);

int64_t st_writer_written(const struct st_writer *w); /* bytes of data put so far */

#endif
