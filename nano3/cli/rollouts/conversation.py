"""Samples as the policy saw and wrote them, at the terminal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nano3.cli.output import results
from nano3.cli.rollouts.tables import name_of
from nano3.cli.training.marked_tokens import BRACKETS, FORCED, GIVEN, STYLES, WRITTEN, Piece, pieces, terminal_text
from nano3.rl.rollout_files import SavedSample
from nano3.rl.saved.groups import SavedGroup, passed

if TYPE_CHECKING:
    from rich.text import Text

    from nano3.data.tokens.tokenizer import Tokenizer
    from nano3.rl.samples import Segment

NAMES = {GIVEN: "given", WRITTEN: "drawn", FORCED: "forced"}
WORDS = {WRITTEN: "drawn by the policy", FORCED: "written by the thinking budget"}
SAME_PROMPT = "... (the prompt, as above)\n"


def show_samples(chosen: Sequence[tuple[SavedGroup, list[SavedSample]]], tokenizer: Tokenizer | None) -> None:
    """Print samples. The prompt of a group stands before its first one alone."""
    from rich.text import Text

    console = results()
    coloured = console.color_system is not None
    for group, samples in chosen:
        for number, sample in enumerate(samples):
            console.print()
            console.print(Text(name_of(group, sample), style="bold"))
            console.print(Text(verdict(group, sample), style=_style(sample)))
            if details := parts_of(sample):
                console.print(Text(details, style="dim"))
            console.print()
            text = _tokens(sample, tokenizer, coloured, number > 0) if tokenizer else Text(as_messages(sample))
            console.print(text, soft_wrap=not coloured)
    if tokenizer:
        console.print(_legend(coloured))


def verdict(group: SavedGroup, sample: SavedSample) -> str:
    """Reward, advantage and length of a sample in one line."""
    if sample.reward is None:
        words = [f"no reward: {sample.fault}{f' ({sample.fault_message})' if sample.fault_message else ''}"]
    else:
        words = ["passed" if passed(sample) else "failed", f"reward {sample.reward.value:g}"]
    advantage = advantage_of(group, sample)
    words += ["its group was dropped"] if group.fault else [] if advantage is None else [f"advantage {advantage:+.3f}"]
    words += ["cut off at its limit, so not trained on"] if sample.truncated else []
    forced = sum(int(segment.forced.sum()) for segment in sample.segments)
    words += [f"{sample.n_drawn:,} tokens drawn", *([f"{forced} forced"] if forced else [])]
    return " · ".join(words)


def parts_of(sample: SavedSample) -> str:
    """What the reward was made of; empty for nothing."""
    if sample.reward is None or not sample.reward.parts:
        return ""
    shown = (f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
             for name, value in sample.reward.parts.items())  # fmt: skip
    return "parts: " + ", ".join(shown)


def advantage_of(group: SavedGroup, sample: SavedSample) -> float | None:
    """None where its group was dropped."""
    advantages = group.advantages
    if advantages is None:
        return None
    return next(advantage for one, advantage in zip(group.samples, advantages, strict=True) if one is sample)


def sample_values(group: SavedGroup, sample: SavedSample, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """As JSON values; `sequences` are stretches of text by kind, none without a tokenizer."""
    reward = sample.reward
    return {
        "step": sample.step,
        "environment": sample.environment,
        "task": sample.task,
        "sample": sample.index,
        "reward": None if reward is None else reward.value,
        "passed": passed(sample),
        "parts": {} if reward is None else dict(reward.parts),
        "advantage": advantage_of(group, sample),
        "truncated": sample.truncated,
        "fault": sample.fault,
        "fault_message": sample.fault_message,
        "seed": sample.seed,
        "weights_version": sample.weights_version,
        "drawn_tokens": sample.n_drawn,
        "messages": list(sample.messages),
        "sequences": [stretches(segment, tokenizer) for segment in sample.segments] if tokenizer else [],
    }


def stretches(segment: Segment, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Text by kind: given, drawn or forced."""
    by_kind = itertools.groupby(segment_pieces(segment, tokenizer), key=lambda piece: piece.kind)
    return [{"kind": NAMES[kind], "text": "".join(piece.text for piece in part)} for kind, part in by_kind]


def segment_pieces(segment: Segment, tokenizer: Tokenizer, start: int = 0) -> list[Piece]:
    """The pieces of a sequence from token `start` on."""
    kinds = (WRITTEN * segment.drawn + FORCED * segment.forced).tolist()
    return list(pieces(segment.ids[start:].tolist(), kinds[start:], tokenizer))


def prompt_length(segment: Segment) -> int:
    """Tokens before the first answer."""
    return len(segment.ids) - len(segment.after_prompt) if len(segment.after_prompt) else len(segment.ids)


def as_messages(sample: SavedSample) -> str:
    """The messages after the prompt, for where there is no tokenizer."""
    return "\n\n".join(f"[{message.get('role', '')}]\n{_message_text(message)}" for message in sample.messages)


def _message_text(message: Mapping[str, Any]) -> str:
    found = [f"<think>\n{message['reasoning_content']}\n</think>"] if message.get("reasoning_content") else []
    found += [str(message["content"])] if message.get("content") else []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        found.append(f"calls {function.get('name')}({function.get('arguments')})")
    return "\n".join(found)


def _tokens(sample: SavedSample, tokenizer: Tokenizer, coloured: bool, prompt_known: bool) -> Text:
    from rich.text import Text

    text = Text()
    for number, segment in enumerate(sample.segments):
        if number:
            text.append("\n\nThe next answer was drawn after:\n\n", style="bold")
        start = prompt_length(segment) if prompt_known and not number else 0
        if start:
            text.append(SAME_PROMPT, style="dim italic")
        text.append_text(terminal_text(segment_pieces(segment, tokenizer, start), coloured))
    return text


def _style(sample: SavedSample) -> str:
    return "yellow" if sample.reward is None or sample.truncated else "green" if passed(sample) else "red"


def _legend(coloured: bool) -> Text:
    from rich.text import Text

    text = Text("\n")
    for kind, words in WORDS.items():
        text.append(words if coloured else words.join(BRACKETS[kind]), STYLES[kind][0] if coloured else "")
        text.append("; ")
    return text.append("all else was given.")
