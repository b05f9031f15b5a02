"""`nano3 rlhf genrm`: a generative reward model learns to compare two responses (report section 3.3).

Two runs in one: `nano3 sft` on judgements written out, then `nano3 rlvr` in the environment `genrm`, whose reward is
Equation 1. The run folder:

    config.toml, start.json         of the whole run
    pairs/                          nano3.stages.genrm.pairs
    warm-start/                     run folder of the supervised start; warm-start.json: its summary, once it is done
    grpo/                           run folder of GRPO, with its metrics, rollouts and charts
    judgements/                     nano3.stages.genrm.heldout, of held-out pairs after either part
    judging.json, charts/judging.png    scores of these (nano3.stages.genrm.figures)
    model/                          the judge, a Hugging Face folder
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.genrm import GRPO, WARM_START, GenrmConfig
from nano3.config.presets import load_genrm, to_toml
from nano3.files import atomic_folder, exclusive, write_atomic
from nano3.model.find import model_folder
from nano3.model.hf.folder import read_config
from nano3.reading import read_json
from nano3.stages import rlvr, sft
from nano3.stages.genrm.chart import draw_judging
from nano3.stages.genrm.figures import score
from nano3.stages.genrm.heldout import forget_later, judge_pairs, judgements_file, read_judged, stage_name
from nano3.stages.genrm.outcome import GenrmResult
from nano3.stages.genrm.pairs import (
    PAIRS,
    REJECTS,
    TRAIN,
    Pairs,
    gather_pairs,
    heldout_pairs,
    training_file,
    write_pairs,
)
from nano3.stages.new_run import CHECKPOINTS, CONFIG, START
from nano3.stages.policy.outcome import RlvrResult
from nano3.stages.run_folder import processes, say, start
from nano3.stages.settings import check_policy_settings, check_settings
from nano3.stages.sft_rows import on_main
from nano3.stages.sft_tokenizer import find_tokenizer
from nano3.stages.start import check_weights
from nano3.train.checkpoint.checkpointer import CheckpointError
from nano3.train.checkpoint.run_identity import differences
from nano3.train.tracking.progress import Progress
from nano3.train.world import World

SUMMARY, JUDGING = "warm-start.json", "judging.json"
CHART = Path("charts") / "judging.png"
FREE = ("judging.memory", "judging.sequences")
"""Settings of the sections below that may change when a run is resumed."""


def main(
    cfg: GenrmConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> GenrmResult:
    """Train the model at `from_path` to judge pairs of responses and leave a run folder; see the module.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture replaces cfg's. A resume knows it
            from the run folder.
        resume: continue where `run_dir` is: in the supervised start, the judging, or GRPO.
        progress: where training reports; the terminal by default.
        checkpoint: with `resume`, continue GRPO from its checkpoint of this step instead.

    Returns:
        Also where a stop rule ended GRPO: `grpo.stopped` says why.

    Raises:
        UserError: pairs, model or settings that cannot be used, or neither `from_path` nor `resume` is given.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    source, _ = start(run_dir, from_path, resume)
    if source is None:
        raise UserError("rlhf genrm goes on from a trained model: name a run or Hugging Face folder with --from")
    if checkpoint is not None and not (run_dir / GRPO / CHECKPOINTS).is_dir():
        raise UserError(f"{run_dir}: step {checkpoint} would be one of GRPO, which has no checkpoint yet")
    if not resume:
        cfg = dataclasses.replace(cfg, model=read_config(model_folder(source)))
    with processes(cfg, run_dir) as world:
        cfg, pairs = _prepare(cfg, run_dir, source, resume, world)
        with exclusive(run_dir) if world.is_main else nullcontext():
            before = (run_dir / CONFIG).read_text(encoding="utf-8") if resume else ""
            on_main(world, lambda: _keep(cfg, pairs, run_dir, source))
            try:
                return _train(cfg, run_dir, source, progress, world, checkpoint)
            except UserError:
                # A part may refuse the settings that it is resumed with: the run keeps those that it has.
                if before and world.is_main:
                    write_atomic(run_dir / CONFIG, before)
                raise


def _train(
    cfg: GenrmConfig, run_dir: Path, source: Path, progress: Progress | None, world: World, checkpoint: int | None
) -> GenrmResult:
    """Both parts, each followed by its scores; what a resume finds done is not done again."""
    counts, stages = _counts(run_dir), {"warm_start": WARM_START}
    warm = _warm_start(cfg, run_dir, source, progress, world)
    if warm["interrupted"]:
        return GenrmResult(run_dir, counts, warm)
    _judge(cfg, run_dir, run_dir / WARM_START, WARM_START, world)
    trained = _grpo(cfg, run_dir, progress, world, checkpoint)
    if trained.stopped or trained.training.interrupted:
        return GenrmResult(run_dir, counts, warm, trained, _score(cfg, run_dir, stages, world))
    stages["grpo"] = stage_name(trained.training.step)
    _judge(cfg, run_dir, run_dir / GRPO, stages["grpo"], world)
    judging = _score(cfg, run_dir, stages, world)
    on_main(world, lambda: _take_model(run_dir / GRPO / "model", run_dir / "model"))
    return GenrmResult(run_dir, counts, warm, trained, judging)


