"""Run lm-eval's tasks and keep what comes of them in a result folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.eval.lm.answers import Remembering
from nano3.eval.lm.find import quiet
from nano3.eval.lm.generation import MAX_GEN_TOKS, prompt_room
from nano3.eval.store import SHARES, Score

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

    from nano3.eval.lm.answers import Watch
    from nano3.eval.lm.find import Found
    from nano3.eval.store import Store

BOOTSTRAP = 1000
TOKEN_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The harness's names for the most new tokens."""


@dataclass(frozen=True)
class Options:
    """How tasks are asked."""

    limit: int | None = None
    """Documents of each task; None: all."""
    num_fewshot: int | None = None
    """Examples in each prompt; None: the task's own number."""
    chat: bool = False
    """Prompts as conversations."""
    system: str | None = None
    """System prompt."""
    seed: int = 1234
    """Decides which examples are shown."""
    max_gen_toks: int | None = None
    """Most new tokens of every answer; None: the task's own number."""


def run_tasks(
    lm: LM, found: Sequence[Found], options: Options, store: Store, watch: Watch,
    after: Callable[[list[Score]], Any],
) -> None:  # fmt: skip
    """Run tasks, name by name. Each request's answer is kept as it comes, a task's samples when it is done.

    Args:
        lm: model to ask.
        found: what to run.
        options: how.
        store: where samples go.
        watch: makes what shows the progress.
        after: called with the scores of each name as they are known.

    Raises:
        ServerGone: as the model does.
        UserError: likewise, where a task asks what a model does not have, and where its own code fails.
    """
    from lm_eval import evaluator

    remembering = Remembering(lm, store.folder, watch)
    try:
        for one in found:
            for task in one.tasks.values():
                _prepare(task, options)
            _seed()
            with quiet(), _told(one.name):
                result = evaluator.evaluate(
                    lm=remembering,
                    task_dict=one.loaded,
                    limit=options.limit,
                    apply_chat_template=options.chat,
                    fewshot_as_multiturn=options.chat,
                    system_instruction=options.system,
                    bootstrap_iters=BOOTSTRAP,
                    log_samples=True,
                )
            assert result is not None, "the harness gives results to the first process only"
            for name, samples in (result.get("samples") or {}).items():
                for row in sample_rows(name, samples):
                    store.add(row)
            after(scores_of(result))
    finally:
        remembering.close()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What fails for a task's own settings or documents, in one line."""
    try:
        yield
    except (ValueError, LookupError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else str(error)
        line = " ".join(reason.split())[:300]
        raise UserError(f"task {name}: {line}; leave it out of --tasks to run the others") from error


def check_room(found: Sequence[Found], context: int, max_gen_toks: int | None) -> None:
    """Refuse tasks whose answers leave no room for a prompt, before anything is asked.

    Args:
        found: the tasks.
        context: tokens of prompt and answer.
        max_gen_toks: as of Options.

    Raises:
        UserError: a task's answers take the whole context.
    """
    for one in found:
        for name, task in one.tasks.items():
            if task.OUTPUT_TYPE == "generate_until":
                own = task.get_config("generation_kwargs") or {}
                try:
                    prompt_room({"max_gen_toks": max_gen_toks} if max_gen_toks else own, MAX_GEN_TOKS, context)
                except ValueError as error:
                    raise UserError(f"task {name}: {error} with --max-gen-toks") from error


def _prepare(task: Task, options: Options) -> None:
    """Number and choice of the examples, as the harness's own command sets them: a task that has none gets none."""
    own = task.get_config("num_fewshot")
    if options.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=options.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    if options.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        settings = task.get_config("generation_kwargs") or {}
        kept = {name: value for name, value in settings.items() if name not in TOKEN_NAMES}
        task.set_config(key="generation_kwargs", value={**kept, "max_gen_toks": options.max_gen_toks})
    task.set_fewshot_seed(seed=options.seed)


def _seed() -> None:
    """The harness's own seeds, for tasks that draw at random."""
    import numpy as np

    random.seed(0)
    np.random.seed(1234)


def sample_rows(task: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of samples.jsonl, one a document: its score is that of the task's first metric, under its first filter."""
    seen: set[int] = set()
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        if sample["doc_id"] in seen:
            continue
        seen.add(sample["doc_id"])
        metrics = {name: _number(sample.get(name)) for name in sample["metrics"]}
        first = next(iter(metrics.items()), ("", None))
        right = first[1] if first[0].startswith(SHARES) else None
        yield {
            "task": task,
            "length": None,
            "index": int(sample["doc_id"]),
            "score": right,
            "depth": None,
            "metrics": metrics,
            "output": _plain(sample["filtered_resps"]),
            "references": [_plain(sample["target"])],
        }


def scores_of(result: Mapping[str, Any]) -> list[Score]:
    """All numbers of the harness's result: of tasks, then of groups that have a mean of their own."""
    better: Mapping[str, Mapping[str, bool | None]] = result["higher_is_better"]
    found: list[Score] = []
    for name, row in [*result["results"].items(), *result.get("groups", {}).items()]:
        for key, value in row.items():
            metric, _, label = key.partition(",")
            if not label or metric.endswith("_stderr") or _number(value) is None:
                continue
            error = _number(row.get(f"{metric}_stderr,{label}"))
            factor = 100.0 if metric.startswith(SHARES) and 0 <= float(value) <= 1 else 1.0
            score = Score(
                name, None, metric if label == "none" else f"{metric} ({label})", factor * float(value),
                None if error is None else factor * error, _count(result, name, row),
                better.get(name, {}).get(metric) is not False,
            )  # fmt: skip
            if all((score.task, score.metric) != (other.task, other.metric) for other in found):
                found.append(score)
    return found


def _count(result: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> int:
    if "sample_len" in row:
        return int(row["sample_len"])
    parts = result.get("group_subtasks", {}).get(name, ())
    return sum(_count(result, part, result["results"].get(part, {})) for part in parts if part != name)


def _number(value: Any) -> float | None:
    """A metric's value as JSON holds it; None where it is no number."""
    try:
        return float(value) if not isinstance(value, (str, list, tuple, dict)) and value is not None else None
    except (TypeError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """Lists, texts and numbers in place of what else there may be."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
