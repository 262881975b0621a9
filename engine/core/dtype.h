/* dtype.h: element types. Names are those of safetensors. */
#ifndef GRAFT_DTYPE_H
#define GRAFT_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

enum dtype { DT_F32, DT_F64, DT_F16, DT_BF16, DT_I32, DT_I64, DT_U8, DT_COUNT };

size_t dtype_size(enum dtype t);      /* bytes of one element */
const char *dtype_name(enum dtype t); /* "F32", "BF16", ... */
bool dtype_parse(const char *name, enum dtype *out);

#endif
