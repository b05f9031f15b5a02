"""What makes a Hugging Face folder one to chat with."""

from __future__ import annotations

import json
from pathlib import Path

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.data.tokens.vocabulary import CHAT_TOKENS
from nano3.reading import read_json


def write_chat(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer with its chat template, and a generation_config.json that ends an answer at the turn's end."""
    tokenizer.save(folder)
    file, end = folder / "generation_config.json", tokenizer.token_id(CHAT_TOKENS[1])
    if end is not None and end != tokenizer.eos_id:
        settings = read_json(file) | {"eos_token_id": [tokenizer.eos_id, end]}
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
