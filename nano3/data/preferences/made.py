"""Preference pairs of known quality, made from nano3's own tasks: nothing to download, and the truth is known.

Of each task two qualities (nano3.data.preferences.quality) are drawn independently and evenly, so that a quarter of the
pairs are ties, and an answer of each is written:

- concise: the task's solution, without its reasoning;
- verbose: an opening line, the worked reasoning, then the solution;
- wrong: the solution with an edit or two (a digit one off, two neighbours exchanged, a word or letter dropped or
  doubled, another case) that still has the form of an answer; half of them stand alone, half behind an opening line;
- malformed: nothing, a refusal, a question back, or the solution's opening line alone.

The analysis of a pair works the task out, names the right answer, then repeats what each response says in its last line
and says what it is: an answer beside the right one is easier to compare than one further up. No task of the training
split is in the held-out one, whatever seeds and levels.
"""

from __future__ import annotations

import random
from urllib.parse import parse_qsl

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.data.preferences.pair import PreferencePair
from nano3.data.preferences.quality import QUALITIES, RANKINGS, SCORES, Quality, judged_generator, quality_of
from nano3.data.tasks.catalogue import find_generator
from nano3.data.tasks.source import Split, TaskSource, parse_levels
from nano3.data.tasks.task import Task

NAME = "preferences"
"""In `generate:preferences`."""
TASKS = ("count", "sort", "spell")
"""Generators of the tasks unless others are asked for."""
OPENINGS = ("Let me explain.", "Here is how I do it.", "Sure, I can help with that.")
NONE = ("", "I do not know.", "What do you mean?", "Sorry, I cannot do that.", "The answer is:", *OPENINGS)
SAID: dict[Quality, str] = {
    "concise": "right and concise", "verbose": "right but verbose", "wrong": "wrong", "malformed": "no answer",
}  # fmt: skip
TRIES, NEW_LINE = 1000, "\n"


def is_made(spec: str) -> bool:
    """Whether a source names pairs that are made here."""
    return spec.partition("?")[0] == PREFIX + NAME


def made_pairs(spec: str = PREFIX + NAME, n: int = 1000, seed: int = 0, split: Split = "train") -> list[PreferencePair]:
    """The first `n` pairs, each of another task, evenly from the generators.

    Args:
        spec: `generate:preferences`; behind a `?` options: tasks (names of generators, as count,sort) and levels.
        n: pairs.
        seed: other seeds give other pairs.
        split: train or heldout; the two share no task.

    Raises:
        UserError: an unknown option, generator or level, or there are not so many tasks.
    """
    names, levels = _options(spec)
    shares = [n // len(names) + (i < n % len(names)) for i in range(len(names))]
    tasks = [
        TaskSource(find_generator(name), seed, split, levels).distinct(share)
        for name, share in zip(names, shares, strict=True)
    ]
    order = sorted((i, which) for which, made in enumerate(tasks) for i in range(len(made)))
    return [_pair(tasks[which][i], random.Random(f"{NAME} {seed} {tasks[which][i].id}")) for i, which in order]


def answer_of(task: Task, quality: Quality, rng: random.Random) -> str:
    """An answer of this quality, without reasoning.

    Raises:
        UserError: none is found.
    """
    right = str(task.solution[-1]["content"])
    for _ in range(TRIES):
        text = _WRITTEN[quality](task, right, rng)
        if quality_of(task.generator, task.truth, text) == quality:
            return text
    raise UserError(f"generate:{task.generator}: no {quality} answer is found for task {task.id}")


def _pair(task: Task, rng: random.Random) -> PreferencePair:
    first, second = rng.choice(QUALITIES), rng.choice(QUALITIES)
    one, other = answer_of(task, first, rng), answer_of(task, second, rng)
    scores = SCORES[first], SCORES[second]
    worked, right = task.solution[-1].get("reasoning_content", ""), task.solution[-1]["content"]
    says = [
        f"Response {number} says {text.rpartition(NEW_LINE)[2] or 'nothing'}: {what}."
        for number, text, what in ((1, one, SAID[first]), (2, other, SAID[second]))
    ]
    analysis = "\n".join([worked, f"Right: {right}", *says])
    return PreferencePair(
        task.prompt, one, other, *scores, RANKINGS[scores[0] - scores[1]], analysis.strip(), about=task.content
    )


def _concise(task: Task, right: str, rng: random.Random) -> str:
    return right


def _verbose(task: Task, right: str, rng: random.Random) -> str:
    return f"{rng.choice(OPENINGS)}\n{task.solution[-1].get('reasoning_content', '')}\n{right}"


def _wrong(task: Task, right: str, rng: random.Random) -> str:
    text = right
    for _ in range(rng.randint(1, 2)):
        text = rng.choice(_EDITS)(text, rng)
    return text if rng.random() < 0.5 else f"{rng.choice(OPENINGS)}\n{text}"


def _malformed(task: Task, right: str, rng: random.Random) -> str:
    return rng.choice(NONE)


_WRITTEN = {"concise": _concise, "verbose": _verbose, "wrong": _wrong, "malformed": _malformed}


def _other_digit(text: str, rng: random.Random) -> str:
    places = [i for i, sign in enumerate(text) if sign.isdecimal()]
    if not places:
        return text
    i = rng.choice(places)
    return text[:i] + str((int(text[i]) + rng.choice((1, -1))) % 10) + text[i + 1 :]


def _exchanged(text: str, rng: random.Random) -> str:
    """Two neighbouring words, or letters where there is one word."""
    parts, between = _parts(text)
    if len(parts) < 2:
        return text
    i = rng.randrange(len(parts) - 1)
    return between.join([*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]])


def _dropped(text: str, rng: random.Random) -> str:
    parts, between = _parts(text)
    i = rng.randrange(len(parts))
    return between.join(parts[:i] + parts[i + 1 :])


def _doubled(text: str, rng: random.Random) -> str:
    parts, between = _parts(text)
    i = rng.randrange(len(parts))
    return between.join([*parts[:i], parts[i], *parts[i:]])


def _misspelt(text: str, rng: random.Random) -> str:
    places = [i for i, sign in enumerate(text) if sign.isalpha()]
    i = rng.choice(places) if places else 0
    return text[:i] + text[i : i + 1] + text[i:]


def _other_case(text: str, rng: random.Random) -> str:
    return text.swapcase()


_EDITS = (_other_digit, _exchanged, _dropped, _doubled, _misspelt, _other_case)


def _parts(text: str) -> tuple[list[str], str]:
    words = text.split(" ")
    return (words, " ") if len(words) > 1 else (list(text) or [""], "")


def _options(spec: str) -> tuple[list[str], tuple[int, ...]]:
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - {"tasks", "levels"})
    if name != NAME or unknown:
        what = f"there is no option {unknown[0]!r}; there are tasks and levels" if unknown else f"not {PREFIX}{NAME}"
        raise UserError(f"{spec}: {what}")
    names = [judged_generator(each.strip()) for each in given.get("tasks", ",".join(TASKS)).split(",")]
    return names, parse_levels(given["levels"]) if "levels" in given else ()
