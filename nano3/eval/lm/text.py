"""Texts as lm-eval's models send them: what stands before a text, windows of long ones, prompts that are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer

PREFIXES = ("auto", "bos", "eos")
CUT = "prompts were cut from the left"
CUT_NOTE = "some " + CUT + ": the context holds {context} tokens"


@dataclass(frozen=True)
class Start:
    """What is put around a text."""

    before: tuple[int, ...]
    """Tokens before every text that is no conversation."""
    after: tuple[int, ...]
    alone: int
    """Token before a text without context, and before a text that is scored as a whole."""
    document: bool
    """`before` is `alone`, as documents begin in training: a text gets it once."""

    def around(self, ids: Sequence[int]) -> list[int]:
        """The text with what stands around it."""
        return [*self.before, *ids, *self.after]

    def windows(self, ids: Sequence[int], context: int) -> Iterator[tuple[list[int], list[int]]]:
        """(context, continuation) of a whole text, each token predicted once.

        Args:
            ids: the text without what stands around it.
            context: most tokens that a prediction may see.
        """
        # The hf model puts its own tokens behind `alone`, which then are predicted too.
        text = list(ids) if self.document else self.around(ids)
        if self.document and text[:1] == [self.alone]:
            text = text[1:]
        return map(make_disjoint_window, get_rolling_token_windows(text, self.alone, context, context_len=1))


def choose_prefix(wanted: str, stage: str) -> str:
    """`bos` (as lm-eval's hf model) or `eos` (as documents begin in nano3's training) for `--prefix`.

    Args:
        wanted: one of PREFIXES.
        stage: what config.json says of nano3's training; empty for a model from elsewhere.
    """
    if wanted != "auto":
        return wanted
    return "eos" if stage else "bos"


def stage_of(model: str) -> str:
    """The stage of nano3's training that a folder's model comes from; empty for a preset, and for a folder from
    elsewhere."""
    from nano3.model.find import is_adapter_folder
    from nano3.model.hf.config import read_stage
    from nano3.model.stage import weights_stage

    if is_adapter_folder(model):
        return weights_stage(model)
    # The folder may be one of a tokenizer alone.
    folders = (Path(model) / "model", Path(model))
    return next((read_stage(folder) for folder in folders if (folder / "config.json").is_file()), "")


def start_of(
    tokenizer: Tokenizer, prefix: str, *, add_bos_token: bool | None = None, prefix_token_id: int | None = None
) -> Start:
    """What stands around texts.

    Args:
        tokenizer: the model's.
        prefix: bos: as lm-eval's hf model; eos: the end-of-document token before every text.
        add_bos_token: as of the hf model: the beginning token before every text; None: as tokenizer.json does it.
        prefix_token_id: as of the hf model, for `alone`.
    """
    if prefix == "eos":
        return Start((tokenizer.eos_id,), (), tokenizer.eos_id, True)
    alone = tokenizer.bos_id if prefix_token_id is None else prefix_token_id
    if add_bos_token is None:
        return Start(*_added_tokens(tokenizer), alone, False)
    return Start((tokenizer.bos_id,) if add_bos_token else (), (), alone, False)


def _added_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What tokenizer.json itself puts before and after a text."""
    encoding = tokenizer.inner.encode("a", add_special_tokens=True)
    inside = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
    return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
