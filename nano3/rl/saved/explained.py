"""How the rewards of a prompt's answers came about in a run with a judge, from its saved rollouts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tokens.vocabulary import CHAT_TOKENS
from nano3.rl.feedback.reward import explain, explain_lines, numbered
from nano3.rl.saved.groups import SavedGroup, chosen_steps, read_groups, saved_steps

TURN = re.escape(CHAT_TOKENS[0]) + r"user\n(.*?)" + re.escape(CHAT_TOKENS[1])
TOKENIZER = "tokenizer"
"""In the run's folder."""
SHOWN = 60
"""Characters of an answer in a line."""


def explain_prompt(run: Path, prompt: int, step: int | None = None) -> dict[str, Any]:
    """What nano3.rl.feedback.reward.explain tells of a group, its question, and the answers that the judge was shown,
    as JSON values. The question is the last message of a user; empty where the run has no tokenizer.

    Args:
        run: folder of a run.
        prompt: its number in the step, from 0.
        step: of the saved rollouts; None: the last.

    Raises:
        UserError: no such rollouts or prompt, or rewards that are no judge's.
    """
    steps = saved_steps(run)
    [(number, path)] = chosen_steps(steps, *[max(steps) if step is None else step] * 2).items()
    groups = list(read_groups(path))
    if not 0 <= prompt < len(groups):
        raise UserError(f"--prompt {prompt}: step {number} of {run} has the prompts 0 to {len(groups) - 1}")
    group = groups[prompt]
    told: dict[str, Any] = {"run": str(run), "step": number, "prompt": prompt}
    told |= {"environment": group.environment, "task": group.task, "question": _question(group, run)}
    answers = [sample.rollout.answer for sample in group.samples]
    if group.fault:
        return told | {"fault": group.fault, "fault_message": group.samples[0].fault_message, "answers": answers}
    return told | {"answers": answers} | _explained(group, run)


def prompt_lines(told: dict[str, Any]) -> list[str]:
    """The same as lines of text."""
    lines = [f"step {told['step']} · prompt {told['prompt']} · {told['environment']} · {told['task']}"]
    if told["question"]:
        lines += ["question", *(f"  {line}" for line in told["question"].split("\n"))]
    lines += ["final answers", *numbered(map(_short, told["answers"]))]
    if "fault" in told:
        return [*lines, f"dropped: {told['fault']}: {told['fault_message']}"]
    return lines + explain_lines(told)


def _question(group: SavedGroup, run: Path) -> str:
    """The last message of a user in the prompt, whose tokens the rollouts have; the whole of it under a template that
    marks turns otherwise."""
    first = group.samples[0].segments
    if not first or not (run / TOKENIZER / "tokenizer.json").is_file():
        return ""
    from nano3.data.tokens.tokenizer import Tokenizer

    given = first[0].ids[: len(first[0].ids) - len(first[0].after_prompt)]
    prompt = Tokenizer.load(run / TOKENIZER).decode(given.tolist())
    turns = re.findall(TURN, prompt, re.DOTALL)
    return (turns[-1] if turns else prompt).strip()


def _explained(group: SavedGroup, run: Path) -> dict[str, Any]:
    try:
        return explain([sample.reward for sample in group.samples if sample.reward is not None])
    except ValueError as error:
        raise UserError(f"{run}: {error}; give a run of nano3 rlhf") from error


def _short(answer: str) -> str:
    text = " / ".join(answer.split("\n"))
    return (text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...") or "(empty)"
