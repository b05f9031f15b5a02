"""Runs RULER on a target: samples written as there is room for them, finished ones kept, scores by task and length."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.eval.intervals import mean_of_means, standard_error, wilson
from nano3.eval.prompt import Prompt
from nano3.eval.ruler import TASKS, Sample, Sources, find_task, make_sample, score
from nano3.eval.ruler.catalogue import SOURCES
from nano3.eval.ruler.reference import REVISION
from nano3.eval.ruler.sample import TooShort
from nano3.eval.store import Result, SampleKey, Score, Store

if TYPE_CHECKING:
    from nano3.eval.prompt import Target
    from nano3.progress import Progress

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_LENGTH = re.compile(r"(\d+)([km]?)", re.IGNORECASE)
SHORTEST = 256
VERSION = 3
"""Of the generators: another one writes other samples for the same seed."""
GROWING = ("tasks", "lengths", "samples", "sources.")
"""Settings that say how much is done: a result folder may be gone on with under others."""
GROUPS = ("niah", "qa", "all")
NAMES = f"{', '.join(TASKS)}; groups of them are {', '.join(GROUPS)}"
AVERAGE, AVERAGE_METRIC = "average", "mean of the tasks"
SOURCE_NAMES = sorted({name for names in SOURCES.values() for name in names})
SHORT = 8192
"""Tokens from which samples of one task that are made, not read from a file, all fit or none does."""
TRIED = 500
"""Samples, at most, whose need of tokens is told where one does not fit."""
SEAM = 4
"""Tokens that may come of encoding the answer's prefix apart from the prompt."""


@dataclass(frozen=True)
class Plan:
    """Which samples, and how they are put to the model."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of context, ascending."""
    samples: int
    """Of each task at each length."""
    seed: int
    chat: bool
    """Through the chat template, thinking off; else as plain text."""
    sources: Sources

    def settings(self, model: str, identity: str, **more: Any) -> dict[str, Any]:
        """What decides the numbers."""
        return {
            "evaluation": "ruler",
            "version": VERSION,
            "reference": REVISION,
            "model": model,
            "identity": identity,
            "chat": self.chat,
            "seed": self.seed,
            "sources": self.sources.labels(self.tasks),
            **more,
            "tasks": list(self.tasks),
            "lengths": list(self.lengths),
            "samples": self.samples,
        }

    def order(self) -> Iterator[SampleKey]:
        """All samples: the shortest lengths first, and at each length the tasks in turn, so that what is there of an
        evaluation that was cut short covers them evenly."""
        for length in self.lengths:
            for index in range(self.samples):
                for task in self.tasks:
                    yield task, length, index


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths such as `4k,8k,1m` (1k is 1024 tokens, 1m is 1024k) or `5000`, ascending, each once.

    Raises:
        UserError: something else, or below 256.
    """
    lengths = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _LENGTH.fullmatch(part)
        if not match:
            raise UserError(f"--ctx {part}: not a length; write it as 4096, 4k (of 1024 tokens) or 1m")
        length = int(match[1]) * UNITS[match[2].lower()]
        if length < SHORTEST:
            raise UserError(f"--ctx {part}: too short; the tasks need {SHORTEST} tokens at the least")
        lengths.add(length)
    if not lengths:
        raise UserError("--ctx names no length; write it as 4k,8k")
    return tuple(sorted(lengths))


def parse_tasks(text: str) -> tuple[str, ...]:
    """Names of tasks and groups (`all`, or what several names begin with: `niah`, `qa`, `niah_single`), in RULER's
    order, each once.

    Raises:
        UserError: no task of that name; the nearest names are told.
    """
    wanted: set[str] = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        group = [task for task in TASKS if name == "all" or task.startswith(f"{name}_")]
        if name not in TASKS and not group:
            names = [*TASKS, *GROUPS]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the tasks are {NAMES}"
            raise UserError(f"--tasks {name}: no such task of RULER: {hint}")
        wanted.update([name] if name in TASKS else group)
    if not wanted:
        raise UserError(f"--tasks names no task; the tasks are {NAMES}")
    return tuple(task for task in TASKS if task in wanted)


def length_text(length: int) -> str:
    """4096 as 4k, 1048576 as 1m, 5000 as 5000."""
    for unit, factor in (("m", 1 << 20), ("k", 1 << 10)):
        if length % factor == 0:
            return f"{length // factor}{unit}"
    return str(length)


def evaluate(plan: Plan, target: Target, store: Store, progress: Progress) -> None:
    """Answer and score what `store` does not have yet.

    Raises:
        UserError: a task does not fit at a length, or data that cannot be read.
        ServerGone: see Target.generate.
    """
    writer = _Writer(plan, target)
    left = [key for key in plan.order() if key not in store.rows]
    for key, answer in target.generate(writer.prompts(left), progress.tick):
        sample = writer.under_way.pop(key)
        store.add(
            {
                "task": sample.task,
                "length": sample.length,
                "index": sample.index,
                "score": score(sample.task, answer.text, sample.references),
                "depth": sample.depth,
                "prompt_tokens": answer.prompt_tokens or sample.n_tokens + writer.reserve,
                "output_tokens": answer.output_tokens,
                "finish": answer.finish,
                "output": answer.text,
                "references": sample.references,
            }
        )
        progress.sample(sample.length, f"{length_text(sample.length)} {sample.task}")


def check_samples(plan: Plan, target: Target) -> None:
    """Raise UserError, before the first answer, when the sources have too few samples, or one does not fit at the
    shortest length. Where that is long enough for all but documents of a file, only the first sample is tried."""
    writer, length = _Writer(plan, target), plan.lengths[0]
    needs: dict[str, int] = {}
    for task in plan.tasks:
        most = find_task(task).most_samples(plan.sources)
        if most is not None and plan.samples > most:
            raise UserError(
                f"--samples {plan.samples}: {task} has {most} questions in its file; ask for at most {most}"
            )
        tried = plan.samples if length < SHORT or most is not None else 1
        if any(writer.least(task, length, index) > length for index in range(tried)):
            needs[task] = _fitting_length(writer, task, length, min(plan.samples, TRIED))
    if needs:
        raise UserError(_does_not_fit(plan, needs))


def _does_not_fit(plan: Plan, needs: Mapping[str, int]) -> str:
    """What of a plan does not fit in its shortest length, and the options to give instead; `needs`: least lengths."""
    least = max(needs.values())
    lengths = [length for length in plan.lengths if length >= least] or [least]
    ways = [f"--ctx {','.join(map(length_text, lengths))}"]
    if rest := [task for task in plan.tasks if task not in needs]:
        ways.append(f"--tasks {','.join(rest)}")
    verb = "does" if len(needs) == 1 else "do"
    return (
        f"{', '.join(needs)} {verb} not fit in {plan.lengths[0]} tokens: the least length is {least} with this "
        f"tokenizer; give {', or '.join(ways)}"
    )


def _fitting_length(writer: _Writer, task: str, length: int, samples: int) -> int:
    """A length from `length` on at which all of the first samples fit; what they need may grow with the length."""
    while True:
        need = max(writer.least(task, length, index) for index in range(samples))
        if need <= length:
            return length
        length = need


class _Writer:
    """Writes samples for a target."""

    def __init__(self, plan: Plan, target: Target) -> None:
        self._plan, self._target = plan, target
        self.under_way: dict[SampleKey, Sample] = {}
        """Written and not answered yet."""
        probe = "a"
        self.reserve = target.count_prompt(self._prompt(probe, "", 1)) - target.count_tokens(probe)
        self.reserve += SEAM if plan.chat else 0

    def prompts(self, keys: Iterable[SampleKey]) -> Iterator[tuple[SampleKey, Prompt]]:
        """Each sample's prompt, written when it is taken."""
        for key in keys:
            task, length, index = key
            assert length is not None
            sample = self.under_way[key] = self.sample(task, length, index)
            yield key, self._prompt(sample.text, sample.answer_prefix, find_task(task).max_new_tokens)

    def least(self, task: str, length: int, index: int) -> int:
        """Tokens that a sample needs, in whole steps; at most `length` where it fits."""
        plan = self._plan
        try:
            return find_task(task).least(
                length, index, plan.seed, self._target.count_tokens, plan.sources, self.reserve
            )
        except TooShort as error:
            return error.least

    def sample(self, task: str, length: int, index: int) -> Sample:
        """One sample. Raises UserError where it does not fit."""
        plan = self._plan
        return make_sample(task, length, index, plan.seed, self._target.count_tokens, plan.sources, self.reserve)

    def _prompt(self, text: str, prefix: str, max_tokens: int) -> Prompt:
        if self._plan.chat:
            return Prompt(messages=({"role": "user", "content": text},), prefix=prefix, max_tokens=max_tokens)
        return Prompt(text=text, prefix=prefix, max_tokens=max_tokens)


