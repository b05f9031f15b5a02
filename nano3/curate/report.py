"""The report of a run, from the accounts of its steps: also of one that is still going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nano3.curate.catalog import STEPS
from nano3.curate.ledger import SAMPLE_CHARACTERS, Account, Sample, Size, read_accounts
from nano3.curate.manifest import Manifest, read_manifest
from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.find import CURATED_DATA, CURATION_REPORT
from nano3.files import in_use, write_atomic

REPORT = CURATION_REPORT
DOCUMENT = {"text", "id", "metadata"}
"""Keys of a document of the result, see `nano3.curate.shards`; a conversation has those of its record."""


@dataclass(frozen=True)
class StepReport:
    """One step, all of its tasks that are done together."""

    label: str
    tasks: int
    account: Account


@dataclass(frozen=True)
class Report:
    """What a run has done so far, or in all."""

    out: Path
    manifest: Manifest
    steps: tuple[StepReport, ...]
    finished: bool
    running: bool

    @property
    def entered(self) -> Size:
        """What the reader found."""
        return self.steps[0].account.entered

    @property
    def result(self) -> Size:
        """What the last step let through."""
        return self.steps[-1].account.left

    @property
    def token_unit(self) -> str:
        """What the tokens are: those of a tokenizer, or words."""
        return "tokens" if self.manifest.settings["pipeline"]["tokenizer"] else "words"

    def faults(self) -> list[str]:
        """Where documents, bytes or tokens came or went without being counted; empty: nowhere.

        Within a step what entered must have been kept or dropped; between two that are done what left the first must
        have entered the second.
        """
        found = [
            f"{step.label}: {_size_text(step.account.entered)} entered, {_size_text(step.account.kept)} were kept and "
            f"{_size_text(step.account.all_dropped())} dropped"
            for step in self.steps
            if not step.account.is_balanced()
        ]
        for one, other in zip(self.steps, self.steps[1:], strict=False):
            done = one.tasks == other.tasks == self.manifest.tasks
            if done and one.account.left != other.account.entered:
                found.append(
                    f"{_size_text(one.account.left)} left {one.label}, {_size_text(other.account.entered)} entered "
                    f"{other.label}"
                )
        return found

    def shares(self) -> dict[str, tuple[float, float]]:
        """Label -> share of the tokens that entered a step and were dropped, and what the report publishes for it."""
        found = {}
        for step in self.steps:
            info = STEPS.get(step.label.partition("-")[2])
            if info and info.published_share is not None and step.account.entered.tokens:
                dropped = step.account.all_dropped().tokens / step.account.entered.tokens
                found[step.label] = (dropped, info.published_share)
        return found

    def samples(self) -> list[tuple[str, str, Sample]]:
        """Step, reason and document of everything dropped that the report shows."""
        return [
            (step.label, reason, sample)
            for step in self.steps
            for reason, dropped in sorted(step.account.dropped.items())
            for sample in dropped.samples
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "pipeline": self.manifest.name,
            "folder": str(self.out),
            "finished": self.finished,
            "running": self.running,
            "balanced": not self.faults(),
            "faults": self.faults(),
            "token_unit": self.token_unit,
            "tokenizer": self.manifest.settings["pipeline"]["tokenizer"],
            "inputs": len(self.manifest.inputs),
            "left_out": self.manifest.left_out,
            "tasks": self.manifest.tasks,
            "entered": asdict(self.entered),
            "result": asdict(self.result),
            "steps": [_step_json(step) for step in self.steps],
            "token_shares": {
                label: {"dropped": round(share, 4), "published": published}
                for label, (share, published) in self.shares().items()
            },
        }


def read_report(out: Path) -> Report:
    """The report of a folder, from the accounts of all tasks that are done.

    Raises:
        UserError: no curated data there.
    """
    manifest = read_manifest(out)
    steps = []
    for label in manifest.labels:
        paths = list((out / "accounts" / label).glob("*.json"))
        steps.append(StepReport(label, len(paths), read_accounts(paths)))
    finished = is_finished(out)
    return Report(out, manifest, tuple(steps), finished, not finished and in_use(out))


def is_finished(out: Path) -> bool:
    """Whether a run in this folder has come to its end."""
    return (out / REPORT).is_file()


def kept_samples(report: Report, most: int) -> Iterator[tuple[str, str]]:
    """Name and beginning of the first documents of the result of a run that is done; a conversation is its record,
    named by its place."""
    paths = sorted((report.out / CURATED_DATA).glob("*.jsonl*")) if report.finished else []
    for name, line in islice((one for path in paths for one in _lines(path)), most):
        record = json.loads(line)
        if record.keys() == DOCUMENT:
            name, line = record["id"], record["text"]
        yield name, line[:SAMPLE_CHARACTERS]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield f"{path.name}:{number}", line.decode("utf-8", "replace").rstrip("\n")


def save_report(out: Path) -> None:
    """Write the report of a run that is done."""
    table = read_report(out).to_json() | {"finished": True, "running": False, "folder": None}
    write_atomic(out / REPORT, json.dumps(table, indent=1))


def _step_json(step: StepReport) -> dict[str, Any]:
    account = step.account
    return {
        "step": step.label,
        "tasks_done": step.tasks,
        "entered": asdict(account.entered),
        "kept": asdict(account.kept),
        "left": asdict(account.left),
        "dropped": {
            reason: {**asdict(dropped.size), "samples": [asdict(sample) for sample in dropped.samples]}
            for reason, dropped in sorted(account.dropped.items())
        },
        "notes": dict(sorted(account.notes.items())),
    }


def _size_text(size: Size) -> str:
    return f"{size.documents:,} documents, {size.bytes:,} bytes, {size.tokens:,} tokens"
