"""The result of a finished run, kept in its folder: a resume that has nothing to do shows it again."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

from nano3.config.presets import to_toml
from nano3.config.schema import PretrainConfig
from nano3.files import write_atomic
from nano3.stages.new_run import RESULT
from nano3.stages.outcome import Sample, TrainingResult
from nano3.train.heldout import HeldoutScore
from nano3.train.position import Result, RunLength

IDS = ("bos_id", "eos_id", "pad_id")
"""Settings of the model that come from the run's tokenizer."""


def keep_result(result: TrainingResult) -> TrainingResult:
    """Write what `finished_result` reads."""
    training = dataclasses.asdict(result.training)
    training["heldouts"] = [[length, score] for length, score in training["heldouts"].items()]
    table = {
        "training": training,
        "compressors": result.compressors,
        "samples": [dataclasses.asdict(sample) for sample in result.samples],
        "readings": result.readings,
        "opening": result.opening,
    }
    write_atomic(result.run_dir / RESULT, json.dumps(table, indent=1) + "\n")
    return result


def finished_result(cfg: PretrainConfig, run_dir: Path) -> TrainingResult | None:
    """The result of the run, where it is finished with just these settings and its model is there; None otherwise."""
    try:
        settings = (run_dir / "config.toml").read_text(encoding="utf-8")
        ids = {name: tomllib.loads(settings)["model"][name] for name in IDS}
        found = _read(run_dir, json.loads((run_dir / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # never finished, or by an older nano3: whoever resumes it finds out
    same = to_toml(dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **ids))) == settings
    reached = RunLength(cfg.train.tokens, cfg.train.steps).reached(found.training.step, found.training.tokens)
    whole = (found.model_dir / "config.json").is_file() and any(found.model_dir.glob("*.safetensors"))
    return found if same and reached and whole else None


def find_opening(model: str | Path) -> str:
    """How a text of the kind that a run's model was trained on begins; empty where that is not known.

    Args:
        model: a run folder or its model/.
    """
    folder = Path(model)
    run_dir = folder.parent if folder.name == "model" else folder
    try:
        return str(json.loads((run_dir / RESULT).read_text(encoding="utf-8"))["opening"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _read(run_dir: Path, table: dict) -> TrainingResult:
    heldouts = {length: HeldoutScore(**score) for length, score in table["training"]["heldouts"]}
    training = Result(**{**table["training"], "heldouts": heldouts})
    samples = [Sample(**sample) for sample in table["samples"]]
    return TrainingResult(run_dir, training, table["compressors"], samples, table["readings"], table.get("opening", ""))
