#include "engine/core/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    size_t size;
} types[DT_COUNT] = {
    [DT_F32] = {"F32", 4}, [DT_F64] = {"F64", 8}, [DT_F16] = {"F16", 2}, [DT_BF16] = {"BF16", 2},
    [DT_I32] = {"I32", 4}, [DT_I64] = {"I64", 8}, [DT_U8] = {"U8", 1},
};

size_t dtype_size(enum dtype t)
{
    return types[t].size;
}

const char *dtype_name(enum dtype t)
{
    return types[t].name;
}

bool dtype_parse(const char *name, enum dtype *out)
{
    for (int i = 0; i < DT_COUNT; i++) {
        if (strcmp(types[i].name, name) != 0) continue;
        *out = (enum dtype)i;
        return true;
    }
    return false;
}
