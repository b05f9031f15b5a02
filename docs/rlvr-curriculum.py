"""Curriculum against uniform sampling, and all environments at once against one alone, at equal steps.

python docs/rlvr-curriculum.py runs/sft-tiny
python docs/rlvr-curriculum.py runs/sft-tiny --out runs/curriculum --steps 24 --prompts 12 --seeds 0,1,2 --alone sort

Three runs of `nano3 rlvr` for each seed, which decides tasks, their order and samples: all environments with tasks
drawn by the Gaussian curriculum, all with tasks drawn uniformly, and one environment alone by the curriculum. After
them each model answers the same held-out tasks of all environments. What is done already is kept in the folder and
gone on from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

import nano3
from nano3.config.presets import load_rlvr
from nano3.config.rlvr import RlvrConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.model.dtype import compute_dtype
from nano3.model.find import model_folder
from nano3.model.hf.folder import read_config
from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE, read_lines
from nano3.rl.training.domains import open_domains
from nano3.rl.training.engines import open_engine, rollout_worker
from nano3.stages import rlvr
from nano3.stages.policy.scores import Means, ask_heldout
from nano3.train.tracking.chart_style import dress, figure, smooth
from nano3.train.world import World

NAMES = tuple(load_rlvr("tiny").environments.weights)
"""Environments of the default preset, at the levels that it gives."""
COLORS = {"gaussian": BLUE, "uniform": ORANGE, "alone": GREEN}
Runs = dict[tuple[str, int], Path]
"""Finished runs by arm and seed."""


def settings(asked: argparse.Namespace, arm: str, seed: int, profile: Path | None = None) -> RlvrConfig:
    """Those of an arm with this seed; `profile`: of a run with the same tasks."""
    kept = NAMES if arm != "alone" else (asked.alone,)
    own = [
        "environments.weights={" + ", ".join(f"{name} = 1.0" for name in kept) + "}",
        f"environments.seed={seed}", f"environments.tasks={asked.tasks}",
        f"rollout.seed={seed}", f"rollout.prompts={asked.prompts}",
        f"curriculum.sampling={'uniform' if arm == 'uniform' else 'gaussian'}",
        f"train.steps={asked.steps}", f"heldout.tasks={asked.heldout}", "heldout.samples=2", "stop.zero_variance=1",
    ]  # fmt: skip
    return load_rlvr("tiny", own + ([f"curriculum.profile={profile}"] if profile else []))


def train(asked: argparse.Namespace, start: Path) -> Runs:
    """Make the runs that are not there yet."""
    done = {}
    for seed in asked.seeds:
        # First the one whose profile knows the tasks of the others.
        for arm in ("gaussian", "uniform", "alone"):
            folder = done[arm, seed] = asked.out / f"{arm}-{seed}"
            if (folder / "model").is_dir():
                continue
            profile = asked.out / f"gaussian-{seed}" / "profile.json" if arm == "alone" else None
            cfg = settings(asked, arm, seed, profile)
            cfg = dataclasses.replace(cfg, heldout=dataclasses.replace(cfg.heldout, tasks=0))  # asked below, all alike
            begun = (folder / "config.toml").is_file()
            result = rlvr.main(cfg, folder, None if begun else start, resume=begun)
            if result.stopped:
                raise SystemExit(f"{folder} was stopped: {result.stopped}")
    return done


def heldout(asked: argparse.Namespace, folder: Path, seed: int, out: Path) -> Means:
    """Mean reward of each held-out task of all environments, kept in `out`."""
    if not out.is_file():
        folder = model_folder(folder)
        cfg = dataclasses.replace(settings(asked, "gaussian", seed), model=read_config(folder))
        domains, world = open_domains(cfg.environments, cfg.heldout.tasks), World()
        model = nano3.load(folder)
        model.compute_dtype = compute_dtype(cfg.train.dtype, world.device)
        engine = open_engine(cfg, model, Tokenizer.load(folder), world, out.with_suffix(".served"))
        out.write_text(json.dumps(ask_heldout(cfg, domains, rollout_worker(cfg, engine), world)), encoding="utf-8")
    return json.loads(out.read_text(encoding="utf-8"))


def cell(pairs: list[tuple[float, float]]) -> str:
    """Mean of the second of each pair, and its difference from the first with a 95 % interval, tasks resampled."""
    differences = [after - before for before, after in pairs]
    low, high = middle95(bootstrap_means(differences, seed=0))
    mean = np.mean([after for _, after in pairs])
    return f"{mean:.3f} ({np.mean(differences):+.3f}, {low:+.3f} to {high:+.3f})"


def paired(first: dict[Any, Means], other: dict[Any, Means], name: str) -> list[tuple[float, float]]:
    """Means of the same tasks on two sides, over all seeds."""
    return [(first[seed][name][task], reward) for seed in other for task, reward in other[seed][name].items()]


def tables(lines: dict[tuple[str, int], list[dict]], scores: dict[str, dict[int, Means]]) -> None:
    """Print what the steps and the held-out tasks say, in Markdown."""
    print("\n| arm, seed | groups without variance | profiled pass rate of the drawn tasks | their target | reward |")
    print("|---|---|---|---|---|")
    for (arm, seed), steps in lines.items():
        means = [_mean(steps, name) for name in ("zero_variance", "drawn_pass_rate", "target_mean", "reward")]
        print(f"| {arm}, {seed} | {' | '.join('' if np.isnan(mean) else f'{mean:.3f}' for mean in means)} |")
    print(f"\n| held-out | before | {' | '.join(arm for arm in scores if arm != 'before')} |")
    print("|---" * (len(scores) + 1) + "|")
    for name in NAMES:
        before = np.mean([after for _, after in paired(scores["before"], scores["before"], name)])
        cells = [cell(paired(scores["before"], one, name)) for arm, one in scores.items() if arm != "before"]
        print(f"| {name} | {before:.3f} | {' | '.join(cells)} |")
    print("\n| held-out, less gaussian | uniform | alone |\n|---|---|---|")
    for name in NAMES:
        cells = [cell(paired(scores["gaussian"], scores[arm], name)) for arm in ("uniform", "alone")]
        print(f"| {name} | {' | '.join(cells)} |")


def _mean(steps: list[dict], name: str) -> float:
    values = [line[name] for line in steps if name in line]
    return float(np.mean(values)) if values else float("nan")


def chart(lines: dict[tuple[str, int], list[dict]], alone: str, path: Path) -> None:
    """Share of groups without variance, drawn tasks against their target, and one environment's pass rate."""
    made, axes = figure(3, f"Curriculum and uniform sampling, all environments and {alone} alone")
    panels = (
        ("zero_variance", "groups without variance"), ("pass_rate", "pass rate of the samples"),
        (f"pass_rate/{alone}", f"the same of {alone}"),
    )  # fmt: skip
    for axis, (metric, label) in zip(axes, panels, strict=True):
        for arm, colour in COLORS.items():
            # A run of one environment alone has no metrics by environment.
            name = "pass_rate" if arm == "alone" and metric.startswith("pass_rate") else metric
            if arm == "alone" and metric == "pass_rate":
                continue
            curves = [[line[name] for line in steps] for (one, _), steps in lines.items() if one == arm]
            for curve in curves:
                axis.plot(range(1, len(curve) + 1), smooth(curve, 0.1), color=colour, alpha=0.25, linewidth=1)
            mean = np.mean(curves, axis=0).tolist()
            axis.plot(range(1, len(mean) + 1), smooth(mean, 0.1), color=colour, linewidth=2, label=arm)
        if metric == "pass_rate":
            steps = next(steps for (arm, _), steps in lines.items() if arm == "gaussian")
            places = range(1, len(steps) + 1)
            axis.plot(places, [line["target_mean"] for line in steps], color=INK, linestyle="--", label="target")
            drawn = np.mean(
                [[line["drawn_pass_rate"] for line in steps] for (arm, _), steps in lines.items() if arm == "gaussian"],
                0,
            )
            axis.plot(places, drawn, color=MUTED, linestyle=":", label="gaussian, as profiled")
        axis.set_ylim(0, 1)
        dress(axis, "step", label)
    made.savefig(path)


def main() -> None:
    """Run what is missing, print the tables and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run or Hugging Face folder to start from")
    parser.add_argument("--out", type=Path, default=Path("runs/curriculum"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=12, help="of each step, 16 samples each")
    parser.add_argument("--tasks", type=int, default=60, help="of each environment to train on")
    parser.add_argument("--heldout", type=int, default=60, help="held-out tasks of each environment")
    parser.add_argument("--alone", default="sort", choices=NAMES, help="the environment that is trained on alone")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = train(asked, Path(asked.model))
    scores: dict[str, dict[int, Means]] = {arm: {} for arm in ("before", *COLORS)}
    for seed in asked.seeds:
        scores["before"][seed] = heldout(asked, Path(asked.model), seed, asked.out / f"before-{seed}.json")
        for arm in COLORS:
            scores[arm][seed] = heldout(asked, runs[arm, seed], seed, asked.out / f"{arm}-{seed}.json")
    lines = {
        key: [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
        for key, folder in sorted(runs.items())
    }
    tables(lines, scores)
    chart(lines, asked.alone, asked.out / "curriculum.png")


if __name__ == "__main__":
    main()
