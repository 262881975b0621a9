#!/usr/bin/env bash
# The demo: start a server, upload a dataset, adapt the bundled model with LoRA on the CPU, show what
# changed, download the results. Leaves the server up; DEMO_EXIT=1 stops it and exits 0.
# Settings: PORT (8080), DEMO_DIR (demo-out: the server's data and the downloads), DEMO_EXIT.
set -eu
cd "$(dirname "$0")/.."
port=${PORT:-8080} out=${DEMO_DIR:-demo-out}
base=http://127.0.0.1:$port
model=graft/tiny-llama
prompt='Mia is 7 years old. She has a shiny green kite. On Sunday she went to the lake with her goat. At noon they ate plums.
Record:'

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { echo "demo: $*" >&2 && exit 1; }

# One API call; prints the reply, or the error message and fails.
api() {
    local reply
    reply=$(curl -sS "$@") || die "no answer from $base"
    if jq -e '.error' >/dev/null 2>&1 <<<"$reply" && [ "$(jq -r '.object // ""' <<<"$reply")" != fine_tuning.job ]; then
        die "$(jq -r '.error.message // .error' <<<"$reply")"
    fi
    printf '%s' "$reply"
}

wait_for_server() {
    for _ in $(seq 100); do
        curl -sf -o /dev/null "$base/healthz" && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$out/server.log" >&2
    die "the server did not start (is port $port taken? try PORT=8081 make demo)"
}

# Draws the job's progress until it ends: step, loss, tokens/s, time left.
follow() {
    local id=$1 job status line bar done_ total
    while :; do
        job=$(api "$base/v1/fine_tuning/jobs/$id")
        status=$(jq -r .status <<<"$job")
        read -r done_ total <<<"$(jq -r '.graft.progress // {} | "\(.step // 0) \(.total_steps // 0)"' <<<"$job")"
        bar=$(printf '%*s' $((total > 0 ? 30 * done_ / total : 0)) '' | tr ' ' '#')
        line=$(jq -r '.graft.progress // {} | "step \(.step // 0)/\(.total_steps // 0)" +
            (if .train_loss then "  loss \(.train_loss * 1000 | round / 1000)" else "" end) +
            (if .tokens_per_s then "  \(.tokens_per_s | round) tokens/s" else "" end) +
            (if .eta_s then "  \(.eta_s | round) s left" else "" end)' <<<"$job")
        if [ -t 1 ]; then printf '\r\033[K%-10s [%-30s] %s' "$status" "$bar" "$line"; fi
        case $status in
            succeeded) [ -t 1 ] && echo || echo "$status: $line" ; return ;;
            failed | cancelled) echo && die "job $status: $(jq -r '.error.message // ""' <<<"$job")" ;;
        esac
        sleep 0.5
    done
}

# Downloads every file of a hub repository, as any Hugging Face client would.
download() {
    local repo=$1 to=$2 file
    mkdir -p "$to"
    for file in $(api "$base/api/models/$repo" | jq -r '.siblings[].rfilename'); do
        mkdir -p "$to/$(dirname "$file")"
        curl -sSf -o "$to/$file" "$base/$repo/resolve/main/$file"
    done
    du -sh "$to" | sed 's/^/  /'
}

mkdir -p "$out"
say "Starting graft on $base"
build/graft serve --listen-port "$port" --data-dir "$out/data" --model-roots "$PWD/demo" >"$out/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
wait_for_server

if ! curl -sf -o /dev/null "$base/v1/models/$model"; then
    api "$base/v1/models" -H 'content-type: application/json' \
        -d "{\"id\": \"$model\", \"path\": \"$PWD/demo/model\"}" >/dev/null
fi
say "Uploading the dataset: stories to JSON records"
train=$(api "$base/v1/files" -F purpose=fine-tune -F file=@demo/data/train.jsonl | jq -r .id)
valid=$(api "$base/v1/files" -F purpose=fine-tune -F file=@demo/data/valid.jsonl | jq -r .id)
echo "  $train (600 rows), $valid (40 rows)"

say "Adapting $model with LoRA on the CPU"
job=$(jq -n --arg model "$model" --arg train "$train" --arg valid "$valid" --arg prompt "$prompt" '{
    model: $model, training_file: $train, validation_file: $valid, seed: 1, suffix: "demo",
    method: {type: "lora", lora: {hyperparameters: {
        n_epochs: 10, batch_size: 16, learning_rate: 0.01, r: 16, lora_alpha: 32,
        target_modules: "all-linear", samples: [$prompt], sample_max_tokens: 80}}}}' |
    api "$base/v1/fine_tuning/jobs" -H 'content-type: application/json' -d @- | jq -r .id)
follow "$job"

tuned=$(api "$base/v1/fine_tuning/jobs/$job" | jq -r .fine_tuned_model)
say "Downloading what came out, from the hub routes of the server"
download "$tuned" "$out/merged"
download "$tuned-adapter" "$out/adapter"

say "Before and after"
jq -r '"  validation loss  \(.metrics.before.valid_loss * 1000 | round / 1000)  ->  \(.metrics.valid_loss * 1000 | round / 1000)"' "$out/merged/graft.json"
printf '\n  prompt   %s\n' "${prompt//$'\n'/$'\n           '}"
jq -r '.samples[0] | "  before   \(.before | gsub("\n"; "\n           "))\n  after    \(.after)"' "$out/merged/graft.json"

if [ "${DEMO_EXIT:-}" = 1 ]; then
    exit 0
fi
trap - EXIT
say "The server is up: $base   (stop it with: kill $server)"
echo "  curl $base/v1/models"
