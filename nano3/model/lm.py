"""The language model: embedding, blocks, final norm, output projection (report section 2.1)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nano3.config.model import MOE, ModelConfig
from nano3.kernels.scaled import FLOATS
from nano3.model.attention import Attention
from nano3.model.block import Block
from nano3.model.forward_pass import (
    STATISTICS,
    Boundary,
    Context,
    Pass,
    Places,
    Slices,
    Statistic,
    check_routing,
)
from nano3.model.head import log_probs
from nano3.model.init import init_weights
from nano3.model.layers import Linear, RMSNorm
from nano3.model.mamba2 import Mamba2
from nano3.model.moe import MoE
from nano3.model.router import RouterStats
from nano3.model.state.hybrid import HybridState
from nano3.model.step import step
from nano3.openmp import watch_cores

# Parameters and buffers kept in float32 whatever the dtype of the rest: small, and routing and step sizes hang on them.
FLOAT32_SUFFIXES = (".A_log", ".D", ".dt_bias", ".gate.weight", ".e_score_correction_bias", "_scale")


@dataclass
class Hidden:
    """Result of all blocks, before the output projection."""

    x: Tensor
    """(B, T, D) after the final norm, in the compute dtype."""
    routing: list[RouterStats]
    """Of each MoE block; empty after a decoding step in one C++ call."""
    expert_ids: Tensor | None = None
    """(number of MoE blocks, B, T, K) int64: the experts that each token used, -1 at padding; only where asked for."""
    statistics: frozenset[Statistic] = STATISTICS
    """Those of the three below that the pass was asked for."""
    slices: Slices | None = None
    """Those who hold the slices of the rows; None: the rows are whole."""

    @property
    def loads(self) -> Tensor:
        """(number of MoE blocks, E) int64: tokens routed to each expert in this pass, padding and other slices of the
        rows not counted."""
        self._check("loads")
        if not self.routing:
            return torch.zeros(0, 0, dtype=torch.int64, device=self.x.device)
        return torch.stack([stats.load for stats in self.routing])

    @property
    def balance_loss(self) -> Tensor:
        """Scalar: load-balancing loss summed over MoE blocks; each is 1 when routing is even. Of a slice of rows its
        share: the shares add up to the loss of the whole rows, and all `slices` must read theirs."""
        self._check("balance_loss")
        counts = [stats.load for stats in self.routing]
        if self.slices is not None and counts:  # one collective for all blocks
            counts = self.slices.sum(torch.stack(counts)).unbind()
        return self._sum([stats.balance(load) for stats, load in zip(self.routing, counts, strict=True)])

    @property
    def sequence_balance_loss(self) -> Tensor:
        """Scalar: as `balance_loss`, each row's own and averaged over the rows that have tokens."""
        self._check("sequence_balance_loss")
        counts, each = [stats.row_choices for stats in self.routing], 1
        if self.slices is not None and counts:
            counts, each = self.slices.sum_rows(torch.stack(counts)).unbind(), self.slices.each
        # Every slice counts as a row in the mean.
        losses = [stats.sequence_balance(rows) for stats, rows in zip(self.routing, counts, strict=True)]
        return self._sum(losses) * each if each > 1 else self._sum(losses)

    def _sum(self, losses: list[Tensor]) -> Tensor:
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.x.device)

    def _check(self, name: Statistic) -> None:
        if name not in self.statistics:
            raise ValueError(f"{name}: the pass was not asked for it; give hidden() statistics with it")


class PassOptions(TypedDict, total=False):
    """Keywords of `LM.hidden` that whatever calls it hands on."""

    valid: Tensor | None
    routing: Tensor | None
    boundary: Boundary | None
    context: Context | None
    joint: Pass | None


