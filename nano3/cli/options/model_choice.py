"""Which model a verb works on where its command line names none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nano3.cli.training.run_folder import CONFIG, RUNS, is_main_rank
from nano3.config.errors import UserError
from nano3.config.presets import stage_of
from nano3.model.find import checkpoint_steps, local_model, resume_command
from nano3.reading import read_json, read_toml
from nano3.stages.new_run import RESULT

VARIABLE = "NANO3_MODEL"


def choose_model(given: str | Path | None, option: str, server: bool = False, stages: tuple[str, ...] = ()) -> str:
    """A folder of this machine or a preset: the one named, else NANO3_MODEL, else the newest finished run in runs/.

    Args:
        given: what the command line names; a hub id is downloaded.
        option: the verb's option for it, for messages: --model or --from.
        server: whether the verb's --url would do as well.
        stages: only runs of these verbs are looked for; empty: of any.

    Raises:
        UserError: none is named and there is no finished run, or a hub id that cannot be had.
    """
    named = given or os.environ.get(VARIABLE)
    if named:
        if not given:
            _say(f"model: {named} ({VARIABLE})")
        _tell_earlier_end(Path(named))
        return local_model(named)
    run, words = newest_finished_run(RUNS, stages), " or ".join(stages)
    if run is None and stages:
        raise UserError(
            f"no model is named and {RUNS}/ holds no finished {words} run: give {option} with a run or Hugging Face "
            f"folder, set {VARIABLE}, or train one with `nano3 {stages[0]}`"
        )
    if run is None:
        raise UserError(
            f"no model is named and {RUNS}/ holds no finished run: give {option} with a folder, a model preset or "
            f"ORG/NAME of the Hugging Face hub,{' --url with a server,' * server} set {VARIABLE}, or train one with "
            "`nano3 pretrain`"
        )
    _say(f"model: {run} (the newest finished {f'{words} ' if stages else ''}run; {option} names another)")
    _tell_earlier_end(run)
    return str(run)


def choose_run(given: Path | None, stages: tuple[str, ...]) -> Path:
    """The folder of a run: the one named, else the newest finished run in runs/ of one of these verbs.

    Raises:
        UserError: none is named and there is no such run.
    """
    if given is not None:
        return given
    run, words = newest_finished_run(RUNS, stages), " or ".join(stages)
    if run is None:
        raise UserError(
            f"no run is named and {RUNS}/ holds no finished {words} run: give the folder of one, or make one with "
            f"`nano3 {stages[0]}`"
        )
    _say(f"run: {run} (the newest finished {words} run; its folder as argument names another)")
    return run


def choose_quantized(given: str | None) -> str:
    """The folder of a quantized model: the one named, else the newest in runs/.

    Raises:
        UserError: none is named and there is none.
    """
    if given is not None:
        return given
    configs = [config for config in RUNS.glob("*/config.json") if _is_quantized(config)]
    if not configs:
        raise UserError(
            f"no folder is named and {RUNS}/ holds no quantized model: name one, or make one with `nano3 quantize`"
        )
    newest = max(configs, key=lambda config: config.stat().st_mtime_ns).parent
    _say(f"model: {newest} (the newest quantized one; its folder as argument names another)")
    return str(newest)


def _is_quantized(config: Path) -> bool:
    try:
        return "quantization_config" in read_json(config)
    except (OSError, ValueError, TypeError):
        return False


def _tell_earlier_end(run: Path) -> None:
    """Say of a run that went on after its end, and has no new end yet, which model it has."""
    steps = checkpoint_steps(run)
    try:
        ended = int(read_json(run / RESULT)["training"]["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    if steps and steps[-1] > ended:
        _say(f"note: {run} has gone on to step {steps[-1]} and not finished: its model is that of step {ended}; "
             f"to finish it: {resume_command(run)}")  # fmt: skip


def newest_finished_run(folder: Path, stages: tuple[str, ...] = ()) -> Path | None:
    """The run in `folder` whose model was exported last, which is a run's last step; None where none is finished.

    Args:
        folder: of runs.
        stages: only runs of these verbs; empty: of any.
    """
    exported = [config for config in folder.glob("*/model/config.json") if config.is_file()]
    if stages:
        exported = [config for config in exported if _stage_of(config.parents[1]) in stages]
    return max(exported, key=lambda config: config.stat().st_mtime_ns).parents[1] if exported else None


def _stage_of(run: Path) -> str:
    try:
        return stage_of(read_toml(run / CONFIG))
    except (OSError, ValueError):
        return ""


def _say(line: str) -> None:
    if is_main_rank():
        print(line, file=sys.stderr, flush=True)
