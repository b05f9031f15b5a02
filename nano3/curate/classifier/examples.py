"""Examples to train a classifier with: documents of two kinds, by the host or folder that they come from."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.curate.catalog import check_installed, find_step
from nano3.curate.classifier.features import features
from nano3.curate.step import Context

WARC_SUFFIXES = (".warc", ".warc.gz")


@dataclass(frozen=True)
class Example:
    """A document as a classifier sees it."""

    line: str
    positive: bool
    group: str
    """Host of its URL, else the name of the folder directly below the path that was named, else that path."""
    rule: float = 0.0
    """Score that the rule of `code-page` gives a page."""


@dataclass(frozen=True)
class Split:
    """Examples to train with and to judge by."""

    training: list[Example]
    heldout: list[Example]
    by_group: bool
    """No host or folder has examples in both; where a kind has one of them alone, documents were drawn instead."""
    repeated: int
    """Documents that were not held out, since training has the same."""


def read_examples(paths: Sequence[str], positive: bool, html: bool, left_out: list[str]) -> list[Example]:
    """The examples at some paths: whatever `read` and `warc` read.

    Args:
        paths: files and folders.
        positive: of which kind they are.
        html: they are pages of HTML.
        left_out: takes a line for everything at the paths that is no example.

    Raises:
        UserError, FileNotFoundError: a path is not there, or no document in it.
    """
    found = [_example(document, spec, positive, html) for spec in paths for document in _documents(spec, left_out)]
    examples = [example for example in found if example.line]
    if n := len(found) - len(examples):
        left_out.append(f"{', '.join(paths)}: {n} documents without a word")
    if not examples:
        raise UserError(f"{', '.join(paths)}: no document with a word in it")
    return examples


def _documents(spec: str, left_out: list[str]) -> Iterator[Document]:
    use = "warc" if _holds_warc(Path(spec).expanduser()) else "read"
    check_installed([use])
    reader = find_step(use, "").load()
    units, told = reader.find([spec])
    left_out += [f"{spec}: {told}"] if told else []
    with tempfile.TemporaryDirectory() as folder:
        reading = reader(reader.Settings(), Context(use, Path(folder), 1), [units])
        yield from reading.run(None)
        dropped = reading.ledger.account.dropped
        left_out += [f"{spec}: {one.size.documents} {reason}" for reason, one in dropped.items()]


def _holds_warc(path: Path) -> bool:
    found = path.rglob("*") if path.is_dir() else [path]
    return any(one.name.lower().endswith(WARC_SUFFIXES) for one in found)


def _example(document: Document, spec: str, positive: bool, html: bool) -> Example:
    from nano3.curate.steps.code_page import code_score

    host = urlsplit(str(document.metadata.get("url") or "")).hostname
    folder, slash, _ = str(document.metadata.get("source", "")).partition("/")
    group = host or (folder if slash else spec)
    rule = code_score(document.text) if html else 0.0
    return Example(features(document.text, html), positive, group, rule)


def split_examples(examples: Sequence[Example], heldout: float, seed: int) -> Split:
    """Divide examples by group: of each kind about a share of the documents, in whole groups, are held out.

    Which groups are drawn depends on their names and the seed alone.
    """
    groups = sorted({example.group for example in examples}, key=lambda name: _draw(name, seed))
    by_group = all(len({one.group for one in examples if one.positive == kind}) > 1 for kind in (True, False))
    if by_group:
        chosen = _drawn_groups(examples, groups, heldout)
        held = [example.group in chosen for example in examples]
        by_group = all(
            len({h for h, one in zip(held, examples, strict=True) if one.positive == kind}) == 2
            for kind in (True, False)
        )
    if not by_group:
        held = [int(_draw(example.line, seed), 16) / 2**64 < heldout for example in examples]
    training = [example for example, out in zip(examples, held, strict=True) if not out]
    lines = {example.line for example in training}
    out = [example for example, out in zip(examples, held, strict=True) if out]
    return Split(
        training, [one for one in out if one.line not in lines], by_group, sum(one.line in lines for one in out)
    )


def _drawn_groups(examples: Sequence[Example], groups: Sequence[str], heldout: float) -> set[str]:
    """Groups in order until of each kind the share of its documents is reached; never all groups of a kind."""
    chosen: set[str] = set()
    for kind in (True, False):
        own = Counter(example.group for example in examples if example.positive == kind)
        reached, wanted = sum(own[name] for name in chosen), heldout * own.total()
        left = sum(name not in chosen for name in own)
        for name in (name for name in groups if name in own):
            if reached < wanted and name not in chosen and left > 1:
                chosen.add(name)
                reached, left = reached + own[name], left - 1
    return chosen


def _draw(name: str, seed: int) -> str:
    return hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "replace"), digest_size=8).hexdigest()
