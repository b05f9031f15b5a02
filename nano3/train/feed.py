"""Where a run's micro-batches come from: a source gives those of each optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import torch

from nano3.kernels.host_copies import remember, send


class PausedError(Exception):
    """A source has no step for now, and the run is sound: it saves what it has and ends, and a resume asks for the same
    step again. The message is one line; every rank raises it for the same step."""


class StepSource(Protocol):
    """Training data by optimizer step. A source that measures what it gives is a `MeasuredSource` too.

    A micro-batch is a dataclass whose tensors are moved to the device; it has at least
        tokens (B, T) int64, of any shape, from micro-batch to micro-batch and from rank to rank;
        n_tokens, how many of them are text and no padding: what the run counts as tokens;
        n_targets, what the loss's sums are divided by: valid targets over the whole step;
        documents, names for the report of a non-finite loss.
    """

    @property
    def ahead(self) -> bool:
        """Whether step n + 1 may be read, in another thread, while step n trains. Only where a step depends on nothing
        but its number. Otherwise step n is asked for in the training thread, after the update of step n - 1."""
        ...

    def step(self, n: int) -> Sequence[Any]:
        """This rank's micro-batches of optimizer step `n` (from 0): as many as every other rank has.

        Raises:
            PausedError: not now.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What the source needs to go on after the step that was trained last, beside the number of the next one:
        JSON values and tensors by name. A checkpoint holds it, each rank's where they differ, and is then resumed with
        as many ranks. A source whose state is the same on every rank, however many there are, says so by an attribute
        `shared_state` that is True. One that may find out later that training went wrong some steps ago says by an
        attribute `safe_step` up to which step it knows that it did not: the newest checkpoint from there is kept."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state()`; called before the first step of a resumed run."""
        ...

    def close(self) -> None:
        """The run is over; no more steps are asked for."""
        ...


@runtime_checkable
class MeasuredSource(Protocol):
    """A source with figures of its own for metrics.jsonl and the display."""

    @property
    def shown(self) -> Sequence[str]:
        """Names of the metrics that the display shows before the loss."""
        ...

    @property
    def server_seconds(self) -> float:
        """How long a step may wait for one answer of a server; 0: no server is asked."""
        ...

    def measured(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Figures of the step that was trained last: those that a run repeats exactly, as JSON values, and wall-clock
        ones. Every rank is asked, and gives the same."""
        ...


class Feed:
    """Asks a source for each step, one step ahead where it allows that.

    Args:
        source: of the micro-batches.
        cut: takes this rank's part of one, where ranks share each of them; None: it is all this rank's.
    """

    def __init__(self, source: StepSource, cut: Callable[[Any], Any] | None = None) -> None:
        self.source, self._cut = source, cut
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nano3-feed")
        self._ahead: dict[int, Future[Sequence[Any]]] = {}

    def get(self, step: int) -> Sequence[Any]:
        """This rank's micro-batches of step `step` (from 0), on the CPU."""
        if not self.source.ahead:
            return self._read(step)
        ready = self._ahead.pop(step, None) or self._pool.submit(self._read, step)
        return ready.result()

    def prepare(self, step: int) -> None:
        """Read step `step`, which comes next, in the background, if the source allows it."""
        if self.source.ahead:
            self._ahead = {step: self._pool.submit(self._read, step)}

    def _read(self, step: int) -> Sequence[Any]:
        batches = self.source.step(step)
        return batches if self._cut is None else [self._cut(batch) for batch in batches]

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.source.close()


def sequence_length(batch: Any) -> int:
    """Tokens of a micro-batch's sequences; of whole ones, where it holds slices of them."""
    return getattr(batch, "seq_len", batch.tokens.shape[-1])


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` (a dataclass) with its tensors on `device`. The host neither waits for them nor forgets the numbers of
    integers and masks: what is to be done with a batch follows from how many tokens, targets and documents it has."""
    if device.type == "cpu":
        return batch
    tensors = {}
    for field in dataclasses.fields(batch):
        if isinstance(host := getattr(batch, field.name), torch.Tensor):
            tensors[field.name] = moved = send(host, device)
            if not host.is_floating_point():
                remember(moved, host)
    return dataclasses.replace(batch, **tensors)
