#!/usr/bin/env bash
# A tiny model that finds RULER's needle, in the folder given: about two minutes of one core. Then:
#   nano3 eval ruler --from FOLDER
#   bash docs/context-story/first.sh FOLDER [TOKENS]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
texts=$(mktemp -d)
trap 'rm -r "$texts"' EXIT
export OMP_NUM_THREADS=1  # so small a model gains nothing from a second thread

python "$here/first.py" 2000000 6 > "$texts/k.jsonl"
nano3 pretrain --data "$texts/k.jsonl" --set model.vocab_size=1024 --set model.init_std=0.08 \
  --set data.seq_len=256 --set train.tokens="${2:-1.2e6}" --set schedule.peak_lr=3e-3 --set schedule.stable_fraction=0.7 \
  --set heldout.seq_len=256 --set heldout.tokens=8192 --set heldout.every_tokens=100000 --out "$1"
