"""Held-out loss and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch

from nano3.config.schema import ScoringConfig
from nano3.model.head import IGNORED, nll_sum
from nano3.parallel.pipeline import Pipeline
from nano3.parallel.sharing import Sharing, around
from nano3.train.feed import to_device
from nano3.train.parallel import release
from nano3.train.world import World


class HeldoutSource(Protocol):
    """Held-out text as sequences in a fixed order."""

    def __len__(self) -> int: ...

    def batch(self, start: int, count: int) -> Any:
        """Sequences start .. start + count - 1."""
        ...

    def bytes_of(self, start: int, count: int) -> int:
        """Bytes of text that the targets of these sequences stand for."""
        ...


class Spread:
    """Sequences of held-out text at even distances: a sample of many documents in the place of the first few.

    Args:
        source: all of the text.
        count: sequences in the sample, at most all of them.
    """

    def __init__(self, source: HeldoutSource, count: int) -> None:
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def batch(self, start: int, count: int) -> Any:
        """Sequences start .. start + count - 1 of the sample."""
        return _join([self._source.batch(place, 1) for place in self._places(start, count)])

    def bytes_of(self, start: int, count: int) -> int:
        """Bytes of text that the targets of these sequences stand for."""
        return sum(self._source.bytes_of(place, 1) for place in self._places(start, count))

    def _places(self, start: int, count: int) -> list[int]:
        return [i * len(self._source) // self._count for i in range(start, min(start + count, self._count))]


def _join(batches: list[Any]) -> Any:
    """Batches of one length as one: tensors below each other, lists behind each other."""
    columns = {field.name: [getattr(batch, field.name) for batch in batches] for field in fields(batches[0])}
    return type(batches[0])(**{name: _joined(values, columns["tokens"]) for name, values in columns.items()})


def _joined(values: list[Any], tokens: list[torch.Tensor]) -> Any:
    """`tokens`: those of each batch."""
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):  # no padding there: all of it is valid
        values = [torch.ones_like(t, dtype=torch.bool) if v is None else v for v, t in zip(values, tokens, strict=True)]
    return torch.cat(values) if isinstance(values[0], torch.Tensor) else [one for value in values for one in value]


@dataclass(frozen=True)
class HeldoutScore:
    """How well a model predicts held-out text."""

    loss: float
    """Nats a target."""
    bits_per_byte: float
    """Sum of negative log-likelihood / ln 2 / bytes of text: comparable between tokenizers and with compressors."""
    targets: int
    """Tokens scored."""
    bytes: int
    """Bytes of text scored."""


@dataclass(frozen=True)
class Heldout:
    """Held-out text of a run, and when it is scored."""

    cfg: ScoringConfig
    """Intervals, and tokens scored each time."""
    sources: Mapping[int, HeldoutSource]
    """The text in sequences of each length; the first gives the score of the run."""
    tokens_at_once: int
    """Tokens in one forward pass."""

    def rows(self, seq_len: int) -> int:
        """Sequences in one forward pass."""
        return max(1, self.tokens_at_once // seq_len)

    def sequences(self, seq_len: int, final: bool) -> int:
        """How many sequences of a length are scored: at the end of the run, or on its way; 0 settings mean all."""
        wanted, there = self.cfg.final_tokens if final else self.cfg.tokens, len(self.sources[seq_len])
        return min(math.ceil(wanted / seq_len), there) if wanted else there

    def text(self, seq_len: int, final: bool) -> HeldoutSource:
        """What is scored at a length: on the way a sample from all over the text, at the end the text from its start.

        The end keeps to the start because that is the text that compressors are given to compare with.
        """
        source, count = self.sources[seq_len], self.sequences(seq_len, final)
        return source if final or count == len(source) else Spread(source, count)


def evaluate(
    model: Any,
    source: HeldoutSource,
    n_sequences: int,
    micro_batch: int,
    world: World,
    tick: Callable[[], None] | None = None,
    shared: Sharing | None = None,
    pipeline: Pipeline | None = None,
) -> HeldoutScore:
    """Score the first `n_sequences` held-out sequences, shared out over the ranks.

    Args:
        model: language model with `hidden` and `lm_head`.
        source: held-out text.
        n_sequences: sequences to score, at most all of them.
        micro_batch: sequences in one forward pass.
        world: the processes that share the work; each gets the same score back.
        tick: called after each forward pass.
        shared: the processes that share out each sequence; None: every one scores whole sequences.
        pipeline: runs the passes where processes hold different blocks.
    """
    count = min(n_sequences, len(source))
    starts = list(range(0, count, micro_batch))
    totals = torch.zeros(3, dtype=torch.float64)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for turn in range(0, len(starts), world.data.size):
            mine = turn + world.data.rank
            # A rank with nothing left scores the last batch again and drops it: sharded forwards need every rank.
            start = starts[min(mine, len(starts) - 1)]
            stop = min(start + micro_batch, count)
            # Ranks that exchange tokens go through their blocks in as many pieces as each other: batches of one size.
            first = max(0, stop - micro_batch) if world.data.size > 1 else start
            scored = _score(model, source, range(start, stop), start - first, world, shared, pipeline)
            totals += scored if mine < len(starts) else 0.0
            if tick is not None:
                tick()
    model.train(was_training)
    release(model)
    # Over those that share the sequences out: along any other axis they are the same ones.
    totals = (world.data if shared is None else world.loss).sum(totals.to(world.device))
    nll, targets, n_bytes = world.pipeline.sum(totals).tolist()
    return HeldoutScore(nll / max(targets, 1), nll / math.log(2) / max(n_bytes, 1), int(targets), int(n_bytes))


def _score(
    model: Any,
    source: HeldoutSource,
    rows: range,
    extra: int,
    world: World,
    shared: Sharing | None,
    pipeline: Pipeline | None,
) -> torch.Tensor:
    """(sum of negative log-likelihood, targets, bytes) of this process's part of some sequences, as float64; `extra`
    sequences before them go through the model too. Of a pipeline's processes the last one has them, the others 0."""
    batch = source.batch(rows.start - extra, len(rows) + extra)
    if extra:
        targets = batch.targets.clone()
        targets[:extra] = IGNORED
        batch = replace(batch, targets=targets)
    batch = to_device(batch if shared is None else shared.cut(batch), world.device)

    def run(part: Any) -> float | None:
        hidden = part.hidden(batch.tokens, batch.document_ids, **around(batch, shared), statistics=())
        return None if part.lm_head is None else nll_sum(part.lm_head, hidden.x, batch.targets).item()

    nll = run(model) if pipeline is None else pipeline.through(tuple(batch.tokens.shape), run)
    if nll is None:
        return torch.zeros(3, dtype=torch.float64)
    n_bytes = source.bytes_of(rows.start, len(rows)) if world.sequence.rank == 0 or shared is None else 0
    return torch.tensor([nll, batch.n_targets, n_bytes], dtype=torch.float64)
