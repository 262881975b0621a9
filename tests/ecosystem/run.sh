#!/usr/bin/env bash
# graft against the tools its users have: PyTorch, transformers, PEFT, tokenizers, the OpenAI SDKs,
# huggingface_hub. Installs what it needs into build/venv and build/node; closes with one total.
# usage: tests/ecosystem/run.sh [FILTER]
set -u
cd "$(dirname "$0")/../.."
venv=${VENV:-build/venv}
filter=${1:-} passed=0 failed=0 skipped=0
mkdir -p build
if [ ! -x "$venv/bin/pytest" ]; then
    echo "installing Python packages into $venv"
    "${PYTHON:-python3}" -m venv "$venv" || exit 1
    # torch first and pinned: a bare "torch" would bring gigabytes of CUDA. So would what timm and
    # torchvision depend on (conftest.py says what a torchvision for CUDA needs here).
    "$venv/bin/pip" install -q torch==2.13.0 >build/pip.log 2>&1 &&
        "$venv/bin/pip" install -q -r tests/ecosystem/requirements.txt >>build/pip.log 2>&1 &&
        "$venv/bin/pip" install -q --no-deps timm==1.0.31 torchvision==0.28.0 >>build/pip.log 2>&1 ||
        { tail -n 20 build/pip.log; exit 1; }
fi
number() { grep -oE "[0-9]+ $1" "$2" | tail -n 1 | grep -oE '^[0-9]+' || echo 0; }
for t in tests/ecosystem/test_*.py; do
    case $t in *"$filter"*) ;; *) continue ;; esac
    echo "-- $t"
    "$venv/bin/python" -m pytest -q -x --no-header -p no:cacheprovider -rs "$t" 2>&1 | tee build/eco.log
    rc=${PIPESTATUS[0]}
    tail -n 1 build/eco.log >build/eco.last
    passed=$((passed + $(number passed build/eco.last)))
    skipped=$((skipped + $(number skipped build/eco.last)))
    f=$(number failed build/eco.last)
    [ "$rc" -ne 0 ] && [ "$f" -eq 0 ] && f=1
    failed=$((failed + f))
done
for t in tests/ecosystem/*_test.sh; do
    [ -e "$t" ] || continue
    case $t in *"$filter"*) ;; *) continue ;; esac
    echo "-- $t"
    rc=0
    bash "$t" || rc=$?
    case $rc in
    0) passed=$((passed + 1)) ;;
    77) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) && echo "FAILED: $t" ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
