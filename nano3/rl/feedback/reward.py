"""Rewards of judged responses, every term by itself, kept in the rollouts and shown to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nano3.rl.circular import broken_tie, pairs
from nano3.rl.environments.base import Reward
from nano3.rl.feedback.groups import JudgedGroup
from nano3.rl.feedback.lengths import Lengths
from nano3.rl.length_control import control

HELPFUL = 4.0
"""Base reward from which on a response counts as solved in pass rates."""
TERMS = ("base", "think_adjustment", "answer_adjustment", "think_bonus", "answer_bonus")
"""Of a reward, which is their sum."""


@dataclass(frozen=True)
class LengthControl:
    """Weights of group-relative length control; those of the report are the defaults."""

    think_weight: float = 0.5
    answer_weight: float = 0.5
    think_bonus: float = 0.5
    """For the shortest thinking, where its base reward reaches the quantile; 0: none."""
    answer_bonus: float = 0.5
    quantile: float = 0.8


OFF = LengthControl(0.0, 0.0, 0.0, 0.0)
"""The base reward alone."""


def feedback_rewards(
    judged: JudgedGroup, lengths: Sequence[Lengths], settings: LengthControl | None = None
) -> list[Reward]:
    """The reward of each response, with TERMS, its lengths, the group's threshold and the judgement in which it stood
    first among the parts.

    A response without a final answer counts as longer than all others of its group. Where all responses are equally
    good and equally long there is no bonus, so that they have equal rewards. Both are ours; the report says nothing of
    them.

    Args:
        judged: the group with its verdicts.
        lengths: of each response.
        settings: None: those of the report.

    Raises:
        ValueError: not one length a response.
    """
    own = settings or LengthControl()
    base, answered = judged.base, [bool(answer.strip()) for answer in judged.responses.answers]
    think, none = [each.think for each in lengths], 1 + max(each.answer for each in lengths)
    # No answer is no short answer: it would be what all others are measured by, and the one that may have the bonus.
    answer = [each.answer if there else none for each, there in zip(lengths, answered, strict=True)]
    bonuses = own.think_bonus, own.answer_bonus if any(answered) else 0.0
    if all(min(values) == max(values) for values in (base, think, answer)):
        bonuses = 0.0, 0.0  # for the first of equal ones they would be noise, and hide that there is nothing to learn
    found = control(base, think, answer, own.think_weight, own.answer_weight, *bonuses, own.quantile)
    rewards = []
    for i, verdict in enumerate(judged.verdicts):
        terms = base[i], *(getattr(found, name)[i] for name in TERMS[1:])
        parts: dict[str, Any] = dict(zip(TERMS, terms, strict=True))
        parts |= {"threshold": found.threshold, "think_tokens": lengths[i].think, "answer_tokens": lengths[i].answer,
                  "answered": answered[i]}  # fmt: skip
        parts["judgement"] = {
            "values": list(judged.judgements[i]), "read": verdict.judgement is not None, "text": verdict.text,
            "weights_version": verdict.weights_version,
        }  # fmt: skip
        rewards.append(Reward(found.reward[i], base[i] >= HELPFUL, parts))
    return rewards


def explain(rewards: Sequence[Reward]) -> dict[str, Any]:
    """How the rewards of a group came about, worked out again from their parts, as JSON values.

    Args:
        rewards: of all N responses to a prompt in order, as `feedback_rewards` made them or read from saved rollouts.

    Raises:
        ValueError: they have other parts, or are fewer than 2.
    """
    circle = pairs(len(rewards))
    if missing := [name for name in (*TERMS, "judgement") if any(name not in each.parts for each in rewards)]:
        raise ValueError(f"these rewards are not of a judge's feedback: they have no part {missing[0]!r}")
    comparisons = [_comparison(i, j, rewards[i].parts["judgement"]) for i, j in circle]
    responses = []
    for i, each in enumerate(rewards):
        scores = [comparisons[i]["scores"][0], comparisons[i - 1]["scores"][1]]
        names = ("think_tokens", "answer_tokens", *TERMS)
        told = {"response": i, "scores": scores, "answered": each.parts.get("answered", True)}
        responses.append(told | {n: each.parts[n] for n in names} | {"reward": each.value})
    return {"threshold": rewards[0].parts["threshold"], "comparisons": comparisons, "responses": responses}


def explain_lines(told: Mapping[str, Any]) -> list[str]:
    """What `explain` gives as lines of text."""
    lines = ["comparisons of each answer with the next (scores, ranking)"]
    compared = []
    for each in told["comparisons"]:
        line = ""
        if not each["read"]:
            line += "not read, counts as "
        line += f"{each['judged'][0]:g} and {each['judged'][1]:g}, ranking {each['ranking']:g}"
        if each["scores"] != each["judged"]:
            line += f"; a tie, so {each['scores'][0]:g} and {each['scores'][1]:g}"
        compared.append(line)
    lines += numbered(compared)
    lines.append("rewards = base + thinking + answer + bonuses")
    lines += numbered(
        f"({each['scores'][0]:g} + {each['scores'][1]:g}) / 2 = {each['base']:g}; "
        f"thinking of {each['think_tokens']} tokens {each['think_adjustment']:+.3f}; "
        f"{_answer(each)} {each['answer_adjustment']:+.3f}; "
        f"bonuses {each['think_bonus']:+g} {each['answer_bonus']:+g}; reward {each['reward']:.3f}"
        for each in told["responses"]
    )
    lines.append(f"bonuses need a base of {told['threshold']:g} or more")
    return lines


def numbered(texts: Iterable[str]) -> list[str]:
    """Texts under their numbers from 0, equal ones as one line: `0, 2 to 4: text`."""
    places: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        places.setdefault(text, []).append(number)
    return [f"  {_ranges(numbers)}: {text}" for text, numbers in places.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, three or more in a row as `2 to 4`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _answer(told: Mapping[str, Any]) -> str:
    return f"answer of {told['answer_tokens']} tokens" if told["answered"] else "no answer"


def _comparison(first: int, second: int, judgement: Mapping[str, Any]) -> dict[str, Any]:
    one, other, ranking = judgement["values"]
    return {
        "first": first, "second": second, "judged": [one, other], "ranking": ranking,
        "scores": list(broken_tie((one, other, ranking))), "read": judgement["read"], "text": judgement["text"],
    }  # fmt: skip
