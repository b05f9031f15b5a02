"""Rows of data sets as tasks: plain ones, NeMo Gym's and those of `verifiers`.

    {"id": ..., "prompt": "..." or [messages], "answer": ..., "tools": [...]}
    {"responses_create_params": {"input": ..., "tools": [...]}, ...}        NeMo Gym
    {"question": "...", "answer": "...", "info": {...}}                     verifiers

What else a row has is its environment's: each says which columns it reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.reading import parse_json, read_text
from nano3.rl.environments.base import Message, Task, user

Row = Mapping[str, Any]
GYM = "responses_create_params"


def read_rows(source: str | Path | Iterable[Row]) -> list[Row]:
    """Rows of a jsonl file, or as given.

    Raises:
        UserError: a line that is no JSON object.
        OSError: the file cannot be read.
    """
    if not isinstance(source, str | Path):
        return list(source)
    rows = []
    for number, line in enumerate(read_text(Path(source)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{source}, line {number}: not valid JSON ({error})") from error
        if not isinstance(row, Mapping):
            raise UserError(f"{source}, line {number}: a row is a JSON object, not {type(row).__name__}")
        rows.append(row)
    return rows


def prompt_of(row: Row, where: str) -> tuple[Message, ...]:
    """The messages of a row's prompt.

    Raises:
        UserError: it has none.
    """
    gym = row.get(GYM)
    found = (
        gym.get("input") if isinstance(gym, Mapping) else row.get("prompt", row.get("messages", row.get("question")))
    )
    if isinstance(found, str) and found.strip():
        return user(found)
    if isinstance(found, Sequence) and not isinstance(found, str) and found:
        return tuple(_message(message, where) for message in found)
    raise UserError(f"{where}: no prompt; give prompt, question, messages or {GYM}.input")


def tools_of(row: Row, where: str) -> tuple[Mapping[str, Any], ...]:
    """A row's functions in OpenAI's chat form; the form of its Responses API is taken too.

    Raises:
        UserError: something else than a list of functions.
    """
    gym = row.get(GYM)
    tools = (gym.get("tools") if isinstance(gym, Mapping) else None) or row.get("tools") or ()
    if isinstance(tools, Mapping | str) or not isinstance(tools, Sequence):
        raise UserError(f"{where}: tools is no list of functions")
    return tuple(_tool(tool, where) for tool in tools)


def column(row: Row, *names: str, where: str) -> Any:
    """As `find_column`.

    Raises:
        UserError: the row has none of them.
    """
    found = find_column(row, *names)
    if found is None:
        raise UserError(f"{where}: no column {' or '.join(names)}")
    return found


def find_column(row: Row, *names: str) -> Any:
    """The first of these columns that a row has, also inside its `info`, `verifier_metadata` and `metadata`; None where
    there is none."""
    inner = [
        part for key in ("info", "verifier_metadata", "metadata") if isinstance(part := _parsed(row.get(key)), Mapping)
    ]
    for place in (row, *inner):
        for name in names:
            if place.get(name) is not None:
                return place[name]
    return None


def calls_of(row: Row, *names: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of the right calls: of the first of these columns, each {"name", "arguments"}.

    Raises:
        UserError: no such column, or it holds anything else.
    """
    found = column(row, *names, where=where)
    for entry in found if isinstance(found, list) else [{}]:
        named = isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
        if not (named and isinstance(entry.get("arguments"), Mapping)):
            raise UserError(f"{where}: {names[0]} is a list of calls, each an object with name and arguments")
    return [(entry["name"], dict(entry["arguments"])) for entry in found]


def id_of(row: Row) -> str:
    """A row's own id, or one made of its content."""
    for name in ("id", "task_id", "uuid", "example_id"):
        if row.get(name) is not None:
            return str(row[name])
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]


def task_of(row: Row, truth: Any, where: str) -> Task:
    """A task of the row's id, prompt and tools."""
    return Task(id_of(row), prompt_of(row, where), truth, tools_of(row, where))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"{where}: a message of the prompt is no object with role and content")
    return dict(message)


def _tool(tool: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping) or not isinstance(tool.get("function", {}), Mapping):
        raise UserError(f"{where}: a tool is no object with a function")
    if "function" in tool:
        return tool
    kept = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
    return {"type": "function", "function": kept}


def _parsed(value: Any) -> Any:
    """`info` is JSON text in some data sets."""
    if isinstance(value, str):
        try:
            return parse_json(value)
        except ValueError:
            return None
    return value
