"""Which settings decide what a run computes, so that a resume with others is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.schema import ScheduleConfig
from nano3.train.checkpoint.checkpointer import CheckpointError, Saved
from nano3.train.position import Position

FREE = {
    "data.cache_dir",
    "data.generate",
    "train.tokens",
    "train.steps",
    "train.micro_batch_size",
    "train.dtype",
    "train.checkpoint_activations",
    "train.sequence_chunk",
    "train.continue_state",
    "rollout.save",
    "rollout.memory",
    "environments.workers",
    "environments.seconds",
    "curriculum.profile",
    "judge.spec",
    "judge.memory",
    "judge.sequences",
    "judge.cache",
    "judge.workers",
    "judge.tries",
    "judge.wait",
}
"""Settings that may change between a checkpoint and its resume, beside those of FREE_SECTIONS.
What data.generate decides, the texts, is compared itself: see nano3.stages.training.fingerprints."""
FREE_SECTIONS = ("heldout", "checkpoint", "parallel", "log", "sample", "export", "stop", "sync")
"""Sections that decide nothing of what is computed; all others do, whatever the stage."""
OTHERWISE = ("schedule.", "optimizer.", "balance.", "objective.", "rollout.")
"""Begins of settings that may change where a resume names the checkpoint to go on from: how to learn, not from what."""
SHAPE = ("rollout.prompts",)
"""Settings among those that what is saved depends on."""
HORIZON = "schedule.horizon_"
"""Begin of the key of the horizon, which ends in its unit."""
ROUNDING = {
    "train.micro_batch_size": "the balance loss is one a micro-batch",
    "train.dtype": "activations are rounded otherwise",
    "train.sequence_chunk": "sums come in another order",
    "judge.spec": "the rest is scored by another judge, unless it is the same model at another place",
}
"""Free settings that change the numbers a little all the same, and why."""


def deciding_settings(cfg: Any) -> dict[str, Any]:
    """`section.key` to value for all settings that a resumed run must share."""
    return {key: value for key, value in _flat(cfg).items() if key not in FREE}


def rounding_settings(cfg: Any) -> dict[str, Any]:
    """`section.key` to value of the settings in ROUNDING."""
    return {key: value for key, value in _flat(cfg).items() if key in ROUNDING}


def default_settings(cfg: Any) -> dict[str, Any]:
    """`section.key` to default: what a checkpoint means that was written before nano3 had the setting."""
    sections = {section.name: getattr(cfg, section.name) for section in _deciding_sections(cfg)}
    return {
        f"{name}.{field.name}": field.default if field.default_factory is MISSING else field.default_factory()
        for name, section in sections.items()
        for field in dataclasses.fields(section)
        if field.default is not MISSING or field.default_factory is not MISSING
    }


def differences(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """`key: saved -> present` for each setting that changed."""
    present = json.loads(json.dumps(settings))
    keys = sorted(saved.keys() | present.keys())
    return [f"{key}: {saved.get(key)} -> {present.get(key)}" for key in keys if saved.get(key) != present.get(key)]


def check_same_run(checkpoint: Saved, settings: dict[str, Any], cfg: Any) -> list[str]:
    """A line for each setting of `cfg` that is not as in the checkpoint and may be another.

    Args:
        checkpoint: to go on from.
        settings: of the run, that must be the same.
        cfg: the run's configuration, whose defaults stand for settings that the checkpoint does not know.

    Raises:
        CheckpointError: another setting differs; it is named.
    """
    saved = checkpoint.state["settings"]
    known = {key: value for key, value in default_settings(cfg).items() if key in settings}
    # Earlier versions saved settings that have become free since.
    decided = {key: value for key, value in saved.items() if not _is_free(key)}
    saved = json.loads(json.dumps(known)) | decided
    changed = differences(saved, settings)
    step = checkpoint.state["position"]["step"]
    fixed = [line for line in changed if not line.startswith(OTHERWISE) or line.startswith(SHAPE)]
    if not changed or (checkpoint.named and not fixed):
        told = [f"from step {step} on with another setting, {line}" for line in changed]
        return told + rounding_notes(checkpoint.state.get("rounding", {}), cfg)
    advice = "use a new run folder"
    if not fixed:
        advice += f", or leave what came after this checkpoint and go on otherwise with --checkpoint {step}"
    if len(changed) == 1 and changed[0].startswith(HORIZON):
        key = changed[0].partition(":")[0]
        advice = f"the learning rate follows this horizon: keep it with --set {key}={saved.get(key)}"
    raise CheckpointError(f"cannot resume {checkpoint.path} with other settings ({'; '.join(changed[:3])}): {advice}")


def rounding_notes(saved: dict[str, Any], cfg: Any) -> list[str]:
    """A line for each setting that may change, but makes the resumed run differ from one that was not stopped."""
    changed = differences(saved, rounding_settings(cfg)) if saved else []
    return [f"{line}: not exactly the run it was ({ROUNDING[line.split(':')[0]]})" for line in changed]


def _is_free(key: str) -> bool:
    return key in FREE or key.partition(".")[0] in FREE_SECTIONS


def _flat(cfg: Any) -> dict[str, Any]:
    sections = {section.name: dataclasses.asdict(getattr(cfg, section.name)) for section in _deciding_sections(cfg)}
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _deciding_sections(cfg: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cfg) if field.name not in FREE_SECTIONS]


def check_start(schedule: ScheduleConfig, path: Path, start: Position, step_tokens: int) -> None:
    """Refuse a stated start of the schedule that is not where another run's checkpoint ends, to within a step's tokens.

    Args:
        schedule: settings of the run that goes on.
        path: that checkpoint.
        start: the schedule position that it leads to.
        step_tokens: tokens of one of its steps.

    Raises:
        UserError: another start is stated.
    """
    ends = {
        "start_tokens": (schedule.start_tokens, start.schedule_start, step_tokens),
        "start_steps": (schedule.start_steps, start.schedule_start_step, 0),
    }
    for key, (stated, end, near) in ends.items():
        if stated and abs(end - stated) > near:
            unit = key.removeprefix("start_").rstrip("s")
            raise UserError(
                f"schedule.{key} is {stated}, but {path} is at {unit} {end}: finish that run, or say "
                f"--set schedule.{key}={end}"
            )
