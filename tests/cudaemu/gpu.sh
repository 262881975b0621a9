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
# Without a GPU this prints the reason and ends with 1.
"$b/bare/tests/cudaemu/op_test" no_such_test >/dev/null || exit 1
if pkg-config --exists jansson libcrypto libpcre2-8 libutf8proc cmocka 2>/dev/null; then
    make -j"$jobs" B="$b" "$b/tests/cudaemu/job_test" || exit 1
else
    echo "SKIP: whole jobs and the benchmark need jansson, libcrypto, libpcre2, libutf8proc, cmocka"
    rm -f "$b/tests/cudaemu/job_test"
fi
bash tests/cudaemu/run.sh "$b" gpu
rc=$?
[ -x "$b/tests/cudaemu/job_test" ] && { make B="$b" bench-gpu || rc=1; }
exit $rc
