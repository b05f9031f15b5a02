"""Types that peers compute in, or read their weights in."""

from __future__ import annotations

import re

GGUF_TYPES = {"float32": "f32", "bfloat16": "bf16"}
"""Types by the names of all peers -> those of GGUF files."""
DTYPES = tuple(GGUF_TYPES)
OTHER_TYPES = re.compile(r"(i?q|tq)\d\w*|f16|mxfp4_moe", re.IGNORECASE)
"""Types of GGUF files; those that nano3 does not write llama.cpp makes of a file of bf16."""


def is_converted(kind: str) -> bool:
    """Whether llama.cpp makes a type itself, of a file of bf16: nano3 does not write it."""
    from nano3.model.gguf.write import TYPES

    return kind not in (*DTYPES, *TYPES) and OTHER_TYPES.fullmatch(kind) is not None
