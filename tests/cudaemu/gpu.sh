#!/usr/bin/env bash
# make check-gpu: the CUDA kernels on this machine's GPU. Needs nvcc, a C compiler and a driver; with
# graft's own libraries and cmocka installed also whole jobs and the benchmark beside PyTorch.
# cuBLASLt is used if the loader finds it (LD_LIBRARY_PATH); the tests say which they ran with.
# usage: gpu.sh BUILD-FOLDER
set -u
cd "$(dirname "$0")/../.."
b=$1
command -v "${NVCC:-nvcc}" >/dev/null || { echo "check-gpu needs nvcc of CUDA 13" >&2; exit 1; }
jobs=${JOBS:-$(nproc)}
make -j"$jobs" B="$b" gpu-bins || exit 1
export GRAFT_CUDA_LIB=$PWD/$b/libgraft_cuda.so
# One quick test says whether there is a GPU, and else why not.
"$b/bare/tests/cudaemu/device_test" large_copies_pass_through_both_halves >/dev/null || {
    "$b/bare/tests/cudaemu/op_test" none >/dev/null
    echo "check-gpu: no test was run" >&2
    exit 1
}
bash tests/cudaemu/run.sh "$b" gpu
rc=$?
if pkg-config --exists jansson libcrypto libpcre2-8 libutf8proc 2>/dev/null; then
    make B="$b" bench-gpu || rc=1
else
    echo "SKIP: the benchmark needs jansson, libcrypto, libpcre2 and libutf8proc"
fi
exit $rc
