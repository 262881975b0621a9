# lint.awk: the rules that look at one C file at a time. Prints "path:line: rule: message".
# Run by lint.sh, one awk for all files. Variables: rows (file: who may include whom), calls (file:
# functions that nobody, or only some, may call).
#
# It reads the project's own style (functions open with '{' in column 1, blocks with '{' at the end
# of a line) and is not a C parser; what it cannot see, a reviewer does.

function report(rule, text) { print FILENAME ":" FNR ": " rule ": " text }

# A line without comments and without the contents of strings and characters.
function code_of(s,    out, tok, t) {
    out = ""
    while (s != "") {
        if (in_comment) {
            t = index(s, "*/")
            if (!t) return out
            s = substr(s, t + 2)
            in_comment = 0
            out = out " "
            continue
        }
        if (!match(s, /\/\*|\/\/|"|'/)) return out s
        tok = substr(s, RSTART, RLENGTH)
        out = out substr(s, 1, RSTART - 1)
        s = substr(s, RSTART + RLENGTH)
        if (tok == "//") return out
        if (tok == "/*") { in_comment = 1; continue }
        while (match(s, tok == "\"" ? "\\\\.|\"" : "\\\\.|'")) {
            t = substr(s, RSTART, RLENGTH)
            s = substr(s, RSTART + RLENGTH)
            if (t == tok) break
        }
        out = out tok tok
    }
    return out
}

# The longest row or column of the include table that covers a path.
function room_of(path,    r, best) {
    best = ""
    for (r in room)
        if ((path == r || index(path, r "/") == 1) && length(r) > length(best)) best = r
    return best
}

function check_include(line,    to, r, from) {
    if (!match(line, /^[ \t]*#[ \t]*include[ \t]*"[^"]*"/)) return
    to = line
    sub(/^[^"]*"/, "", to)
    sub(/".*/, "", to)
    if (to !~ /\//) { # made by the build
        if (to !~ /^[a-z0-9_]+_(sql|yaml|data)\.h$/)
            report("include", "\"" to "\": name it by its path from the root of the project")
        return
    }
    from = room_of(FILENAME)
    if (from == "" || from == "tests" || (from, "*") in may) return
    for (r = to; r != ""; r = r ~ /\// ? substr(r, 1, length(r) - length(last_part(r)) - 1) : "")
        if ((from, r) in may) return
    report("include", from " may not include " to)
}

function last_part(path) { sub(/.*\//, "", path); return path }

function check_calls(code,    s, name, before) {
    s = code
    while (match(s, /[A-Za-z_][A-Za-z0-9_]*[ \t]*\(/)) {
        name = substr(s, RSTART, RLENGTH)
        before = RSTART > 1 ? substr(s, 1, RSTART - 1) : ""
        s = substr(s, RSTART + RLENGTH)
        sub(/[ \t]*\($/, "", name)
        # Not a member of that name, nor a function of this file.
        if (!(name in banned) || name in own || before ~ /(\.|->)[ \t]*$/) continue
        if (banned[name] == "raw" && (is_test || FILENAME ~ "^engine/base/(mem|fs|pool|fault)\\.c$")) continue
        if (banned[name] == "process" && (is_test || FILENAME == "service/main.c")) continue
        report("call", name "() is not to be called here (" why[banned[name]] ")")
    }
}

# ---- blocks and functions ----

# Which '{' of a line open a block: those after ") ", "else", "do", a label, or alone.
function is_block(pre) {
    sub(/[ \t]+$/, "", pre)
    return pre == "" || pre ~ /[^ \t]*\)$/ && spaced || pre ~ /(^|[^A-Za-z0-9_])(else|do)$/ || pre ~ /:$/
}

function check_braces(code,    i, c, pre) {
    for (i = 1; i <= length(code); i++) {
        c = substr(code, i, 1)
        if (c == "{") {
            pre = substr(code, 1, i - 1)
            spaced = pre ~ /[ \t]$/
            # Below an initialiser everything is one.
            kind[++depth] = (depth > 1 && kind[depth - 1] == "init") || !is_block(pre) ? "init" : "block"
            if (kind[depth] == "block") blocks++
            if (in_function && blocks > 5 && !deep_told) {
                report("nesting", "more than 4 levels inside " fname)
                deep_told = 1
            }
        } else if (c == "}" && depth > 0) {
            if (kind[depth] == "block") blocks--
            depth--
        }
    }
}

# Parameters in the last parenthesis group of a signature; `struct err *e` and ... do not count.
function parameters(sig,    i, c, level, n) {
    n = 1 - (sig ~ /struct err \*e[,)]/) - (sig ~ /\.\.\.\)/)
    for (i = length(sig); i > 0; i--) {
        c = substr(sig, i, 1)
        if (c == ")") level++
        if (c == "(" && --level == 0) break
        if (c == "," && level == 1) n++
    }
    return n
}

function name_of(sig) {
    if (!match(sig, /[A-Za-z_][A-Za-z0-9_]*[ \t]*\(/)) return "?"
    return substr(sig, RSTART, RLENGTH - 1)
}

function begin_function() {
    fname = name_of(statement)
    fstart = FNR
    in_function = 1
    deep_told = 0
    own[fname] = 1
    if (parameters(statement) > 6) report("parameters", fname " has more than 6 parameters")
}

function end_function(    limit) {
    limit = FILENAME ~ /\/k_[a-z0-9_]*\.(c|cu)$/ ? 150 : 80
    if (FNR - fstart + 1 > limit)
        report("function", fname " has " (FNR - fstart + 1) " lines, at most " limit)
    in_function = 0
}

# A finished statement outside of functions: is it a variable that can change?
function check_variable(s,    what) {
    if (is_test || FILENAME ~ /(^|\/)(main|log|pool|fault|mem)\.c$/) return
    gsub(/[ \t]+/, " ", s)
    sub(/^ /, "", s)
    sub(/^template <[^>]*> /, "", s)
    if (s == "" || s ~ /^(typedef|extern|_Static_assert)/ || s !~ /[A-Za-z0-9_\]})] ?$/) return
    while (match(s, /\{[^{}]*\}/)) s = substr(s, 1, RSTART - 1) "@" substr(s, RSTART + RLENGTH)
    sub(/ ?=.*/, "", s)
    if (s ~ /^(struct|union|enum)( [A-Za-z0-9_]+)? ?@? ?$/) return # a type
    if (s ~ /\(/ && s !~ /\( ?\*/) return                         # a prototype
    if (s ~ /^[A-Za-z0-9_]+ ?$/) return                           # a macro
    # With a pointer, the const that counts stands behind the last star; of a pointer to a
    # function, that is the first.
    what = s
    if (match(what, /\( ?\*[^)]*\)/)) what = substr(what, RSTART, RLENGTH)
    else if (match(what, /\*[^*]*$/)) what = substr(what, RSTART)
    if (what !~ /(^|[^A-Za-z0-9_])const([^A-Za-z0-9_]|$)/)
        report("variable", "a variable of file scope that can change: " substr(s, 1, 50))
}

# Everything outside of functions is gathered into statements.
function outer(code,    i, c) {
    for (i = 1; i <= length(code); i++) {
        c = substr(code, i, 1)
        if (c == "{") outer_depth++
        if (c == "}" && outer_depth > 0) outer_depth--
        if (c == ";" && outer_depth == 0) { check_variable(statement); statement = ""; continue }
        statement = statement c
    }
    statement = statement " "
}

# ---- one file ----

function begin_file() {
    is_test = FILENAME ~ /^tests\//
    is_header = FILENAME ~ /\.(h|cuh)$/
    in_comment = depth = blocks = in_function = in_pp = outer_depth = 0
    statement = guard = ""
    lines = 0
    split("", own)
}

function end_file(path) {
    if (path == "") return
    if (lines > 900) print path ":" lines ": size: " lines " lines, at most 900"
    if (path ~ /\.(h|cuh)$/ && guard !~ /^GRAFT_[A-Z0-9_]+_(H|CUH)$/)
        print path ":1: guard: the include guard must be GRAFT_<NAME>_H"
}

BEGIN {
    why["unsafe"] = "unsafe; base/ has a safe one"
    why["raw"] = "use mem_* and fs_*, which count and can be told to fail"
    why["process"] = "only main() ends or starts processes"
    while ((getline line < rows) > 0) {
        n = split(line, part, " ")
        if (n < 2 || part[1] ~ /^#/) continue
        room[part[1]] = 1
        for (i = 2; i <= n; i++) may[part[1], part[i]] = 1
    }
    while ((getline line < calls) > 0) {
        n = split(line, part, " ")
        for (i = 2; i <= n && part[1] !~ /^#/; i++) banned[part[i]] = part[1]
    }
}

FNR == 1 {
    end_file(previous)
    previous = FILENAME
    begin_file()
    if (is_header && index($0, "/* " last_part(FILENAME) ":") != 1)
        report("contract", "a header opens with its contract: /* " last_part(FILENAME) ": ...")
}

{
    lines++
    visible = $0
    gsub(/[\200-\277]/, "", visible) # UTF-8: a character is one column
    if (length(visible) > 100) report("line", length(visible) " columns, at most 100")
    if ($0 ~ /(^|[^A-Za-z0-9_])(TODO|FIXME|XXX)([^A-Za-z0-9_]|$)/)
        report("unfinished", "finish it or open an issue")
    was_comment = in_comment
    code = code_of($0)
    if (!was_comment && (in_pp || code ~ /^[ \t]*#/)) {
        if (is_header && guard == "" && $1 == "#define") guard = $2
        check_include($0)
        check_calls(code)
        in_pp = $0 ~ /\\$/
        next
    }
    # A '}' in column 1 ends whatever was open: conditional compilation may open a block twice.
    if (code ~ /^\}/) {
        if (in_function) { end_function(); statement = ""; depth = blocks = 0; next }
        depth = blocks = 0
        outer_depth = outer_depth > 0 ? 1 : 0
    }
    if (code ~ /^\{[ \t]*$/ && !in_function && outer_depth == 0 && statement ~ /\)[ \t]*$/) begin_function()
    if (in_function) {
        check_calls(code)
        check_braces(code)
    } else {
        outer(code)
        if (code ~ /^[ \t]*$/ && outer_depth == 0) statement = "" # after a macro without ';'
    }
}

END { end_file(previous) }
