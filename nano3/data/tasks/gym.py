"""Tasks of reasoning-gym (arXiv 2505.24760), where that package is installed: `generate:gym/NAME`.

Level 0 is a data set's own settings, level n step n of its curriculum. Scores are reasoning-gym's, so some give partial
credit. Two data sets have worked solutions, by nano3; those of the others are the bare answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from nano3.config.errors import UserError
from nano3.config.typed import nearest
from nano3.data.tasks.task import Draft, Generator, Message, answer, final_text, user

PACKAGE = "reasoning-gym"
HARDEST = 20
"""Highest level of data sets with a curriculum; attributes with fewer steps stay at their last."""
SIZE = 1000
"""Items of a data set at one seed; some share these out among their kinds of questions."""
SEEDS = 2**31


@cache
def gym_generator(name: str) -> Generator:
    """Tasks of one data set.

    Raises:
        UserError: the package is not installed, or has no such data set.
    """
    datasets = _factory().DATASETS
    if name not in datasets:
        close = nearest(name, datasets)
        raise UserError(
            f"reasoning-gym {version(PACKAGE)} has no data set {name!r}"
            + (f"; did you mean generate:gym/{close}?" if close else f": it has {', '.join(sorted(datasets))}")
        )
    hardest = HARDEST if _factory().has_curriculum(name) else 0
    summary = f"{name} of reasoning-gym"
    return Generator(
        f"gym/{name}", summary, "step of the curriculum", (0,), hardest, partial(_make, name), partial(_check, name)
    )


def gym_names() -> list[str]:
    """Data sets of the installed package.

    Raises:
        UserError: it is not installed.
    """
    return sorted(_factory().DATASETS)


def _factory() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(f"generate:gym/... needs the package {PACKAGE} ({error}): pip install {PACKAGE}") from error
    return reasoning_gym.factory


@cache
def _dataset(name: str, level: int) -> Any:
    factory = _factory()
    if not level:
        return factory.create_dataset(name, seed=0, size=SIZE)
    curriculum = factory.create_curriculum(name)
    curriculum.set_global_level(level - 1)
    kind = factory.DATASETS[name][0]
    return kind(config=curriculum.generate_configuration({"seed": 0, "size": SIZE}))


def _entry(name: str, level: int, seed: int, index: int) -> dict[str, Any]:
    dataset = _dataset(name, level)
    # Making a data set may read whole books, so one serves all seeds.
    dataset.seed = seed
    return dataset[index]


def _make(name: str, rng: random.Random, level: int) -> Draft:
    place = {"level": level, "seed": rng.randrange(SEEDS), "index": rng.randrange(SIZE)}
    entry = _entry(name, **place)
    truth = place | {"answer": str(entry["answer"]), "version": version(PACKAGE)}
    worked = _WORKED.get(name)
    text = str(entry["answer"])
    solution: Message = answer(worked(entry), text) if worked else {"role": "assistant", "content": text}
    return Draft(f"gym {entry['question']}", [user(entry["question"])], truth, [solution])


def _check(name: str, truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """reasoning-gym's score of the answer, from 0 to 1.

    Raises:
        UserError: the installed version makes another task of this truth.
    """
    text = final_text(replies)
    if not text:
        return 0.0
    entry = _entry(name, truth["level"], truth["seed"], truth["index"])
    if str(entry["answer"]) != truth["answer"]:
        raise UserError(
            f"gym/{name}: the task was made by reasoning-gym {truth['version']}, and {version(PACKAGE)} makes another: "
            f"install {PACKAGE}=={truth['version']}"
        )
    return min(1.0, max(0.0, float(_dataset(name, truth["level"]).score_answer(text, entry))))


def _spelled(entry: Mapping[str, Any]) -> str:
    word = entry["metadata"]["word"]
    return " ".join(word) + "\n" + " ".join(reversed(word))


def _summed(entry: Mapping[str, Any]) -> str:
    """The terms of a sum one after the other."""
    total, *rest = entry["metadata"]["expression"].split()
    lines, total = [], int(total)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {after}")
        total = after
    return "\n".join(lines)


_WORKED: dict[str, Callable[[Mapping[str, Any]], str]] = {"spell_backward": _spelled, "chain_sum": _summed}
