"""Conversations and prompts named on the command line (`--data PATH`) as the settings of a blend and its sources."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nano3.config.generate import PREFIX
from nano3.config.own_texts import category_names

HUB, PREFERENCES = "hub:", "preferences:"
"""How a data set of the Hugging Face hub begins, and how preference pairs that are trained on as judgements do."""


def own_chats(paths: Sequence[str]) -> list[str]:
    """`--set` overrides that make these the data of a run, a data set each with equal shares.

    Args:
        paths: files, folders, `hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]` or `generate:NAME`; behind `preferences:`
            files, folders and data sets of the hub that hold preference pairs.
    """
    names = chat_names(paths)
    sources = {name: [path] for name, path in zip(names, paths, strict=True)}
    return [f"data.blend={_table(dict.fromkeys(names, 1.0))}", f"data.sources={_table(sources)}"]


def own_prompts(paths: Sequence[str]) -> list[str]:
    """The same for the prompts of rlhf: a set each with equal shares."""
    names = chat_names(paths)
    weights, sources = _table(dict.fromkeys(names, 1.0)), _table(dict(zip(names, paths, strict=True)))
    return [f"prompts.weights={weights}", f"prompts.sources={sources}"]


def own_pairs(paths: Sequence[str]) -> list[str]:
    """`--set` overrides that make these the preference pairs of a run.

    Args:
        paths: files, folders, `hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]` or `generate:preferences`.
    """
    return [f"data.sources={json.dumps(list(paths), ensure_ascii=False)}"]


def chat_names(paths: Sequence[str]) -> list[str]:
    """What the data sets of these are called in a run."""
    return category_names([_bare(path) for path in paths])


def _bare(path: str) -> str:
    """What a data set is named after."""
    path = path.removeprefix(PREFERENCES)
    if path.startswith(PREFIX):
        return path.removeprefix(PREFIX).partition("?")[0]
    if path.startswith(HUB):
        return path.removeprefix(HUB).partition("@")[0].partition(":")[0]
    return path


def _table(values: dict) -> str:
    """A table as inline TOML; JSON strings, lists and numbers are TOML too."""
    entries = (f"{json.dumps(name)} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
    return "{" + ", ".join(entries) + "}"
