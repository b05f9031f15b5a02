"""Samples with their advantages as packed micro-batches, for the policy's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.data.tokens.batch import IGNORE
from nano3.parallel.sharing import Sharing


@dataclass(frozen=True)
class TrainingSample:
    """One rollout as the policy is trained on it: prompt, turns and what stands between them, in one sequence."""

    ids: np.ndarray
    """(T,) token ids."""
    trained: np.ndarray
    """(T,) bool, True at tokens that the policy drew; False at prompts, tool results, forced tokens, and everywhere in
    a sample that is kept out of the gradient."""
    log_probs: np.ndarray
    """(T,) float32, under the distribution that each trained token was drawn from; elsewhere any number."""
    advantage: float
    name: str = ""
    """For error messages."""
    experts: np.ndarray | None = None
    """(MoE blocks, T - 1, K): experts that the training pass has to use (router replay)."""

    @property
    def n_inputs(self) -> int:
        """Places in a row: the last token is a target alone."""
        return len(self.ids) - 1

    @property
    def n_targets(self) -> int:
        """Tokens that it is trained on: the first one of a sequence is nothing that can be predicted."""
        return int(self.trained[1:].sum())


@dataclass(frozen=True)
class PolicyBatch:
    """Packed samples; a row's documents are its samples."""

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64: the next token where it is trained on, else -100."""
    document_ids: Tensor
    """(B, T) int32: which sample of the row, padding is the last."""
    valid: Tensor
    """(B, T) bool, False at padding."""
    sampled: Tensor
    """(B, T) float32: log-probability of the target when it was drawn; 0 where there is none."""
    advantages: Tensor
    """(B, T) float32."""
    documents: list[str] = field(default_factory=list)
    """Names of the samples."""
    routing: Tensor | None = None
    """(MoE blocks, B, T, K) int64 experts to use, or None for those of the router."""
    before: Tensor | None = None
    """(B, T) float32 log-probability of the target in the trainer before the first update on these samples; None: this
    is the first update, so that they are those of this pass."""
    reference: Tensor | None = None
    """(B, T) float32 log-probability of the target in the reference model, where the loss has a KL term."""
    ids_limit: int | None = None
    """Targets were drawn from the ids below it (GenerationEngine.ids_limit); None: from all of the model's."""
    left_out_targets: int = 0
    """Trained tokens of samples that are in no batch, since no gradient comes from them: the loss is a mean over these
    too."""
    whole_ids: Tensor | None = None
    """Where the tensors above are the slices of rows that one process holds (`cut`): `document_ids` of whole rows."""

    @property
    def n_tokens(self) -> int:
        """Tokens, padding not counted."""
        return int(self.valid.sum())

    @property
    def n_targets(self) -> int:
        """Tokens that are trained on, with those that were left out."""
        return int((self.targets != IGNORE).sum()) + self.left_out_targets

    @property
    def seq_len(self) -> int:
        """Tokens of a whole row."""
        return (self.tokens if self.whole_ids is None else self.whole_ids).shape[1]

    def cut(self, shared: Sharing) -> PolicyBatch:
        """The part of one of the processes that share out each row: (each * B, L) for (B, T), as a SlicedBatch."""
        sliced = ("tokens", "targets", "document_ids", "valid", "sampled", "advantages", "before", "reference")
        whole = {name: value for name in sliced if (value := getattr(self, name)) is not None}
        routing = None if self.routing is None else torch.stack([shared.take(block) for block in self.routing])
        # They are in no slice, and count once.
        left_out = self.left_out_targets if shared.is_first else 0
        parts = {name: shared.take(value) for name, value in whole.items()}
        return replace(self, **parts, routing=routing, left_out_targets=left_out, whole_ids=self.document_ids)


