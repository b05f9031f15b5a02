"""Concepts of five fields, with which problems of another field are crossed; ours, or a user's own file."""

from __future__ import annotations

from pathlib import Path

from nano3.config.errors import UserError
from nano3.reading import decode

CONCEPTS = {
    "coding": (
        "dynamic programming over subsets", "shortest paths with negative edges", "segment trees", "hash collisions",
        "topological order of dependencies", "caches and their eviction", "string matching by prefixes", "backtracking",
        "maximum flow and minimum cut", "amortized cost", "parsing of nested expressions", "race conditions",
    ),
    "mathematics": (
        "modular arithmetic", "generating functions", "eigenvalues and powers of a matrix", "inclusion and exclusion",
        "convexity", "expected values and their linearity", "continued fractions", "graph colouring", "group actions",
        "Markov chains", "fixed points of a map", "Lagrange multipliers", "recurrences", "planar geometry and area",
    ),
    "physics": (
        "conservation of momentum", "coupled oscillators", "entropy", "refraction", "circuits with capacitors",
        "radioactive decay chains", "relativistic addition of speeds", "diffusion", "orbits and energy",
        "heat conduction", "interference of two sources", "levels of an oscillator", "buoyancy", "rolling bodies",
    ),
    "chemistry": (
        "reaction rates and their order", "chemical equilibrium", "balancing of equations", "acids and buffers",
        "titration", "stereoisomers", "electrode potentials", "phase diagrams", "mixtures and distillation",
        "bond energies", "polymer lengths", "crystal lattices", "spectra and absorption", "limiting reagents",
    ),
    "other sciences": (
        "inheritance of linked genes", "predators and prey", "spread of an epidemic", "alignment of sequences",
        "phylogenetic trees", "carbon dating", "tides", "propagation of earthquakes", "parallax of stars",
        "supply and demand", "signalling between neurons", "dose and response", "sampling of a population",
    ),
}  # fmt: skip
"""Field -> concepts."""
OTHER_NAMES = {
    "code": "coding", "programming": "coding", "computer science": "coding", "algorithms": "coding",
    "math": "mathematics", "maths": "mathematics", "biology": "other sciences", "science": "other sciences",
    "other": "other sciences",
}  # fmt: skip
"""What data sets call these fields."""


def read_concepts(path: str) -> dict[str, tuple[str, ...]]:
    """Field -> concepts: nano3's own, or of a file with lines `field: concept`; `#` begins a comment.

    Raises:
        UserError: the file cannot be read, a line has no field, or there are not two fields.
    """
    if not path:
        return dict(CONCEPTS)
    try:
        text = decode(Path(path).expanduser().read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cross.concepts: cannot read {path}: {error}") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        field, colon, concept = (part.strip() for part in line.partition(":"))
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (field and colon and concept):
            raise UserError(f"cross.concepts: {path}, line {number}: write `field: concept`, not {line.strip()[:40]!r}")
        found.setdefault(field, []).append(concept)
    if len(found) < 2:
        raise UserError(
            f"cross.concepts: {path} has {len(found)} fields; a crossing needs two, since it is with another"
        )
    return {field: tuple(concepts) for field, concepts in found.items()}
