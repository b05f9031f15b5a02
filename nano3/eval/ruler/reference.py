"""RULER's reference: which revision is followed, and its files of text and questions by size and SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

REVISION = "NVIDIA/RULER c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"
"""Whose wordings and layouts the samples have."""

FILES: dict[str, frozenset[tuple[int, str]]] = {
    "essays": frozenset({(3_108_621, "8d31e1b660e0f2180bcca6d238e18f77921df9d158611582b860da1762b6d3dd")}),
    "squad": frozenset({(4_370_528, "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8")}),
    "hotpotqa": frozenset(
        {
            (46_320_117, "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea"),
            (61_065_698, "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8"),
        }
    ),
}
"""Source to (bytes, SHA-256): PaulGrahamEssays.json as recorded after the reference's download (its pages may have
changed since: another copy is not the reference), SQuAD's dev-v2.0.json, HotpotQA's hotpot_dev_distractor_v1.json as
its authors serve it and as it is mirrored on huggingface.co."""


def is_reference(source: str, path: Path) -> bool:
    """The file is one that the reference uses for this source (a key of FILES)."""
    sizes = {size for size, _ in FILES[source]}
    if not path.is_file() or path.stat().st_size not in sizes:
        return False
    with path.open("rb") as file:
        return (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()) in FILES[source]


def digest(text: bytes) -> str:
    """A short hash for labels: other content, another label."""
    return hashlib.blake2b(text, digest_size=4).hexdigest()
