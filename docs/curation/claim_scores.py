"""Scores of the models of claim.sh on held-out texts, and their chart.

python docs/curation/claim_scores.py score RUN... --heldout heldout.jsonl    # RUN.json of each
python docs/curation/claim_scores.py chart FOLDER --out chart.png
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine

import nano3
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.head import nll_sum
from nano3.report import BLUE, GREEN, INK, ORANGE, new_figure, plain

KINDS = ("Python", "JavaScript", "C++", "Rust", "prose")
CODE = KINDS[:4]
BASE = "nano3"
NAMES = {
    "nano3": "kept by nano3 data curate",
    "resiliparse": "resiliparse, all pages",
    "resiliparse-kept": "resiliparse, pages kept by nano3",
    "trafilatura-recall": "trafilatura for recall, all pages",
    "trafilatura": "trafilatura as datatrove calls it, all pages",
}
COLORS = {
    "trafilatura": INK,
    "trafilatura-recall": ORANGE,
    "resiliparse": GREEN,
    "resiliparse-kept": "#5eead4",
}
LONGEST = 2048
"""Tokens of a held-out text that are scored at most: none has more."""
RESAMPLES = 4000
Bits = dict[str, dict[str, np.ndarray]]
"""Kind -> arm -> (seeds, texts) bits."""


def main() -> None:
    """Score one model, or draw what all have."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = asked.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("score")
    one.add_argument("runs", type=Path, nargs="+")
    one.add_argument("--heldout", type=Path, required=True)
    other = verbs.add_parser("chart")
    other.add_argument("folder", type=Path)
    other.add_argument("--out", type=Path, required=True)
    options = asked.parse_args()
    if options.verb == "score":
        for run in options.runs:
            if not (out := run.parent / f"{run.name}.json").exists():
                score(run, options.heldout, out)
    else:
        chart(options.folder, options.out)


def score(run: Path, heldout: Path, out: Path) -> None:
    """Bits of every held-out text, each alone, from its first byte."""
    model, tokenizer = nano3.load(run), Tokenizer.load(run / "model")
    found = []
    with torch.no_grad():
        for line in heldout.read_text("utf-8").splitlines():
            row = json.loads(line)
            ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(row["text"])]])[:, : LONGEST + 1]
            hidden = model.hidden(ids[:, :-1], torch.zeros_like(ids[:, :-1]), statistics=()).x
            bits = nll_sum(model.lm_head, hidden, ids[:, 1:]).item() / math.log(2)
            scored = tokenizer.decode(ids[0, 1:].tolist())
            found.append({"id": row["id"], "kind": row["kind"], "bits": bits, "bytes": len(scored.encode())})
    out.write_text(json.dumps(found), "utf-8")
    print(out, {kind: round(per_byte(found, kind), 4) for kind in KINDS})


def per_byte(found: list[dict[str, Any]], kind: str) -> float:
    """Bits per byte of the texts of a kind."""
    own = [row for row in found if row["kind"] == kind]
    return sum(row["bits"] for row in own) / sum(row["bytes"] for row in own)


def chart(folder: Path, out: Path) -> None:
    """Tables of scores and differences, and the chart of those at equal tokens."""
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        runs.setdefault(re.sub(r"-\d+$", "", path.stem), []).append(json.loads(path.read_text("utf-8")))
    seeds = min(map(len, runs.values()))
    print(f"{machine()}; {seeds} seeds\n")
    draw(table({arm: runs[arm][:seeds] for arm in NAMES if arm in runs}), seeds, out)


def table(runs: dict[str, list[list[dict[str, Any]]]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Kind -> arm -> bits per byte, and the interval of the difference to the first arm; printed."""
    rng, base = np.random.default_rng(0), next(iter(runs))
    found: dict[str, dict[str, tuple[float, float, float]]] = {kind: {} for kind in (*KINDS, "code")}
    for kind, scores in found.items():
        kinds = CODE if kind == "code" else (kind,)
        index = [i for i, row in enumerate(runs[base][0]) if row["kind"] in kinds]
        sizes = np.array([runs[base][0][i]["bytes"] for i in index])
        bits = {arm: np.array([[run[i]["bits"] for i in index] for run in own]) for arm, own in runs.items()}
        seeds = len(bits[base])
        draws = [(rng.integers(seeds, size=seeds), rng.integers(len(index), size=len(index))) for _ in range(RESAMPLES)]
        for arm, own in bits.items():
            differences = own - bits[base]
            drawn = [differences[np.ix_(s, t)].sum() / seeds / sizes[t].sum() for s, t in draws]
            low, high = np.quantile(drawn, (0.025, 0.975))
            scores[arm] = own.sum() / seeds / sizes.sum(), float(low), float(high)
    print(f"bits per byte, and the 95 % interval of the difference to {base}\n")
    print(f"| trained on | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for arm in runs:
        cells = (found[kind][arm] for kind in found)
        texts = (f"{mean:.3f}" + ("" if arm == base else f" ({low:+.3f} to {high:+.3f})") for mean, low, high in cells)
        print(f"| {arm} | {' | '.join(texts)} |")
    print()
    return found


def draw(found: dict[str, dict[str, tuple[float, float, float]]], seeds: int, out: Path) -> None:
    """Bars of the difference to the first arm, of each kind, with their intervals."""
    kinds = ("code", *KINDS)
    arms = [arm for arm in found["code"] if arm != BASE]
    figure = new_figure(
        10.5,
        5.6,
        "Held-out text after the same number of training tokens, from the same crawled pages",
        f"1.9M parameters, seeds an arm: {seeds}, the same tokenizer; intervals: 95 %, bootstrap of seeds and texts; "
        "docs/curation/claim.sh",
    )
    axis = figure.subplots()
    height = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        base = [found[kind][BASE][0] for kind in kinds]
        means = [found[kind][arm][0] - own for kind, own in zip(kinds, base, strict=True)]
        spans = [[m - found[k][arm][1] for k, m in zip(kinds, means, strict=True)]]
        spans.append([found[k][arm][2] - m for k, m in zip(kinds, means, strict=True)])
        places = [j + (i - (len(arms) - 1) / 2) * height for j in range(len(kinds))]
        axis.barh(
            places, means, height * 0.9, xerr=spans, color=COLORS[arm], label=NAMES[arm], error_kw={"linewidth": 1}
        )
    axis.axvline(0, color=BLUE, linewidth=2)
    labels = [f"{'all code' if kind == 'code' else kind}\nnano3: {found[kind][BASE][0]:.3f}" for kind in kinds]
    axis.set_yticks(range(len(kinds)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(
        "bits per byte more (right: worse) or less (left: better) than the model of pages that nano3 kept", color=INK
    )
    plain(axis, "x")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(out)


if __name__ == "__main__":
    main()
