"""The 13 tasks without how they are made: the variants of needles, and the sources that each task draws from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One variant (scripts/synthetic.yaml of the reference)."""

    haystack: str
    """noise, essay or needle."""
    key: str = "word"
    value: str = "number"
    n_keys: int = 1
    n_values: int = 1
    n_queries: int = 1


VARIANTS = {
    "niah_single_1": Variant("noise"),
    "niah_single_2": Variant("essay"),
    "niah_single_3": Variant("essay", value="uuid"),
    "niah_multikey_1": Variant("essay", n_keys=4),
    "niah_multikey_2": Variant("needle"),
    "niah_multikey_3": Variant("needle", key="uuid", value="uuid"),
    "niah_multivalue": Variant("essay", n_values=4),
    "niah_multiquery": Variant("essay", n_keys=4, n_queries=4),
}


def _needle_sources(variant: Variant) -> tuple[str, ...]:
    words = ("words",) if variant.key == "word" else ()
    return words + (("essays",) if variant.haystack == "essay" else ())


SOURCES: dict[str, tuple[str, ...]] = {
    **{name: _needle_sources(variant) for name, variant in VARIANTS.items()},
    "vt": (),
    "cwe": ("words",),
    "fwe": (),
    "qa_1": ("squad",),
    "qa_2": ("hotpotqa",),
}
"""Task, in RULER's order -> names of the attributes of nano3.eval.ruler.sources.Sources that it draws from."""
