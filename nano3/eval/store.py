"""The folder of an evaluation: what was asked, each finished sample, the result; a killed evaluation goes on in it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.files import exclusive, write_atomic
from nano3.reading import parse_json

SETTINGS, SAMPLES, RESULT = "settings.json", "samples.jsonl", "result.json"
ANSWERS = "answers.jsonl"
"""lm-eval's single answers, where there are any."""
LOCK = ".lock"
RESULT_REMEDY = "delete it and run the evaluation again, which makes it anew of its samples"
SETTINGS_REMEDY = "without it nobody knows what the samples are of: give another --out, or delete the folder"
SHARES = ("acc", "exact_match", "em", "pass@", "prompt_level", "inst_level")
"""Beginnings of the names of metrics that are shares of right answers, in percent in a result."""
SampleKey = tuple[str, int | None, int]
"""Task, length (None where tasks have none), index."""


@dataclass(frozen=True)
class Score:
    """One number of a result."""

    task: str
    length: int | None
    """Tokens of context; None where the task has none."""
    metric: str
    value: float
    """Accuracies are from 0 to 100."""
    stderr: float | None
    n: int
    """Samples behind it."""
    higher_is_better: bool = True
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % confidence interval."""


@dataclass(frozen=True)
class Result:
    """What result.json holds."""

    kind: str
    """ruler, tasks, lm, experts or heldout."""
    name: str
    model: str
    complete: bool
    settings: Mapping[str, Any]
    scores: Sequence[Score]
    notes: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of a kind's own."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        row = asdict(self)
        return {**{key: value for key, value in row.items() if key != "extra"}, **self.extra}


class Store:
    """An open result folder; made by `open_store`."""

    def __init__(self, folder: Path, rows: dict[SampleKey, dict[str, Any]]) -> None:
        self.folder, self.rows = folder, rows
        # A server's JSON may hold half a surrogate pair: backslashreplace writes it as JSON does.
        self._file = (folder / SAMPLES).open("a", encoding="utf-8", errors="backslashreplace")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one finished sample; it reaches the operating system before this returns. One that is there is not
        written again.

        Raises:
            UserError: the disk is full, or gone.
        """
        key = sample_key(row)
        if key in self.rows:
            return
        try:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.folder / SAMPLES}: {error.strerror}; what is in it stays") from error
        self.rows[key] = dict(row)

    def finish(self, result: Result) -> None:
        """Put result.json in its place. Raises UserError where it cannot be written."""
        try:
            os.fsync(self._file.fileno())
            write_atomic(self.folder / RESULT, _json(result.document()))
        except OSError as error:
            raise UserError(f"cannot write {self.folder / RESULT}: {error.strerror}; finished samples stay") from error

    def notes(self) -> list[str]:
        """What an earlier part of this evaluation noted."""
        path = self.folder / RESULT
        return list(read_object(path, RESULT_REMEDY).get("notes", ())) if path.is_file() else []

    def close(self) -> None:
        """Close the file of samples."""
        # What could not be written was told by `add`; closing tries to write it once more.
        with suppress(OSError):
            self._file.close()


@contextmanager
def open_store(folder: Path, settings: Mapping[str, Any], growing: Sequence[str] = ()) -> Iterator[Store]:
    """Hold a result folder for this process, with what it has of an evaluation with the same settings. One that is made
    here is taken away again when an error comes before the first answer.

    Args:
        folder: made where it is missing.
        settings: what decides the numbers, as JSON holds it.
        growing: names of settings that say how much is done, not how: they may be others than before. A name that
            ends with a dot is a table's: it may have other entries than before, those that both have are the same.

    Raises:
        UserError: it belongs to an evaluation with other settings, to another process, or holds something else.
    """
    check_folder(folder)
    new = not (folder / SETTINGS).exists()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with exclusive(folder):
        check_settings(folder, settings, growing)
        write_atomic(folder / SETTINGS, _json(_merged(folder, settings, growing)))
        store = Store(folder, mend_samples(folder / SAMPLES))
        try:
            yield store
        except BaseException:
            store.close()
            if new and not has_answers(folder):
                _take_away(folder, made)
            raise
        finally:
            store.close()


