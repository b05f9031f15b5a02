"""What decides the encoded rows of a run, as one hash: where it is the same, the rows need not be made again."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from nano3 import __version__
from nano3.config.generate import PREFIX
from nano3.config.own_chats import PREFERENCES
from nano3.config.sft import SftConfig
from nano3.data.chat.records import HUB
from nano3.data.chat.sets import set_sources
from nano3.data.chat.template import default_text
from nano3.data.tasks.source import VERSION as TASKS
from nano3.data.texts.find import find_files
from nano3.data.texts.readers import Skipped
from nano3.data.tokens.tokenizer import Tokenizer

VERSION = 1
"""Raised with every change of what rows are made of the same records, filters included."""


def rows_identity(cfg: SftConfig, tokenizer: Tokenizer) -> str:
    """Hash of the settings, the tokenizer with its template, and the files by path, size and time of change.

    Of a data set of the hub it is the name that counts, since what a run began with is what it goes on with.

    Raises:
        UserError: as `set_sources`.
        FileNotFoundError: a path that is not there.
    """
    sources = set_sources(cfg.data)
    # Shares and the tokenizer's path decide no row.
    data = dataclasses.replace(cfg.data, blend=dict.fromkeys(sources, 1.0), sources=sources, tokenizer="")
    values = {
        "versions": [__version__, VERSION, TASKS],
        "settings": [dataclasses.asdict(part) for part in (data, cfg.filters, cfg.reasoning)],
        "tokenizer": [tokenizer.fingerprint(), tokenizer.config, tokenizer.chat_template, default_text()],
        "files": {name: [_identity(spec) for spec in specs] for name, specs in sources.items()},
    }
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _identity(spec: str) -> list[str]:
    if spec.startswith((HUB, PREFIX)):
        return [spec]
    path = spec.removeprefix(PREFERENCES)
    if path.startswith(HUB):
        return [spec]
    return [file.identity() for file in find_files(path, Skipped())]
