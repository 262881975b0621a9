#!/usr/bin/env bash
# Checks the rules of the code that a compiler does not: who includes whom, calls that are not to
# be made, sizes, contracts of headers, folders without a README. Needs only a shell and awk.
# usage: tests/lint/lint.sh [--per-folder] [ROOT]    0: clean, 1: findings, 2: cannot run
set -u
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
per_folder=
[ "${1:-}" = --per-folder ] && { per_folder=1; shift; }
cd "${1:-$here/../..}" || exit 2
found=$(mktemp) || exit 2
trap 'rm -f "$found" "$found".*' EXIT

rooms=()
for d in engine service handlers tests; do [ -d "$d" ] && rooms+=("$d"); done
[ "${#rooms[@]}" -gt 0 ] || { echo "lint: nothing to look at in $PWD" >&2; exit 2; }

mapfile -t files < <(find "${rooms[@]}" -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) | sort)
awk -v rows="$here/includes" -v calls="$here/calls" -f "$here/lint.awk" "${files[@]}" >"$found" || exit 2

# Every folder with sources says what it is for.
find "${rooms[@]}" -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.sh' -o -name '*.py' -o -name '*.js' \) |
    sed 's|/[^/]*$||' | sort -u | while read -r d; do
    [ -e "$d/README.md" ] || echo "$d/README.md:1: readme: missing"
done >>"$found"

# Unfinished work and broken syntax in scripts.
find "${rooms[@]}" scripts demo docker -type f -name '*.sh' 2>/dev/null | sort | while read -r f; do
    bash -n "$f" 2>/dev/null || echo "$f:1: syntax: bash -n fails"
    case $f in tests/lint/*) continue ;; esac
    grep -nwE 'TODO|FIXME|XXX' "$f" | sed "s|^\([0-9]*\):.*|$f:\1: unfinished: finish it or open an issue|"
done >>"$found"

# Exceptions.
allow=tests/lint/allow
[ -e "$allow" ] || allow=/dev/null
awk -v allow="$allow" '
    BEGIN {
        while ((getline line < allow) > 0) {
            number++
            n = split(line, part, " ")
            if (n == 0 || part[1] ~ /^#/) continue
            key = part[1] " " part[2] " " part[3]
            if (n < 6) print "tests/lint/allow:" number ": allow: no reason given for " key
            at[key] = number
        }
    }
    {
        path = $1; sub(/:.*/, "", path)
        rule = $2; sub(/:/, "", rule)
        name = $3; sub(/\(.*/, "", name)
        if ((rule " " path " " name) in at) { used[rule " " path " " name] = 1; next }
        if ((rule " " path " -") in at) { used[rule " " path " -"] = 1; next }
        print
    }
    END {
        for (key in at)
            if (!(key in used)) print "tests/lint/allow:" at[key] ": allow: excepts nothing: " key
    }' "$found" | sort -t: -k1,1 -k2,2n >"$found.out"

if [ -n "$per_folder" ]; then
    awk '{ path = $1; sub(/\/[^\/]*$/, "", path); rule = $2; n[path " " rule]++ }
         END { for (k in n) print k, n[k] }' "$found.out" | sort
fi
cat "$found.out"
n=$(wc -l <"$found.out")
echo "lint: ${#files[@]} files, $n findings"
[ "$n" -eq 0 ]
