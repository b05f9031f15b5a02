"""What the model steps of a run will cost, from a pilot: some of its documents, sent for real, their answers kept."""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import Document

from nano3.client.chat import ChatAnswer
from nano3.curate.ask.step import AskStep
from nano3.curate.step import Reader, Step

if TYPE_CHECKING:
    from nano3.curate.run import Plan

PILOT = "_pilot"
"""In a document's metadata: which of the pilot it is, or is made of."""
DRAWN = 8
"""Documents that go through the steps before the first that asks, for each of the pilot."""
READING_SECONDS = 60.0
"""In which inputs are counted; of those that are left then as much is expected by their size."""
BYTES_PER_TOKEN = 4
"""Where a server does not count tokens."""
FEWEST_FOR_A_LINE = 8
"""Documents of a pilot from which a cost that grows with their length can be told."""
NORMAL_95 = 1.96
DROPPED = ("step", "reason", "documents", "reply")
REQUESTS, SENT, WRITTEN, SECONDS = "requests", "sent", "written", "seconds"


@dataclass(frozen=True)
class Population:
    """All documents that a run will read."""

    documents: float
    bytes: float
    counted: bool
    """Whether all inputs were read; else they are extrapolated by the size of the inputs."""


@dataclass
class Costs:
    """What one document cost."""

    bytes: int
    values: dict[str, float] = field(default_factory=lambda: dict.fromkeys((REQUESTS, SENT, WRITTEN, SECONDS), 0.0))


@dataclass(frozen=True)
class Total:
    """An expected total, and how far off it may be."""

    value: float
    margin: float
    """Half the width of the 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """What all documents are expected to cost."""

    population: Population
    drawn: int
    """Documents that went through the steps before the first that asks."""
    reached: int
    """Those of them that came as far as that step."""
    asked: int
    """Those of them about which the model was asked: the pilot."""
    kept: int
    """Documents that came out of the last step for the pilot's."""
    totals: dict[str, Total]
    """Requests; tokens sent and written; seconds that requests hold a place."""
    concurrency: int
    counted_tokens: bool
    """Whether the server counted them; else a token is taken for four bytes."""
    left_out: tuple[str, ...]
    """Steps that must see all documents first, which a pilot cannot: nothing is dropped by them here."""
    dropped: tuple[tuple[str, str, int, str], ...] = ()
    """Of the pilot: step, reason, documents, and the reply of the model to one of them."""

    @property
    def hours(self) -> float:
        """With all places in use."""
        return self.totals[SECONDS].value / self.concurrency / 3600

    def cost(self, price: tuple[float, float]) -> float:
        """Money, for prices of a million tokens sent and written."""
        return (price[0] * self.totals[SENT].value + price[1] * self.totals[WRITTEN].value) / 1e6

    def to_json(self, price: tuple[float, float] | None = None) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = {
            "documents": round(self.population.documents),
            "documents_counted": self.population.counted,
            "drawn_documents": self.drawn,
            "reached_the_model": self.reached,
            "pilot_asked": self.asked,
            "pilot_kept": self.kept,
            "pilot_dropped": [dict(zip(DROPPED, one, strict=True)) for one in self.dropped],
        }
        for key, name in ((REQUESTS, "requests"), (SENT, "tokens_sent"), (WRITTEN, "tokens_written")):
            found[name], found[f"{name}_margin"] = round(self.totals[key].value), round(self.totals[key].margin)
        return found | {
            "tokens_counted_by_server": self.counted_tokens,
            "concurrency": self.concurrency,
            "hours": self.hours,
            "cost": None if price is None else self.cost(price),
            "steps_left_out": list(self.left_out),
        }


def estimate(plan: Plan, size: int) -> Estimate:
    """Send a pilot through the steps of a plan, and say what all documents will cost.

    Steps before the first that asks cost no money: `DRAWN` times as many documents go through them, to learn how many
    of all come so far; the model is asked about `size` of those that do.

    Args:
        plan: with a model.
        size: documents of the pilot, drawn from all by a seeded hash: the same ones each time.

    Raises:
        UserError: as a run does; ServerGoneError where the server does not answer.
    """
    assert plan.model is not None
    reader, *steps = [step for segment in plan.segments for step in segment.steps if isinstance(step, Step)]
    assert isinstance(reader, Reader)
    first = next(i for i, step in enumerate(steps) if isinstance(step, AskStep))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        drawn, population = draw_documents(_moved(reader, place), DRAWN * size)
        origins = [Costs(_bytes(document)) for document in drawn]
        for number, document in enumerate(drawn):
            document.metadata[PILOT] = number
        reached = list(_through(drawn, steps[:first], place))
        numbers = [document.metadata.get(PILOT, 0) for document in reached]
        sizes = [_bytes(document) for document in reached]
        meter = Meter(reached[:size])
        ran: list[Step] = []
        kept = sum(1 for _ in _through(reached[:size], steps[first:], place, meter, ran))
    totals = {}
    for key in (REQUESTS, SENT, WRITTEN, SECONDS):
        line = fitted(meter.costs, key)
        for number, length in zip(numbers, sizes, strict=True):
            origins[number].values[key] += line.at(length)
        error = line.error * math.sqrt(1 - len(meter.costs) / max(1, len(reached)))
        totals[key] = expected_total(origins, key, population, error * len(reached) / max(1, len(drawn)))
    left_out = tuple(step.context.label for step in steps if step.barrier)
    return Estimate(
        population, len(drawn), len(reached), len(meter.costs), kept, totals, plan.model.concurrency, meter.counted,
        left_out, tuple(_dropped(ran)),
    )  # fmt: skip


