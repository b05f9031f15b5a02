#!/usr/bin/env bash
# The whole life of a tiny model, from nothing, in the folder given, which ends with its report card: card.md and card.png.
# About 40 minutes on two cores. LIFE=short goes the same way in two minutes; nothing is learnt then.
#   bash docs/life/life.sh FOLDER
# Stopped, it goes on by the same command. Needs pip install '.[eval]'.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" && cd "$1"
export OMP_NUM_THREADS=1  # so small a model gains nothing from a second thread; its scores are taken beside the next stage
export TIMEFORMAT='%R %U %S'
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

if [ "${LIFE:-}" = short ]; then
  texts=200000 first='{needles=100}' longer='{document-qa=20,retrieval=1,needles=79}' made=20000
  vocabulary=1800 pretrain=20000 extend=17000 sft=(train.steps=4 data.generated_rows=60) samples=2 answer=24 rows=4
  needles=(--ctx 1k --samples 1)
  rl=(train.steps=1 rollout.prompts=4 rollout.group=4 rollout.max_tokens=24 heldout.tasks=0
    stop.zero_variance=1 stop.truncated=1)
  rlvr=(environments.tasks=8 curriculum.profile_samples=2) rlhf=()
else
  texts=1500000 first='{python-stdlib=50,needles=50}'
  longer='{python-stdlib=59,document-qa=20,retrieval=1,needles=20}' made=120000
  vocabulary=4096 pretrain=2.4e6 extend=4e5 sft=(train.steps=720) samples=100 answer=160 rows=300
  needles=(--ctx 512,2k,4k --samples 50)
  rl=(rollout.max_tokens=160 heldout.tasks=0)
  rlvr=(train.steps=30 environments.tasks=200) rlhf=(train.steps=10)
fi

# What is trained on by rewards is harder than what sft teaches; the same tasks, held out, are every stage's exam.
count='count?levels=10-13' spell='spell?levels=5-6' sort='sort?levels=3-5' json='json?levels=1-3'
tasks=("$count" "$spell" "$sort" "$json" tool talk)

set_all() { for each in "$@"; do printf '%s\0' --set "$each"; done; }
settings() { mapfile -d '' -t words < <(set_all "$@"); }

timed() { # NAME COMMAND: its seconds, of the clock and of a processor, are a line of times.txt
  { time "${@:2}" 2>&3; } 3>&2 2> .time
  echo "$1 $(tail -n 1 .time)" >> times.txt
}

score() { # NAME: what a stage can do, where it was not asked yet
  if [ ! -f "scores/$1/done" ]; then take_scores "$1" > "$1.scores.txt" 2>&1; fi
}

take_scores() { # NAME
  nano3 eval tasks "${tasks[@]}" --from "$1" --samples "$samples" --max-tokens "$answer" --out "scores/$1/tasks"
  nano3 eval ruler --from "$1" --raw --tasks niah_single_1 "${needles[@]}" --out "scores/$1/ruler"
  nano3 eval lm --from "$1" --tasks nano3_prose --out "scores/$1/text"
  touch "scores/$1/done"
}

scored() { # waits for the scores that are being taken
  if [ -n "${scoring:-}" ]; then wait "$scoring" || { tail -n 3 ./*.scores.txt >&2; exit 1; }; fi
}

stage() { # NAME VERB [OPTION ...]: one stage, where it is not done yet; its scores are taken beside the next one
  local name=$1 verb=$2
  echo "== $name" >&2
  if [ ! -d "$name/model" ]; then
    if [ -d "$name/checkpoints" ]; then
      timed "$name" nano3 "$verb" --resume --out "$name"
    else
      timed "$name" nano3 "$verb" "${@:3}" --out "$name"
    fi
  fi
  scored
  score "$name" &
  scoring=$!
}

if [ ! -f needles.jsonl ]; then python "$here/../context-story/first.py" "$texts" 6 > needles.jsonl; fi
settings model.preset=tiny model.vocab_size="$vocabulary" model.init_std=0.08 data.blend="$first" \
  'data.sources.needles=["needles.jsonl"]' 'data.whole_documents=["needles"]' train.tokens="$pretrain" \
  schedule.peak_lr=3e-3 heldout.tokens=16384 'sample.prompts=[]'
stage pretrain pretrain --preset tiny "${words[@]}"

settings data.blend="$longer" 'data.sources.needles=["needles.jsonl"]' data.generate.tokens="$made" train.tokens="$extend"
stage long extend-context --from pretrain "${words[@]}"

# Reasoning worked once and twice, so that rlhf has lengths to choose from.
settings 'data.sources.count=["generate:count?trace=mixed"]' 'data.sources.spell=["generate:spell?trace=mixed"]' \
  'data.sources.sort=["generate:sort?trace=mixed"]' answers.tasks=0 "${sft[@]}"
stage sft sft --from long "${words[@]}"

settings "${rl[@]}" "${rlvr[@]}"
stage rlvr-1 rlvr --from sft "${words[@]}"
# On the tasks of sft, since where no answer is right only its length is left to be rewarded.
settings "${rl[@]}" "${rlhf[@]}" length_control.think_weight=0.2 length_control.think_bonus=0.2
stage rlhf rlhf --from rlvr-1 "${words[@]}"
settings "${rl[@]}" "${rlvr[@]}" rollout.seed=1
stage rlvr-2 rlvr --from rlhf "${words[@]}"

# The result of nano3 quantize is a folder as other programs know it, without a run around it.
if [ ! -f fp8/config.json ]; then timed fp8 nano3 quantize --from rlvr-2 --samples "$rows" --out fp8; fi
scored
score fp8 &
scoring=$!
scored

rm -f served.json
nano3 serve --model fp8 --port 0 --json --log-level info > served.json 2> served.log &
server=$!
until [ -s served.json ]; do kill -0 "$server"; sleep 0.2; done
url=$(python -c 'import json; print(json.load(open("served.json"))["url"])')
echo 'Spell this word backward: t r a i n' | nano3 chat --url "$url" --temperature 0 --max-tokens "$answer" > answer.txt
kill "$server"
wait "$server"

nano3 eval compare pretrain=scores/pretrain long=scores/long sft=scores/sft rlvr-1=scores/rlvr-1 rlhf=scores/rlhf \
  rlvr-2=scores/rlvr-2 fp8=scores/fp8 --baseline previous --without '*perplexity' --out card.md
{
  printf '\nAsked of the served FP8 model, `Spell this word backward: t r a i n`:\n\n'
  sed 's/^/    /' answer.txt
  printf '\n| stage | seconds | of a processor |\n|---|---:|---:|\n'
  awk '{ printf "| %s | %.0f | %.0f |\n", $1, $2, $3 + $4 }' times.txt
} >> card.md
