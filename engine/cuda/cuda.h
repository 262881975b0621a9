/* cuda.h: the CUDA backend as the program sees it: a library found at run time.
 *
 * libgraft_cuda.so holds the kernels and all calls of the CUDA runtime; the program itself is
 * built and runs without either. It is looked for at GRAFT_CUDA_LIB, beside the program, and where
 * the loader looks, and must come from the same source as the program.
 * GRAFT_CUDA_LT=0 does without cuBLASLt, which is otherwise used where it is installed; 1 insists.
 * GRAFT_CUDA_TRACE=1 waits for each operation, so that a failure names it.
 */
#ifndef GRAFT_CUDA_H
#define GRAFT_CUDA_H

#include "engine/core/exec.h"

/* What the library exports under the name graft_cuda. */
struct cuda_library {
    const char *version;                 /* must be the program's, as must the sizes */
    size_t exec_bytes, step_bytes, tensor_bytes;
    int ops;
    size_t state_bytes;                  /* of exec.state, zeroed by the program */
    struct device device;
    int (*open)(struct exec *x, struct err *e); /* fills exec.state; on failure it holds nothing */
};

#endif
