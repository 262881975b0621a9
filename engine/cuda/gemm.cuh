/* gemm.cuh: the two ways of computing a struct cu_gemm. Private to engine/cuda. */
#ifndef GRAFT_GEMM_CUH
#define GRAFT_GEMM_CUH

#include "engine/cuda/state.cuh"

/* cuBLASLt (lt.cu). 0: done, 1: not for this product, -1: *e says why it failed. */
int lt_gemm(struct exec *x, const struct cu_gemm *g, struct err *e);
/* Looks for the library; without it lt_gemm always gives 1. */
int lt_open(struct exec *x, struct err *e);
void lt_close(struct exec *x);

#endif