def _dropped(steps: Sequence[Step]) -> Iterator[tuple[str, str, int, str]]:
    """What steps dropped: label, reason, documents, a reply."""
    for step in steps:
        for reason, dropped in sorted(step.ledger.account.dropped.items()):
            yield step.context.label, reason, dropped.size.documents, dropped.samples[0].reply


def _through(
    documents: Sequence[Document],
    steps: Sequence[Step],
    folder: Path,
    meter: Meter | None = None,
    ran: list[Step] | None = None,
) -> Iterator[Document]:
    """Documents that come out of some steps, those aside that must see all; the others are noted in `ran`."""
    stream: Iterator[Document] = iter(documents)
    for step in steps:
        if step.barrier:
            continue
        moved = _moved(step, folder)
        if isinstance(moved, AskStep):
            moved.meter = meter
        stream = moved.run(stream, 0, 1)
        if ran is not None:
            ran.append(moved)
    return stream


class Meter:
    """What each document of a pilot cost, those that are made of it among it.

    Attributes:
        costs: of each document.
        counted: whether the server counts tokens.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        """Nothing asked yet; each document is marked with its number."""
        self.costs = [Costs(_bytes(document)) for document in documents]
        self.counted = True
        for number, document in enumerate(documents):
            document.metadata[PILOT] = number

    def __call__(self, document: Document, message: str, answer: ChatAnswer, seconds: float) -> None:
        """One answer, for a document or one that was made of it."""
        sent, written = answer.prompt_tokens, answer.completion_tokens
        if not sent:
            self.counted = False
            texts = (message, answer.reasoning + answer.text)
            sent, written = (len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN for text in texts)
        values = self.costs[document.metadata.get(PILOT, 0)].values
        for key, value in ((REQUESTS, 1), (SENT, sent), (WRITTEN, written), (SECONDS, seconds)):
            values[key] += value


def draw_documents(reader: Reader, n: int) -> tuple[list[Document], Population]:
    """Some documents, in a drawn order, and what all of them are; the inputs are read for as long as may be."""
    context = reader.context
    parts = [unit for part in reader.parts for unit in part]
    if context.limit:
        order = [tuple(parts)]
    else:
        order = [(unit,) for unit in random.Random(context.seed).sample(parts, len(parts))]
    reader.parts = order
    chosen: list[tuple[int, int, Document]] = []
    documents = total = read = 0
    begun = time.monotonic()
    for rank, units in enumerate(order):
        for document in reader.run(None, rank, len(order)):
            documents, total = documents + 1, total + _bytes(document)
            entry = (-_draw(context.seed, document.id), documents, document)
            if len(chosen) < n:
                heapq.heappush(chosen, entry)
            elif entry[0] > chosen[0][0]:
                heapq.heapreplace(chosen, entry)
        read += sum(unit.size for unit in units)
        if time.monotonic() - begun > READING_SECONDS:
            break
    whole = sum(unit.size for unit in parts)
    share = whole / read if read < whole else 1.0
    drawn = [document for *_, document in sorted(chosen, key=lambda entry: (-entry[0], entry[1]))]
    return drawn, Population(documents * share, total * share, share == 1.0)


@dataclass(frozen=True)
class Line:
    """A cost by the length of a document, as the pilot shows it."""

    mean_bytes: float
    mean: float
    slope: float
    """Of a byte."""
    error: float
    """Standard error of the mean, of what length does not explain."""

    def at(self, length: float) -> float:
        """Expected cost of a document of so many bytes."""
        return max(0.0, self.mean + self.slope * (length - self.mean_bytes))


def fitted(costs: Sequence[Costs], key: str) -> Line:
    """The line of least squares; level where there are too few documents to tell."""
    n = len(costs)
    if not n:
        return Line(0.0, 0.0, 0.0, 0.0)
    x, y = [cost.bytes for cost in costs], [cost.values[key] for cost in costs]
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = 0.0
    if n >= FEWEST_FOR_A_LINE and spread:
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return Line(mean_x, mean_y, slope, math.sqrt(rest / max(1, n - 1 - (slope != 0)) / n))


def expected_total(costs: Sequence[Costs], key: str, population: Population, error: float = 0.0) -> Total:
    """A cost of all documents from that of some, by their length.

    Args:
        costs: of the documents that were drawn.
        key: which cost.
        population: all documents.
        error: standard error of each of the costs beside, all in common.
    """
    if not costs:
        return Total(0.0, 0.0)
    n, line = population.documents, fitted(costs, key)
    unseen = max(0.0, 1.0 - len(costs) / n)
    width = NORMAL_95 * math.sqrt(line.error**2 * unseen + error**2)
    return Total(n * line.at(population.bytes / n), n * width)


def _moved(step: Any, folder: Path) -> Any:
    """The step, with its accounts in another folder and one task for all."""
    moved = copy(step)
    moved.context = replace(step.context, out=folder, tasks=1)
    return moved


def _draw(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "replace"), digest_size=7).digest(), "big")


def _bytes(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))