def summarize(plan: Plan, store: Store, model: str, settings: Mapping[str, Any], notes: Sequence[str] = ()) -> Result:
    """The result of what `store` has of the plan's samples."""
    rows: dict[tuple[str, int], list[float]] = {}
    keys = list(plan.order())
    for key in keys:
        row = store.rows.get(key)
        if row is not None:
            rows.setdefault((row["task"], row["length"]), []).append(row["score"])
    complete = all(key in store.rows for key in keys)
    labels = settings.get("sources", {})
    said = [f"{name}: {label}" for name, label in labels.items()]
    said += plan.sources.notes(plan.tasks, plan.lengths[-1])
    return Result(
        "ruler", plan.sources.result_name(plan.tasks, plan.lengths[-1]), model, complete, settings,
        [*_scores(plan, rows), *_averages(plan, rows)], [*dict.fromkeys([*said, *notes])],
    )  # fmt: skip


def lasting_notes(notes: Iterable[str]) -> list[str]:
    """An earlier part's notes without those of its sources: other tasks may have run then."""
    return [note for note in notes if not note.startswith(tuple(f"{name}: " for name in SOURCE_NAMES))]


def _scores(plan: Plan, rows: Mapping[tuple[str, int], list[float]]) -> list[Score]:
    scores = []
    for task in plan.tasks:
        for length in plan.lengths:
            values = rows.get((task, length))
            if not values:
                continue
            mean, error = sum(values) / len(values), standard_error(values)
            low, high = wilson(mean, len(values))
            scores.append(
                Score(
                    task,
                    length,
                    find_task(task).metric,
                    100 * mean,
                    None if error is None else 100 * error,
                    len(values),
                    True,
                    100 * low,
                    100 * high,
                )
            )
    return scores


def _averages(plan: Plan, rows: Mapping[tuple[str, int], list[float]]) -> list[Score]:
    """The mean of all tasks at each length that has all of them: RULER's figure for a length."""
    averages = []
    for length in plan.lengths:
        groups = [rows[task, length] for task in plan.tasks if (task, length) in rows]
        if len(groups) < len(plan.tasks) or len(groups) < 2:
            continue
        mean, low, high = (100 * number for number in mean_of_means(groups))
        errors = [error for error in map(standard_error, groups) if error is not None]
        # One sample of a task does not tell how much its samples differ.
        error = 100 * math.hypot(*errors) / len(groups) if len(errors) == len(groups) else None
        averages.append(Score(AVERAGE, length, AVERAGE_METRIC, mean, error, sum(map(len, groups)), True, low, high))
    return averages
