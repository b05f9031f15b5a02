"""The report's figure 11 at any size: what each choice of FP8 and each integer format costs, and how fast it decodes.

python docs/figure11.py runs/sft-tiny runs/rlvr-tiny --out runs/figure11

Of each model: the loss on held-out rows of the data that it learnt from, held-out tasks answered greedily, and tokens a
second of processor time while decoding, each beside the same of bf16. Choices: attention and Mamba-2 projections, the
cache of keys and values, int8, int4. Losses and answers are kept as soon as they are there; the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nano3.data.chat.calibration import draw_rows
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.tasks.catalogue import check
from nano3.engine.engine import Engine
from nano3.engine.launch import open_engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.eval.intervals import RESAMPLES, middle95
from nano3.eval.tasks.answer import answer
from nano3.eval.tasks.plan import Plan
from nano3.files import write_atomic
from nano3.model.find import model_folder
from nano3.model.hf.folder import load
from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE
from nano3.stages.quantizing.rows import Calibration, settings_of
from nano3.stages.sft_tokenizer import find_tokenizer
from nano3.train.tracking.chart_style import dress, figure, save

LENGTH = 1024
"""Tokens at which rows are cut."""
PROMPT, NEW = 16, 128
"""Tokens of a prompt and of an answer while decoding is timed."""


class Setting(NamedTuple):
    """One point of the figure."""

    name: str
    options: tuple[str, ...] | None
    """Of nano3 quantize; None: the model itself."""
    fp8_cache: bool = False

    @property
    def folder(self) -> str:
        """Name of the quantized folder, which two settings of the cache share."""
        return "-".join(self.options or ("bf16",)).replace("--policy-", "").replace("=", "-").strip("-")


def fp8(attention: str, mamba: str, cache: str) -> Setting:
    """A setting of the report's ablation."""
    known = {("bf16", "mixed"): "selective", ("fp8", "fp8"): "everything"}
    name = known.get((attention, mamba), f"attention {attention}, Mamba-2 {mamba}")
    options = ("--policy", f"attention={attention}", "--policy", f"mamba={mamba}")
    return Setting(name + (", FP8 cache" if cache == "fp8" else ""), options, cache == "fp8")


PINK = "#be185d"
BASE = Setting("bf16", None)
SETTINGS = (
    BASE,
    *(fp8(*each) for each in (
        (attention, mamba, cache)
        for attention in ("bf16", "fp8") for mamba in ("bf16", "mixed", "fp8") for cache in ("bf16", "fp8")
    )),
    Setting("int8", ("--int8",)),
    Setting("int4", ("--int4",)),
    Setting("int4 calibrated", ("--int4", "--samples", "300")),
)  # fmt: skip


def main() -> None:
    """Measure what is not there yet; print tables in Markdown, draw the chart."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("models", nargs="+", type=Path, help="run folders")
    asked.add_argument("--out", type=Path, required=True, help="folder of what is measured, and of figure11.png")
    asked.add_argument("--rows", type=int, default=200, help="of which the loss is taken")
    asked.add_argument("--samples", type=int, default=100, help="tasks of each of the six kinds")
    asked.add_argument("--calibrate", type=int, default=300, help="rows of calibration")
    asked.add_argument("--rounds", type=int, default=5, help="of decoding; the median counts")
    asked.add_argument("--sequences", type=int, default=8, help="decoded at once")
    options = asked.parse_args()
    torch.set_num_threads(1)
    results = {model.name: measure(model, options.out / model.name, options) for model in options.models}
    for name, table in results.items():
        print(f"\n{name}\n\n" + "\n".join(table_lines(table)))
    print(f"chart: {draw(results, options.out / 'figure11.png')}", file=sys.stderr)


def measure(model: Path, out: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By setting: losses of the rows, rewards of the tasks, tokens a second of each round."""
    rows, plan = held_out_rows(model, options.rows), Plan(samples=options.samples)
    found: dict[str, dict[str, Any]] = {}
    for setting in SETTINGS:
        folder = quantized(model, out, setting, options.calibrate)
        kept = out / "measured" / setting.name.replace(", ", "-").replace(" ", "-")
        found[setting.name] = {
            "loss": once(kept / f"loss-{len(rows)}.json", lambda f=folder, s=setting: losses(f, s, rows)),
            "reward": once(kept / f"tasks-{plan.samples}.json", lambda f=folder, s=setting: rewards(f, s, plan)),
        }
        print(f"{model.name}: {setting.name} measured", file=sys.stderr, flush=True)
    speeds = once(out / "measured" / "speed.json", lambda: decode(model, out, options))
    for name, values in speeds.items():
        found[name]["speed"] = values
    return found


