"""Tasks of nano3's own generators answered as a server would answer them: a message at a time, tools carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nano3.data.chat.encoder import ChatEncoder, ChatPrompt
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.data.tasks.catalogue import find_generator
from nano3.data.tasks.task import Task
from nano3.engine.protocol import GenerationEngine, run
from nano3.engine.request import Request, Sampling, ThinkingBudget

MOST_STEPS = 8
"""Answers of one task, each but the last with tool calls."""


def answer(
    engine: GenerationEngine,
    encoder: ChatEncoder,
    tasks: Sequence[Task],
    max_tokens: int,
    *,
    thinking: bool | ThinkingBudget = True,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[list[dict[str, Any]]]:
    """All messages that follow each task's prompt, tool results among them.

    Args:
        max_tokens: most tokens of each answer, reasoning included.
        thinking: with reasoning, without it, or with so much of it.
        temperature: 0: greedy.
        seeds: of the samples, one a task; None: 0, 1, 2 and so on.
    """
    budget = thinking if isinstance(thinking, ThinkingBudget) else None
    variables = {"enable_thinking": False} if thinking is False else {}
    replies: list[list[dict[str, Any]]] = [[] for _ in tasks]
    open_tasks = list(range(len(tasks)))
    for step in range(MOST_STEPS):
        prompts = {
            i: encoder.encode([*tasks[i].prompt, *replies[i]], tasks[i].tools or None, **variables) for i in open_tasks
        }
        prompts = {i: prompt for i, prompt in prompts.items() if len(prompt.ids) + max_tokens <= engine.max_context}
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, thinking=budget)
        requests = [
            Request(f"{i}-{step}", prompt.ids, replace(sampling, seed=i if seeds is None else seeds[i]))
            for i, prompt in prompts.items()
        ]
        open_tasks = []
        for (i, prompt), (output,) in zip(prompts.items(), run(engine, requests), strict=True):
            cut_off = output.finish == "length"
            replies[i].append(_message(output.text, tasks[i], prompt, cut_off))
            if cut_off:
                continue
            if results := find_generator(tasks[i].generator).respond(tasks[i].truth, replies[i]):
                replies[i] += results
                open_tasks.append(i)
        if not open_tasks:
            break
    return replies


def _message(text: str, task: Task, prompt: ChatPrompt, cut_off: bool) -> dict[str, Any]:
    """An output as the assistant's message."""
    parsed = parse_output(
        text, task.tools, cut_off=cut_off, thinking_open=prompt.thinking_open, parse_tools=bool(task.tools)
    )
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in parsed.tool_calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content, "reasoning_content": parsed.reasoning}
    return message | ({"tool_calls": calls} if calls else {})
