"""Which settings decide what a run computes, so that a resume with others is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from nano3.train.checkpoint import CheckpointError

FREE = {
    "data.cache_dir",
    "data.generate",
    "train.tokens",
    "train.micro_batch_size",
    "train.dtype",
    "train.checkpoint_activations",
    "train.sequence_chunk",
    "train.continue_state",
}
"""Settings that may change between a checkpoint and its resume, beside the sections not listed in DECIDING.
What data.generate decides, the texts, is compared itself: see nano3.stages.training.fingerprints."""
DECIDING = ("model", "data", "context", "train", "optimizer", "schedule", "balance")
"""Sections that decide what is computed."""
HORIZON = "schedule.horizon_tokens"
ROUNDING = {
    "train.micro_batch_size": "the balance loss is one a micro-batch",
    "train.dtype": "activations are rounded otherwise",
    "train.sequence_chunk": "sums come in another order",
}
"""Free settings that change the numbers a little all the same, and why."""


def deciding_settings(cfg: Any) -> dict[str, Any]:
    """`section.key` to value for all settings that a resumed run must share."""
    return {key: value for key, value in _flat(cfg).items() if key not in FREE}


def rounding_settings(cfg: Any) -> dict[str, Any]:
    """`section.key` to value of the settings in ROUNDING."""
    return {key: value for key, value in _flat(cfg).items() if key in ROUNDING}


def differences(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """`key: saved -> present` for each setting that changed."""
    present = json.loads(json.dumps(settings))
    keys = sorted(saved.keys() | present.keys())
    return [f"{key}: {saved.get(key)} -> {present.get(key)}" for key in keys if saved.get(key) != present.get(key)]


def check_same_run(checkpoint: Path, saved: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise CheckpointError, naming what changed, unless the `settings` are those `saved` in the checkpoint."""
    changed = differences(saved, settings)
    if not changed:
        return
    advice = "use a new run folder"
    if [line for line in changed if line.startswith(HORIZON)] == changed:
        advice = f"the learning rate follows this horizon: keep it with --set {HORIZON}={saved.get(HORIZON)}"
    raise CheckpointError(f"cannot resume {checkpoint} with other settings ({'; '.join(changed[:3])}): {advice}")


def rounding_notes(saved: dict[str, Any], cfg: Any) -> list[str]:
    """A line for each setting that may change, but makes the resumed run differ from one that was not stopped."""
    changed = differences(saved, rounding_settings(cfg)) if saved else []
    return [f"{line}: not exactly the run it was ({ROUNDING[line.split(':')[0]]})" for line in changed]


def _flat(cfg: Any) -> dict[str, Any]:
    sections = {name: dataclasses.asdict(getattr(cfg, name)) for name in DECIDING if hasattr(cfg, name)}
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
