#!/usr/bin/env bash
# Runs every C test binary and shell test, each in its own process with a time limit, and closes
# with "N passed, N failed, N skipped". A test counts by its cases, a shell test as one case.
# usage: tests/run.sh [FILTER]   only tests whose path contains FILTER
set -u
cd "$(dirname "$0")/.."
filter=${1:-} passed=0 failed=0 skipped=0 start=$SECONDS
log=build/test-logs
mkdir -p "$log"
count() { grep -c "$1" "$2" || true; }
for src in tests/*/*_test.c tests/*/*_test.sh; do
    [ -e "$src" ] || continue
    # Those need Python, Node and a network; these have a runner of their own (check-cudaemu).
    case $src in tests/ecosystem/* | tests/cudaemu/*) continue ;; esac
    case $src in *"$filter"*) ;; *) continue ;; esac
    out=$log/$(echo "${src%.*}" | tr / -).log
    t=$SECONDS
    if [ "${src##*.}" = c ]; then
        timeout -k 5 "${TEST_TIMEOUT:-240}" "build/${src%.c}" >"$out" 2>&1
        rc=$?
        p=$(count '^\[       OK \]' "$out") f=$(count '^\[  FAILED  \] [^0-9]' "$out") s=$(count '^\[  SKIPPED \] [^0-9]' "$out")
        f=$(grep '^\[  FAILED  \] [^0-9]' "$out" | sort -u | wc -l)
        s=$(grep '^\[  SKIPPED \] [^0-9]' "$out" | sort -u | wc -l)
        # A crash, a timeout or a failed set-up prints no FAILED line: it still counts as one.
        [ "$rc" -ne 0 ] && [ "$f" -eq 0 ] && f=1
        [ "$rc" -eq 0 ] && [ $((p + s)) -eq 0 ] && f=1
    else
        timeout -k 5 "${TEST_TIMEOUT:-240}" bash "$src" >"$out" 2>&1
        rc=$?
        p=0 f=0 s=0
        case $rc in 0) p=1 ;; 77) s=1 ;; *) f=1 ;; esac
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-44s %3d ok %3d failed %3d skipped  %3ds\n' "$src" "$p" "$f" "$s" $((SECONDS - t))
    [ "$f" -eq 0 ] || { tail -n 60 "$out" | sed 's/^/    /'; }
    grep -h '^SKIP:' "$out" | sort -u | sed 's/^/    /'
done
echo "time: $((SECONDS - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
