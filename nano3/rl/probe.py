"""How far an engine's log-probabilities lie from the trainer's, measured on a small batch of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.engine.output import Output
from nano3.engine.protocol import GenerationEngine, run
from nano3.engine.request import Request, Sampling
from nano3.model.head import log_probs
from nano3.rl.rounding import Rounding, Scored, measure
from nano3.train.parallel import release

PROMPTS = 4
"""Different prompts of the batch that `make_prompts` makes."""
LEAST_SHARED = 67
"""Tokens that such prompts share at the least: engines do not keep very short beginnings."""
OWN_TOKENS = 9
"""Tokens of such a prompt behind the shared beginning."""
GENERATED = 32
"""Tokens generated behind each prompt."""


@dataclass(frozen=True)
class Gap:
    """|log-probability of the engine - that of the trainer| over some tokens, in nats."""

    mean: float
    largest: float
    tokens: int

    @classmethod
    def of(cls, differences: Tensor) -> Gap:
        """From signed differences of any shape; a NaN among them makes both figures NaN."""
        sizes = differences.double().abs()
        return cls(float(sizes.mean()), float(sizes.max()), sizes.numel())

    def __str__(self) -> str:
        return f"|dlogp| mean {self.mean:.2g}, largest {self.largest:.2g} over {self.tokens} tokens"


@dataclass(frozen=True)
class Measured:
    """What a probe found."""

    generated: Gap
    """Sampled tokens, under the distribution that they were drawn from."""
    prompt: Gap
    """Prompt tokens, at temperature 1."""
    cached_at_first: int
    """Prompt tokens of the first request that came from the prefix cache: 0 where that was empty."""
    cached_later: int
    """Prompt tokens of the other requests that came from it."""
    rounding: dict[str, Rounding] = field(default_factory=dict)
    """What rounding explains of `generated` and of `prompt`, where it was asked for."""


@dataclass(frozen=True)
class ProbeRollouts:
    """What the engine answered: the first prompt twice, then all others."""

    rows: Tensor
    """(1 + n, T) prompt and output tokens."""
    generated: Tensor
    """(1 + n, generated) log-probabilities under the distribution that was drawn from."""
    prompt: Tensor
    """(n, n_prompt - 1) of each prompt's tokens but the first, at temperature 1."""
    cached_at_first: int
    cached_later: int
    ids_limit: int
    """Below it are the ids that were drawn from."""
    experts: tuple[Tensor, Tensor] | None = None
    """(MoE blocks, 1 + n, T - 1, K) of the rows, and (MoE blocks, n, n_prompt - 1, K) of the prompts as they were
    scored; None where the engine does not tell."""


