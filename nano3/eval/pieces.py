"""Long texts to token ids many times over: each word is encoded once, and looked up after that."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from threading import Lock
from typing import Any

from nano3.data.tokens.tokenizer import Tokenizer

CUT = re.compile(r"(?<=[A-Za-z0-9.,:;!?])(?= [A-Za-z0-9])|(?<=[A-Za-z0-9.,:;!?]\n)(?=[A-Za-z])")
"""Between words: before a blank and a letter or digit, and between a line break and a letter."""
LONG = 4096
"""Characters from which a text is cut."""
MOST_PIECES = 1 << 18
"""Pieces that are remembered."""
PLAIN_NORMALIZERS = ("NFC",)
"""Normalizers that change nothing across a cut between ASCII characters."""
LEFT = (
    "word", "Two words", "x\n\ny", "  deep", "CAPS", "it's", "né", "42", "3.14", "end.", "so...", "a,", "b;", "(c):",
    "what?", '"no!', "t" * 40, "1234567.",
)  # fmt: skip
RIGHT = (" a", " A", " the end", " Then I'll go", " iPhone 7", " 7", " 12. x", " 2024 a", " x\n y")
LINE = ("The grass", "a", "VAR X = 1", "I've")


class PieceTokenizer(Tokenizer):
    """A tokenizer that gives the same ids, in a small part of the time where words come again."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer in this form; itself where its rules may join what is cut here."""
        if isinstance(tokenizer, cls) or not can_be_cut(tokenizer.inner):
            return tokenizer
        return cls(**{field.name: getattr(tokenizer, field.name) for field in dataclasses.fields(tokenizer)})

    def encode(self, text: str, special: bool = False) -> list[int]:
        """As Tokenizer.encode."""
        if len(text) < LONG:
            return super().encode(text, special)
        pieces = CUT.split(text)
        with self._lock:
            known = self._known[special]
            new = list(set(pieces).difference(known))
            if len(known) + len(new) > MOST_PIECES:
                known.clear()
                new = list(set(pieces))
            known.update(zip(new, super().encode_batch(new, special), strict=True))
            return list(chain.from_iterable(map(known.__getitem__, pieces)))

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """As Tokenizer.encode_batch."""
        if any(len(text) >= LONG for text in texts):
            return [self.encode(text, special) for text in texts]
        return super().encode_batch(texts, special)

    @cached_property
    def _known(self) -> dict[bool, dict[str, list[int]]]:
        return {False: {}, True: {}}

    @cached_property
    def _lock(self) -> Any:
        return Lock()


def can_be_cut(inner: Any) -> bool:
    """Whether a Hugging Face tokenizer encodes the parts between cuts one by one as it encodes the whole: no token of
    it goes across a cut. Tried on words of all kinds."""
    normalizer, split = inner.normalizer, inner.pre_tokenizer
    if split is None or (normalizer is not None and type(normalizer).__name__ not in PLAIN_NORMALIZERS):
        return False
    for added in inner.get_added_tokens_decoder().values():
        if added.lstrip or added.rstrip or CUT.search(added.content) or CUT.search(f"a{added.content}"):
            return False
    pairs = [(left, right) for left in LEFT for right in RIGHT]
    pairs += [(f"{left}\n", right) for left in LEFT for right in LINE]
    return all(_parts(split, left + right) == _parts(split, left) + _parts(split, right) for left, right in pairs)


def _parts(split: Any, text: str) -> list[str]:
    return [part for part, _ in split.pre_tokenize_str(text)]
