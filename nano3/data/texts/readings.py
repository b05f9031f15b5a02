"""How often a run reads each text: exactly where it is prepared, from the sizes of files before that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nano3.config.errors import UserError
from nano3.config.extend_context import ExtendContextConfig
from nano3.config.schema import DataConfig, PretrainConfig
from nano3.data.generated.inputs import GeneratedTexts
from nano3.data.texts.compressed import COMPRESSED
from nano3.data.texts.readers import Input, InputFile
from nano3.data.texts.sources import NEED_NO_PATH, find_inputs, source_table
from nano3.data.tokens.shards import read_manifest

if TYPE_CHECKING:
    from nano3.data.tokens.source import TokenSource

MANY_READINGS = 4
"""Up to about four epochs repeated text is worth nearly as much as new text (Muennighoff et al. 2023, section 6)."""
BYTES_PER_TOKEN = 4
COMPRESSION = 3.5
"""Bytes of text in a byte of a compressed or Parquet file, roughly."""


def readings(sources: Mapping[int, TokenSource], lengths: Mapping[int, float], tokens: int) -> dict[str, float]:
    """Times that a run of so many tokens reads the texts of each category.

    Args:
        sources: rows of each sequence length of the run.
        lengths: weight of each length in the tokens.
        tokens: places in all rows of the run.
    """
    total: dict[str, float] = {}
    for length, weight in lengths.items():
        source = sources[length]
        for name, passes in source.epochs(tokens * weight / sum(lengths.values()) / length).items():
            # Documents that are never cut belong to one length: each counts for itself, the most often read one here.
            earlier = total.get(name, 0.0)
            total[name] = max(earlier, passes) if name in source.whole else earlier + passes
    return total


def estimated_readings(cfg: DataConfig, tokens: int) -> dict[str, float]:
    """As `readings`, from the sizes of files or what prepared folders say; categories without either are left out."""
    total = sum(cfg.blend.values())
    sizes = {name: _size(cfg, name) for name, weight in cfg.blend.items() if weight > 0}
    return {name: tokens * cfg.blend[name] / total / size for name, size in sizes.items() if size}


def check_fills(tokens: int, cfg: PretrainConfig, word: str = "") -> None:
    """Refuse text that does not fill one sequence: a model of it is none, and would be the newest run's.

    Args:
        tokens: of the text; `word` before their number in the message.
        cfg: of the run.

    Raises:
        UserError: they are fewer than the shortest sequence takes.
    """
    if tokens < min(cfg.lengths):
        setting = "context.lengths" if isinstance(cfg, ExtendContextConfig) else "data.seq_len"
        raise UserError(
            f"too little text: {word}{tokens:,} token{'' if tokens == 1 else 's'} to train on, and one sequence takes "
            f"{min(cfg.lengths):,}: give more text, or shorter sequences ({setting})"
        )


def most_tokens(cfg: DataConfig) -> float:
    """Tokens that the texts cannot exceed: one for each byte, and two for each file; inf where nothing is known."""
    return sum(_most(cfg, name) for name, weight in cfg.blend.items() if weight > 0)


def _most(cfg: DataConfig, name: str) -> float:
    try:
        found = find_inputs(source_table(cfg).get(name, []), cfg)
        prepared = sum(read_manifest(folder).tokens for folder in found.prepared)
    except (UserError, OSError):
        return math.inf
    files = [source for source in found.inputs if isinstance(source, InputFile) and not _is_packed(source)]
    if len(files) < len(found.inputs) or not (files or found.prepared):
        return math.inf
    return prepared + sum(file.size + 2 for file in files)


def tokens_of_run(cfg: PretrainConfig) -> int:
    """Places in all rows of a run."""
    step = cfg.train.batch_size * cfg.data.seq_len
    return step * (cfg.train.steps or -(-cfg.train.tokens // step))


def reading_lines(found: Mapping[str, float]) -> list[str]:
    """What to say of them: how often each text is read, and a warning where that is above MANY_READINGS."""
    if not found:
        return []
    if len(found) == 1:
        lines = [f"each text is read {times_text(*found.values())}"]
    else:
        lines = ["each text is read: " + ", ".join(f"{name} {times_text(times)}" for name, times in found.items())]
    return [*lines, warning] if (warning := reading_warning(found)) else lines


def reading_warning(found: Mapping[str, float]) -> str:
    """One line on the texts that are read too often; empty where there are none."""
    often = {name: times for name, times in found.items() if times > MANY_READINGS}
    if not often:
        return ""
    named = ", ".join(f"{name} ({times_text(times)})" for name, times in often.items())
    return (
        f"warning: texts read more than {MANY_READINGS} times, which a model learns by heart rather than from: "
        f"{named}; give more text, lower train.tokens, or lower their share in data.blend"
    )


def times_text(times: float) -> str:
    """`0.45 times`, `6.1 times`, `2,700 times`."""
    return f"{times:,.0f} times" if times >= 100 else f"{times:.2g} times"


def _size(cfg: DataConfig, name: str) -> float:
    """Tokens of a category, about; 0 where nothing is known."""
    specs = source_table(cfg).get(name) or ([NEED_NO_PATH[name]] if name in NEED_NO_PATH else [])
    try:
        found = find_inputs(specs, cfg)
        prepared = sum(read_manifest(folder).tokens for folder in found.prepared)
    except (UserError, OSError):
        return 0
    made = sum(source.tokens for source in found.inputs if isinstance(source, GeneratedTexts))
    if made:
        return made
    read = sum(_bytes(source) for source in found.inputs) / BYTES_PER_TOKEN
    return (prepared + read) * (1 - cfg.heldout_fraction)


def _bytes(source: Input) -> float:
    """Bytes of text in an input, about."""
    return source.size * COMPRESSION if _is_packed(source) else source.size


def _is_packed(source: Input) -> bool:
    return isinstance(source, InputFile) and source.path.suffix.lower() in (*COMPRESSED, ".parquet")
