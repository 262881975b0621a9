#!/usr/bin/env bash
# The lint reports every planted violation, by its rule and line, and nothing in a tree of legal
# code that looks like one.
set -u
lint=$(cd "$(dirname "$0")" && pwd)/lint.sh
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
failed=0

fresh() { # a small tree without findings
    rm -rf "$tmp/t"
    mkdir -p "$tmp/t/engine/base" "$tmp/t/engine/core" "$tmp/t/engine/op" "$tmp/t/engine/cpu" \
        "$tmp/t/service" "$tmp/t/handlers" "$tmp/t/tests/unit" "$tmp/t/tests/lint"
    for d in engine/base engine/core engine/op engine/cpu service handlers tests/unit; do
        echo "What lives here." >"$tmp/t/$d/README.md"
    done
    cat >"$tmp/t/engine/core/legal.h" <<'C'
/* legal.h: nothing here breaks a rule, though it looks like it. */
#ifndef GRAFT_LEGAL_H
#define GRAFT_LEGAL_H

#include "engine/base/err.h"
#include "engine/op/op.h"

struct forward;
enum { SIZE = 3 };
enum named { A = 1, B };
struct pair { int (*read)(void *p); int a, b; };
typedef int (*legal_fn)(int);
extern const int legal_table[SIZE];
int legal_open(const struct pair *p, struct err *e);
int legal_many(int a, int b, int c, int d, int f, int g, struct err *e);

#endif
C
    cat >"$tmp/t/engine/core/legal.c" <<'C'
#include "engine/core/legal.h"

/* malloc(1), free(p), strcpy: only words. */
static const struct {
    const char *name;
    int v[2];
} rows[] = {
    {"open(", {1, 2}}, {"/* strcpy( ", {3, 4}},
};
static const char *const words[] = {"a", "b"};
static int (*const hooks[])(const float *x, int n) = {0};
const int legal_table[SIZE] = {1, 2, 3};
_Static_assert(SIZE == 3, "three");

#define EACH(x) x(1)
EACH(int legal_one)

static int unlink(int x) /* a name of its own */
{
    return x;
}

int legal_many(int a, int b, int c, int d, int f, int g, struct err *e)
{
    struct pair p = {.a = a, .b = b};
    static const int deep[1][1][1][1][1][1] = {{{{{{0}}}}}};
    for (int i = 0; i < a; i++) {
        if (b) {
            while (c) {
                if (d) {
                    c -= (struct pair){f, g}.a + p.read(&p) + unlink(deep[0][0][0][0][0][0]);
                    char quote = '"', brace = '{', text[] = "}}} \" {";
                }
            }
        }
    }
    return 0;
}
C
    cat >"$tmp/t/service/legal.c" <<'C'
#include "engine/base/mem.h"
#include "engine/engine.h"
#include "schema_sql.h"
#include "service/store.h"
C
    cat >"$tmp/t/handlers/legal.c" <<'C'
#include "engine/base/jx.h"
#include "handlers/handlers.h"
#include "service/files.h"
C
    cat >"$tmp/t/tests/unit/legal_test.c" <<'C'
#include "service/store.c"
static int counter;
static void can_use_the_libc(void **state)
{
    free(malloc(1));
}
C
}

# planted RULE FILE[:LINE] TEXT...: the file gets TEXT (\n for newlines), the lint must report it.
planted() {
    local rule=$1 file=${2%%:*} where=$2
    shift 2
    fresh
    mkdir -p "$(dirname "$tmp/t/$file")"
    printf '%b' "$*" >"$tmp/t/$file"
    if bash "$lint" "$tmp/t" >"$tmp/out"; then
        echo "missed: $rule in $where: no findings at all" failed=1
        return
    fi
    grep -q "^$where:.* *$rule: " "$tmp/out" && return
    echo "missed: $rule in $where; reported instead:"
    sed 's/^/    /' "$tmp/out"
    failed=1
}

fresh
if ! bash "$lint" "$tmp/t" >"$tmp/out"; then
    echo "legal code is reported:"
    sed 's/^/    /' "$tmp/out"
    failed=1
fi

h() { # the text of header $1 with body $2
    echo "/* $1.h: purpose. */\n#ifndef GRAFT_$2_H\n#define GRAFT_$2_H\n$3\n#endif\n"
}
repeat() { local s='' i; for ((i = 0; i < $2; i++)); do s+=$1; done; echo "$s"; }

planted include engine/base/a.c:1 '#include "engine/core/tape.h"\n'
planted include engine/core/a.c:2 '#include "engine/op/op.h"\n#include "engine/op/attrs.h"\n'
planted include engine/core/a.c:1 '#include "engine/cpu/cpu.h"\n'
planted include engine/op/a.c:1 '#include "engine/model/model.h"\n'
planted include engine/model/a.c:1 '#include "engine/cpu/cpu.h"\n'
planted include engine/model/a.c:1 '#include "engine/method/method.h"\n'
planted include engine/method/a.c:1 '#include "engine/job/job.h"\n'
planted include engine/cpu/a.c:1 '#include "service/log.h"\n'
planted include service/a.c:1 '#include "engine/job/job.h"\n'
planted include service/a.c:1 '#include "handlers/handlers.h"\n'
planted include handlers/a.c:1 '#include "engine/engine.h"\n'
planted include handlers/a.c:1 '#include "handlers/files.h"\n'
planted include engine/base/a.c:1 '#include "err.h"\n'
planted include engine/base/a.c:1 '  #  include "service/log.h" /* why */\n'

