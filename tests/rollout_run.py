"""A run's folder with saved rollouts, made by hand: every kind of sample that a step can give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nano3.data.chat.encoder import ChatEncoder
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.rl.environments.base import Reward, Task, user
from nano3.rl.environments.registry import Source
from nano3.rl.rollout_files import save_rollouts
from nano3.rl.samples import Group, Sample, Segment

ENVIRONMENT = '''
"""Worth 1 where the answer is the number that the question names."""
from nano3.rl.environments.base import EnvironmentFaultError, Reward, Task, all_or_nothing, user


class Echo:
    name = "echo"

    def __init__(self, n=4):
        self.n = n

    def tasks(self):
        return [Task(f"say-{i}", user(f"Say {i}."), i) for i in range(self.n)]

    def verify(self, task, rollout):
        return all_or_nothing(rollout.answer.strip() == str(task.truth), said=rollout.answer)
'''
SOURCE = Source("echo_tasks:Echo", "echo_tasks", "", "0" * 64, {"langdetect": "1.0.9"})
END = "<|im_end|>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def sample(
    encoder: ChatEncoder,
    task: Task,
    index: int,
    turns: Sequence[str | tuple[str, str, str]],
    reward: float | None,
    *,
    truncated: bool = False,
    fault: str = "",
    parts: dict[str, object] | None = None,
) -> Sample:
    """A rollout.

    Args:
        encoder: of the prompts.
        task: what was asked.
        index: in its group.
        turns: an answer's text as it is drawn, (drawn, forced, drawn) for one whose thinking is closed; between two of
            them stands the result of a tool.
        reward: None beside a fault.
        truncated, fault: as in Sample.
        parts: of the reward.
    """
    ids = list(encoder.encode(task.messages, task.tools).ids)
    kinds, messages = "g" * len(ids), []
    for number, turn in enumerate(turns):
        if number:
            messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": "7"})
            given = encoder.encode_following(messages[-1:], task.tools).ids
            ids, kinds = [*ids, *given], kinds + "g" * len(given)
        for text, kind in zip((turn,) if isinstance(turn, str) else turn, "dfd", strict=False):
            more = encoder._tokenizer.encode(text, special=True)
            ids, kinds = [*ids, *more], kinds + kind * len(more)
        messages.append(_message(turn))
    drawn = np.array([kind == "d" for kind in kinds])
    segment = Segment(
        np.array(ids, np.int32), drawn, np.array([kind == "f" for kind in kinds]), np.where(drawn, -0.5, 0).astype("f4")
    )
    return Sample(
        task, index, 11, [segment], messages, truncated, len(turns),
        reward=None if reward is None else Reward(reward, parts=parts or {}), fault=fault,
        fault_message="no answer of the judge" if fault else "",
    )  # fmt: skip


def make_run(folder: Path, tokenizer: Tokenizer, steps: int = 2) -> Path:
    """A run with rollouts of `steps` steps, each of five groups.

    Of echo, by whose code they are right: say-0 (2 of 4 pass in odd steps, 3 in even ones), say-1 (all pass) and say-2
    (a call of a tool, a sample that was cut off, one whose thinking was closed, a wrong one). Of judged: one group with
    a fault, and one of rewards between 0 and 1.
    """
    encoder = ChatEncoder(tokenizer)
    say = [Task(f"say-{i}", user(f"Say {i}."), i, (TOOL,) * (i == 2)) for i in range(3)]
    essays = [Task(f"essay <{i}>", user(f"Write {i} <b>words</b>.")) for i in range(2)]
    call = f"I call\n</think>\n<tool_call>\n<function=add>\n</function>\n</tool_call>{END}"
    for step in range(1, steps + 1):
        said = ["no", "0" if step % 2 == 0 else "no", "0", "0"]
        groups = [
            Group("echo", say[0], [
                sample(encoder, say[0], i, [thought(word)], float(word == "0")) for i, word in enumerate(said)
            ]),
            Group("echo", say[1], [sample(encoder, say[1], i, [thought("1")], 1.0) for i in range(4)]),
            Group("echo", say[2], [
                sample(encoder, say[2], 0, [call, thought("2")], 1.0, parts={"said": "2", "calls": 1}),
                sample(encoder, say[2], 1, ["so on and on é日"], 0.0, truncated=True),
                sample(encoder, say[2], 2, [("so", "\n</think>\n", f"2{END}")], 1.0),
                sample(encoder, say[2], 3, [thought("3")], 0.0),
            ]),
            Group("judged", essays[0], [
                sample(encoder, essays[0], 0, [thought("words")], 0.5),
                sample(encoder, essays[0], 1, [thought("words")], None, fault="judge"),
            ]),
            Group("judged", essays[1], [
                sample(encoder, essays[1], i, [thought("words " * i)], 0.25 * i) for i in range(2)
            ]),
        ]  # fmt: skip
        save_rollouts(folder, step, groups, {"echo": SOURCE, "judged": Source("judged", "nano3", "0.1", "1" * 64)})
    tokenizer.save(folder / "tokenizer")
    return folder


def thought(answer: str) -> str:
    """An answer as it is drawn, after a thought."""
    return f"so\n</think>\n{answer}{END}"


def _message(turn: str | tuple[str, str, str]) -> dict[str, Any]:
    text = turn if isinstance(turn, str) else "".join(turn)
    reasoning, closed, content = text.rpartition("</think>\n")
    message: dict[str, Any] = {"role": "assistant", "content": content.removesuffix(END)}
    if "<tool_call>" in content:
        call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        message |= {"content": "", "tool_calls": [call]}
    return message | ({"reasoning_content": reasoning.strip()} if closed and reasoning.strip() else {})