def once(file: Path, compute: Callable[[], Any]) -> Any:
    """What a file holds, computed and written where there is none."""
    if not file.is_file():
        write_atomic(file, json.dumps(compute()))
    return json.loads(file.read_text("utf-8"))


def quantized(model: Path, out: Path, setting: Setting, samples: int) -> Path:
    """The folder of a setting, made where it is not there."""
    if setting.options is None:
        return model_folder(model)
    folder = out / setting.folder
    if not (folder / "config.json").is_file():
        rows = [] if setting.options[0].startswith("--int") else ["--samples", str(samples)]
        words = ["quantize", "--from", str(model), *setting.options, *rows, "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "nano3", *words], check=True, stdout=subprocess.DEVNULL)
    return folder


def held_out_rows(model: Path, count: int) -> list[tuple[list[int], list[int]]]:
    """Ids and targets of rows that the model was not trained on."""
    cfg, _ = settings_of(model, Calibration((), 4000, LENGTH))
    drawn = draw_rows(cfg, find_tokenizer("", model_folder(model)), count, heldout=True)
    return [(list(i)[:LENGTH], list(t)[:LENGTH]) for i, t in zip(drawn.rows, drawn.targets, strict=True)]


@torch.inference_mode()
def losses(folder: Path, setting: Setting, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """Nats of what the assistant says in each row, in the types in which a folder is served."""
    model = load(folder, torch.bfloat16).eval()
    if setting.fp8_cache:
        model.use_fp8_cache()
    found = []
    for ids, targets in rows:
        scores = model(torch.tensor([ids]))[0].float().log_softmax(-1)
        wanted = torch.tensor(targets)
        at = (wanted >= 0).nonzero()[:, 0]
        found.append(float(-scores[at, wanted[at]].double().sum()))
    return found


def engine_of(folder: Path, setting: Setting) -> Engine:
    """The engine as `nano3 serve` opens it."""
    engine, _ = open_engine(str(folder), kv_cache_dtype="fp8" if setting.fp8_cache else "auto")
    assert isinstance(engine, Engine), "the native one"
    return engine


def rewards(folder: Path, setting: Setting, plan: Plan) -> list[float]:
    """Of each task, the kinds one after the other."""
    engine = engine_of(folder, setting)
    tasks = [task for of_kind in plan.tasks.values() for task in of_kind]
    replies = answer(engine, ChatEncoder(engine.tokenizer), tasks, plan.max_tokens)
    engine.close()
    return [check(task.generator, task.truth, given) for task, given in zip(tasks, replies, strict=True)]


def decode(model: Path, out: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of processor time of one thread by setting, all settings in turn in every round."""
    speeds: dict[str, list[float]] = {setting.name: [] for setting in SETTINGS}
    for number in range(options.rounds + 1):
        for setting in SETTINGS:
            engine = engine_of(quantized(model, out, setting, options.calibrate), setting)
            sampling = Sampling(temperature=1.0, max_tokens=NEW, ignore_eos=True)
            prompts = [tuple(range(100 + i, 100 + i + PROMPT)) for i in range(options.sequences)]
            requests = [Request(str(i), ids, sampling) for i, ids in enumerate(prompts)]
            run(engine, [Request("warm", prompts[0], sampling)])
            started = time.process_time()
            run(engine, requests)
            seconds = time.process_time() - started
            engine.close()
            if number:  # the first round fills caches
                speeds[setting.name].append(options.sequences * NEW / seconds)
    return speeds


class Point(NamedTuple):
    """A value beside bf16's, and its 95 % interval."""

    value: float
    low: float
    high: float


def compared(now: list[float], before: list[float]) -> Point:
    """Ratio of two sums over the same rows or tasks, in percent; rows resampled."""
    values, base = np.array(now), np.array(before)
    drawn = np.random.default_rng(0).integers(0, len(base), (RESAMPLES, len(base)))
    low, high = middle95(100 * values[drawn].sum(1) / base[drawn].sum(1))
    return Point(100 * values.sum() / base.sum(), low, high)


def points(table: dict[str, dict[str, Any]], measure: str) -> dict[str, Point]:
    """By setting, in percent of bf16; of speeds the median, least and most of the rounds."""
    base = table[BASE.name][measure]
    if measure != "speed":
        return {name: compared(found[measure], base) for name, found in table.items()}
    ratios = {name: 100 * np.array(found[measure]) / np.array(base) for name, found in table.items()}
    return {name: Point(float(np.median(r)), float(r.min()), float(r.max())) for name, r in ratios.items()}


def table_lines(table: dict[str, dict[str, Any]]) -> list[str]:
    """A line a setting, in Markdown."""
    base = table[BASE.name]
    loss, right = float(np.mean(base["loss"])), 100 * float(np.mean(base["reward"]))
    speed = np.median(base["speed"])
    lines = [f"bf16: {loss:.3f} nats a row over {len(base['loss'])} rows, {right:.1f} % of {len(base['reward'])} tasks "
             f"solved, {speed:,.0f} tokens a second of one thread", "",
             "| | loss | tasks solved, % of bf16's | decoding, times bf16 |", "|---|---|---|---|"]  # fmt: skip
    measures = [points(table, each) for each in ("loss", "reward", "speed")]
    for name in table:
        if name == BASE.name:
            continue
        cost, solved, speed = (each[name] for each in measures)
        lines.append(
            f"| {name} | {cost.value - 100:+.2f} % ({cost.low - 100:+.2f} to {cost.high - 100:+.2f}) "
            f"| {solved.value:.1f} ({solved.low:.1f} to {solved.high:.1f}) | {speed.value / 100:.2f} |"
        )
    return lines


def color_of(setting: str) -> str:
    """By family."""
    for start, color in ((BASE.name, MUTED), ("int", GREEN), ("selective", BLUE), ("everything", PINK)):
        if setting.startswith(start):
            return color
    return ORANGE


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> Path:
    """Loss and tasks against decoding speed, a row of panels a model; an FP8 cache is a hollow point."""
    drawn, axes = figure(2, "What quantizing costs against how fast it decodes", len(results))
    panels = [(name, measure) for name in results for measure in ("loss", "reward")]
    words = {"loss": "loss, % of bf16's (lower is better)", "reward": "tasks solved, % of bf16's"}
    for axis, (name, measure) in zip(axes, panels, strict=True):
        speeds, values = points(results[name], "speed"), points(results[name], measure)
        for number, (setting, point) in enumerate(values.items()):
            color, at = color_of(setting), speeds[setting].value
            ends = [[max(0.0, point.value - point.low)], [max(0.0, point.high - point.value)]]
            fill = "white" if setting.endswith("FP8 cache") else color
            axis.errorbar(at, point.value, yerr=ends, fmt="o", color=color, markerfacecolor=fill, markersize=5,
                          elinewidth=0.7, capsize=2)  # fmt: skip
            place = (4, 3 if number % 2 else -8)
            axis.annotate(str(number), (at, point.value), place, textcoords="offset points", fontsize=7, color=color)
        axis.axhline(100, color=MUTED, linewidth=0.8)
        dress(axis, f"decoding speed, % of bf16's: {name}", words[measure])
        axis.set_xlim(*ends_of([point.value for point in speeds.values()]))
    names = [f"{number} {setting.name}" for number, setting in enumerate(SETTINGS)]
    lines = ["    ".join(names[start : start + 5]) for start in range(0, len(names), 5)]
    drawn.supxlabel("\n".join(lines), fontsize=7, color=INK, x=0.01, ha="left")
    return save(drawn, path)


def ends_of(values: list[float]) -> tuple[float, float]:
    """Ends of an axis that shows all values."""
    room = 0.08 * (max(values) - min(values)) + 1
    return min(values) - room, max(values) + 1.5 * room


if __name__ == "__main__":
    main()
