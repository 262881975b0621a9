/* hfdir.h: the files of a model folder in the layout of transformers.
 *
 * A model needs config.json, tokenizer.json and its weights (safetensors.h). A merged result takes
 * over the files of its base that are not weights, byte for byte, from a fixed list: nothing
 * else of a user's folder ever reaches a result.
 */
#ifndef GRAFT_HFDIR_H
#define GRAFT_HFDIR_H

#include "engine/base/err.h"

/* NULL-terminated: config.json, generation_config.json, tokenizer.json, ... */
const char *const *hfdir_files(void);
/* E_NOTFOUND naming the first required file that dir lacks. Contents are not looked at. */
int hfdir_check(const char *dir, struct err *e);
/* Copies those of hfdir_files() that exist in `from` as regular files (at most 64 MiB each) into
 * the existing folder `to`. */
int hfdir_copy(const char *from, const char *to, struct err *e);

#endif
