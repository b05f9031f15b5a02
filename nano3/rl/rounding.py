"""What rounding explains of the differences between an engine and a trainer, where rollouts are in bfloat16.

How far two right computations lie apart depends on the model: logits of 30 are rounded 30 times as coarsely as logits
of 1, and a router near a tie chooses another expert. So the model is its own yardstick. The trainer scores the engine's
tokens in float32 and in the rollouts' type, with the experts that the engine used (router replay): the engine has to be
about as near to the float32 result as the trainer's own narrow one is, typically and at its farthest tokens. The
choices of experts are compared apart, since a replayed choice hides a stale selection bias: again with how often the
narrow pass chooses otherwise than the float32 one.

An engine that does not tell its experts cannot be held to its farthest tokens: there a single wrong one goes unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nano3.model.lm import FLOAT32_SUFFIXES

TIMES = 1.5
"""How much larger than the yardstick a typical difference may be. Measured over 48 syncs of right engines (models of 4
and 7 blocks, weights of deviation 0.02 to 0.6): 1.05 at most for the mean, 1.14 for the median."""
FAR_TIMES = 3.0
"""The same of the farthest tokens; measured: 1.31 for the largest, 1.21 for the quantile."""
FAR = 0.9
"""The quantile that stands for the farthest tokens where the engine does not tell its experts."""
FLIPS, FLIP_TIMES = 0.05, 2.0
"""Share of the choices that may differ beside `FLIP_TIMES` the yardstick's: prompts of a probe begin alike, so a few
tokens near a tie are some per cent."""


class Scored(NamedTuple):
    """Tokens scored by one pass."""

    log_probs: Tensor
    """(N,) float64."""
    expert_ids: Tensor | None
    """(MoE blocks * tokens, K) that were used, each token's sorted; None where there are none, or nobody tells."""


class Score(Protocol):
    """Scores the tokens of several parts of a probe, by their names."""

    def __call__(self, replayed: bool) -> dict[str, Scored]:
        """With the engine's experts, or with those that the router chooses."""
        ...


@dataclass(frozen=True)
class Rounding:
    """Differences from the trainer's float32 pass, in nats, and choices of experts that differ from its own."""

    engine: float
    """Typical |dlogp| of the engine: the mean; the median where it does not tell its experts, since a few tokens with
    other experts then make up the mean."""
    own: float
    """The same of the trainer's narrow pass: the yardstick."""
    far: float
    """|dlogp| of the engine at its farthest token, where it tells its experts; their 90% quantile where not."""
    own_far: float
    """The same of the trainer's narrow pass."""
    flips: float
    """Share of the engine's choices, from 0 to 1."""
    own_flips: float
    """The same of the trainer's narrow pass."""

    @property
    def explains(self) -> bool:
        """Whether an engine with the trainer's weights may differ so; NaN may not."""
        return self.explains_most and self.far <= FAR_TIMES * self.own_far

    @property
    def explains_most(self) -> bool:
        """The same but for single tokens."""
        return self.engine <= TIMES * self.own and self.flips <= FLIP_TIMES * self.own_flips + FLIPS

    def __str__(self) -> str:
        return (
            f"|dlogp| to the float32 pass {self.engine:.2g}, far tokens {self.far:.2g}, where rounding makes "
            f"{self.own:.2g} and {self.own_far:.2g}; "
            f"other experts {self.flips:.1%}, where rounding makes {self.own_flips:.1%}"
        )


def measure(model: Any, dtype: torch.dtype, engine: dict[str, Scored], score: Score) -> dict[str, Rounding]:
    """Compare what an engine scored with the trainer's passes in float32 and in `dtype`, by the names of the parts.

    Args:
        model: of the trainer; its `compute_dtype` is another meanwhile.
        dtype: of the rollouts' activations.
        engine: its log-probabilities and experts.
        score: passes of the trainer over the same tokens.
    """
    told = all(part.expert_ids is not None for part in engine.values())
    free, replayed = [], []
    for kind in (torch.float32, dtype):
        with _computing(model, kind):
            free.append(score(replayed=False))
            replayed.append(score(replayed=True) if told else free[-1])
    return {
        name: _compare(part, [each[name] for each in free], [each[name].log_probs for each in replayed])
        for name, part in engine.items()
    }


def _compare(engine: Scored, free: list[Scored], replayed: list[Tensor]) -> Rounding:
    exact, narrow = replayed
    known = engine.expert_ids is not None or free[0].expert_ids is None
    typical = torch.mean if known else torch.median
    distances = [(other - exact).abs() for other in (engine.log_probs, narrow)]
    near = (typical(each).item() for each in distances)
    far = (each.quantile(1.0 if known else FAR).item() for each in distances)
    flips = (_share_of_others(part.expert_ids, free[0].expert_ids) for part in (engine, free[1]))
    return Rounding(*near, *far, *flips)


def _share_of_others(ids: Tensor | None, chosen: Tensor | None) -> float:
    return 0.0 if ids is None or chosen is None else (ids != chosen).any(-1).double().mean().item()


@contextmanager
def _computing(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """The model computes as a copy of this type does: norms and convolutions round no weight where they use it."""
    small = [p for name, p in model.named_parameters() if not name.endswith(FLOAT32_SUFFIXES) and _is_vector(p)]
    before, weights = model.compute_dtype, [p.detach().clone() for p in small]
    try:
        model.compute_dtype = dtype
        with torch.no_grad():
            for parameter in small:
                parameter.copy_(parameter.to(dtype))
        yield
    finally:
        model.compute_dtype = before
        with torch.no_grad():
            for parameter, weight in zip(small, weights, strict=True):
                parameter.copy_(weight)


def _is_vector(parameter: Tensor) -> bool:
    return parameter.numel() // max(1, parameter.shape[0]) <= 8
