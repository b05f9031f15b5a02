"""The 131072-entry vocabulary that mistral-common ships, as a byte-level BPE of `tokenizers`.

The file holds ranked byte strings (tiktoken style). Merging, of all neighbouring pairs, the one whose joined bytes
rank lowest is byte-level BPE with every way to split a token as a merge, in the order of the joined token's rank.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

from nano3.cache import cache_root
from nano3.data.tokens.vocabulary import CHAT_TOKENS, THINK_TOKENS, byte_level_split
from nano3.files import write_atomic
from nano3.installation import install_command

MISTRAL_SIZE = 131072
VOCABULARY_FILE = "tekken_240718.json"
N_SPECIAL = 1000
SPECIAL_NAMES = {
    **dict(enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"))),
    **dict(enumerate(("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", *CHAT_TOKENS, *THINK_TOKENS), start=7)),
}
"""Names of the first special ids; the chat markup of the Nemotron models takes ids 10 to 13, the rest are fillers."""


def mistral_file() -> Path:
    """The vocabulary as a tokenizer.json, converted once and then kept in the cache.

    Raises:
        ValueError: mistral-common is not installed.
    """
    source = _shipped_file()
    stat = source.stat()
    cached = cache_root() / "tokenizers" / f"mistral-{stat.st_size}-2" / "tokenizer.json"
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, json.dumps(convert(json.loads(source.read_text("utf-8")))).encode())
    return cached


def _shipped_file() -> Path:
    spec = importlib.util.find_spec("mistral_common")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        file = Path(folder) / "data" / VOCABULARY_FILE
        if file.is_file():
            return file
    raise ValueError(f"the mistral vocabulary ({VOCABULARY_FILE}) is not installed: {install_command('mistral')}")


def convert(tekken: dict[str, Any], size: int = MISTRAL_SIZE, n_special: int = N_SPECIAL) -> dict[str, Any]:
    """Settings of a `tokenizers` BPE with the same ids as a tekken vocabulary file cut to `size` entries."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ranked = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][: size - n_special]]
    names = [SPECIAL_NAMES.get(i, f"<SPECIAL_{i}>") for i in range(n_special)]
    shell = Tokenizer(models.BPE())
    shell.pre_tokenizer = byte_level_split(pre_tokenizers, Regex(tekken["config"]["pattern"]))
    shell.decoder = decoders.ByteLevel()
    settings = json.loads(shell.to_str())
    settings["added_tokens"] = [_added_token(i, name) for i, name in enumerate(names)]
    letters = _byte_letters()
    spelled = ["".join(letters[byte] for byte in token) for token in ranked]
    settings["model"]["vocab"] = {name: i for i, name in enumerate([*names, *spelled])}
    settings["model"]["merges"] = _merges(spelled)
    settings["model"]["ignore_merges"] = True
    return settings


def _added_token(token_id: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": name, **flags, "special": name not in THINK_TOKENS}


def _merges(spelled: list[str]) -> list[list[str]]:
    """Every split of every token into two known tokens, by the rank of the token."""
    known = set(spelled)
    return [
        [token[:i], token[i:]]
        for token in spelled
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte (the table of GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
