"""Held-out tasks asked of an engine, scored and kept one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.chat.encoder import ChatEncoder
from nano3.data.tasks.catalogue import check
from nano3.data.tasks.task import Task
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.protocol import GenerationEngine
from nano3.eval.intervals import bootstrap_means, middle95, standard_error, wilson
from nano3.eval.store import Result, SampleKey, Score, Store
from nano3.eval.tasks.answer import answer
from nano3.eval.tasks.plan import Plan
from nano3.progress import Progress

SOLVED, THOUGHT = "accuracy", "thinking_tokens"
TOGETHER = 64
"""Tasks that are answered at a time, and kept then."""


def evaluate(plan: Plan, engine: GenerationEngine, store: Store, progress: Progress) -> None:
    """Answer and score what `store` does not have yet."""
    encoder = ChatEncoder(engine.tokenizer)
    left = [key for key in plan.order() if key not in store.rows]
    for start in range(0, len(left), TOGETHER):
        keys = left[start : start + TOGETHER]
        tasks = [plan.tasks[name][index] for name, _, index in keys]
        replies = answer(
            engine, encoder, tasks, plan.max_tokens, thinking=plan.kind_of_thinking, temperature=plan.temperature,
            seeds=[plan.seed_of(key) for key in keys],
        )  # fmt: skip
        for key, task, given in zip(keys, tasks, replies, strict=True):
            store.add(_row(key, task, given, engine.tokenizer))
            progress.sample(1, key[0])


def summarize(plan: Plan, store: Store, model: str, settings: Mapping[str, Any], notes: Sequence[str] = ()) -> Result:
    """The result of what `store` has of the plan's tasks."""
    keys = list(plan.order())
    rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in plan.sets}
    for key in keys:
        if key in store.rows:
            rows[key[0]].append(store.rows[key])
    scores = [score for name, found in rows.items() if found for score in _scores(name, found)]
    complete = all(key in store.rows for key in keys)
    unasked = sum(not row["replies"] for found in rows.values() for row in found)
    told = [f"{unasked} tasks were not asked, and count as not solved: with --max-tokens they pass the context"]
    said = [*notes, *(told if unasked else ())]
    return Result("tasks", "tasks", model, complete, settings, scores, [*dict.fromkeys(said)])


def solved_by_level(plan: Plan, store: Store) -> dict[str, dict[int, list[float]]]:
    """Rewards of the plan's tasks by source and level of difficulty, the easiest first."""
    found: dict[str, dict[int, list[float]]] = {name: {} for name in plan.sets}
    for key in plan.order():
        if row := store.rows.get(key):
            found[key[0]].setdefault(row["level"], []).append(row["score"])
    return {name: dict(sorted(levels.items())) for name, levels in found.items()}


def _row(key: SampleKey, task: Task, replies: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> dict[str, Any]:
    said = [message for message in replies if message["role"] == "assistant"]
    thought = sum(len(tokenizer.encode(message.get("reasoning_content") or "")) for message in said)
    reward = check(task.generator, task.truth, replies)
    return {
        "task": key[0],
        "length": None,
        "index": key[2],
        "id": task.id,
        "level": task.level,
        "score": reward,
        "metrics": {SOLVED: reward, THOUGHT: thought},
        "prompt": task.prompt,
        "truth": task.truth,
        "replies": list(replies),
    }


def _scores(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Tasks solved, in percent, and the mean length of the reasoning."""
    rewards = [row["score"] for row in rows]
    mean, error = sum(rewards) / len(rewards), standard_error(rewards)
    low, high = wilson(mean, len(rewards))
    solved = Score(name, None, SOLVED, 100 * mean, None if error is None else 100 * error, len(rewards), True,
                   100 * low, 100 * high)  # fmt: skip
    lengths = [float(row["metrics"][THOUGHT]) for row in rows]
    ends = middle95(bootstrap_means(lengths, seed=0))
    thought = Score(
        name, None, THOUGHT, sum(lengths) / len(lengths), standard_error(lengths), len(lengths), False, *ends
    )
    return [solved, thought]
