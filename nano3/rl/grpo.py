"""GRPO as the trainer's loss: token-level, asymmetric clip, masked importance sampling (report section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nano3.data.tokens.batch import IGNORE
from nano3.kernels.host_copies import highest, places
from nano3.model.head import log_probs
from nano3.parallel.sharing import Sharing, around
from nano3.rl.batch import PolicyBatch
from nano3.rl.objective import clipped_surrogate, k3_divergence, masked_importance_weights, masked_sequences
from nano3.train.loss import LossParts, Scale
from nano3.train.tally import Metric


@dataclass(frozen=True)
class Objective:
    """Settings of the policy's loss; the defaults are those of the report and of its public recipe."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_low: float = 0.5
    """Tokens whose importance weight lies below it, or above `importance_high`, are not trained on."""
    importance_high: float = 5.0
    sequence_threshold: float = 2.0
    """Largest mean of exp(|trainer - sampler|) of a sample that is trained on; 0 for any."""
    kl_coef: float = 0.0
    """Of the divergence from a reference model."""
    temperature: float = 1.0
    """That of the rollouts; the trainer divides its logits by it too."""


class GRPOLoss:
    """Mean over all trained tokens of the step of: importance weight x clipped surrogate, + KL where asked for.

    Masked tokens stay in the mean's denominator. Metrics, all means over trained tokens: `policy_loss`, `entropy`,
    `mismatch` (|log-probability in the trainer - in the sampler|), `mismatch_kl` (k3 of sampler and trainer),
    `masked_tokens` (share that importance bounds or the sequence threshold take out), `clipped_tokens` (share on which
    the clip acts), and `kl` where there is a reference.
    """

    shown = "policy_loss"

    def __init__(self, objective: Objective | None = None, shared: Sharing | None = None) -> None:
        """Choose the objective.

        Args:
            objective: its settings.
            shared: the processes that share out each row, of which batches are a part (`PolicyBatch.cut`); None: rows
                are whole.
        """
        self.objective, self.shared = objective or Objective(), shared
        self._largest: Tensor | None = None

    def __call__(self, model: Any, batch: PolicyBatch, scale: Scale) -> LossParts:
        around_it = around(batch, self.shared)
        around_it["routing"] = batch.routing
        hidden = model.hidden(batch.tokens, batch.document_ids, **around_it, slices=self.shared, statistics=("loads",))
        found, entropy = log_probs(
            model.lm_head, hidden.x, batch.targets, self.objective.temperature, entropy=True, ids_limit=batch.ids_limit
        )
        kept = batch.targets != IGNORE
        before = found.detach() if batch.before is None else batch.before
        difference = before - batch.sampled
        weights = self._weights(difference, kept, batch)
        ratio, advantages = (found - before).exp(), batch.advantages
        surrogate = clipped_surrogate(ratio, advantages, self.objective.clip_low, self.objective.clip_high)
        trained = _Trained(batch.targets)
        total = trained.of(weights * surrogate).sum()
        metrics = self._metrics(total, entropy, difference, weights, surrogate > -ratio * advantages, trained)
        if self.objective.kl_coef:
            total = total + self._penalty(found, batch, trained, metrics)
        self._note(trained.of(difference))
        return LossParts(total / max(scale.targets, 1), metrics, hidden.loads)

    def take_largest_mismatch(self) -> float:
        """Largest |log-probability in the trainer - in the sampler| of a trained token on this rank since the last
        call; NaN where one was none."""
        largest, self._largest = self._largest, None
        return 0.0 if largest is None else float(largest)

    def _weights(self, difference: Tensor, kept: Tensor, batch: PolicyBatch) -> Tensor:
        own = self.objective
        weights = masked_importance_weights(difference.exp(), own.importance_low, own.importance_high)
        if not own.sequence_threshold:
            return weights
        if self.shared is None or batch.whole_ids is None:
            masked = masked_sequences(difference, kept, batch.document_ids, own.sequence_threshold)
        else:  # a sequence may lie in slices of several processes
            samples, shared = highest(batch.whole_ids) + 1, self.shared.sum_rows
            masked = masked_sequences(difference, kept, batch.document_ids, own.sequence_threshold, samples, shared)
        return torch.where(masked, 0.0, weights)

    def _penalty(self, found: Tensor, batch: PolicyBatch, trained: _Trained, metrics: dict[str, Metric]) -> Tensor:
        if batch.reference is None:
            raise ValueError("the objective has a KL term: give batches the log-probabilities of the reference model")
        divergence = trained.of(k3_divergence(found, batch.reference)).sum()
        metrics["kl"] = (divergence.detach(), trained.count)
        return self.objective.kl_coef * divergence

    @staticmethod
    def _metrics(
        total: Tensor, entropy: Tensor, difference: Tensor, weights: Tensor, clipped: Tensor, trained: _Trained
    ) -> dict[str, Metric]:
        sums = {
            "policy_loss": total.detach(),
            "entropy": trained.of(entropy.detach()).sum(),
            "mismatch": trained.of(difference).abs().sum(),
            "mismatch_kl": trained.of(k3_divergence(torch.zeros_like(difference), difference)).sum(),
            "masked_tokens": trained.of(weights == 0).sum(),
            "clipped_tokens": trained.of(clipped).sum(),
        }
        return {name: (value, trained.count) for name, value in sums.items()}

    def _note(self, differences: Tensor) -> None:
        if not differences.numel():
            return
        largest = differences.abs().max()
        # Not looked at before it is asked for: a GPU is waited for once a step. What is NaN stays.
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)


class _Trained:
    """The tokens of a micro-batch that are trained on; no number of theirs is looked at on the device."""

    def __init__(self, targets: Tensor) -> None:
        self._places = places(targets.flatten(), lambda ids: ids != IGNORE)
        self.count = (targets != IGNORE).sum()

    def of(self, values: Tensor) -> Tensor:
        """Those among values (B, T), (n,)."""
        return values.flatten()[self._places]
