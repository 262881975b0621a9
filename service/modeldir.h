/* modeldir.h: the files of a model on disk, as a list of {"path", "bytes", "sha256", "git_sha1"}
 * sorted by path. Hidden files and pickles (*.bin, *.pt, *.pth, *.pkl, *.ckpt: they can run code
 * when loaded) are never part of a model. */
#ifndef GRAFT_MODELDIR_H
#define GRAFT_MODELDIR_H

#include "engine/base/fs.h"
#include "service/service.h"

enum { MODELDIR_FILES_MAX = 10000, MODELDIR_DEPTH = 4 };

/* path with links resolved, if it is a folder below one of config's model_roots. */
int modeldir_resolve(const struct config *c, const char *path, char out[FS_PATH_MAX],
                     struct err *e);
/* Hashes every file of a folder. Links must lead to files below a root as well. */
json_t *modeldir_scan(const struct config *c, const char *dir, struct err *e);
/* Makes dir out of uploaded files (hard links to blobs): list is [{"path", "file"}]. The caller
 * removes dir on failure. */
json_t *modeldir_link(struct service *s, const json_t *list, const char *dir, struct err *e);
/* The files below result_dir/sub, from result_dir/manifest.json, which has their hashes. NULL
 * with E_NOTFOUND if there are none. */
json_t *modeldir_result(const char *result_dir, const char *sub, struct err *e);

#endif
