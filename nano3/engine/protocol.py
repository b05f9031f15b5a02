"""The generation engine as everything above it sees it; nothing there knows which implementation runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import CHAT_TOKENS, Tokenizer
from nano3.engine.output import Output
from nano3.engine.request import Request, Update


@dataclass(frozen=True)
class Stats:
    """Counters since the start, and what is in use now."""

    running: int = 0
    """Sequences being computed."""
    max_running: int = 0
    """Most sequences computed at once."""
    waiting: int = 0
    """Sequences in the queue."""
    prompt_tokens: int = 0
    """Prompt tokens taken in."""
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    computed_tokens: int = 0
    """Tokens that went through the model, recomputed ones included."""
    output_tokens: int = 0
    preemptions: int = 0
    """Times a sequence lost its memory to another and was computed anew."""
    cache_queries: int = 0
    """Prompts looked up in the prefix cache."""
    cache_hits: int = 0
    """Prompts of which it had a part."""
    cached_prefixes: int = 0
    """Beginnings of prompts that the prefix cache keeps now."""
    drafted_tokens: int = 0
    """Tokens proposed by speculation."""
    accepted_tokens: int = 0
    """Proposed tokens that the model agreed with."""
    pages_used: int = 0
    pages: int = 0
    slots_used: int = 0
    """State slots in use, by sequences and by the prefix cache."""
    slots: int = 0


class MixedWeightsError(RuntimeError):
    """Loading of weights ended half way: some are new, some old. The line says why."""

    def __init__(self, reason: Exception) -> None:
        why = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(f"loading ended half way, and some weights are new, some old: load again ({why})")


class ServersGoneError(UserError):
    """An engine on servers has none left that has the weights; the line says why each is lost."""


class GenerationEngine(Protocol):
    """Runs requests together, a step at a time. Not thread-safe, but for `prepare`: one thread owns an engine."""

    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    """Tokens that end a text."""
    max_context: int
    """Most tokens of prompt and output together."""
    page_size: int
    """Tokens a page of keys and values."""
    ids_limit: int
    """Only ids below it are drawn, and log-probabilities of drawn tokens are under the distribution over these alone.
    Log-probabilities of prompt tokens are over the model's whole vocabulary, which may be larger."""

    @property
    def reports_experts(self) -> bool:
        """Whether requests may ask for the experts of their tokens."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def prepare(self, request: Request) -> None:
        """Do the slow part of `add` (compiling a grammar) ahead of it; the one method for any thread at any time.

        Raises:
            ValueError: the request can never run, in one line.
        """
        ...

    def add(self, request: Request) -> None:
        """Take a request in.

        Raises:
            ValueError: it can never run (too long, unknown token id, bad grammar, id in use), in one line.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request with all it holds, at once and without an update; unknown or finished ids are ignored."""
        ...

    def step(self) -> list[Update]:
        """One pass of the model over some tokens of some requests."""
        ...

    def progress(self, request_id: str) -> tuple[int, int] | None:
        """(prompt tokens computed, prompt tokens) of a request that is waiting or running."""
        ...

    def stats(self) -> Stats:
        """Counters and use."""
        ...

    def weights_changed(self) -> int:
        """Drop all that was computed with the model's weights of before: to be called after every change of them.

        Requests that have not begun stay in the queue and run with the new weights.

        Returns:
            The version of the weights, 0 at first and one more with each call; it is `weights_version` of all updates
            from now on.

        Raises:
            RuntimeError: a sequence is under way, whose tokens would come from two versions; nothing was dropped.
        """
        ...

    def load_weights(self, folder: Path) -> int:
        """Replace the weights by those of a Hugging Face folder of the same architecture, then `weights_changed`.

        Raises:
            RuntimeError: as weights_changed.
            UserError: the folder has other tensors, by name; the old weights are still there then.
            MixedWeightsError: it ended half way; `weights_changed` was called for what is there now.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def require_idle(unfinished: int) -> None:
    """Raise weights_changed's RuntimeError where sequences are under way."""
    if unfinished:
        raise RuntimeError(
            f"the weights changed while {unfinished} sequences were under way, computed in part with the old ones; "
            "run them to their end or abort them before the weights change"
        )


def ends_of_text(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a text or a turn."""
    return frozenset(i for i in (tokenizer.eos_id, tokenizer.token_id(CHAT_TOKENS[1])) if i is not None)


def run(engine: GenerationEngine, requests: Iterable[Request]) -> list[list[Output]]:
    """Run requests to their ends: the outputs of each, in order.

    Raises:
        ValueError: one of them can never run; none was started then.
    """
    requests = list(requests)
    outputs = {request.id: [Output(index) for index in range(request.n)] for request in requests}
    added: list[str] = []
    try:
        for request in requests:
            engine.add(request)
            added.append(request.id)
        left = sum(request.n for request in requests)
        while left:
            for update in engine.step():
                if update.request_id in outputs:
                    outputs[update.request_id][update.index].add(update)
                    left -= update.finish is not None
    except BaseException:
        for request_id in added:
            engine.abort(request_id)
        raise
    return [outputs[request.id] for request in requests]
