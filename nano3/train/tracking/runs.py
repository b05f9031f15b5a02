"""What the files of run folders tell about their runs; nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.genrm import GRPO, WARM_START
from nano3.config.presets import command_of, preset_names, stage_of
from nano3.files import in_use
from nano3.reading import parse_json, parse_toml
from nano3.train.tracking.metrics import CLOCK, FINAL, MOST, numbers, read_metrics

CONFIG, METRICS, CHECKPOINTS, MODEL = "config.toml", "metrics.jsonl", "checkpoints", "model"
FINISHED, RUNNING, INTERRUPTED, DAMAGED = "finished", "running", "interrupted", "damaged"


@dataclass(frozen=True)
class Score:
    """Held-out text, as it was scored last at one length."""

    seq_len: int | None
    loss: float
    """Nats a token."""
    bits_per_byte: float
    targets: int
    """Tokens scored."""
    final: bool
    """Whether this is the score at the end of the run; else it is of a sample, on the way."""


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    verb: str
    """The command that made it, from the sections of its settings."""
    preset: str | None
    """The preset that its folder is named after; None where the folder has another name."""
    state: str
    """FINISHED, RUNNING, INTERRUPTED (a resume goes on) or DAMAGED."""
    trouble: str | None
    """What is wrong with a damaged run."""
    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained on."""
    planned_tokens: int | None
    """Tokens of the whole run; None where it counts steps, or for a damaged one."""
    loss: float | None
    """Training loss of the last step; None where it is trained on rewards."""
    reward: float | None
    """Mean reward of the last step's rollouts, where it is trained on them."""
    scores: list[Score]
    """The last score at each length; the first is the score of the run."""
    seconds: float | None
    """Training time, without evaluation and checkpoints."""
    changed: datetime | None
    """When metrics.jsonl was written last."""

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        changed = self.changed.isoformat(timespec="seconds") if self.changed else None
        return asdict(self) | {"path": str(self.path), "changed": changed}


def find_runs(folder: Path) -> list[Run]:
    """The runs that lie in `folder`, or the run that it is; the one that wrote last comes first.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; runs go to runs/ where no --out is given")
    found = [read_run(path) for path in _run_folders(folder)]
    return sorted(found, key=lambda run: (run.changed is None, -(run.changed.timestamp() if run.changed else 0)))


def read_run(path: Path) -> Run:
    """What the files of one run folder tell."""
    settings, trouble = _settings(path)
    stage, measured = stage_of(settings), metrics_file(path)
    lines = read_metrics(measured)
    train = [line for line in lines if line["kind"] == "train"]
    last = train[-1] if train else {}
    trouble = trouble or _damage(path)
    step, tokens = last.get("step", 0), last.get("tokens", 0)
    return Run(
        path=path,
        verb=command_of(stage),
        preset=_preset(path, stage),
        state=_state(path, settings, trouble, step, tokens),
        trouble=trouble,
        step=step,
        tokens=tokens,
        planned_tokens=None if settings["train"].get("steps") else settings["train"].get("tokens"),
        loss=last.get("loss"),
        reward=last.get("reward"),
        scores=_scores(lines),
        seconds=last.get(CLOCK, {}).get("seconds"),
        changed=_changed(measured),
    )


def metrics_file(path: Path) -> Path:
    """The metrics of a run; of one in two parts those of the part that it is in."""
    parts = [path / part / METRICS for part in (GRPO, WARM_START)]
    return next((file for file in parts if file.exists()), path / METRICS)


def _run_folders(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
        return
    yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and _is_run(path))


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS))


def _settings(path: Path) -> tuple[dict[str, Any], str | None]:
    """config.toml, and what is wrong with it; a run that died while it prepared its data has none."""
    nothing: dict[str, Any] = {"train": {}}
    try:
        settings = parse_toml((path / CONFIG).read_text("utf-8"))
    except FileNotFoundError:
        return nothing, f"no {CONFIG}" if (path / METRICS).exists() else None
    except (OSError, ValueError) as error:
        return nothing, f"{CONFIG} cannot be read: {error}"
    train = settings.get("train")
    if not isinstance(train, dict):
        return nothing, f"{CONFIG} has no [train]"
    for key in ("steps", "tokens"):
        if not isinstance(value := train.get(key, 0), int) or abs(value) >= MOST:
            return nothing, f"{CONFIG}: train.{key} is no number of {key}"
    return settings, None


def _state(path: Path, settings: dict[str, Any], trouble: str | None, step: int, tokens: int) -> str:
    if in_use(path):
        return RUNNING
    if trouble:
        return DAMAGED
    train = settings["train"]
    reached = step >= train["steps"] if train.get("steps") else 0 < train.get("tokens", 0) <= tokens
    return FINISHED if reached and (path / MODEL / "config.json").is_file() else INTERRUPTED


def _damage(path: Path) -> str | None:
    """What keeps a run from going on and its model from being used; contents of the weights are not read."""
    steps = sorted((path / CHECKPOINTS).glob("step-*")) if (path / CHECKPOINTS).is_dir() else []
    if steps and not any(_is_whole(step) for step in steps):
        return "no checkpoint is whole"
    model = path / MODEL
    if (model / "config.json").is_file() and not any(model.glob("*.safetensors")):
        return f"{MODEL}/ has no weights"
    return None


def _is_whole(step: Path) -> bool:
    """Whether every file that the manifest of a checkpoint lists is there in its size."""
    try:
        files = parse_json((step / "manifest.json").read_text("utf-8"))["files"]
        return all((step / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _scores(lines: list[dict[str, Any]]) -> list[Score]:
    scored = [line for line in numbers(numbers(lines, "bits_per_byte"), "loss") if line["kind"] == "heldout"]
    last = {line.get("seq_len"): line for line in scored}
    return [
        Score(length, line["loss"], line["bits_per_byte"], line.get("targets", 0), bool(line.get(FINAL)))
        for length, line in last.items()
    ]


def _preset(path: Path, verb: str) -> str | None:
    """NAME of runs/VERB-NAME and runs/VERB-NAME-2, where a preset of the verb has that name."""
    name, prefix = path.resolve().name, f"{verb}-"
    if not name.startswith(prefix):
        return None  # sft, rlvr and others are names of presets too, and folders that people name themselves
    name = name.removeprefix(prefix)
    candidates = (name, re.sub(r"-\d+$", "", name))
    return next((one for one in candidates if one in preset_names(verb)), None)


def _changed(metrics: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(metrics.stat().st_mtime, UTC).astimezone()
    except OSError:
        return None
