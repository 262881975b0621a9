/* npz.h: arrays of numpy, .npz (a zip of .npy files) or one .npy, read and fully validated.
 *
 * Accepted: format versions 1 to 3; little-endian f2, f4, f8, i4, i8 and u1 in C or Fortran
 * order (turned into C order), rank <= 8. A header has exactly 'descr', 'fortran_order' and
 * 'shape', and its array takes the rest of the file to the byte. In a .npz every entry is an
 * unencrypted .npy with a name of its own and a right checksum. Any broken rule is E_FORMAT, a
 * stated maximum E_LIMIT, another type (big-endian, structured, pickled objects) E_UNSUPPORTED;
 * the message names the array.
 *
 * Arrays are copied into memory, at most max_bytes of them and at most 100 times what the file
 * has (+ 1 MiB): a zip that unpacks to more is a bomb, and it is refused before the memory is
 * taken. Immutable once open: several threads may read it.
 */
#ifndef GRAFT_NPZ_H
#define GRAFT_NPZ_H

#include "engine/base/err.h"
#include "engine/core/dtype.h"

#include <stdint.h>

enum { NPZ_RANK = 8, NPZ_NAME_MAX = 512, NPZ_ARRAYS_MAX = 65536, NPZ_HEADER_MAX = 64 << 10 };

struct npz_array {
    const char *name;  /* of the entry, without ".npy"; "arr_0" in a plain .npy */
    enum dtype dtype;
    int rank;
    int64_t shape[NPZ_RANK];
    int64_t count, bytes;
    const void *data;  /* row-major, aligned to 64 */
};

struct npz;

struct npz *npz_open(const char *path, int64_t max_bytes, struct err *e);
void npz_close(struct npz *z); /* NULL is fine */
int npz_count(const struct npz *z);
const struct npz_array *npz_at(const struct npz *z, int i); /* sorted by name */
const struct npz_array *npz_find(const struct npz *z, const char *name); /* NULL if absent */

#endif
