#!/usr/bin/env bash
# Makes demo/model and demo/data again from nothing: corpus, tokenizer, training by graft itself.
# Needs build/graft and Python with `tokenizers`. usage: demo/pretrain.sh [WORK_DIR]
set -eu
cd "$(dirname "$0")"
work=${1:-../build/pretrain}
python=${PYTHON:-python3}
mkdir -p "$work/init" model data
work=$(cd "$work" && pwd)
"$python" make_corpus.py "$work"
"$python" make_tokenizer.py "$work/corpus.jsonl" "$work/init"
cp config.json "$work/init/"
cp pretrain.json "$work/job.json"
../build/graft run "$work/job.json" --dir "$work/job"
cp "$work/job/result/merged/"{config.json,model.safetensors,tokenizer.json,tokenizer_config.json} model/
cp "$work/notes-train.jsonl" data/train.jsonl
cp "$work/notes-valid.jsonl" data/valid.jsonl
