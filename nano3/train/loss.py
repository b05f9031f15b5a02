"""Next-token loss over a global batch of micro-batches and ranks (report section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nano3.config.schema import BalanceConfig, ExpertBiasConfig
from nano3.model.forward_pass import Statistic
from nano3.model.head import nll_sum
from nano3.parallel.sharing import Sharing, around
from nano3.train.tally import Metric


@dataclass(frozen=True)
class Scale:
    """What one micro-batch's sums are divided by, so that gradients add up to those of the global mean."""

    targets: int
    """Valid targets in the whole global batch: all ranks, all micro-batches; counted before the first forward."""
    micro_batches: int
    """Micro-batches in the whole global batch that are not padding alone: those have no balance loss."""


@dataclass
class LossParts:
    """One micro-batch's contribution to the loss of the step."""

    total: Tensor
    """Scalar to differentiate; contributions of all micro-batches and ranks add up to the step's loss."""
    metrics: dict[str, Metric]
    """Name to (sum, count), detached scalars: added up over all micro-batches and ranks, then divided. With a count of
    None the sum is the value: of what was divided already, or of what is a total."""
    loads: Tensor
    """(number of mixture blocks, E) int64: tokens routed to each expert, padding not counted."""


class LossFunction(Protocol):
    """A stage's loss: what the trainer calls for each micro-batch."""

    @property
    def shown(self) -> str:
        """The metric that the terminal, the chart and the result show. `loss` is nats a target and nothing else: a
        policy loss has a name of its own."""
        ...

    def __call__(self, model: Any, batch: Any, scale: Scale) -> LossParts: ...


def check_shared(loss: LossFunction, shared: Sharing | None) -> LossFunction:
    """`loss`, which is given slices of sequences where processes share them out: taken for whole ones, they would lack
    all that lies before them.

    Raises:
        ValueError: `loss.shared` is not of the same processes as `shared`.
    """
    if shared is None or getattr(getattr(loss, "shared", None), "group", None) is shared.group:
        return loss
    raise ValueError(
        f"ranks share out each sequence, and {type(loss).__name__} does not say that it takes slices of sequences: its "
        "attribute `shared` has to be a nano3.parallel.sharing.Sharing of world.sequence, of which the model is told "
        "by nano3.parallel.sharing.around; or set parallel.context=1 and parallel.tensor=1"
    )


def check_stages(loss: LossFunction, n_stages: int) -> None:
    """Refuse a loss that takes the model it is given for whole, where that is one stage of a pipeline.

    Raises:
        ValueError: `loss.in_stages` is not True.
    """
    if n_stages > 1 and not getattr(loss, "in_stages", False):
        raise ValueError(
            f"parallel.pipeline is {n_stages}, and {type(loss).__name__} does not say that it takes stages of a "
            "model: its attribute `in_stages` has to be True, and where model.lm_head is None it adds what its blocks "
            "give alone; or set parallel.pipeline=1"
        )


class NextTokenLoss:
    """Mean negative log-likelihood of the next token plus `balance_coef` times the load-balancing loss.

    `batch` has tokens (B, T), targets (B, T) with -100 where nothing is predicted, document_ids (B, T), and valid
    (B, T), False at padding, or None. Metrics: `loss`, nats a target, and `balance_loss`, without its coefficient.
    """

    shown = "loss"
    in_stages = True

    def __init__(
        self,
        balance_coef: float,
        balance_type: Literal["aux_loss", "seq_aux_loss"] = "aux_loss",
        shared: Sharing | None = None,
    ) -> None:
        """Choose the balance loss.

        Args:
            balance_coef: its coefficient.
            balance_type: over the micro-batch, or of each row alone; see nano3.config.schema.BalanceConfig.
            shared: the processes that share out each row, of which batches are a part (`Sharing.cut`); None:
                rows are whole.
        """
        self.balance_coef, self.shared = balance_coef, shared
        self._balance: Statistic = "sequence_balance_loss" if balance_type == "seq_aux_loss" else "balance_loss"

    @classmethod
    def of(cls, balance: ExpertBiasConfig, shared: Sharing | None = None) -> NextTokenLoss:
        """By a section of settings; one without a balance loss belongs to a stage with a loss of its own."""
        if not isinstance(balance, BalanceConfig):
            raise TypeError("balance has no loss_coef: give the trainer a loss")
        return cls(balance.loss_coef, balance.loss_type, shared)

    def __call__(self, model: Any, batch: Any, scale: Scale) -> LossParts:
        hidden = model.hidden(
            batch.tokens,
            batch.document_ids,
            **around(batch, self.shared),
            slices=self.shared,
            statistics=("loads", self._balance),
        )
        # Of a pipeline's stages the last one has the targets' part, and each one its own blocks' balance.
        last = model.lm_head is not None
        nll = nll_sum(model.lm_head, hidden.x, batch.targets) if last else torch.zeros((), device=hidden.x.device)
        nll = nll / max(scale.targets, 1)
        balance = getattr(hidden, self._balance) / scale.micro_batches
        total = nll + self.balance_coef * balance if self.balance_coef else nll
        metrics: dict[str, Metric] = {"loss": (nll.detach(), None), "balance_loss": (balance.detach(), None)}
        return LossParts(total, metrics, hidden.loads)