def pack_samples(
    samples: Sequence[TrainingSample],
    length: int,
    rows: int,
    pad_id: int = 0,
    micro_batches: int = 0,
    kl_coef: float | None = None,
    ids_limit: int | None = None,
) -> list[PolicyBatch]:
    """Whole samples packed into rows, first fit decreasing; each sees nothing of the others.

    Args:
        samples: to pack.
        length: places of a row.
        rows: rows of a micro-batch at the most.
        pad_id: token that fills rows up.
        micro_batches: make at least so many, the last of padding alone: every rank of a step needs as many.
        kl_coef: that of the objective. At 0 samples that no gradient comes from are left out, all but the shortest
            where there are no others: those without a trained token, and those whose advantage is 0. Their trained
            tokens stay in `n_targets`; metrics and the experts' loads are those of the others. None: all are packed.
        ids_limit: of the engine that drew them; None: it draws all of the model's ids.

    Raises:
        UserError: a sample does not fit in a row, or only some of the samples have experts.
    """
    with_experts = {sample.experts is not None for sample in samples}
    if len(with_experts) > 1:
        raise UserError("some samples have the experts of their rollout and others have none: replay all or none")
    samples = [_checked(sample, length) for sample in samples]
    packed = _with_gradient(samples) if kl_coef == 0 else samples
    places = fit_rows([sample.n_inputs for sample in packed], length)
    filled = [_Row.of([packed[i] for i in row], length, pad_id) for row in places]
    filled += [_Row.of([], length, pad_id)] * max(0, micro_batches * rows - len(filled) if micro_batches else 0)
    batches = [_stack(filled[start : start + rows], ids_limit) for start in range(0, len(filled), rows)]
    if len(packed) < len(samples):
        left_out = sum(sample.n_targets for sample in samples) - sum(sample.n_targets for sample in packed)
        batches[0] = replace(batches[0], left_out_targets=left_out)
    return batches


def _with_gradient(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Those that a gradient can come from; the shortest one where there are none, since a step needs tokens."""
    found = [sample for sample in samples if sample.advantage != 0 and sample.n_targets]
    return found or sorted(samples, key=lambda sample: sample.n_inputs)[:1]


def fit_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """First fit decreasing: the numbers of the items in each row, none of which holds more than `room` together."""
    rows: list[list[int]] = []
    left: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((r for r, free in enumerate(left) if free >= lengths[item]), len(rows))
        if place == len(rows):
            rows.append([])
            left.append(room)
        rows[place].append(item)
        left[place] -= lengths[item]
    return rows


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray
    targets: np.ndarray
    document_ids: np.ndarray
    valid: np.ndarray
    sampled: np.ndarray
    advantages: np.ndarray
    documents: list[str]
    routing: np.ndarray | None

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], length: int, pad_id: int) -> _Row:
        row = cls(
            np.full(length, pad_id, np.int64), np.full(length, IGNORE, np.int64),
            np.full(length, len(samples), np.int32), np.zeros(length, bool), np.zeros(length, np.float32),
            np.zeros(length, np.float32), [sample.name for sample in samples], _no_routing(samples, length),
        )  # fmt: skip
        start = 0
        for number, sample in enumerate(samples):
            row._put(sample, slice(start, start + sample.n_inputs), number)
            start += sample.n_inputs
        return row

    def _put(self, sample: TrainingSample, place: slice, number: int) -> None:
        trained = sample.trained[1:]
        self.tokens[place] = sample.ids[:-1]
        self.targets[place] = np.where(trained, sample.ids[1:], IGNORE)
        self.sampled[place] = np.where(trained, sample.log_probs[1:], 0.0)
        self.advantages[place] = sample.advantage
        self.document_ids[place], self.valid[place] = number, True
        if self.routing is not None and sample.experts is not None:
            self.routing[:, place] = sample.experts


def _no_routing(samples: Sequence[TrainingSample], length: int) -> np.ndarray | None:
    experts = samples[0].experts if samples else None
    return None if experts is None else np.zeros((len(experts), length, experts.shape[2]), np.int64)


def _stack(rows: Sequence[_Row], ids_limit: int | None) -> PolicyBatch:
    def together(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))

    shape = next((row.routing for row in rows if row.routing is not None), None)
    routing = None
    if shape is not None:
        replayed = [np.zeros_like(shape) if row.routing is None else row.routing for row in rows]
        routing = torch.from_numpy(np.stack(replayed, axis=1))
    return PolicyBatch(
        together("tokens"), together("targets"), together("document_ids"), together("valid"), together("sampled"),
        together("advantages"), [name for row in rows for name in row.documents], routing, ids_limit=ids_limit,
    )  # fmt: skip


def _checked(sample: TrainingSample, length: int) -> TrainingSample:
    if len(sample.ids) < 2 or sample.n_inputs > length:
        raise UserError(
            f"sample {sample.name} has {len(sample.ids)} tokens: it needs 2 or more, and {length + 1} fit in a row; "
            "raise the packed length, or lower the longest prompt and output"
        )
    return sample
