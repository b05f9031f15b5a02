"""The data sets of a blend: what each reads, and its encoded rows in a folder."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.config.sft import ChatDataConfig, SftConfig
from nano3.data.chat.encoding import Encoders, Outcome
from nano3.data.chat.records import Record, check_spec, read_records
from nano3.data.chat.rows import Rows, RowWriter
from nano3.data.preferences.chat_rows import check_preferences, is_preferences, preference_records
from nano3.data.tasks.catalogue import find_tasks, is_tasks
from nano3.data.tasks.source import Split
from nano3.data.texts.readers import Skipped
from nano3.data.tokens.tokenizer import Tokenizer

REJECTS = "rejects.jsonl"
TOLD_SECONDS = 20.0
"""Time between two lines on a data set that takes long."""


@dataclass
class SetReport:
    """What became of one data set."""

    name: str
    records: int = 0
    """Records read."""
    rows: int = 0
    """Rows that are trained on."""
    heldout: int = 0
    """Rows held out."""
    tokens: int = 0
    """Tokens of the rows that are trained on."""
    trained: int = 0
    """Of these, tokens that the model is trained to write."""
    cut: int = 0
    """Rows that were longer than data.pack_length and are trained on up to there."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Records, or rows of a conversation, left out by reason."""
    reasoning: Counter[str] = field(default_factory=Counter)
    """Rows with reasoning by what became of it: kept, stripped, truncated."""
    skipped: Skipped = field(default_factory=Skipped)
    """Files of folders that were left out."""
    first_problem: str = ""
    """Place and reason of the first row that was left out."""

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "records": self.records,
            "rows": self.rows,
            "heldout_rows": self.heldout,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "cut": self.cut,
            "rejected": dict(self.rejected),
            "reasoning": dict(self.reasoning),
            "skipped_files": dict(self.skipped.counts),
        }

    @classmethod
    def of(cls, values: dict[str, Any]) -> SetReport:
        """What `values` gave. Raises KeyError or TypeError for anything else."""
        return cls(
            values["name"],
            records=values["records"],
            rows=values["rows"],
            heldout=values["heldout_rows"],
            tokens=values["tokens"],
            trained=values["trained_tokens"],
            cut=values["cut"],
            rejected=Counter(values["rejected"]),
            reasoning=Counter(values["reasoning"]),
            skipped=Skipped(Counter(values["skipped_files"])),
        )


def check_data(cfg: ChatDataConfig) -> None:
    """Raise UserError for a source that is named and not there; data sets without one are not looked at."""
    for name, specs in cfg.sources.items():
        for spec in specs:
            _check_spec(spec, name)


def set_sources(cfg: ChatDataConfig) -> dict[str, list[str]]:
    """What each data set with a share reads.

    Raises:
        UserError: no data set, one without a source, a source of one without a share, or a path that is not there.
    """
    wanted = [name for name, share in cfg.blend.items() if share > 0]
    if not wanted:
        raise UserError("data.blend names no data set: give conversations with --data PATH")
    unread = [name for name in cfg.sources if name not in cfg.blend]
    if unread:
        raise UserError(f"data.sources.{unread[0]} is not read, since data.blend has no share for it")
    found = {name: cfg.sources.get(name) or [PREFIX + name] for name in wanted}
    for name, specs in found.items():
        if not cfg.sources.get(name) and not (is_tasks(PREFIX + name) or is_preferences(PREFIX + name)):
            raise UserError(
                f"data set {name!r} has no source: --set 'data.sources.{name}=[\"PATH\"]', or give its files with "
                "--data PATH"
            )
        for spec in specs:
            _check_spec(spec, name)
    return found


def _check_spec(spec: str, name: str) -> None:
    if is_preferences(spec):
        check_preferences(spec, f"data.sources.{name}")
    elif spec.startswith(PREFIX):
        find_tasks(spec)
    else:
        check_spec(spec, f"data.sources.{name}")


def set_records(specs: Sequence[str], cfg: ChatDataConfig, skipped: Skipped) -> Iterator[Record]:
    """All records of a data set. Raises as `read_records`."""
    for spec in specs:
        if is_preferences(spec):
            yield from preference_records(spec, cfg.generated_rows, cfg.heldout_fraction, cfg.seed, skipped)
        elif is_tasks(spec):
            yield from _made(spec, cfg)
        else:
            yield from read_records(spec, skipped)