def has_answers(folder: Path) -> bool:
    """Whether there is a finished sample, or a part of one, in a result folder."""
    return any((folder / name).is_file() and (folder / name).stat().st_size for name in (SAMPLES, ANSWERS))


def _take_away(folder: Path, made: Sequence[Path]) -> None:
    """Remove what `open_store` wrote, and the folders that it made."""
    for name in (SETTINGS, SAMPLES, ANSWERS, RESULT, LOCK):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else came into it
        for path in made:
            path.rmdir()


def check_folder(folder: Path) -> None:
    """Raise UserError for a folder that holds something, but no evaluation: results must not lie among other files."""
    if (folder / SETTINGS).is_file() or not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if SAMPLES in others or RESULT in others:
        raise UserError(f"{folder} holds results but no {SETTINGS}: give another --out")
    if others:
        raise UserError(f"{folder} holds other files ({others[0]}), no evaluation: give another --out, such as "
                        f"{folder / 'eval'}")  # fmt: skip


def check_settings(folder: Path, settings: Mapping[str, Any], growing: Sequence[str] = ()) -> None:
    """Raise UserError, naming the first setting that differs, unless `settings` are those of the folder or it is
    empty."""
    check_folder(folder)
    saved = read_object(folder / SETTINGS, SETTINGS_REMEDY) if (folder / SETTINGS).is_file() else None
    if saved is None:
        return
    now = json.loads(json.dumps(settings))
    before, now = _flat(saved, growing), _flat(now, growing)
    tables = tuple(name for name in growing if name.endswith("."))
    for key in [*now, *(key for key in before if key not in now)]:
        if key.startswith(tables) and not (key in before and key in now):
            continue
        if before.get(key) != now.get(key):
            change = f"{key}: {_shown(before.get(key))} -> {_shown(now.get(key))}"
            raise UserError(f"{folder} holds an evaluation with other settings ({change}): give another --out")


def default_folder(name: str, settings: Mapping[str, Any], growing: Sequence[str] = ()) -> Path:
    """runs/NAME, runs/NAME-2, ...: the first that is free or holds an evaluation with these settings."""
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            check_settings(folder, settings, growing)
        except UserError:
            continue
        return folder
    raise AssertionError


def mend_samples(path: Path) -> dict[SampleKey, dict[str, Any]]:
    """The samples in a file, the first of each key; a torn last line (the process was killed) is cut off the file.

    Raises:
        UserError: a line in the middle that is no sample.
    """
    rows: dict[SampleKey, dict[str, Any]] = {}
    data = path.read_bytes() if path.is_file() else b""
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            rows.setdefault(sample_key(row), row)
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a sample of an evaluation; remove the line") from error
            whole -= len(line) + 1
    if whole < len(data):
        os.truncate(path, whole)
    return rows


def read_samples(path: Path) -> dict[SampleKey, dict[str, Any]]:
    """The whole samples in a file, the first of each key; the file stays as it is."""
    rows: dict[SampleKey, dict[str, Any]] = {}
    for line in path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            row = parse_json(line)
            rows.setdefault(sample_key(row), row)
        except (ValueError, LookupError, TypeError):
            continue
    return rows


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        UserError: it is something else; `remedy` is what to do then.
    """
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    return value


def sample_key(row: Mapping[str, Any]) -> SampleKey:
    """What tells a sample from the others of its evaluation."""
    return row["task"], row.get("length"), row["index"]


def _merged(folder: Path, settings: Mapping[str, Any], growing: Sequence[str]) -> dict[str, Any]:
    """The settings, with entries of growing tables that only an earlier part of the evaluation had."""
    merged = dict(settings)
    saved = read_object(folder / SETTINGS, SETTINGS_REMEDY) if (folder / SETTINGS).is_file() else {}
    for name in (name[:-1] for name in growing if name.endswith(".")):
        if isinstance(saved.get(name), Mapping):
            merged[name] = {**saved[name], **settings.get(name, {})}
    return merged


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _flat(value: Mapping[str, Any], without: Sequence[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if prefix + key in without:
            continue
        if isinstance(inner, Mapping):
            flat |= _flat(inner, without, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
