"""How a trained tokenizer cuts text before byte pairs are merged."""

from __future__ import annotations

TRAINED, TRAINED_FOR_LLAMA_CPP = "train", "train:qwen2"
"""data.tokenizer that stands for a vocabulary trained on the text of the run; and for one whose split llama.cpp has."""
# A line break takes the punctuation before it and the indentation after it: 7 % more bytes a token on Python
# source than the usual split. Digits stand alone.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
# llama.cpp's form of Qwen2's split: a model with it can be exported as GGUF (nano3.model.gguf.splits).
LLAMA_CPP_SPLIT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {TRAINED: SPLIT, TRAINED_FOR_LLAMA_CPP: LLAMA_CPP_SPLIT}
"""What data.tokenizer says of a vocabulary to be trained -> the regular expression."""
