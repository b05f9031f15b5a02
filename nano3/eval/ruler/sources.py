"""The data that RULER's tasks are made of, and what a result says of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from nano3.config.errors import UserError
from nano3.eval.ruler.catalogue import SOURCES
from nano3.eval.ruler.essays import Essays, read_essays
from nano3.eval.ruler.questions import (
    ONE_PASSAGE,
    TWO_PASSAGES,
    CorpusQuestions,
    FileQuestions,
    read_hotpotqa,
    read_squad,
)
from nano3.eval.ruler.words import WordList, word_list

REFERENCE_NAME = "ruler"
OFFLINE_NAME = "ruler-offline"
WORDS_SUFFICE = 131072
"""Longest cwe that wonderwords has enough words for; beyond it, words are coined."""
BUILT_IN_SUFFICE = 16384
"""The same of the project's own list."""


class Sources:
    """Words, essays and questions, each read when a task first needs it."""

    def __init__(
        self,
        essays: str | Path | None = None,
        squad: str | Path | None = None,
        hotpotqa: str | Path | None = None,
        words: WordList | None = None,
    ) -> None:
        """
        Args:
            essays: Folder of text files, or the reference's PaulGrahamEssays.json; None: documentation of Python.
            squad: SQuAD 2.0's dev-v2.0.json; None: the built-in document QA.
            hotpotqa: HotpotQA's hotpot_dev_distractor_v1.json; None: the built-in document QA.
            words: None: wonderwords where it is installed, else the project's own list.

        Raises:
            UserError: a named path does not exist.
        """
        self._paths = {
            name: None if path is None else Path(path)
            for name, path in (("essays", essays), ("squad", squad), ("hotpotqa", hotpotqa))
        }
        for name, path in self._paths.items():
            if path is not None and not path.exists():
                raise UserError(f"--{name} {path}: no such {'file or folder' if name == 'essays' else 'file'}")
        self._words = words

    @cached_property
    def words(self) -> WordList:
        """Words of keys and of cwe."""
        return self._words or word_list()

    @cached_property
    def essays(self) -> Essays:
        """Haystack of the essay type."""
        return read_essays(self._paths["essays"])

    @cached_property
    def squad(self) -> FileQuestions | CorpusQuestions:
        """Questions of qa_1."""
        path = self._paths["squad"]
        return CorpusQuestions(ONE_PASSAGE) if path is None else read_squad(path)

    @cached_property
    def hotpotqa(self) -> FileQuestions | CorpusQuestions:
        """Questions of qa_2."""
        path = self._paths["hotpotqa"]
        return CorpusQuestions(TWO_PASSAGES) if path is None else read_hotpotqa(path)

    def labels(self, tasks: Iterable[str]) -> dict[str, str]:
        """Origin of each source that these tasks use, in words for the result; part of what decides the samples."""
        return {name: getattr(self, name).label for name in _used(tasks)}

    def notes(self, tasks: Iterable[str], longest: int) -> list[str]:
        """What else a reader must know: words that had to be coined."""
        enough = WORDS_SUFFICE if self.words.is_reference else BUILT_IN_SUFFICE
        if "cwe" not in tasks or longest <= enough:
            return []
        return [f"cwe beyond {enough} tokens has coined words among those of {self.words.label}, common ones too"]

    def is_reference(self, tasks: Iterable[str], longest: int = 0) -> bool:
        """All that these tasks use, at lengths of `longest` at most, is the reference's data."""
        tasks = list(tasks)
        coined = "cwe" in tasks and longest > WORDS_SUFFICE
        return not coined and all(getattr(self, name).is_reference for name in _used(tasks))

    def result_name(self, tasks: Iterable[str], longest: int = 0) -> str:
        """`ruler` when all data are the reference's, else `ruler-offline`."""
        return REFERENCE_NAME if self.is_reference(tasks, longest) else OFFLINE_NAME


def _used(tasks: Iterable[str]) -> list[str]:
    return sorted({name for task in tasks for name in SOURCES[task]})
