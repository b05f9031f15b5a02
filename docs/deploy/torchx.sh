#!/usr/bin/env bash
# A pretraining run by TorchX, on whatever scheduler it knows (slurm, kubernetes, aws_batch, ...):
#   docs/deploy/torchx.sh slurm 2x8 /shared/runs/phase1 --preset phase1
# The words: scheduler, nodes x GPUs of each, and the run folder, on a file system that all nodes share; what follows
# goes to `nano3 pretrain`. A run that is there goes on. No retries: TorchX would repeat the words of the first start, which
# lack --resume, and the run would be refused. Start this script again instead.
set -euo pipefail

scheduler=$1
shape=$2
out=$3
shift 3
going_on=()
if [[ -e $out/config.toml ]]; then going_on=(--resume); fi

exec torchx run --scheduler "$scheduler" dist.ddp -j "$shape" --gpu "${shape#*x}" -m nano3 -- \
  pretrain --out "$out" "${going_on[@]}" "$@"
