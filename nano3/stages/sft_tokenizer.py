"""The tokenizer of supervised fine-tuning: the model's own, unless the settings name another."""

from __future__ import annotations

from pathlib import Path

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.find import model_folder
from nano3.model.hf.config import read_config


def find_tokenizer(named: str, source: Path) -> Tokenizer:
    """The tokenizer at `named` (data.tokenizer), or where that is empty that of the model in `source`.

    Raises:
        UserError: the model comes without one, or it has more tokens than the model's vocabulary.
        FileNotFoundError: nothing at `named`.
    """
    folder = model_folder(source)
    if not named and not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json: name its tokenizer with --set data.tokenizer=PATH")
    tokenizer, vocabulary = Tokenizer.load(named or folder), read_config(folder).vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model's vocabulary {vocabulary:,}: name the "
            "model's own tokenizer with --set data.tokenizer=PATH"
        )
    return tokenizer
