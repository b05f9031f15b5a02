"""A few rows of a blend of conversations, for looking at a model's activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import RowError
from nano3.data.chat.maker import RowMaker
from nano3.data.chat.rows import EncodedRow
from nano3.data.chat.sets import set_records, set_sources
from nano3.data.texts.readers import Skipped
from nano3.data.tokens.tokenizer import Tokenizer

MOST_RECORDS = 20_000
"""Records of a data set among which held-out rows are looked for."""
NO_TARGET = -100


@dataclass
class Drawn:
    """Rows, and what was left out on the way."""

    rows: list[list[int]] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)
    """Of each row the token to predict at each place, -100 for none."""
    by_set: dict[str, int] = field(default_factory=dict)
    """Rows of each data set."""
    refused: int = 0
    first_problem: str = ""


def draw_rows(cfg: SftConfig, tokenizer: Tokenizer, count: int, heldout: bool = False) -> Drawn:
    """The first rows of each data set that a run of these settings trains on, `count` together, shared out as the
    blend has it; one after the other from each set, so that a cut anywhere keeps the shares. With `heldout` rows that
    such a run does not train on, among the first MOST_RECORDS of each set.

    Raises:
        UserError, FileNotFoundError: as nano3.data.chat.sets.set_records.
    """
    maker, drawn, sets = RowMaker(cfg, tokenizer), Drawn(), set_sources(cfg.data)
    found: dict[str, list[EncodedRow]] = {}
    for name, wanted in _shares({name: cfg.data.blend[name] for name in sets}, count).items():
        found[name] = _first(name, wanted, cfg, maker, drawn, heldout)
    drawn.by_set = {name: len(rows) for name, rows in found.items()}
    places = sorted(((i + 1) / len(rows), name, i) for name, rows in found.items() for i in range(len(rows)))
    drawn.rows = [found[name][i].ids.tolist() for _, name, i in places]
    drawn.targets = [_targets(found[name][i]) for _, name, i in places]
    return drawn


def _first(name: str, count: int, cfg: SftConfig, maker: RowMaker, drawn: Drawn, heldout: bool) -> list[EncodedRow]:
    rows: list[EncodedRow] = []

    def refuse(row: str, error: RowError) -> None:
        drawn.refused += 1
        drawn.first_problem = drawn.first_problem or f"{row}: {error}"

    records = set_records(set_sources(cfg.data)[name], cfg.data, Skipped()) if count else ()
    # Records that are all of one split need not be encoded to tell.
    candidates = (record for record in records if record.heldout in (None, heldout))
    for number, record in enumerate(candidates, 1):
        rows += [row.encoded for row in maker.rows(record, refuse) if row.heldout == heldout]
        if len(rows) >= count or (heldout and number == MOST_RECORDS):
            break
    return rows[:count]


def _targets(row: EncodedRow) -> list[int]:
    following = np.where(row.trained, row.ids.astype(np.int64), NO_TARGET)[1:]
    return [*following.tolist(), NO_TARGET]


def _shares(weights: dict[str, float], count: int) -> dict[str, int]:
    """`count` in whole numbers by weight; what rounding leaves goes to the largest remainders."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: shares[name] - exact[name])[: count - sum(shares.values())]
    return {name: share + (name in rest) for name, share in shares.items()}
