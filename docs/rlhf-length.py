"""What length control does: runs of `nano3 rlhf` with it and without it at equal steps, from one model, over seeds.

python docs/rlhf-length.py runs/sft-traces --seeds 0 1 2 --out runs/length --set train.steps=20 --set rollout.prompts=12

Both runs of a seed have the same prompts and held-out prompts. Prints tokens of reasoning and quality on the held-out
prompts after the runs, their differences with 95 % intervals (prompts resampled, paired), and draws both by step.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from nano3.eval.intervals import bootstrap_means, middle95
from nano3.train.tracking.chart_style import dress, figure, save
from nano3.train.tracking.metrics import read_metrics

RUNS = {"on": "true", "off": "false"}
MEASURES = ("think_tokens", "quality", "answer_tokens", "truncated")
COLORS = {"on": "#2563eb", "off": "#ea580c"}


def main() -> None:
    """Run what is not there yet, and print a table in Markdown."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model", help="run or Hugging Face folder to start from")
    asked.add_argument("--out", type=Path, required=True, help="folder of the runs and of length.png")
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--judge", default="rules")
    asked.add_argument("--set", action="append", default=[], dest="settings", help="of all runs, KEY=VALUE")
    options = asked.parse_args()
    for seed in options.seeds:
        for name in RUNS:
            run(options, seed, name)
    folders = {name: [options.out / f"{name}-{seed}" for seed in options.seeds] for name in RUNS}
    print("| | without | with | difference, 95 % | prompts |\n|---|---|---|---|---|")
    for measure in MEASURES:
        print(row(measure, folders), flush=True)
    print(f"chart: {draw(folders, options.out / 'length.png')}", file=sys.stderr)


def run(options: argparse.Namespace, seed: int, name: str) -> None:
    """One run, unless it has ended."""
    folder = options.out / f"{name}-{seed}"
    if "after" in heldout(folder):
        return
    own = [f"length_control.enabled={RUNS[name]}", f"rollout.seed={seed}", f"prompts.seed={seed}", *options.settings]
    settings = [word for setting in own for word in ("--set", setting)]
    nano3 = [sys.executable, "-m", "nano3", "rlhf", "--from", options.model, "--judge", options.judge]
    subprocess.run([*nano3, "--out", str(folder), *settings], check=True, stdout=subprocess.DEVNULL)


def heldout(folder: Path) -> dict:
    """Contents of heldout.json; empty where there is none."""
    file = folder / "heldout.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def row(measure: str, folders: dict[str, list[Path]]) -> str:
    """A line of the table, over the held-out prompts of all seeds."""
    values = {name: [per_prompt(folder, measure) for folder in found] for name, found in folders.items()}
    pairs = [(off[key], on[key]) for off, on in zip(values["off"], values["on"], strict=True) for key in off]
    off, on = np.array(pairs).T
    low, high = middle95(bootstrap_means((on - off).tolist(), seed=0))
    change = f" ({on.mean() / off.mean() - 1:+.0%})" if off.mean() else ""
    return (
        f"| {measure.replace('_', ' ')} | {off.mean():.3f} | {on.mean():.3f}{change} | "
        f"{on.mean() - off.mean():+.3f} ({low:+.3f} to {high:+.3f}) | {len(pairs)} |"
    )


def per_prompt(folder: Path, measure: str) -> dict[tuple[str, str], float]:
    """A measure of each held-out prompt after a run."""
    found = heldout(folder)["after"][measure]
    return {(name, task): value for name, of_tasks in found.items() for task, value in of_tasks.items()}


def draw(folders: dict[str, list[Path]], path: Path) -> Path:
    """Reasoning and quality of the rollouts over the steps: each run pale, the mean over the seeds."""
    drawn, axes = figure(2, "Length control")
    for axis, (metric, label) in zip(
        axes, (("think_tokens", "tokens of reasoning"), ("quality", "judge's score, 1 to 5")), strict=True
    ):
        for name, runs in folders.items():
            curves = [
                [line[metric] for line in read_metrics(each / "metrics.jsonl") if line["kind"] == "train"]
                for each in runs
            ]
            steps = range(1, len(curves[0]) + 1)
            for curve in curves:
                axis.plot(steps, curve, color=COLORS[name], alpha=0.2, linewidth=1)
            axis.plot(steps, np.mean(curves, axis=0), color=COLORS[name], linewidth=1.8, label=f"length control {name}")
        dress(axis, "step", label)
    return save(drawn, path)


if __name__ == "__main__":
    main()
