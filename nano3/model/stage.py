"""What trained a model's weights, as its folder says it: config.json, and beside an adapter a file of its own."""

from __future__ import annotations

import json
from pathlib import Path

from nano3.model.find import is_adapter_folder, model_folder
from nano3.model.hf.config import STAGE_KEY, read_stage
from nano3.reading import read_json

ADAPTER_FILE = "nano3.json"
"""Of an adapter's folder. PEFT's own file is not the place: PEFT warns of keys that it does not know."""


def write_adapter_stage(folder: Path, stage: str) -> None:
    """Write down what trained an adapter; nothing where that is not known."""
    if stage:
        (folder / ADAPTER_FILE).write_text(json.dumps({STAGE_KEY: stage}, indent=2) + "\n", encoding="utf-8")


def adapter_stage(folder: str | Path) -> str:
    """The stage that trained an adapter; empty where its folder does not say.

    Raises:
        UserError: a file that is no JSON.
    """
    file = Path(folder) / ADAPTER_FILE
    keys = read_json(file) if file.is_file() else None
    stage = keys.get(STAGE_KEY) if isinstance(keys, dict) else None
    return stage if isinstance(stage, str) else ""


def weights_stage(path: str | Path) -> str:
    """The stage that the weights of a run folder, a Hugging Face folder or an adapter's come from; of an adapter that
    does not say, that of its model. Empty where it is not known.

    Raises:
        UserError: no such folder, or a file that is no JSON.
    """
    return (adapter_stage(path) if is_adapter_folder(path) else "") or read_stage(model_folder(path))
