"""Settings of the texts that are made from the user's own: long-document questions and retrieval."""

from __future__ import annotations

from dataclasses import dataclass, field

from nano3.config.checks import check

PREFIX = "generate:"
"""How a source of generated texts begins."""


@dataclass(frozen=True)
class GenerateConfig:
    """Texts made for the sources `generate:document-qa` and `generate:retrieval` (report section 2.5)."""

    sources: list[str] = field(default_factory=lambda: ["python-stdlib"])
    """Files and folders whose documents are asked about and serve as haystacks; the held-out ones are never used."""
    tokens: int = 2_000_000
    """Tokens of document-qa texts to make."""
    retrieval_tokens: int = 0
    """Tokens of retrieval texts to make; 0 means a twentieth of tokens, the proportion of the report."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Share of the tokens by length of the sequence, {65536 = 1, 4096 = 1}; empty means data.seq_len alone."""
    retrieval_longest: int = 262_144
    """Longest sequence of retrieval; longer lengths come down to it (report: up to 256K)."""
    url: str = ""
    """OpenAI-compatible server that writes the questions of document-qa instead; its key is in NANO3_API_KEY."""
    model: str = ""
    """Model to ask of that server; empty: the first that it lists."""
    seed: int = 0
    """Seed of the texts; another one gives other texts."""

    def __post_init__(self) -> None:
        check("data.generate", self, ">=", 1, "tokens")
        check("data.generate", self, ">=", 0, "retrieval_tokens")
        check("data.generate", self, ">=", 256, "retrieval_longest")
        if not self.sources:
            raise ValueError("data.generate.sources is empty: name files or folders, or python-stdlib")
        for length, share in self.lengths.items():
            if not length.isdigit() or int(length) < 256:
                raise ValueError(f"data.generate.lengths has {length!r}: a length is a whole number of at least 256")
            if not share > 0:
                raise ValueError(f"data.generate.lengths.{length} is {share}; a share must be above 0")
