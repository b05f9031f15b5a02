"""What an operator can set about a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIB = 1 << 20
RAW, PROCESSED = "raw_logprobs", "processed_logprobs"


@dataclass(frozen=True)
class Settings:
    """Limits, keys and origins of one server."""

    api_keys: tuple[str, ...] = ()
    """Any of these opens /v1/*, /tokenize and /detokenize; none: they are open."""
    max_queue: int = 512
    """Most sequences that wait for the engine; a request that would exceed it is answered 429."""
    max_body_bytes: int = 16 * MIB
    """Largest request body. Reading one takes up to 60 ms a MiB, in which nothing else goes on in any thread."""
    request_timeout: float | None = None
    """Seconds from a request's arrival to its end; None: no limit."""
    stall_seconds: float = 120.0
    """A client that reads nothing of its stream for this long is hung up on."""
    drain_seconds: float = 30.0
    """After SIGTERM, how long accepted requests may go on."""
    keep_alive_seconds: float = 10.0
    """A stream that says nothing for this long sends an SSE comment, so that proxies keep it open."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call this server from a browser; `*` for all."""
    base_model: bool = False
    """Whether the model has never seen a conversation: then chat answers begin without thinking where a request does
    not say, since it would not end it."""
    text_page: bool = False
    """Whether the page at / is the one that continues a text, and not the one for conversations."""
    opening: str = ""
    """How a text of the model's kind begins, for the page that continues one; empty: not known."""
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = RAW
    """What log-probabilities are of: the model as it is, or the distribution that tokens were drawn from."""
    weights_folder: Path | None = None
    """Trainers may replace the weights by models in folders below this one; None: they may not."""
    retry_after: int = 1
    """Seconds that a 429 or 503 answer asks its client to wait."""
