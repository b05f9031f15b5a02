"""Typed settings of `nano3 extend-context` (report section 2.5)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nano3.config.schema import DataConfig, PretrainConfig

SHORTEST = 2
SHORTEST_MADE = 256
"""Fewest tokens for which nano3.config.generate makes texts."""


def wrong_seq_len(seq_len: int, longest: int) -> str:
    """The line about a data.seq_len that the mixture contradicts."""
    return f"data.seq_len is {seq_len}, but the longest of context.lengths is {longest}: leave data.seq_len out"


@dataclass(frozen=True)
class ContextConfig:
    """The mixture of sequence lengths of `nano3 extend-context` (report section 2.5)."""

    lengths: dict[str, float] = field(default_factory=lambda: {"4096": 50.0, "512": 50.0})
    """Sequence length to its share of the tokens; normalised to sum 1. A step has one length and always
    train.batch_size * longest tokens: shorter ones come in more rows. data.seq_len is the longest, and texts are made
    for these lengths if data.generate.lengths is empty."""

    def __post_init__(self) -> None:
        for text, share in self.lengths.items():
            if not (text.isascii() and text.isdigit() and int(text) >= SHORTEST):
                raise ValueError(
                    f"context.lengths: {text!r} is no sequence length: give whole numbers of at least {SHORTEST}, "
                    "for example {4096 = 50, 512 = 50}"
                )
            if share < 0:
                raise ValueError(f"context.lengths.{text} is {share}; a share must be at least 0")
        if not sum(self.lengths.values()):
            raise ValueError("context.lengths gives no length a share above 0")
        if len({int(text) for text in self.lengths}) < len(self.lengths):
            raise ValueError(f"context.lengths names a length twice: {', '.join(self.lengths)}")

    @property
    def shares(self) -> dict[int, float]:
        """Length to share of those with a share, longest first."""
        used = {int(text): share for text, share in self.lengths.items() if share > 0}
        return dict(sorted(used.items(), reverse=True))


@dataclass(frozen=True)
class ExtendContextConfig(PretrainConfig):
    """All settings of `nano3 extend-context`: those of pretraining, and the mixture of lengths."""

    context: ContextConfig = field(default_factory=ContextConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = max(self.lengths)
        if self.data.seq_len not in (DataConfig.seq_len, longest):
            raise ValueError(wrong_seq_len(self.data.seq_len, longest))
        # The longest length is the one that batches are counted in, and that the model must advertise.
        object.__setattr__(self, "data", replace(self.data, seq_len=longest))
        if self.model.max_position_embeddings < longest:
            object.__setattr__(self, "model", replace(self.model, max_position_embeddings=longest))
        tokens = self.train.batch_size * longest
        for length in self.lengths:
            if tokens % length:
                raise ValueError(
                    f"context.lengths: no whole number of rows of {length} fills a batch of {tokens} tokens "
                    f"(train.batch_size {self.train.batch_size} x {longest}): change one of them"
                )

    @property
    def prepared_data(self) -> DataConfig:
        """`data`, in which texts are made for the lengths of the mixture unless data.generate.lengths is set."""
        lengths = {str(length): share for length, share in self.lengths.items() if length >= SHORTEST_MADE}
        made = self.data.generate
        return self.data if made.lengths else replace(self.data, generate=replace(made, lengths=lengths))

    @property
    def lengths(self) -> dict[int, float]:
        """Length of the sequences of a step to its share of the steps, and so of the tokens; longest first."""
        return self.context.shares

    @property
    def heldout_lengths(self) -> list[int]:
        """heldout.seq_len if it is set, then the lengths of training, shortest first."""
        lengths = sorted(self.lengths)
        first = [self.heldout.seq_len] if self.heldout.seq_len else []
        return first + [length for length in lengths if length not in first]