@dataclass(frozen=True)
class Probe:
    """Prompts that share a beginning of more than two pages, so that pages and states of the prefix cache take part.

    They stay the same from one measurement to the next: what an engine wrongly keeps of the last one is found again.
    """

    prompts: Sequence[tuple[int, ...]]
    """Token ids, all prompts of one length."""
    shared: int
    """Tokens with which all prompts begin."""
    sampling: Sampling = field(default_factory=Sampling)
    """That of the rollouts; its ends, seed and length are set here."""
    generated: int = GENERATED

    def __post_init__(self) -> None:
        if len({len(prompt) for prompt in self.prompts}) != 1 or self.generated < 1:
            raise UserError("probe: give at least one prompt, all of one length, and at least one token to generate")
        if any(prompt[: self.shared] != self.prompts[0][: self.shared] for prompt in self.prompts):
            raise UserError(f"probe: the prompts do not all begin with the same {self.shared} tokens")

    @property
    def n_tokens(self) -> int:
        """Tokens of a prompt and its output."""
        return len(self.prompts[0]) + self.generated

    def rollouts(self, engine: GenerationEngine, experts: bool = False) -> ProbeRollouts:
        """Run the batch on an engine without requests.

        Args:
            engine: of the rollouts.
            experts: whether the experts that its tokens use are wanted.

        Raises:
            UserError: an output ended in an error.
        """
        # The first alone: what it takes from the prefix cache cannot come from this measurement.
        [[first]] = run(engine, [self._rollout(0, 0, experts)])
        again = [self._rollout(1 + i, i, experts) for i in range(len(self.prompts))]
        scoring = Sampling(max_tokens=0, prompt_log_probs=0)
        score = [
            Request(f"probe-score-{i}", prompt, scoring, return_experts=experts)
            for i, prompt in enumerate(self.prompts)
        ]
        results = [output for [output] in run(engine, [*again, *score])]
        outputs, scored = [first, *results[: len(again)]], results[len(again) :]
        if problem := next((output.error for output in [*outputs, *scored] if output.error), ""):
            raise UserError(f"weight sync: the engine fails on the probe: {problem}")
        prompts = [self.prompts[0], *self.prompts]
        return ProbeRollouts(
            torch.tensor([[*p, *o.ids] for p, o in zip(prompts, outputs, strict=True)]),
            torch.stack([torch.from_numpy(o.sampled_log_probs) for o in outputs]).double(),
            torch.tensor([[token.log_prob for token in (o.prompt or ())[1:]] for o in scored], dtype=torch.float64),
            first.cached_tokens,
            sum(output.cached_tokens for output in outputs[1:]),
            engine.ids_limit,
            (_experts(outputs), _experts(scored)[:, :, : len(self.prompts[0]) - 1]) if experts else None,
        )

    def compare(
        self, rollouts: ProbeRollouts, model: Any, temperature: float, narrow: torch.dtype | None = None
    ) -> Measured:
        """Measure rollouts against the training forward pass.

        Args:
            rollouts: of this probe.
            model: with `hidden` and `lm_head`, maybe sharded; then every rank must call.
            temperature: by which the trainer divides logits.
            narrow: type of the rollouts' activations, where it is to be said what its rounding explains.
        """
        n_prompt = len(self.prompts[0])
        by_trainer = training_log_probs(model, rollouts.rows, n_prompt, temperature, rollouts.ids_limit)[0]
        return Measured(
            Gap.of(by_trainer[:, n_prompt - 1 :] - rollouts.generated),
            Gap.of(by_trainer[1:, : n_prompt - 1] - rollouts.prompt),
            rollouts.cached_at_first,
            rollouts.cached_later,
            {} if narrow is None else self._rounding(rollouts, model, temperature, narrow),
        )

    def _rounding(
        self, rollouts: ProbeRollouts, model: Any, temperature: float, narrow: torch.dtype
    ) -> dict[str, Rounding]:
        rows, n_prompt = rollouts.rows, len(self.prompts[0])
        drawn = n_prompt, temperature, rollouts.ids_limit
        n, before = len(rows), n_prompt - 1
        of_rows, of_prompts = rollouts.experts or (None, None)

        def score(replayed: bool) -> dict[str, Scored]:
            if not replayed:
                whole, ids = training_log_probs(model, rows, *drawn)
                of = {"generated": ids, "prompt": None if ids is None else ids[:, 1:, :before]}
                parts = {"generated": whole[:, before:], "prompt": whole[1:, :before]}
                return {name: Scored(part.flatten(), _flat(of[name])) for name, part in parts.items()}
            # One pass: the rows again with the experts that their prompts had when these were scored alone.
            assert rollouts.experts is not None, "who replays was told"
            used, used_alone = rollouts.experts
            given = torch.cat((used, torch.cat((used_alone, used[:, 1:, before:]), 2)), 1)
            whole, _ = training_log_probs(model, torch.cat((rows, rows[1:])), *drawn, given)
            parts = {"generated": whole[:n, before:], "prompt": whole[n:, :before]}
            return {name: Scored(part.flatten(), None) for name, part in parts.items()}

        engine = {
            "generated": Scored(rollouts.generated.flatten(), _flat(of_rows)),
            "prompt": Scored(rollouts.prompt.flatten(), _flat(of_prompts)),
        }
        return measure(model, narrow, engine, score)

    def _rollout(self, number: int, prompt: int, experts: bool) -> Request:
        endless = replace(
            self.sampling, seed=number, max_tokens=self.generated, min_tokens=0, ignore_eos=True, stop=(), stop_ids=(),
            log_probs=None, prompt_log_probs=None, grammar=None, thinking=None,
        )  # fmt: skip
        prompt_ids, cache_at = self.prompts[prompt], (self.shared,)
        return Request(f"probe-{number}", prompt_ids, endless, cache_at=cache_at, return_experts=experts)


def make_prompts(n_ids: int, page_size: int, seed: int = 0) -> tuple[list[tuple[int, ...]], int]:
    """Random prompts of ids below `n_ids` for a Probe, and how many tokens they share: a little more than two pages."""
    rng, shared = random.Random(seed), max(2 * page_size + 3, LEAST_SHARED)
    beginning = tuple(rng.randrange(n_ids) for _ in range(shared))
    return [(*beginning, *(rng.randrange(n_ids) for _ in range(OWN_TOKENS))) for _ in range(PROMPTS)], shared


@torch.no_grad()
def training_log_probs(
    model: Any,
    rows: Tensor,
    n_prompt: int,
    temperature: float,
    ids_limit: int | None = None,
    routing: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Score rows (B, T) by the training forward pass: prompt tokens at temperature 1 and over the whole vocabulary,
    those behind the first `n_prompt` under the distribution that they were drawn from.

    Args:
        model: with `hidden` and `lm_head`.
        rows: tokens.
        n_prompt: of them prompt.
        temperature: of what was drawn, above 0.
        ids_limit: that of the engine which drew; None: it draws all ids.
        routing: (MoE blocks, B, T - 1, K) experts to use; None: those that the router chooses.

    Returns:
        (B, T - 1) float64 log-probabilities, and the experts as `routing` has them; both on the CPU.
    """
    rows = rows.to(model.device)
    given = None if routing is None else routing.to(model.device)
    hidden = model.hidden(rows[:, :-1], routing=given, keep_expert_ids=True, statistics=())
    parts = []
    of_prompt, drawn = (slice(0, n_prompt - 1), 1.0, None), (slice(n_prompt - 1, None), temperature, ids_limit)
    for part, at, limit in (of_prompt, drawn):
        parts.append(log_probs(model.lm_head, hidden.x[:, part], rows[:, 1:][:, part], at, ids_limit=limit))
    release(model)
    ids = hidden.expert_ids
    return torch.cat(parts, dim=1).cpu().double(), None if ids is None else ids.cpu()


def _experts(outputs: Sequence[Output]) -> Tensor:
    """(MoE blocks, outputs, tokens, K)."""
    found = [output.experts for output in outputs]
    return torch.stack([torch.from_numpy(ids).long() for ids in found if ids is not None], dim=1)


def _flat(ids: Tensor | None) -> Tensor | None:
    return None if ids is None else ids.flatten(0, -2).sort(-1).values
