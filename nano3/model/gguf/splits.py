"""How text is cut before byte-level BPE, for the cuts that llama.cpp has.

llama.cpp does not run a tokenizer.json's own regular expression: it knows some by name (`tokenizer.ggml.pre`,
llm_tokenizer_bpe in its src/llama-vocab.cpp). A file with any other would tokenize differently without a word.
"""

from __future__ import annotations

from dataclasses import dataclass

from nano3.splits import LLAMA_CPP_SPLIT

_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_WORDS_SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_START = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = (
    rf"{_START}[{_UPPER}]*[{_LOWER}]+|{_START}[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Split:
    """One cut of llama.cpp."""

    pre: str
    """Its name there."""
    patterns: tuple[str, ...]
    """The regular expressions that it stands for; a tokenizer read from a file gets the first."""
    whole_words: bool
    """A piece that is an entry of the vocabulary stays whole, whatever the merges are (`ignore_merges`)."""


SPLITS = (
    Split("qwen2", (LLAMA_CPP_SPLIT, rf"{_WORDS}|\p{{N}}{_REST}"), False),
    Split("llama-bpe", (rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}", rf"{_WORDS_SPELLED}|\p{{N}}{{1,3}}{_REST}"), True),
    Split("smaug-bpe", (rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}", rf"{_WORDS_SPELLED}|\p{{N}}{{1,3}}{_REST}"), False),
    Split("tekken", (TEKKEN,), True),
    Split("gpt-2", (GPT2,), False),
)
SAME = {"pixtral": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt2": "gpt-2"}
"""Other names of llama.cpp's for a cut of these."""


def split_of(pattern: str, whole_words: bool) -> Split | None:
    """The cut that llama.cpp has for a regular expression; None where it has none."""
    return next((s for s in SPLITS if pattern in s.patterns and s.whole_words == whole_words), None)


def split_named(pre: str) -> Split | None:
    """The cut of this name in a file's metadata; None for one that nano3 does not know."""
    return next((split for split in SPLITS if split.pre == SAME.get(pre, pre)), None)
