#!/usr/bin/env bash
# A tiny model that looks back, from nothing, in the folder given: about ten minutes on two cores. Then:
#   nano3 eval ruler --from FOLDER/base
#   bash docs/context-story/base.sh FOLDER [TOKENS]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" && cd "$1"
export OMP_NUM_THREADS=1  # so small a model gains nothing from a second thread; runs go side by side instead

python "$here/needles.py" 3000000 60 470 1 > short.jsonl
nano3 pretrain --preset tiny --set model.preset=tiny --set model.init_std=0.08 --set data.seq_len=512 \
  --set 'data.blend={python-stdlib=40,needles=60}' --set 'data.whole_documents=["needles"]' \
  --set 'data.sources={needles=["short.jsonl"]}' --set train.tokens="${2:-4e6}" --set schedule.peak_lr=2e-3 \
  --set schedule.min_lr=2e-4 --set heldout.seq_len=512 --set heldout.every_tokens=500000 --out base
