"""Gate of rewritten Python (report section 2.2.2): it must parse and have at least the original's Pylint score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Step
from nano3.curate.steps.pylint_gate import scores_of, statements_of
from nano3.curate.steps.syntax import has_syntax_error

ORIGINAL = "_original"
"""Metadata: the code that a document was made from."""


@dataclass(frozen=True)
class RewriteGateSettings:
    """Settings of `rewrite-gate`."""

    batch: int = 25
    """Pairs of original and rewrite that one process of Pylint judges."""
    timeout: float = 120.0
    """Seconds for a batch; of one that takes longer each text is judged alone, in a tenth of the time."""

    def __post_init__(self) -> None:
        check("rewrite-gate", self, ">=", 1, "batch")
        check("rewrite-gate", self, ">", 0, "timeout")


class RewriteGate(Step):
    """Drops rewrites that do not parse, or that Pylint scores below what they were made from.

    Both scores go into the metadata: `pylint_score` and `original_pylint_score`.
    """

    Settings = RewriteGateSettings

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Documents in order, judged in batches."""
        batch: list[Document] = []
        for document in documents:
            if reason := _unfit(document):
                self.drop(document, reason)
                continue
            batch.append(document)
            if len(batch) == self.settings.batch:
                yield from self._judged(batch)
                batch = []
        yield from self._judged(batch)

    def _judged(self, batch: Sequence[Document]) -> Iterator[Document]:
        texts = [text for document in batch for text in (document.metadata[ORIGINAL], document.text)]
        scores = scores_of(texts, self.settings.timeout)
        for document, before, after in zip(batch, scores[::2], scores[1::2], strict=True):
            if before is None or after is None:
                self.drop(document, "pylint cannot judge it")
            elif after < before:
                self.drop(document, "pylint score below the original's")
            else:
                document.metadata |= {"pylint_score": round(after, 2), "original_pylint_score": round(before, 2)}
                yield document


def _unfit(document: Document) -> str:
    """Why a document is dropped before Pylint sees it; empty: it is not."""
    if not isinstance(document.metadata.get(ORIGINAL), str):
        return "no original to compare with"
    # tree-sitter also takes Python 2; Pylint gives 0 to what Python itself cannot parse.
    statements = statements_of(document.text)
    if has_syntax_error(document.text, "python") or statements is None:
        return "syntax error"
    # Pylint gives 10 to what has nothing that it could find fault with.
    return "" if statements or statements_of(document.metadata[ORIGINAL]) == 0 else "rewrite without a statement"
