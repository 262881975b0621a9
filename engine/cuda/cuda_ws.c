/* Workspaces of the CUDA kernels. Compiled into the program too, which plans without a device. */
#include "engine/cuda/cuda.h"
#include "engine/op/op.h"

int64_t cuda_ws(int op, const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int64_t asked)
{
    (void)attrs;
    (void)in;
    (void)out;
    switch (op) {
    default: return asked;
    }
}
