"""Small lm-eval tasks that need no download; made by make.py.

    nano3_arithmetic   generated answers, exact match      sums, differences and products of small numbers
    nano3_opposites    multiple choice                     opposite of a word, told by an example
    nano3_stdlib       multiple choice                     module of a function of Python's standard library
    nano3_prose        perplexity of whole texts           plain English, written for this project
    nano3              all of them

`lm_eval --include_path` takes this folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def rows(file: str) -> list[dict[str, Any]]:
    """Documents of a task: the lines of one of the JSONL files here."""
    return [json.loads(line) for line in (FOLDER / file).read_text("utf-8").splitlines()]


def load(file: str, examples: int = 0, **_: Any) -> Any:
    """A task's documents as lm-eval's `custom_dataset` gives them: `examples` of them for few-shot prompts, the rest
    to be answered."""
    from datasets import Dataset

    found = rows(file)
    return {"train": Dataset.from_list(found[:examples]), "test": Dataset.from_list(found[examples:])}