body() { echo "int f(void)\n{\n    $1\n}\n"; }
for call in 'strcpy(a, b);' 'sprintf(a, "x");' 'x = atoi(s);' 'rand();' 'gettimeofday(&t, 0);' \
    'popen(c, "r");' 'strtok(a, b);' 'alloca(3);' 'p = malloc(3);' 'free (p);' 'if (!realloc(p, 3)) x();' \
    'strdup(s);' 'fopen(a, b);' 'return open(a, b);' 'rename(a, b);' 'unlink(a);' 'y = read(0, p, 1);' \
    'write(1, p, 1);' 'fsync(fd);' 'system(c);' 'exit(1);' 'abort();' 'socket(1, 2, 3);'; do
    planted call service/a.c:3 "$(body "$call")"
done
planted call engine/base/a.c:1 '#define GET(n) malloc(n)\n'
planted call tests/unit/a.c:3 "$(body 'strcpy(a, b);')"

planted line engine/base/a.c:2 "int a(void);\n/* $(repeat x 97) */\n"
planted size engine/base/a.c:901 "$(repeat 'int a(void);\n' 901)"
planted function engine/base/a.c:82 "int f(void)\n{\n$(repeat '    g();\n' 79)}\n"
planted function engine/cpu/k_a.c:152 "int f(void)\n{\n$(repeat '    g();\n' 149)}\n"
planted nesting engine/base/a.c:7 'int f(void)\n{\n    if (a) {\n        for (;;) {\n            while (b) {\n                do {\n                    if (c) {\n                        d();\n                    }\n                } while (e);\n            }\n        }\n    }\n}\n'
planted nesting engine/base/a.c:7 'int f(void)\n{\n    if (a) {\n    } else {\n        switch (b) {\n        case 1: {\n            if (c) { while (d) {\n                    e();\n            } }\n        }\n        }\n    }\n}\n'
planted parameters engine/base/a.c:3 'int f(int a, int b, int c, int d,\n      int g, int h, int i)\n{\n}\n'

planted contract engine/base/a.h:1 '#ifndef GRAFT_A_H\n#define GRAFT_A_H\n#endif\n'
planted contract engine/base/a.h:1 "$(h b A '')"
planted guard engine/base/a.h:1 '/* a.h: purpose. */\n#ifndef A_H\n#define A_H\n#endif\n'
planted guard engine/base/a.h:1 '/* a.h: purpose. */\n#pragma once\nint a(void);\n'

planted unfinished engine/base/a.c:1 '/* TODO: the rest */\n'
planted unfinished engine/base/a.c:2 'int f(void);\nint g(void); // FIXME\n'
planted unfinished tests/unit/a.sh:1 '# XXX later\n'
planted syntax tests/unit/a.sh:1 'if then\n'

for variable in 'static int n;' 'int n = 3;' 'static char buf[10];' 'static const char *last;' \
    'static struct { int a; } state = {1};' 'static struct x y;' '_Thread_local int z;' \
    'static int (*hook)(void);' 'struct x {\n    int a;\n} y;' 'static _Atomic int a = 1, b;'; do
    planted variable "engine/core/a.c:$(($(echo -e "$variable" | wc -l)))" "$variable\n"
done
planted variable engine/core/a.h:4 "$(h a A 'static int shared;')"

fresh
mkdir "$tmp/t/engine/tok"
echo 'int a(void);' >"$tmp/t/engine/tok/a.c"
bash "$lint" "$tmp/t" | grep -q '^engine/tok/README.md:1: readme: ' || { echo "missed: readme"; failed=1; }

# Exceptions silence exactly what they name, and must be used and explained.
fresh
printf 'int f(void)\n{\n    free(p);\n    malloc(1);\n}\n' >"$tmp/t/service/a.c"
printf 'call service/a.c free the library asks for it\n' >"$tmp/t/tests/lint/allow"
bash "$lint" "$tmp/t" >"$tmp/out"
grep -q 'free()' "$tmp/out" && { echo "an exception is ignored"; failed=1; }
grep -q 'malloc()' "$tmp/out" || { echo "an exception excepts too much"; failed=1; }
printf 'call service/a.c fopen nobody calls this one\ncall service/a.c free\n' >"$tmp/t/tests/lint/allow"
bash "$lint" "$tmp/t" >"$tmp/out"
grep -q 'allow: excepts nothing: call service/a.c fopen' "$tmp/out" || { echo "missed: a stale exception"; failed=1; }
grep -q 'allow: no reason given for call service/a.c free' "$tmp/out" || { echo "missed: no reason"; failed=1; }

[ "$failed" -eq 0 ] && echo "the lint sees what it should"
exit "$failed"
