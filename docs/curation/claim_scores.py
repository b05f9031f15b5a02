"""Scores of the models of claim.sh on held-out texts, and their chart.

python docs/curation/claim_scores.py score RUN... --heldout heldout.jsonl    # RUN.json of each
python docs/curation/claim_scores.py chart FOLDER --out chart.png
"""

import argparse
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
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
ALL = ("code", *KINDS)
BASE = "nano3"
NAMES = {
    "nano3": "kept by nano3 data curate",
    "resiliparse": "resiliparse, all pages",
    "resiliparse-kept": "resiliparse, pages kept by nano3",
    "trafilatura-recall": "trafilatura for recall, all pages",
    "trafilatura": "trafilatura as datatrove calls it, all pages",
}
COLORS = {
    "trafilatura": "#94a3b8",
    "trafilatura-recall": ORANGE,
    "resiliparse": GREEN,
    "resiliparse-kept": "#5eead4",
}
LONGEST = 2048
"""Tokens of a held-out text that are scored at most: none has more."""
RESAMPLES = 4000


@dataclass
class Difference:
    """An arm's bits per byte on a kind of text, and what it has more than the first arm."""

    arm: str
    kind: str
    mean: float
    seeds_own: np.ndarray
    """Difference of each pair of seeds."""
    texts: tuple[float, float]
    """95 % interval of the mean difference, texts drawn."""
    seeds: tuple[float, float]
    """The same, seeds drawn: with three, the least and the greatest of them."""
    both: tuple[float, float]


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
    print(f"{machine()}; {seeds} seeds an arm\n")
    draw(differences({arm: runs[arm][:seeds] for arm in NAMES if arm in runs}), seeds, out)


def differences(runs: dict[str, list[list[dict[str, Any]]]]) -> list[Difference]:
    """Each arm's bits per byte, and what it has more than the first arm, seed by seed; printed."""
    rng, found = np.random.default_rng(0), []
    rows = next(iter(runs.values()))[0]
    for kind in ALL:
        index = [i for i, row in enumerate(rows) if row["kind"] in (CODE if kind == "code" else (kind,))]
        sizes = np.array([rows[i]["bytes"] for i in index])
        bits = {arm: np.array([[run[i]["bits"] for i in index] for run in own]) for arm, own in runs.items()}
        for arm, own in bits.items():
            more = own - bits[BASE]
            seeds, texts = more.shape
            every, drawn = np.arange(seeds), rng.integers(texts, size=(RESAMPLES, texts))
            chosen = rng.integers(seeds, size=(RESAMPLES, seeds))
            found.append(
                Difference(
                    arm,
                    kind,
                    own.sum() / seeds / sizes.sum(),
                    more.sum(1) / sizes.sum(),
                    interval(more[np.ix_(every, t)].sum() / seeds / sizes[t].sum() for t in drawn),
                    interval(more[s].sum() / seeds / sizes.sum() for s in chosen),
                    interval(
                        more[np.ix_(s, t)].sum() / seeds / sizes[t].sum() for s, t in zip(chosen, drawn, strict=True)
                    ),
                )
            )
    tables(found, list(runs))
    return found


def interval(drawn: Iterable[float]) -> tuple[float, float]:
    """Where 95 % of what was drawn lies."""
    low, high = np.quantile(list(drawn), (0.025, 0.975))
    return float(low), float(high)


def tables(found: list[Difference], arms: list[str]) -> None:
    """Bits per byte, and the intervals of the differences."""
    head = f"| {' | '.join(ALL)} |\n|---|{'---|' * len(ALL)}"
    print(f"| bits per byte | {head[2:]}")
    for arm in arms:
        print(f"| {arm} | {' | '.join(f'{one.mean:.3f}' for one in found if one.arm == arm)} |")
    for what in ("texts", "seeds", "both"):
        print(f"\n| more than {BASE}, 95 %, {what} drawn | {head[2:]}")
        for arm in arms:
            spans = [getattr(one, what) for one in found if one.arm == arm and arm != BASE]
            if spans:
                print(f"| {arm} | {' | '.join(f'{low:+.3f} to {high:+.3f}' for low, high in spans)} |")


def draw(found: list[Difference], seeds: int, out: Path) -> None:
    """Bars of the difference to the first arm, of each kind, with their intervals and every seed's own."""
    arms = [arm for arm in NAMES if arm != BASE and any(one.arm == arm for one in found)]
    figure = new_figure(
        10.5,
        6.4,
        "Held-out text after the same number of training tokens, from the same crawled pages",
        f"1.9M parameters; bars: mean of {seeds} seeds an arm (points: each), 95 % by bootstrap of seeds and texts; "
        "docs/curation/claim.sh",
    )
    axis = figure.subplots()
    height = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        own = [one for one in found if one.arm == arm]
        means = [float(one.seeds_own.mean()) for one in own]
        spans = [[mean - one.both[0] for mean, one in zip(means, own, strict=True)]]
        spans.append([one.both[1] - mean for mean, one in zip(means, own, strict=True)])
        places = [j + (i - (len(arms) - 1) / 2) * height for j in range(len(own))]
        error = {"linewidth": 1, "ecolor": INK}
        axis.barh(places, means, height * 0.9, xerr=spans, color=COLORS[arm], label=NAMES[arm], error_kw=error)
        for place, one in zip(places, own, strict=True):
            axis.plot(one.seeds_own, [place] * seeds, "o", color="white", markeredgecolor=INK, markersize=3.5)
    axis.axvline(0, color=BLUE, linewidth=2)
    base = [one for one in found if one.arm == BASE]
    labels = [f"{'all code' if one.kind == 'code' else one.kind}\nnano3: {one.mean:.3f}" for one in base]
    axis.set_yticks(range(len(base)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(
        "bits per byte more (right: worse) or less (left: better) than the model of pages that nano3 kept", color=INK
    )
    plain(axis, "x")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(out)


if __name__ == "__main__":
    main()
