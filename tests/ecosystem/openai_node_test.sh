#!/usr/bin/env bash
# The OpenAI Node SDK, as pinned in package.json beside this file, against a real server.
set -eu
cd "$(dirname "$0")/../.."
command -v npm >/dev/null || { echo "SKIP: npm is not installed"; exit 77; }
venv=${VENV:-build/venv}
mkdir -p build/node
if ! cmp -s tests/ecosystem/package-lock.json build/node/installed; then
    cp tests/ecosystem/package.json tests/ecosystem/package-lock.json build/node/
    (cd build/node && npm ci --no-audit --no-fund --silent)
    cp tests/ecosystem/package-lock.json build/node/installed
fi
cp tests/ecosystem/openai_node.mjs build/node/
dir=$(mktemp -d)
trap 'kill "$pid" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
mkdir "$dir/models"
"$venv/bin/python" tests/ecosystem/server_kit.py "$dir/models/tiny" >/dev/null 2>&1
build/graft serve --listen 127.0.0.1:0 --data "$dir/data" --model-root "$dir/models" --poll-ms 20 \
    2>"$dir/log" &
pid=$!
for _ in $(seq 200); do
    port=$(sed -n 's/.*"msg":"listening".*"port":\([0-9]*\).*/\1/p' "$dir/log")
    [ -n "$port" ] && break
    sleep 0.05
done
node build/node/openai_node.mjs "http://127.0.0.1:$port" "$dir/models/tiny"
