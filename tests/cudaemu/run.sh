#!/usr/bin/env bash
# Runs the tests of this folder: on the emulation, or with `gpu` on a GPU (gpu.sh builds and calls).
# The operations run twice: with the kernels' own matrix products, and with cuBLASLt's.
# usage: run.sh BUILD-FOLDER [gpu]
set -u
cd "$(dirname "$0")/../.."
b=$1 gpu=${2:-}
passed=0 failed=0
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

# run NAME PROGRAM [ARGUMENT...]: its output goes to a file, its exit status into another.
run() {
    local name=$1
    shift
    timeout -k 5 300 "$@" >"$log/$name" 2>&1
    echo $? >"$log/$name.rc"
}

# count NAME: adds up what run has left.
count() {
    local rc p f
    rc=$(cat "$log/$1.rc")
    p=$(grep -c '^\[       OK \]' "$log/$1")
    f=$(awk '$2 == "FAILED" && NF == 4 { seen[$4] = 1 } END { print length(seen) }' "$log/$1")
    [ "$rc" -ne 0 ] && [ "$f" -eq 0 ] && f=1
    [ "$f" -gt 0 ] && grep -vE '^\[ (RUN|      OK)' "$log/$1" | tail -n 60
    echo "$1: $p passed, $f failed"
    passed=$((passed + p)) failed=$((failed + f))
}

if [ -n "$gpu" ]; then
    export GRAFT_CUDA_LIB=$PWD/$b/libgraft_cuda.so
    t=$b/bare/tests/cudaemu lt=
    tests="device_test update_test"
else
    export GRAFT_CUDA_LIB=$PWD/$b/libgraft_cudaemu.so ASAN_OPTIONS=allocator_may_return_null=1
    t=$b/tests/cudaemu lt=$PWD/$b/cudaemu
    tests="emu_test device_test update_test job_test"
fi

# Two at a time: a GPU has room for both, and so has the smallest machine that builds this.
run op_test-1 env GRAFT_CUDA_LT=0 "$t/op_test" --part 1/2 &
(
    run op_test-2 env GRAFT_CUDA_LT=0 "$t/op_test" --part 2/2
    run op_test-lt env ${lt:+LD_LIBRARY_PATH="$lt" GRAFT_CUDA_LT=1} "$t/op_test" 'linear*'
    for name in $tests; do run "$name" env GRAFT_CUDA_LT=0 "$t/$name"; done
) &
wait
for name in op_test-1 op_test-2 op_test-lt $tests; do count "$name"; done
if [ -n "$gpu" ] && [ -x "$b/tests/cudaemu/job_test" ]; then
    run job_test "$b/tests/cudaemu/job_test"
    count job_test
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
