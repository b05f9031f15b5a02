"""A few rows of a blend of conversations, for looking at a model's activations."""

from __future__ import annotations

from dataclasses import dataclass, field

from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import RowError
from nano3.data.chat.maker import RowMaker
from nano3.data.chat.sets import set_records, set_sources
from nano3.data.texts.readers import Skipped
from nano3.data.tokens.tokenizer import Tokenizer


@dataclass
class Drawn:
    """Rows, and what was left out on the way."""

    rows: list[list[int]] = field(default_factory=list)
    by_set: dict[str, int] = field(default_factory=dict)
    """Rows of each data set."""
    refused: int = 0
    first_problem: str = ""


def draw_rows(cfg: SftConfig, tokenizer: Tokenizer, count: int) -> Drawn:
    """The first rows of each data set that a run of these settings trains on, `count` together, shared out as the
    blend has it; one after the other from each set, so that a cut anywhere keeps the shares.

    Raises:
        UserError, FileNotFoundError: as nano3.data.chat.sets.set_records.
    """
    maker, drawn, sets = RowMaker(cfg, tokenizer), Drawn(), set_sources(cfg.data)
    found: dict[str, list[list[int]]] = {}
    for name, wanted in _shares({name: cfg.data.blend[name] for name in sets}, count).items():
        found[name] = _first(name, wanted, cfg, maker, drawn)
    drawn.by_set = {name: len(rows) for name, rows in found.items()}
    places = sorted(((i + 1) / len(rows), name, i) for name, rows in found.items() for i in range(len(rows)))
    drawn.rows = [found[name][i] for _, name, i in places]
    return drawn


def _first(name: str, count: int, cfg: SftConfig, maker: RowMaker, drawn: Drawn) -> list[list[int]]:
    rows: list[list[int]] = []

    def refuse(row: str, error: RowError) -> None:
        drawn.refused += 1
        drawn.first_problem = drawn.first_problem or f"{row}: {error}"

    for record in set_records(set_sources(cfg.data)[name], cfg.data, Skipped()) if count else ():
        rows += [row.encoded.ids.tolist() for row in maker.rows(record, refuse) if not row.heldout]
        if len(rows) >= count:
            break
    return rows[:count]


def _shares(weights: dict[str, float], count: int) -> dict[str, int]:
    """`count` in whole numbers by weight; what rounding leaves goes to the largest remainders."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: shares[name] - exact[name])[: count - sum(shares.values())]
    return {name: share + (name in rest) for name, share in shares.items()}
