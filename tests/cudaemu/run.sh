#!/usr/bin/env bash
# Runs the tests of this folder on the emulation, once with the kernels' own matrix products and
# once with those that go to cuBLASLt. usage: run.sh BUILD-FOLDER [PATTERN]
set -u
cd "$(dirname "$0")/../.."
b=$1 pattern=${2:-}
export GRAFT_CUDA_LIB=$PWD/$b/libgraft_cudaemu.so ASAN_OPTIONS=allocator_may_return_null=1
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run NAME PROGRAM [ARGUMENT...]
run() {
    local name=$1 rc p f
    shift
    SECONDS=0
    timeout -k 5 300 "$@" >"$log" 2>&1
    rc=$?
    p=$(grep -c '^\[       OK \]' "$log")
    f=$(grep -c '^\[  FAILED  \] [a-z_0-9]*$' "$log")
    [ "$rc" -ne 0 ] && [ "$f" -eq 0 ] && f=1
    [ "$f" -gt 0 ] && { grep -vE '^\[ (RUN|      OK)' "$log" | tail -n 60; f=$(((f + 1) / 2)); }
    echo "$name: $p passed, $f failed (${SECONDS} s)"
    passed=$((passed + p)) failed=$((failed + f))
}

run "emulation" "$b/tests/cudaemu/emu_test"
for t in tests/cudaemu/*_test.c; do
    t=$(basename "$t" .c)
    run "$t" env GRAFT_CUDA_LT=0 "$b/tests/cudaemu/$t" ${pattern:+"$pattern"}
done
run "op_test, products by cuBLASLt" env LD_LIBRARY_PATH="$PWD/$b/cudaemu" \
    "$b/tests/cudaemu/op_test" 'linear*'
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
