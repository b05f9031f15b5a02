"""Whether a folder is free for a new run; looked at before torch is imported."""

from __future__ import annotations

from pathlib import Path

from nano3.config.errors import UserError
from nano3.files import check_free

CONFIG, CHECKPOINTS = "config.toml", "checkpoints"
TOKENIZER, START = "tokenizer", "start.json"
"""In the run folder: the tokenizer, and where the weights came from. A resume relies on both."""
RESULT = "training-result.json"
"""What a finished run came to."""
BEGUN = (START, TOKENIZER, "metrics.jsonl")
"""All that a run leaves which died before its first step: it begins anew in its folder."""


def check_new_run(folder: Path) -> None:
    """Raise UserError for a folder that holds a run, or files of somebody else's among which a run must not lie."""
    if any((folder / name).exists() for name in (CONFIG, CHECKPOINTS)):
        raise UserError(f"{folder} already holds a run: add --resume to continue it, or give another --out")
    check_free(folder, own=BEGUN)
