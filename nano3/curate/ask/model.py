"""The model that the steps of a run ask."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nano3.config.errors import UserError

KEY_NAMES = "NANO3_API_KEY"
WINDOW_KEYS = ("max_model_len", "context_length", "max_context_length", "context_window")
"""Where servers tell the length of a model's context."""


@dataclass(frozen=True)
class Model:
    """A model behind an OpenAI-compatible server. The key is read from the environment where it is used, and is in no
    file."""

    url: str
    """Without /v1."""
    name: str
    window: int = 0
    """Tokens of its context; 0: unknown."""
    concurrency: int = 32
    """Requests under way at once, in all workers together."""
    timeout: float = 600.0
    """Seconds for one reply."""
    deadline: float = 900.0
    """Seconds without any answer after which the server is gone."""
    answers: Path = Path()
    """Folder of the answers that were given."""


def api_key() -> str:
    """The key for the server; empty: none."""
    return os.environ.get(KEY_NAMES, "").strip()


def find_model(url: str, name: str = "") -> tuple[str, str, int]:
    """Address without /v1, name of the model (the wanted one, else the first listed) and tokens of its context.

    Raises:
        UserError: no address or no server there, it refuses the key, or has no such model.
    """
    from nano3.client.server import Server, base_address

    address = base_address(url)
    server = Server(address, api_key(), key_names=KEY_NAMES, proxies=True)
    try:
        found, told = server.find_model(name)
    finally:
        server.close()
    lengths = [told[key] for key in WINDOW_KEYS if isinstance(told.get(key), int)]
    return address, found, lengths[0] if lengths else 0


def no_model(label: str) -> UserError:
    """The error where a step asks a model and none is named."""
    return UserError(f"step '{label}' asks a language model: give --url, the address of an OpenAI-compatible server")
