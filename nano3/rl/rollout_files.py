"""Rollouts of a step as a jsonl file, to be read by people and to be measured again without a model, and their tokens
as arrays beside it: 9 bytes a token, where JSON takes some 26."""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.data.chat.messages import one_line
from nano3.files import write_atomic
from nano3.reading import parse_json, read_text
from nano3.rl.environments.base import Reward, Rollout
from nano3.rl.environments.registry import Source
from nano3.rl.samples import Group, Sample, Segment, after_prompts

FOLDER = "rollouts"
FILE = re.compile(r"step-(?P<old>0\d+|)(?P<step>\d*)\.jsonl")
"""A step's file. Earlier versions counted steps from 0 and wrote six digits, the first of them 0."""
GIVEN, DRAWN, FORCED = 0, 1, 2
"""What a token is, in the arrays."""


@dataclass(frozen=True)
class SavedSample:
    """One line."""

    step: int
    """From 1, as metrics.jsonl counts them."""
    environment: str
    source: Source
    """Of the environment's code, as it was."""
    task: str
    index: int
    seed: int
    messages: tuple[Mapping[str, Any], ...]
    """After the task's prompt."""
    truncated: bool
    segments: tuple[Segment, ...]
    """Without experts."""
    weights_version: int
    reward: Reward | None
    fault: str
    """Kind; empty where there is a reward."""
    fault_message: str

    @property
    def n_drawn(self) -> int:
        """Tokens drawn from the policy."""
        return sum(int(segment.drawn.sum()) for segment in self.segments)

    @property
    def rollout(self) -> Rollout:
        """What its environment measures."""
        return Rollout(self.messages, self.truncated, after_prompts(self.segments))


def rollouts_path(folder: Path, step: int) -> Path:
    """A step's file in a run's folder."""
    return folder / FOLDER / f"step-{step}.jsonl"


def step_of(path: Path) -> int | None:
    """The step, from 1, of a file of rollouts; None for another file."""
    found = FILE.fullmatch(path.name)
    if found is None or not (found["old"] or found["step"]):
        return None
    return int(found["old"]) + 1 if found["old"] else int(found["step"])


def cut_rollouts(folder: Path, step: int) -> None:
    """Remove what was drawn after `step`, for a run that goes on from there and draws it again."""
    for path in (folder / FOLDER).glob("step-*.jsonl"):
        if (step_of(path) or 0) > step:
            path.unlink()
            arrays_path(path).unlink(missing_ok=True)


def arrays_path(path: Path) -> Path:
    """The tokens beside a file of rollouts.

    Arrays `ids` (int32), `kinds` (uint8: 0 given, 1 drawn, 2 forced) and `log_probs` (float32) of all sequences of the
    file one after another, and `lengths` (int64) of the sequences.
    """
    return path.with_suffix(".npz")


def save_rollouts(folder: Path, step: int, groups: Sequence[Group], sources: Mapping[str, Source]) -> Path:
    """Write a step's samples, each file whole or not at all; the same step's of before are replaced.

    Args:
        folder: of the run.
        step: number of the optimizer step, from 1.
        groups: what was drawn.
        sources: where each environment's code comes from, by its name.
    """
    samples = [(group, sample) for group in groups for sample in group.samples]
    lines = [
        json.dumps(_line(step, group, sample, sources[group.environment]), default=_plain) for group, sample in samples
    ]
    path = rollouts_path(folder, step)
    write_atomic(arrays_path(path), _arrays([segment for _, sample in samples for segment in sample.segments]))
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return path


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's, in parts of a reward or a message; anything else as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "size", 1) == 1 else str(value)


def read_rollouts(path: Path) -> Iterator[SavedSample]:
    """Samples of a file, in order.

    Raises:
        UserError: a line that is no saved sample, or arrays that are missing or of another file.
        OSError: the file cannot be read.
    """
    segments = iter(_segments(arrays_path(path)))
    found = FILE.fullmatch(path.name)
    counted_from_0 = bool(found and found["old"])
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        try:
            row = _row(line)
            row["step"] += counted_from_0
            sample = _sample(row, list(itertools.islice(segments, row["segments"])))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{path}, line {number}: no saved rollout ({one_line(error)})") from error
        yield sample