def _made(spec: str, cfg: ChatDataConfig) -> Iterator[Record]:
    """Rows that nano3 makes: those to train on, then those held out, which share no task with them."""
    heldout = round(cfg.generated_rows * cfg.heldout_fraction)
    counts: dict[Split, int] = {"train": cfg.generated_rows, "heldout": heldout}
    for split, count in counts.items():
        for number, row in enumerate(find_tasks(spec, cfg.seed, split).rows(count), start=1):
            label = spec if split == "train" else f"{spec} held out"
            yield Record(label, number, row, heldout=split == "heldout")


def write_sets(
    cfg: SftConfig,
    tokenizer: Tokenizer,
    folder: Path,
    rejects: IO[str],
    say: Callable[[str], None],
    processes: int = 0,
) -> list[SetReport]:
    """Encode all data sets of the blend, a folder each below `folder`; a line of JSON in `rejects` for each row that is
    left out. The rows are the same, in the same order, whatever the number of processes.

    Args:
        processes: that encode; 0: as many as there are cores.

    Raises:
        UserError: a data set that cannot be read or that leaves no row to train on, and with data.bad_rows = "error"
            the first row that is refused.
        FileNotFoundError: a path that is not there.
    """
    sources, reports = set_sources(cfg.data), []
    with Encoders(cfg, tokenizer, processes) as encoders:
        for name, specs in sources.items():
            report = SetReport(name)
            outcomes = encoders.outcomes(set_records(specs, cfg.data, report.skipped))
            _write_set(report, _told(outcomes, report, say), cfg.data, folder / name, rejects)
            say(report_line(report))
            reports.append(report)
    return reports


def _told(outcomes: Iterator[Outcome], report: SetReport, say: Callable[[str], None]) -> Iterator[Outcome]:
    """What became of the records, with a line now and then on how many there were."""
    told = time.monotonic()
    for outcome in outcomes:
        yield outcome
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            say(f"{report.name}: {report.records:,} records read, {report.rows:,} rows so far")


def _write_set(
    report: SetReport, outcomes: Iterator[Outcome], cfg: ChatDataConfig, folder: Path, rejects: IO[str]
) -> None:
    writer = RowWriter(folder)
    for outcome in outcomes:
        report.records += 1
        for name, reason, detail in outcome.refused:
            if cfg.bad_rows == "error":
                raise UserError(f'{name}: {detail} ({reason}; data.bad_rows = "reject" leaves such rows out)')
            report.rejected[reason] += 1
            report.first_problem = report.first_problem or f"{name}: {detail}"
            line = {"data": report.name, "row": name, "reason": reason, "detail": detail}
            rejects.write(json.dumps(line, ensure_ascii=False) + "\n")
        for row in outcome.kept:
            writer.add(row.encoded, row.heldout)
            if row.heldout:
                report.heldout += 1
                continue
            report.rows += 1
            report.tokens += row.encoded.places
            report.trained += int(row.encoded.trained[1:].sum())
            report.cut += row.cut
            report.reasoning.update([row.reasoning] if row.reasoning else [])
    writer.close()
    if not report.rows:
        reasons = _counted(report.rejected) or "all are held out" if report.records else "no records"
        first = f"; the first: {report.first_problem}" if report.first_problem else ""
        raise UserError(f"data set {report.name!r} leaves nothing to train on ({reasons}){first}")


def open_sets(cfg: ChatDataConfig, folder: Path) -> dict[str, Rows]:
    """The rows that `write_sets` wrote, by data set.

    Raises:
        UserError: a task is both trained on and held out.
    """
    sets = {name: Rows(folder / name) for name, share in cfg.blend.items() if share > 0}
    trained = np.unique(np.concatenate([rows.tasks[~rows.heldout] for rows in sets.values()]))
    for name, rows in sets.items():
        if len(both := np.intersect1d(rows.tasks[rows.heldout], trained)):
            raise UserError(f"data set {name!r}: {len(both)} tasks are both trained on and held out")
    return sets


def report_line(report: SetReport) -> str:
    """`chats: 1,200 rows to train on (312,000 tokens, 41 % trained), 63 held out; 12 left out: 7 tool calls ...`."""
    share = report.trained / max(1, report.tokens)
    line = f"{report.name}: {report.rows:,} rows to train on ({report.tokens:,} tokens, {share:.0%} trained)"
    parts = [line + (f", {report.heldout:,} held out" if report.heldout else "")]
    changed = [f"{n:,} {what}" for what, n in sorted(report.reasoning.items()) if what != "kept"]
    if changed:
        parts.append(f"reasoning {' and '.join(changed)}")
    if report.cut:
        parts.append(f"{report.cut:,} cut to data.pack_length")
    if report.rejected:
        parts.append(f"{report.rejected.total():,} left out: {_counted(report.rejected)}")
    if left := report.skipped.line():
        parts.append(f"not read: {left}")
    return "; ".join(parts)


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
