"""Which settings decide what a run computes, so that a resume with others is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

FREE = {
    "data.cache_dir",
    "train.tokens",
    "train.micro_batch_size",
    "train.dtype",
    "train.checkpoint_activations",
    "train.compile",
    "train.continue_state",
}
"""Settings that may change between a checkpoint and its resume, beside the sections not listed in DECIDING."""
DECIDING = ("model", "data", "train", "optimizer", "schedule", "balance")
"""Sections that decide what is computed."""


def deciding_settings(cfg: Any) -> dict[str, Any]:
    """`section.key` to value for all settings that a resumed run must share."""
    sections = {name: dataclasses.asdict(getattr(cfg, name)) for name in DECIDING if hasattr(cfg, name)}
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {key: value for key, value in flat.items() if key not in FREE}


def config_hash(cfg: Any) -> str:
    """Hash of the deciding settings."""
    return hashlib.sha256(json.dumps(deciding_settings(cfg), sort_keys=True).encode()).hexdigest()


def differences(saved: dict[str, Any], cfg: Any) -> list[str]:
    """`key: saved -> present` for each deciding setting that changed."""
    present = json.loads(json.dumps(deciding_settings(cfg)))
    keys = sorted(saved.keys() | present.keys())
    return [f"{key}: {saved.get(key)} -> {present.get(key)}" for key in keys if saved.get(key) != present.get(key)]
