"""The data that RULER's tasks are made of, and what a result says of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from nano3.config.errors import UserError
from nano3.eval.ruler.essays import Essays, read_essays
from nano3.eval.ruler.words import WordList, word_list

REFERENCE_NAME = "ruler"
OFFLINE_NAME = "ruler-offline"


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
                raise UserError(f"no {name} at {path} (--{name})")
        self._words = words

    @cached_property
    def words(self) -> WordList:
        """Words of keys and of cwe."""
        return self._words or word_list()

    @cached_property
    def essays(self) -> Essays:
        """Haystack of the essay type."""
        return read_essays(self._paths["essays"])

    def labels(self, tasks: Iterable[str]) -> dict[str, str]:
        """Origin of each source that these tasks use, in words for the result; part of what decides the samples."""
        return {name: getattr(self, name).label for name in _used(tasks)}

    def is_reference(self, tasks: Iterable[str]) -> bool:
        """All that these tasks use is the reference's data."""
        return all(getattr(self, name).is_reference for name in _used(tasks))

    def result_name(self, tasks: Iterable[str]) -> str:
        """`ruler` when all data are the reference's, else `ruler-offline`."""
        return REFERENCE_NAME if self.is_reference(tasks) else OFFLINE_NAME


def _used(tasks: Iterable[str]) -> list[str]:
    from nano3.eval.ruler.tasks import find_task

    return sorted({name for task in tasks for name in find_task(task).sources})
