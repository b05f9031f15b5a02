#!/usr/bin/env bash
# The same tiny model on pages that `nano3 data curate cc-code-no-model` keeps, and on plain extracted text of the same
# pages: bits per byte of source code, and of prose, of packages that no page is about.
#
#   bash docs/curation/claim.sh FOLDER [TOKENS] [SEEDS]     # twelve minutes of CPU, 2 GB of disk; Debian with apt
#
# trafilatura is no dependency of nano3: EXTRACTOR is a Python that has it (python -m venv v; v/bin/pip install
# trafilatura==2.0.0 lxml_html_clean resiliparse fastwarc). Whatever is in FOLDER already is not made again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1 tokens=${2:-200000} seeds=${3:-3} extractor=${EXTRACTOR:-python}
pages=${PAGES:-300} # of a package at most
arms=${ARMS:-nano3 trafilatura resiliparse} # also: trafilatura-recall, and resiliparse-kept: of the pages that nano3 keeps
mkdir -p "$folder" && cd "$folder"
export OMP_NUM_THREADS=1

crawled="python3.11-doc nodejs-doc cppreference-doc-en-html sqlite3-doc libstdc++-12-doc rust-doc python-scipy-doc
  python-sympy-doc"
heldout="python3-django python3-networkx python3-requests python3-jinja2 node-undici node-acorn node-lodash node-express
  node-yargs nlohmann-json3-dev libfmt-dev libeigen3-dev libspdlog-dev libcli11-dev librust-regex-dev librust-clap-dev
  librust-serde-json-dev librust-syn-dev librust-rayon-dev librust-tokio-dev debian-handbook developers-reference"
unpack() { # GROUP PACKAGE...
  for package in "${@:2}"; do
    [ -d "$1/$package" ] && continue
    apt-get download "$package" && dpkg-deb -x "$package"_*.deb "$1/$package" && rm "$package"_*.deb
  done
}
mkdir -p crawled heldout
unpack crawled $crawled
unpack heldout $heldout

[ -f pages.warc.gz ] || python "$here/claim_texts.py" pages crawled --count "$pages" --out pages.warc.gz
[ -f kept/blend.toml ] || nano3 data curate cc-code-no-model --from pages.warc.gz --out kept
for tool in trafilatura trafilatura-recall resiliparse; do
  [ -f "$tool.jsonl" ] || "$extractor" "$here/claim_extract.py" pages.warc.gz "$tool" --out "$tool.jsonl"
done
[ -f heldout.jsonl ] || python "$here/claim_texts.py" arms . --heldout heldout

train() { # ARM SEED TOKENS
  local out=runs/$1-$2
  [ -f "$out.json" ] || [ -d "$out/model" ] && return
  rm -rf "$out" && mkdir -p runs
  nano3 pretrain --preset tiny --set "data.blend={arm=100}" --set "data.sources={arm=[\"arms/$1.jsonl\"]}" \
    --set model.vocab_size=2048 --set data.tokenizer=tokenizer --set data.heldout_fraction=0.01 --set data.seq_len=256 \
    --set "data.seed=$((1234 + $2))" --set "train.seed=$2" --set "train.tokens=$3" --set heldout.every_tokens=0 \
    --set heldout.final_tokens=2048 --set checkpoint.every_tokens=0 --set sample.tokens=1 --out "$out" >"$out.log" 2>&1 ||
    { cat "$out.log" && exit 1; }
}
for ((seed = 0; seed < seeds; seed++)); do
  for arm in $arms; do train "$arm" "$seed" "$tokens"; done
done
python "$here/claim_scores.py" score runs/*/ --heldout heldout.jsonl
python "$here/claim_scores.py" chart . --out curation.png
