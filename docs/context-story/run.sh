#!/usr/bin/env bash
# The measured story of docs/context-story.md, from nothing, in the folder given: about half an hour on two cores.
#   bash docs/context-story/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" && cd "$1"
export OMP_NUM_THREADS=1  # so small a model gains nothing from a second thread; runs go side by side instead

bash "$here/base.sh" .
python "$here/needles.py" 4000000 60 7600 2 > long.jsonl
blend=(--set 'data.blend={python-stdlib=60,needles=40}' --set 'data.whole_documents=["needles"]')

extend() { # NAME LENGTHS SEQUENCES TOKENS RATE
  nano3 extend-context --from base --out "$1" --set "context.lengths=$2" "${blend[@]}" \
    --set 'data.sources={needles=["short.jsonl","long.jsonl"]}' --set train.batch_size="$3" --set train.micro_batch_size=1 \
    --set train.tokens="$4" --set schedule.peak_lr="$5" --set heldout.seq_len=512 --set 'sample.prompts=[]'
}
extend not-extended '{512=1}' 16 8192 1e-9  # one step that changes nothing: the same score of the same text
extend mixed '{8192=1,512=1}' 1 2e6 2e-4 &
extend only-long '{8192=1}' 1 2e6 2e-4
wait

for run in not-extended mixed only-long; do
  nano3 eval ruler --from "$run" --ctx 512,1k,2k,4k,8k --tasks niah_single_1 --samples 50 --out "$run/ruler"
done
nano3 eval compare not-extended mixed only-long --out context-story.png
