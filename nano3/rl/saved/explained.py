"""How the rewards of a prompt's answers came about in a run with a judge, from its saved rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.feedback.reward import explain, explain_lines
from nano3.rl.saved.groups import SavedGroup, chosen_steps, read_groups, saved_steps

SHOWN = 60
"""Characters of an answer in a line."""


def explain_prompt(run: Path, prompt: int, step: int | None = None) -> dict[str, Any]:
    """What nano3.rl.feedback.reward.explain tells of a group, and the answers that the judge was shown, as JSON.

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
    told = {"run": str(run), "step": number, "prompt": prompt, "environment": group.environment, "task": group.task}
    answers = [sample.rollout.answer for sample in group.samples]
    if group.fault:
        return told | {"fault": group.fault, "fault_message": group.samples[0].fault_message, "answers": answers}
    return told | {"answers": answers} | _explained(group, run)


def prompt_lines(told: dict[str, Any]) -> list[str]:
    """The same as lines of text."""
    lines = [f"step {told['step']} · prompt {told['prompt']} · {told['environment']} · {told['task']}", "final answers"]
    lines += [f"  {i}: {_short(answer)}" for i, answer in enumerate(told["answers"])]
    if "fault" in told:
        return [*lines, f"dropped: {told['fault']}: {told['fault_message']}"]
    return lines + explain_lines(told)


def _explained(group: SavedGroup, run: Path) -> dict[str, Any]:
    try:
        return explain([sample.reward for sample in group.samples if sample.reward is not None])
    except ValueError as error:
        raise UserError(f"{run}: {error}; give a run of nano3 rlhf") from error


def _short(answer: str) -> str:
    text = " / ".join(answer.split("\n"))
    return (text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...") or "(empty)"
