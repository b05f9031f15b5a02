"""Log-likelihoods and texts from a generation engine: many requests in flight, each answer given out as it is ready."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from nano3.engine.output import Output
from nano3.engine.protocol import GenerationEngine
from nano3.engine.request import Request, Sampling

Key = TypeVar("Key")
AHEAD = 2
"""Requests handed to the engine, in multiples of what it runs at once."""


class Passage(NamedTuple):
    """Tokens of which the last ones are scored; a benchmark has millions of tokens, so they are packed."""

    packed: bytes
    """Token ids, 4 bytes each."""
    scored: int
    """How many of the last tokens; fewer than all, so that each has something before it."""

    @classmethod
    def of(cls, ids: Sequence[int], scored: int) -> Passage:
        """The passage of these tokens."""
        return cls(array("I", ids).tobytes(), scored)

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids."""
        return tuple(array("I", self.packed))


class Score(NamedTuple):
    """What a model says of a passage's end."""

    log_likelihood: float
    """Sum of the natural log-probabilities of the scored tokens."""
    greedy: bool
    """Whether each of them is the most probable token."""


def score_passages(engine: GenerationEngine, passages: Sequence[Passage]) -> Iterator[tuple[int, Score]]:
    """(index, score) of each passage as it is ready, the longest first; equal passages are computed once.

    Args:
        engine: with room for the longest passage (`max_context`).
        passages: at least 2 tokens each.
    """
    places: dict[Passage, list[int]] = {}
    for index, passage in enumerate(passages):
        places.setdefault(passage, []).append(index)
    # Sorted by tokens too, so that the order in which requests come decides nothing.
    ordered = sorted(places, key=lambda passage: (-len(passage.packed), passage))
    sampling = Sampling(max_tokens=0, prompt_log_probs=1)
    requests = ((passage, passage.ids, sampling) for passage in ordered)
    for passage, output in run_all(engine, requests):
        score = _score(output, passage.scored)
        for index in places[passage]:
            yield index, score


def run_all(
    engine: GenerationEngine, requests: Iterable[tuple[Key, Sequence[int], Sampling]]
) -> Iterator[tuple[Key, Output]]:
    """Run (key, prompt ids, sampling) to their ends; outputs as they finish. What is left is dropped when the caller
    stops early.

    Raises:
        ValueError: a request can never run.
        RuntimeError: the engine failed one.
    """
    source = enumerate(requests)
    running: dict[str, tuple[Key, Output]] = {}
    most = AHEAD * max(1, engine.stats().max_running)
    finished: deque[str] = deque()
    exhausted = False
    try:
        while True:
            while not exhausted and len(running) < most:
                taken = next(source, None)
                if taken is None:
                    exhausted = True
                    break
                number, (key, ids, sampling) = taken
                name = f"lm-{number}"
                engine.add(Request(name, tuple(ids), sampling))
                running[name] = (key, Output())
            if not running:
                return
            for update in engine.step():
                if update.request_id in running:
                    running[update.request_id][1].add(update)
                    if update.finish is not None:
                        finished.append(update.request_id)
            while finished:
                key, output = running.pop(finished.popleft())
                if output.finish == "error":
                    raise RuntimeError(f"the engine failed a request: {output.error}")
                yield key, output
    finally:
        for name in running:
            engine.abort(name)


def _score(output: Output, scored: int) -> Score:
    assert output.prompt is not None, "the engine scored nothing"
    tokens = output.prompt[len(output.prompt) - scored :]
    greedy = all(bool(token.top) and token.top[0][0] == token.id for token in tokens)
    return Score(math.fsum(token.log_prob for token in tokens), greedy)
