"""Answers of a model to lm-eval's requests, kept in the result folder as they come: a killed evaluation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM, hash_args

from nano3.config.errors import UserError
from nano3.eval.lm.generation import plain_settings
from nano3.eval.store import ANSWERS
from nano3.reading import parse_json

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Watch = Callable[[int], Any]
"""Called with the number of requests to answer; the result has `sample(cost, what)` and `close()`, as Progress has."""


class Remembering(LM):
    """Another model, asked only what it has not answered yet. Sampled answers are asked for anew: the harness wants
    several different ones to one prompt."""

    def __init__(self, inner: LM, folder: Path, watch: Watch) -> None:
        """Take up the answers in `folder`; a torn last line (the process was killed) is cut off."""
        super().__init__()
        self.inner, self._watch, self._progress = inner, watch, None
        self._path = folder / ANSWERS
        self._known = _read(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        inner.set_cache_hook(self)  # pyright: ignore[reportArgumentType] - called as a CacheHook is

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """As the model's own."""
        return [(float(score), bool(greedy)) for score, greedy in self._ask("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:  # pyright: ignore
        """As the model's own."""
        return self._ask("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As the model's own."""
        return self._ask("generate_until", requests)

    def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
        """Keep one answer; the model calls this for each as it comes.

        Raises:
            UserError: the disk is full, or gone.
        """
        if arguments is None:
            return  # a part of a request
        if self._progress is not None:
            self._progress.sample(1.0)
        key = hash_args(kind, arguments)
        if key in self._known or _is_sampled(kind, arguments):
            return
        try:
            self._file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; what is in it stays") from error
        self._known[key] = answer

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the model's own."""
        return self.inner.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """As the model's own."""
        return self.inner.chat_template(chat_template)

    @property
    def tokenizer_name(self) -> str:
        """As the model's own."""
        return self.inner.tokenizer_name

    def close(self) -> None:
        """Close the file of answers."""
        self._file.close()

    def _ask(self, kind: str, requests: list[Instance]) -> list[Any]:
        keys = [hash_args(kind, request.args) for request in requests]
        missing = [i for i, key in enumerate(keys) if key not in self._known]
        answers = [self._known.get(key) for key in keys]
        if missing:
            self._progress = self._watch(len(missing))
            try:
                found = getattr(self.inner, kind)([requests[i] for i in missing], disable_tqdm=True)
            finally:
                self._progress.close()
                self._progress = None
            for i, answer in zip(missing, found, strict=True):
                answers[i] = answer
        return answers


def _is_sampled(kind: str, arguments: Sequence[Any]) -> bool:
    return kind == "generate_until" and plain_settings(arguments[1], 1)["temperature"] > 0


def _read(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    data = path.read_bytes() if path.is_file() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = parse_json(line)
            known[row["key"]] = row["answer"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not an answer of an evaluation; remove the line") from error
    return known
