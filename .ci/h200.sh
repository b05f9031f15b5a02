#!/usr/bin/env bash
# Measures nano3 on one NVIDIA GPU, made for an H200 and at most ten minutes of it:
#
#   .ci/h200.sh [FOLDER]        # default: h200-results; FOLDER/rows.jsonl grows as each stage ends, the table is last
#
#   NANO3_H200_DRY=1            every stage on the CPU, Triton's kernels by its interpreter, at tiny sizes
#   NANO3_H200_ONLY="scan conv" these stages alone
#   NANO3_H200_SECONDS=540      of the whole; what does not get its turn is said to be left out
#   NANO3_H200_WHEELS=FOLDER    wheels to install first, without a network: baselines such as mamba-ssm and
#                               causal-conv1d, and what the image lacks of nano3's own dependencies
#   PYTHON=python3              which Python
#
# A stage that fails or takes too long does not stop the rest. docs/gpu.md says what the figures are held against.
set -uo pipefail
out=$(realpath -m "${1:-h200-results}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
rows=$out/rows.jsonl
python=${PYTHON:-python3}
dry=${NANO3_H200_DRY:-0}
end=$((SECONDS + ${NANO3_H200_SECONDS:-$((dry ? 3600 : 540))}))
# Kernels that this session compiles, not those of another.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$out/triton-cache}

if ((dry)); then
  export TRITON_INTERPRET=1 NANO3_GRAPHS=1 OMP_NUM_THREADS=1
  device=cpu model=tiny dtype=float32 repeat=1 context=70
  tokens=40 documents=(1 3) expert_tokens=(8) sequences=(2) batches=2
  slice_pattern="ME*" train_length=32 prompt=24 few=8 output=4
  gpu_tests=(--collect-only)
else
  device=cuda model=nano3-30b-a3b dtype=bfloat16 repeat=5 context=8192
  tokens=8192 documents=(1 4 16) expert_tokens=(1 64 256 2048 8192) sequences=(1 64 256) batches=1,64,256
  slice_pattern="MEM*EM" train_length=8192 prompt=8192 few=1024 output=64
  gpu_tests=(--maxfail=20)
fi
# Of files that cannot be imported here, which would stop all tests, as few as can be are read.
mapfile -t gpu_files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests/kernels tests/model tests/engine tests/train)

nano3() { "$python" -c "from nano3.cli.app import main; main()" "$@"; }
export -f nano3
export python

# stage NAME SECONDS COMMAND...: run a command, whose JSON on stdout becomes rows, for at most so long.
stage() {
  local name=$1 limit=$(($2 * (dry ? 10 : 1))) left=$((end - SECONDS)) start=$SECONDS code=125
  local result=$out/$name.json log=$out/$name.log
  shift 2
  if [[ -n ${NANO3_H200_ONLY:-} && " $NANO3_H200_ONLY " != *" ${name%%-*} "* ]]; then return; fi
  rm -f "$result" "$log"
  if ((left < 5)); then
    echo "left out: the time is up" >"$log"
  else
    timeout --kill-after=5 $((left < limit ? left : limit)) bash -c '"$@"' stage "$@" >"$result" 2>"$log"
    code=$?
  fi
  # What prints no JSON is a test: its last words count.
  if [[ -s $result && $(head -c 1 "$result") != "{" ]]; then cat "$result" >>"$log" && rm "$result"; fi
  [[ -s $result ]] || rm -f "$result"
  "$python" -m nano3.bench.device.rows add "$rows" "$name" "$code" $((SECONDS - start)) "$result" "$log"
}

# ops NAME SECONDS OPTIONS...: some ops by every backend.
ops() {
  local name=$1 limit=$2
  shift 2
  # Ceilings are measured once, by the first.
  if [[ -s $out/conv.json ]]; then set -- --ceilings "$out/conv.json" "$@"; fi
  stage "$name" "$limit" nano3 bench kernels --json --model "$model" --dtype "$dtype" --device "$device" \
    --repeat "$repeat" --no-reference "$@"
}

install() {
  if [[ -n ${NANO3_H200_WHEELS:-} ]]; then
    "$python" -m pip install --no-index --no-deps "$NANO3_H200_WHEELS"/*.whl || return
  fi
  "$python" -c "import nano3.kernels" 2>/dev/null ||
    "$python" -m pip install --no-index --no-deps --no-build-isolation -e . || return
  "$python" -c "import nano3.kernels, torch; print(torch.__version__, torch.cuda.is_available())"
}
# Not under `stage`, whose rows need what this installs.
install >"$out/install.log" 2>&1 || echo "installing failed: $(tail -n 1 "$out/install.log")"
[[ $device == cpu ]] || nvidia-smi >"$out/nvidia-smi.log" 2>&1

stage info 60 nano3 info --json
stage tests 120 "$python" -m pytest -m gpu -p no:cacheprovider --continue-on-collection-errors "${gpu_tests[@]}" \
  "${gpu_files[@]}"
rm -f "$out/conv.json"
ops conv 40 --op causal_conv1d --tokens "$tokens" --documents "${documents[-1]}"
for n in "${documents[@]}"; do
  ops "scan-$n" 60 --op ssd_scan --tokens "$tokens" --documents "$n"
done
ops norms 40 --op rms_norm,gated_rms_norm,route --tokens "$tokens"
for n in "${documents[@]:0:2}"; do
  ops "attention-$n" 40 --op attention --tokens "$tokens" --documents "$n"
done
for n in "${expert_tokens[@]}"; do
  ops "experts-$n" 40 --op grouped_mlp --tokens "$n" $( ((n < tokens)) && echo --forward-only)
done
ops loss 40 --op linear_cross_entropy --tokens "$tokens"
for n in "${sequences[@]}"; do
  ops "step-$n" 40 --op mamba_step,paged_decode --sequences "$n" --context "$context"
done
# A kind at a time: one that takes too long leaves the figures of the others.
for kind in mamba:M moe:E attention:'*'; do
  stage "blocks-${kind%:*}" 45 "$python" -m nano3.bench.device.blocks --model "$model" --dtype "$dtype" \
    --device "$device" --batches "$batches" --context "$context" --kinds "${kind#*:}"
done

# Six blocks of full width, of random weights.
sizes=$out/slice.toml
{ grep -v '^pattern' "presets/models/$model.toml"; echo "pattern = \"$slice_pattern\""; } >"$sizes"
run=(--json --model "$sizes" --dtype "$dtype" --device "$device" --repeat "$repeat")
stage train 90 nano3 bench train "${run[@]}" --batch 1 --seq-len "$train_length"
stage prefill 60 nano3 bench prefill "${run[@]}" --prompt-tokens "$prompt"
for n in "${sequences[@]:0:2}"; do
  stage "decode-$n" 60 nano3 bench decode "${run[@]}" --sequences "$n" --prompt-tokens "$few" --output-tokens "$output"
done
NANO3_GRAPHS=0 stage op_by_op 60 nano3 bench decode "${run[@]}" --sequences 1 --prompt-tokens "$few" --output-tokens "$output"

echo
"$python" -m nano3.bench.device.rows table "$rows"