def _line(step: int, group: Group, sample: Sample, source: Source) -> dict[str, Any]:
    reward = sample.reward
    return {
        "step": step, "environment": group.environment, "source": asdict(source), "task": sample.task.id,
        "index": sample.index, "seed": sample.seed, "reward": None if reward is None else asdict(reward),
        "fault": sample.fault, "fault_message": sample.fault_message, "truncated": sample.truncated,
        "messages": sample.messages, "weights_version": sample.weights_version,
        "segments": len(sample.segments), "tokens": sample.n_tokens,
    }  # fmt: skip


def _arrays(segments: Sequence[Segment]) -> bytes:
    def together(name: str, kind: type) -> np.ndarray:
        return np.concatenate([getattr(segment, name) for segment in segments] or [np.zeros(0)]).astype(kind)

    kinds = DRAWN * together("drawn", np.uint8) + FORCED * together("forced", np.uint8)
    file = io.BytesIO()
    np.savez(
        file, ids=together("ids", np.int32), kinds=kinds, log_probs=together("log_probs", np.float32),
        lengths=np.array([len(segment.ids) for segment in segments], np.int64),
    )  # fmt: skip
    return file.getvalue()


def _segments(path: Path) -> list[Segment]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: the tokens of the rollouts beside it") from error
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = [file[name] for name in ("ids", "kinds", "log_probs", "lengths")]
        return _split(*arrays)
    except _DAMAGED as error:
        raise UserError(f"{path} holds no tokens of rollouts ({one_line(error) or type(error).__name__})") from error


_DAMAGED = (
    EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SyntaxError,
    MemoryError, struct.error, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""What NumPy and zipfile raise for files that are no archives of arrays."""


def _split(ids: np.ndarray, kinds: np.ndarray, log_probs: np.ndarray, lengths: np.ndarray) -> list[Segment]:
    """The sequences. Raises ValueError where the arrays do not fit each other."""
    whole = all(array.ndim == 1 and array.dtype.kind in "iu" for array in (ids, kinds, lengths))
    if not whole or log_probs.ndim != 1 or log_probs.dtype.kind != "f":
        raise ValueError("an array is not as nano3 writes it")
    if not len(ids) == len(kinds) == len(log_probs) == lengths.sum() or (lengths < 0).any() or (ids < 0).any():
        raise ValueError("its arrays do not fit each other")
    ends = np.cumsum(lengths)[:-1]
    parts = (np.split(array, ends) for array in (ids, kinds == DRAWN, kinds == FORCED, log_probs))
    return [Segment(*columns) for columns in zip(*parts, strict=True)] if len(lengths) else []


_FIELDS: dict[str, type] = {
    "step": int, "environment": str, "source": dict, "task": str, "index": int, "seed": int, "truncated": bool,
    "messages": list, "weights_version": int, "segments": int, "tokens": int, "fault": str, "fault_message": str,
}  # fmt: skip


def _sample(row: Mapping[str, Any], found: Sequence[Segment]) -> SavedSample:
    if len(found) < row["segments"] or sum(len(segment.ids) for segment in found) != row["tokens"]:
        raise ValueError("the arrays beside it are those of another file")
    reward = None if row["reward"] is None else Reward(**row["reward"])
    if reward is None and not row["fault"]:
        raise ValueError("it has neither a reward nor a fault")
    if reward is not None and not isinstance(reward.parts, dict):
        raise ValueError("the parts of its reward are no object")
    return SavedSample(
        row["step"], row["environment"], _source(row["source"]), row["task"], row["index"], row["seed"],
        tuple(_message(message) for message in row["messages"]), row["truncated"], tuple(found),
        row["weights_version"], reward, row["fault"], row["fault_message"],
    )  # fmt: skip


def _row(line: str) -> dict[str, Any]:
    """The fields of a line. Raises ValueError, LookupError or TypeError where one is missing or of another type."""
    row = parse_json(line)
    for name, kind in _FIELDS.items():
        if type(row[name]) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}")
    if row["segments"] < 0:
        raise ValueError("segments is negative")
    return row


def _source(fields: Mapping[str, Any]) -> Source:
    source = Source(**fields)
    texts = (source.spec, source.package, source.version, source.sha256, *source.requires.values())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a field of source is no text")
    return source


def _message(message: Any) -> Mapping[str, Any]:
    calls = message.get("tool_calls") or ()
    if not all(isinstance(call, dict) and isinstance(call.get("function", call), dict) for call in calls):
        raise ValueError("a call of a message is no object")
    return message