class LM(nn.Module):
    """Hybrid Mamba-2 / attention / mixture-of-experts language model.

    Parameters are float32 unless converted; activations have `compute_dtype`, weights are cast where they are used.
    Router, norms' statistics, scan state and A_log / dt_bias / D stay in float32.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.compute_dtype = torch.float32
        self.checkpoint_activations = False
        self.sequence_chunk = 0  # most tokens of a pass through a block; 0: any number
        self.stage = ""  # what trained the weights, as config.json says it
        self.mapped_bytes = 0  # of weights that lie in mapped files, whose memory the system counts as free
        self.embeddings = nn.Embedding(cfg.vocab_size, cfg.d_model, _weight=torch.empty(cfg.vocab_size, cfg.d_model))
        self.blocks = nn.ModuleList(Block(cfg, symbol) for symbol in cfg.pattern)
        self.norm_f = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.lm_head = Linear(cfg.d_model, cfg.vocab_size)

    def init_weights(self, seed: int = 0) -> LM:
        """Draw the initial weights; each parameter depends only on `seed` and its name."""
        init_weights(self, self.cfg, seed)
        return self

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None, state: HybridState | None = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T) int64.

        Args:
            tokens: (B, T) token ids.
            document_ids: (B, T) int; a change from one position to the next starts a document that sees nothing before.
            state: advanced in place by T tokens, so that the next call continues; not together with document_ids.
        """
        return self.lm_head(self.hidden(tokens, document_ids, state).x)

    def hidden(
        self,
        tokens: Tensor,
        document_ids: Tensor | None = None,
        state: HybridState | None = None,
        *,
        valid: Tensor | None = None,
        routing: Tensor | None = None,
        keep_expert_ids: bool = False,
        boundary: Boundary | None = None,
        context: Context | None = None,
        joint: Pass | None = None,
        slices: Slices | None = None,
        statistics: Collection[Statistic] = STATISTICS,
        inputs: Tensor | None = None,
        part: range | None = None,
    ) -> Hidden:
        """As `forward`, without the output projection, and with the routing statistics; those are left out of a pass
        that is one token of each sequence of a StatePool and goes through the model in one call (nano3.model.step).

        Args:
            tokens: (B, T) token ids.
            document_ids: (B, T), see `forward`.
            state: see `forward`.
            valid: (B, T) bool, False at padding: it is not routed, the output of MoE blocks there is 0, and it is in no
                load and balance loss. It has to lie behind its row's tokens or in documents of its own, since the
                other blocks read it. None: no padding.
            routing: (number of MoE blocks, B, T, K) experts that each token has to use (router replay): another pass's
                `Hidden.expert_ids`, integers of any type. Their weights are those of this pass's scores. What stands at
                padding is not read.
            keep_expert_ids: whether `Hidden.expert_ids` is wanted.
            boundary: for tokens that are a slice of longer rows: what Mamba-2 blocks ask for what lies before it.
            context: the same for attention blocks. See nano3.model.forward_pass.
            joint: where heads of mixers are divided (nano3.parallel.tensor), the pass over the tokens of all who do so.
            slices: those who hold the slices, whose counts the balance losses need.
            statistics: those of `Hidden` that are going to be read; a pass in pieces keeps no sums for the others.
            inputs: (B, T, D) what the blocks before `part` gave; None: `part` begins with the embeddings.
            part: numbers of the blocks of a stage of a pipeline (nano3.parallel.pipeline); None: all. The final norm
                follows the last block of the whole model.

        Raises:
            ValueError: arguments that do not fit each other; the message says which.
        """
        if state is not None:
            _check_beside_state(document_ids, boundary, context)
        self._begin(tokens, valid, routing)
        plain = valid is None and routing is None
        if state is not None and plain and (stepped := self._step(tokens, state, keep_expert_ids)) is not None:
            return stepped
        x = self.embeddings(tokens).to(self.compute_dtype) if inputs is None else inputs
        wanted, places = frozenset(statistics), None if valid is None else Places.of(valid)
        around = Pass(document_ids, places, None, keep_expert_ids, boundary, context, wanted, joint=joint)
        x, stats = self._through(x, around, routing, state, part)
        chosen = torch.stack([routed.expert_ids for routed in stats]) if keep_expert_ids and stats else None
        if part is None or part.stop == self.cfg.n_blocks:
            x = self.norm_f(x)
        return Hidden(x, stats, chosen, wanted, slices)

    def _through(
        self, x: Tensor, around: Pass, routing: Tensor | None, state: HybridState | None, part: range | None
    ) -> tuple[Tensor, list[RouterStats]]:
        """What the blocks, or those of `part`, make of x, and the routing of those that have experts."""
        stats: list[RouterStats] = []
        for i, block in enumerate(self.blocks) if part is None else ((i, self._block(i)) for i in part):
            given = routing[len(stats)] if routing is not None and isinstance(block.mixer, MoE) else None
            x, routed = self._run(block, x, around.at(i, given), state.blocks[i] if state is not None else None)
            if routed is not None:
                stats.append(routed)
        return x, stats

    def _step(self, tokens: Tensor, state: HybridState, keep_expert_ids: bool) -> Hidden | None:
        """One token of each sequence of a StatePool in one call; None: it has to go block by block."""
        stepped = step(self, tokens, state, experts=keep_expert_ids)
        if stepped is None:
            return None
        expert_ids = None if stepped.expert_ids is None else stepped.expert_ids.long().unsqueeze(1)
        return Hidden(stepped.hidden.unsqueeze(0).to(self.compute_dtype), [], expert_ids)

    @overload
    def log_probs(
        self,
        tokens: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = ...,
        temperature: float = ...,
        entropy: Literal[False] = ...,
        **options: Unpack[PassOptions],
    ) -> Tensor:
        """Log-probabilities alone."""
        ...

    @overload
    def log_probs(
        self,
        tokens: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = ...,
        temperature: float = ...,
        *,
        entropy: Literal[True],
        **options: Unpack[PassOptions],
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies."""
        ...

    def log_probs(
        self,
        tokens: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
        **options: Unpack[PassOptions],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """log softmax(logits / temperature)[target] of each token, differentiable, without ever holding all logits.

        What a policy gradient needs beside it (expert loads, balance losses) is in `hidden`: call that, and
        `nano3.model.head.log_probs` on its result, which is all that this does.

        Args:
            tokens: (B, T) token ids.
            targets: (B, T) int64; tokens with -100 get 0. Neither they nor tokens with a gradient of 0 cost a
                projection.
            document_ids: (B, T), see `forward`.
            temperature: above 0.
            entropy: also return the entropy of each token's distribution, differentiable too.
            options: `valid`, `routing`, `boundary`, `context` and `joint` of `hidden`.

        Returns:
            (B, T) float32; with `entropy` two of them.

        Raises:
            ValueError: as `hidden`; or the temperature is not above 0.
        """
        hidden = self.hidden(tokens, document_ids, statistics=(), **options)
        return log_probs(self.lm_head, hidden.x, targets, temperature, entropy)

    def new_state(self, batch_size: int, capacity: int = 256) -> HybridState:
        """Empty inference state for `batch_size` sequences, with room for `capacity` tokens before it grows."""
        return HybridState.empty(self.cfg, batch_size, capacity=capacity, dtype=self.compute_dtype, device=self.device)

    def use_fp8_cache(self, wanted: bool = True) -> LM:
        """Round keys and values to e4m3 numbers times their scales, as an FP8 cache does, in every pass from now on.

        Raises:
            ValueError: an attention block has no scale for them.
        """
        for i, block in enumerate(self.blocks):
            if not isinstance(mixer := block.mixer, Attention):
                continue
            if wanted and ("k_scale" not in mixer.k_proj._buffers or "v_scale" not in mixer.v_proj._buffers):
                raise ValueError(f"block {i} has no scales of keys and values: an FP8 cache needs them")
            mixer.fp8_cache = wanted
        return self

    @property
    def fp8_cache(self) -> bool:
        """Whether all attention blocks round keys and values (`use_fp8_cache`)."""
        return all(block.mixer.fp8_cache for block in self.blocks if isinstance(block.mixer, Attention))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights that are neither quantized nor kept in float32."""
        return self._first.dtype

    @property
    def is_part(self) -> bool:
        """Whether other processes hold the rest of it (nano3.parallel.pipeline)."""
        return len(self.blocks) < self.cfg.n_blocks

    @property
    def _first(self) -> Tensor:
        """The embeddings; of a later stage its first weight, a norm."""
        return self.embeddings.weight if self.embeddings is not None else next(self.parameters())

    def _block(self, number: int) -> nn.Module:
        """By its number in the whole model, of which this one may be a part."""
        return self.blocks.get_submodule(str(number))

    def expert_biases(self) -> list[Tensor]:
        """The (E,) float32 selection biases in block order: buffers, to be updated in place."""
        return [b.mixer.gate.e_score_correction_bias for b in self.blocks if isinstance(b.mixer, MoE)]

    def to_dtype(self, dtype: torch.dtype, compute_dtype: torch.dtype | None = None) -> LM:
        """Convert weights, and activations to `compute_dtype` or the same; routing and step sizes stay in float32, and
        quantized weights as they are stored."""
        for name, parameter in self.named_parameters():
            if not name.endswith(FLOAT32_SUFFIXES) and parameter.dtype in FLOATS:
                parameter.data = parameter.data.to(dtype)
        self.compute_dtype = compute_dtype or dtype
        return self

    def _begin(self, tokens: Tensor, valid: Tensor | None, routing: Tensor | None) -> None:
        """Check arguments, and on how many cores this process may run by now."""
        if not torch.compiler.is_compiling():
            watch_cores()
        if valid is not None and (valid.shape != tokens.shape or valid.dtype != torch.bool):
            raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}; it must be bool {tuple(tokens.shape)}")
        shape = (len(self.cfg.blocks(MOE)), *tokens.shape, self.cfg.top_k)
        if routing is None:
            return
        if routing.shape != shape:
            raise ValueError(
                f"routing has shape {tuple(routing.shape)}; it must be (MoE blocks, B, T, top_k) = {tuple(shape)}"
            )
        check_routing(routing, valid, self.cfg.n_experts)

    def _run(self, block: nn.Module, x: Tensor, around: Pass, state) -> tuple[Tensor, RouterStats | None]:
        # A mixer that takes more tokens than these cannot go through them piece by piece.
        joint = around.joint is not None and isinstance(block.mixer, (Mamba2, Attention))
        if state is None and not joint and 0 < self.sequence_chunk < x.shape[0] * x.shape[1]:
            return block(x, around, None, self.sequence_chunk)
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            if around.asks:  # once, before the pass, whose second run is given the same answers
                return block(x, around, None, x.shape[0] * x.shape[1])
            return checkpoint(block, x, around, state, use_reentrant=False)
        return block(x, around, state)


def _check_beside_state(document_ids: Tensor | None, boundary: Boundary | None, context: Context | None) -> None:
    if document_ids is not None:
        raise ValueError("give document_ids or state, not both: a continued sequence is one document")
    if boundary is not None or context is not None:
        raise ValueError("give state or boundary and context, not both: either says what lies before the tokens")
