"""Next-token loss over a global batch of micro-batches and ranks (report section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from nano3.model.head import nll_sum


@dataclass(frozen=True)
class Scale:
    """What one micro-batch's sums are divided by, so that gradients add up to those of the global mean."""

    targets: int
    """Valid targets in the whole global batch: all ranks, all micro-batches; counted before the first forward."""
    micro_batches: int
    """Micro-batches in the whole global batch."""


@dataclass
class LossParts:
    """One micro-batch's contribution to the loss of the step."""

    total: Tensor
    """Scalar to differentiate; contributions of all micro-batches and ranks add up to the step's loss."""
    nll: Tensor
    """Detached scalar: contribution to the mean negative log-likelihood, in nats a target."""
    balance: Tensor
    """Detached scalar: contribution to the mean load-balancing loss, without its coefficient."""
    loads: Tensor
    """(number of mixture blocks, E) int64: tokens routed to each expert, padding not counted."""


class LossFunction(Protocol):
    """A stage's loss: what the trainer calls for each micro-batch."""

    def __call__(self, model: Any, batch: Any, scale: Scale) -> LossParts: ...


class NextTokenLoss:
    """Mean negative log-likelihood of the next token plus `balance_coef` times the load-balancing loss.

    `batch` has tokens (B, T), targets (B, T) with -100 where nothing is predicted, document_ids (B, T), and valid
    (B, T), False at padding, or None.
    """

    def __init__(self, balance_coef: float, balance_type: Literal["aux_loss", "seq_aux_loss"] = "aux_loss") -> None:
        """`balance_type`: over the micro-batch, or of each row alone; see nano3.config.schema.BalanceConfig."""
        self.balance_coef, self.balance_type = balance_coef, balance_type

    def __call__(self, model: Any, batch: Any, scale: Scale) -> LossParts:
        hidden = model.hidden(batch.tokens, batch.document_ids, valid=batch.valid)
        nll = nll_sum(model.lm_head, hidden.x, batch.targets) / max(scale.targets, 1)
        by_row = self.balance_type == "seq_aux_loss"
        balance = (hidden.sequence_balance_loss if by_row else hidden.balance_loss) / scale.micro_batches
        total = nll + self.balance_coef * balance if self.balance_coef else nll
        return LossParts(total, nll.detach(), balance.detach(), hidden.loads)