def _prepare(
    cfg: GenrmConfig, run_dir: Path, source: Path, resume: bool, world: World
) -> tuple[GenrmConfig, Pairs | None]:
    """The settings, and on the main rank the pairs of a run that has none yet; nothing is written."""
    if not resume:
        check_weights(cfg.model, source)
        find_tokenizer("", source)
    check_settings(cfg.sft(""), world.data.size)
    check_policy_settings(cfg.rlvr(""))
    if resume:
        _check_same(cfg, run_dir)
    found: list[Pairs] = []
    if not (run_dir / PAIRS).is_dir():
        on_main(world, lambda: found.append(gather_pairs(cfg.data, cfg.judging.pairs)))
    return cfg, found[0] if found else None


def _keep(cfg: GenrmConfig, pairs: Pairs | None, run_dir: Path, source: Path) -> None:
    """Write down what a resume needs to know."""
    write_atomic(run_dir / START, json.dumps({"from": str(source)}) + "\n")
    write_atomic(run_dir / CONFIG, to_toml(cfg))
    if pairs is not None:
        write_pairs(pairs, run_dir)
        say(pairs.line())


def _check_same(cfg: GenrmConfig, run_dir: Path) -> None:
    """Refuse settings other than those that the parts of the run which are done were done with; of the parts that go
    on, the stages themselves know what may change.

    Raises:
        UserError: which.
    """
    before = load_genrm(str(run_dir / CONFIG))
    sections = ["data", "reward", "judging"] + ["warm_start"] * (run_dir / SUMMARY).is_file()
    changed = differences(*(_flat(each, sections) for each in (before, cfg)))
    if changed:
        raise UserError(f"cannot resume {run_dir} with other settings ({'; '.join(changed[:3])}): use a new run folder")


def _flat(cfg: GenrmConfig, sections: list[str]) -> dict[str, Any]:
    def keys(table: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in table.items():
            found |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    flat = keys({section: dataclasses.asdict(getattr(cfg, section)) for section in sections}, "")
    return {key: value for key, value in flat.items() if key not in FREE}


def _counts(run_dir: Path) -> dict[str, int]:
    def lines(name: str) -> int:
        with (run_dir / PAIRS / name).open("rb") as file:
            return sum(1 for _ in file)

    return {"train": lines(TRAIN), "heldout": len(heldout_pairs(run_dir)), "refused": lines(REJECTS)}


def _warm_start(
    cfg: GenrmConfig, run_dir: Path, source: Path, progress: Progress | None, world: World
) -> dict[str, Any]:
    """Summary of the supervised start, which is done here unless it was."""
    if (run_dir / SUMMARY).is_file():
        return read_json(run_dir / SUMMARY)
    if world.is_main:
        say("supervised start")
    folder = run_dir / WARM_START
    begun = _begun(folder, world)
    settings = cfg.sft(training_file(run_dir))
    try:
        result = sft.main(settings, folder, None if begun else source, begun, progress).summary()
    except CheckpointError as error:
        told = str(error).replace("--set ", "--set warm_start.")
        raise UserError(f"warm_start: {told}") from error
    if not result["interrupted"]:
        on_main(world, lambda: write_atomic(run_dir / SUMMARY, json.dumps(result, indent=1) + "\n"))
    return result


def _grpo(
    cfg: GenrmConfig, run_dir: Path, progress: Progress | None, world: World, checkpoint: int | None
) -> RlvrResult:
    if world.is_main:
        say("GRPO")
    folder = run_dir / GRPO
    begun = _begun(folder, world)
    settings = cfg.rlvr(training_file(run_dir))
    if checkpoint is not None:
        on_main(world, lambda: forget_later(run_dir, checkpoint))
    return rlvr.main(settings, folder, None if begun else run_dir / WARM_START, begun, progress, checkpoint)


def _begun(folder: Path, world: World) -> bool:
    """Whether a part has come so far that it can be resumed; what else it left is removed."""
    begun = (folder / START).is_file()
    if world.is_main and not begun:
        shutil.rmtree(folder, ignore_errors=True)
    return world.from_main(begun)


def _judge(cfg: GenrmConfig, run_dir: Path, model: Path, name: str, world: World) -> None:
    """Judgements of the held-out pairs by the model of a part, unless they are there."""
    file = judgements_file(run_dir, name)

    def judge() -> None:
        if not file.is_file():
            pairs = heldout_pairs(run_dir)
            say(f"judging {len(pairs):,} held-out pairs")
            judge_pairs(model_folder(model), pairs, cfg, file, say, world.device)

    on_main(world, judge)


def _score(cfg: GenrmConfig, run_dir: Path, stages: dict[str, str], world: World) -> dict[str, Any]:
    """Figures of all judgements, kept in the run folder; on the main rank."""
    if not world.is_main:
        return {}
    judged = {stage: read_judged(judgements_file(run_dir, name)) for stage, name in stages.items()}
    scoring = score(judged, cfg.reward.c1, cfg.reward.c2)
    table = scoring.table()
    write_atomic(run_dir / JUDGING, json.dumps(table, indent=1) + "\n")
    draw_judging(scoring, judged, run_dir / CHART)
    return table


def _take_model(model: Path, target: Path) -> None:
    """The folder of a part as the run's own: links to its files where the file system has them, else copies."""
    with atomic_folder(target) as folder:
        for file in model.iterdir():
            try:
                os.link(file, folder / file.name)
            except OSError:
                shutil.copy2(file, folder / file.name)
