#!/usr/bin/env bash
# The subcommands that need no server, as a person types them.
set -u
cd "$(dirname "$0")/../.."
graft=$PWD/build/graft golden=$PWD/tests/method/golden
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
has() { grep -qF -- "$2" <<<"$1" || fail "'$2' is not in: $1"; }
# expect CODE COMMAND...: runs it, keeps stdout and stderr in $out.
expect() {
    local want=$1; shift
    out=$("$@" 2>&1); local rc=$?
    [ "$rc" -eq "$want" ] || fail "exit $rc instead of $want: $* : $out"
}

# A job file with most things left out and paths relative to itself.
mkdir "$work/in" && ln -s "$golden/model" "$work/in/base" && cp "$golden/data.jsonl" "$work/in/rows.jsonl"
cat >"$work/in/my job.json" <<'JSON'
{"model": {"path": "base"}, "training_file": "rows.jsonl",
 "settings": {"max_steps": 4, "r": 2, "validation_split": 0.2, "batch_size": 4}}
JSON
export XDG_CACHE_HOME="$work/cache"
expect 0 "$graft" plan "$work/in/my job.json"; has "$out" "peak"; has "$out" "time per step"
[ -s "$XDG_CACHE_HOME/graft/profile.json" ] || fail "the device's measurement is not kept"
expect 0 "$graft" plan "$work/in/my job.json" --json; has "$out" '"steps": 4'
GRAFT_MEMORY=5 expect 30 "$graft" plan "$work/in/my job.json"; has "$out" "does not fit"
GRAFT_MEMORY=5 expect 30 "$graft" run "$work/in/my job.json"; has "$out" "MiB more than there is"
expect 0 "$graft" run "$work/in/my job.json"
has "$out" "step 4/4"; has "$out" "validation loss="; has "$out" "my-job-job/result"
result="$work/in/my-job-job/result"
for f in adapter/adapter_model.safetensors merged/model.safetensors merged/tokenizer.json graft.json metrics.csv samples.json; do
    [ -s "$result/$f" ] || fail "$f is missing"
done
expect 0 "$graft" run "$work/in/my job.json"                        # finished: nothing to do
expect 0 "$graft" run "$work/in/my job.json" --dir "$work/two" --threads 1
diff -r "$result" "$work/two/result" || fail "the thread count changed the result"
sed -i 's/"r": 2/"r": 3/' "$work/in/my job.json"
expect 10 "$graft" run "$work/in/my job.json"; has "$out" "holds another job"
sed -i 's/"r": 3/"rank": 3/' "$work/in/my job.json"
expect 10 "$graft" run "$work/in/my job.json" --dir "$work/three"; has "$out" "hyperparameters.rank"
[ ! -e "$work/three" ] || fail "a refused job left a folder"

# Interrupted by Ctrl-C after its first steps, however fast the machine: a checkpoint, and the same
# command goes on to the same bytes.
cat >"$work/in/long.json" <<'JSON'
{"model": {"path": "base"}, "training_file": "rows.jsonl", "settings": {"max_steps": 400, "r": 2}}
JSON
( trap - INT; exec "$graft" run "$work/in/long.json" --dir "$work/a" ) >"$work/log" 2>&1 &
pid=$!
until grep -q "step " "$work/log" || ! kill -0 "$pid" 2>/dev/null; do sleep 0.01; done
kill -INT "$pid"
wait "$pid"
grep -q "run the same command again" "$work/log" || fail "not interrupted: $(tail -n 3 "$work/log")"
[ ! -e "$work/a/result" ] || fail "an interrupted run has a result"
expect 0 "$graft" run "$work/in/long.json" --dir "$work/a"; has "$out" "Going on from the checkpoint"
expect 0 "$graft" run "$work/in/long.json" --dir "$work/b"
diff -r "$work/a/result" "$work/b/result" || fail "an interruption changed the result"

# Scores and answers of the base, the adapter and the merged model.
text="A red cat: colour? red"
expect 0 "$graft" score "$golden/model" --text "$text"; base=$out
expect 0 "$graft" score "$golden/model" --adapter "$work/b/result/adapter" --text "$text"; adapted=$out
expect 0 "$graft" score "$work/b/result/merged" --text "$text"; merged=$out
has "$base" "over 22 tokens"
awk -v b="${base%% *}" -v a="${adapted%% *}" -v m="${merged%% *}" \
    'BEGIN { exit !(a < b - 0.5 && (a - m) < 1e-4 && (m - a) < 1e-4) }' || fail "$base / $adapted / $merged"
printf '%s' "$text" >"$work/text"
expect 0 "$graft" score "$golden/model" "$work/text"; [ "$out" = "$base" ] || fail "file: $out"
expect 0 "$graft" generate "$work/b/result/merged" --prompt "A red cat: colour?" --max-tokens 8
one=$out
expect 0 "$graft" generate "$golden/model" --adapter "$work/b/result/adapter" --prompt "A red cat: colour?" --max-tokens 8 --threads 1
[ "$out" = "$one" ] || fail "adapter answers '$out', merged '$one'"
expect 0 "$graft" generate "$golden/model" --prompt a --max-tokens 8 --temperature 1 --seed 5; one=$out
expect 0 "$graft" generate "$golden/model" --prompt a --max-tokens 8 --temperature 1 --seed 5
[ "$out" = "$one" ] || fail "the same seed drew another answer"

expect 0 "$graft" methods; has "$out" "lora - LoRA"; has "$out" "lora_alpha"
expect 0 "$graft" methods --json; has "$out" '"exclusiveMinimum"'
expect 0 "$graft" check "$golden/model"; has "$out" '"parameters"'
expect 0 "$graft" check "$golden/data.jsonl"; has "$out" "22 rows of completion"
printf '{"text": "a"}\n{"text": 1}\n' >"$work/bad.jsonl"
expect 10 "$graft" check "$work/bad.jsonl"; has "$out" "bad.jsonl:2:"
head -c 100 "$golden/model/model.safetensors" >"$work/cut.safetensors"
expect 10 "$graft" check "$work/cut.safetensors"
expect 10 "$graft" check "$work"; has "$out" "config.json"

expect 2 "$graft" run; has "$out" "usage: graft run"
expect 2 "$graft" run a b
expect 2 "$graft" score "$golden/model" --text x --colour red; has "$out" "--colour"
expect 2 "$graft" generate "$golden/model" --prompt x --top-p 2; has "$out" "--top-p"
expect 2 "$graft" generate "$golden/model"; has "$out" "--prompt is missing"
expect 2 "$graft" score "$golden/model"; has "$out" "--text"
exit 0
