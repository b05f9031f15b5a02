"""What the processes of `worker.Worker` do: reads a JSON value a line, writes the answer a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Work = Callable[[Any], Any]


def main() -> None:
    """`NAME BYTES`: which of WORK, and its address space."""
    name, memory = sys.argv[-2:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    work = WORK[name]()
    with suppress(ImportError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    for line in sys.stdin:
        question = json.loads(line)
        answer = None if question is None else _answered(work, question)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answered(work: Work, question: Any) -> Any:
    """None where the question leads to an error: whatever a model wrote may do so."""
    try:
        return work(question)
    except (Exception, RecursionError):
        return None


def math() -> Work:
    """{"truth", "answer"} -> whether they are equal in value."""
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    kinds = (LatexExtractionConfig(), ExprExtractionConfig())

    def work(question: Any) -> bool:
        truth, answer = (
            # Without limits of time of its own, which need the main thread's signals: the process is killed instead.
            parse(_as_latex(question[name]), kinds, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
            for name in ("truth", "answer")
        )
        return bool(truth) and bool(answer) and bool(verify(truth, answer, timeout_seconds=None))

    return work


def _as_latex(text: str) -> str:
    return text if "$" in text else f"${text}$"


def schema() -> Work:
    """{"schema", "value"} -> whether the value is valid."""
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    def work(question: Any) -> bool:
        kind = validator_for(question["schema"], default=Draft202012Validator)
        # A registry of its own: what a schema refers to is never fetched.
        return kind(question["schema"], registry=Registry()).is_valid(question["value"])

    return work


def reasoning_gym() -> Work:
    """{"task", "config", "index", "answer"} -> score from 0 to 1 of an answer to an entry of a data set, made anew of
    its configuration; without "answer": the entry's question."""
    import functools

    from reasoning_gym.factory import create_dataset

    @functools.lru_cache(64)
    def dataset(task: str, config: str) -> Any:
        return create_dataset(task, **json.loads(config))

    def work(question: Any) -> Any:
        made = dataset(question["task"], json.dumps(question["config"], sort_keys=True))
        entry = made[question["index"]]
        if "answer" not in question:
            return {"question": entry["question"]}
        return float(made.score_answer(answer=question["answer"], entry=entry))

    return work


WORK: dict[str, Callable[[], Work]] = {"math": math, "schema": schema, "reasoning_gym": reasoning_gym}
