"""The most tokens a second that a GPU's bandwidth, arithmetic and memory allow, for one policy and one load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from nano3.bench.costs import flops, read_bytes, weights_read
from nano3.bench.roofline.gpus import Gpu
from nano3.bench.roofline.storage import Storage, storages
from nano3.bench.workload import Case
from nano3.config.model import ATTENTION, ModelConfig
from nano3.kernels.scaled import E4M3
from nano3.model.state.pool import page_bytes, slot_bytes

CACHES = {"bf16": torch.bfloat16, "fp8": E4M3}
"""Types of keys and values."""
FORMULA = (
    "batch = (memory - weights) / (states + (isl + osl) x kv), rounded down",
    "seconds of a pass = max(bytes / bandwidth, FLOP in 8 bits / its peak + other FLOP / bf16 peak)",
    "bytes of a decoding step = weights in use + batch x (2 x states + (isl + osl / 2 + 1) x kv)",
    "bytes of the prefill, one pass for all prompts = weights in use + batch x (states + isl x kv)",
    "request = prefill + osl x step; output tokens/s = batch x osl / request",
)
FORMULA_NOTES = (
    "states: scan (float32) and convolution (bf16) of a sequence, read and written each step; kv: keys and values of a "
    "token; weights in use: experts as far as the pass's tokens are expected to choose them. Activations, work space "
    "and the cost of launching anything are 0."
)
MORE_HELPS = 1.1
"""A load is bound by memory where a batch without limit would bring more than this many times the tokens."""
WITHOUT_LIMIT = 10**8

Limit = Literal["bandwidth", "compute", "memory"]


@dataclass(frozen=True)
class Load:
    """What each request asks for."""

    isl: int
    """Tokens of its prompt."""
    osl: int
    """Tokens of its answer."""


@dataclass(frozen=True)
class Phase:
    """One pass: all prompts, or one token of every sequence."""

    seconds: float
    rate: float
    """Tokens a second of all sequences together, of the prompts or of the answers."""
    bytes: float
    flops: float
    limit: Limit


@dataclass(frozen=True)
class Bound:
    """The bound of one policy with one type of cache."""

    policy: str
    title: str
    cache: str
    folder_bytes: float
    """Of all weights."""
    token_bytes: float
    """Of the weights that one token of one sequence needs."""
    sequence_bytes: float
    """Of the states, keys and values of a sequence at its end."""
    batch: int
    """Sequences that fit; 0: not one does, or the weights alone do not, and nothing below is known."""
    prefill: Phase | None = None
    decode: Phase | None = None
    alone: float = 0.0
    """Output tokens a second of a single sequence, while it decodes."""
    output_rate: float = 0.0
    """Output tokens a second over whole requests, prefill and decoding."""
    request_seconds: float = 0.0
    limit: Limit = "memory"
    """Of whole requests."""


def bounds(cfg: ModelConfig, gpu: Gpu, load: Load) -> list[Bound]:
    """For every policy and type of cache; one type where the model has no attention."""
    caches = list(CACHES) if cfg.blocks(ATTENTION) else ["bf16"]
    return [_Reckoning(cfg, gpu, load, storage, cache).bound() for storage in storages(cfg) for cache in caches]


@dataclass(frozen=True)
class _Reckoning:
    cfg: ModelConfig
    gpu: Gpu
    load: Load
    storage: Storage
    cache: str

    def bound(self) -> Bound:
        room = self.gpu.memory - self.storage.folder
        sequence = self._states + (self.load.isl + self.load.osl) * self._kv
        batch = int(max(0.0, room) // sequence)
        facts = (self.storage.policy, self.storage.title, self.cache, self.storage.folder,
                 weights_read(self.cfg, 1, self.storage.each), sequence, batch)  # fmt: skip
        if not batch:
            return Bound(*facts)
        prefill, decode = self.prefill(batch), self.decode(batch)
        rate = self._rate(batch)
        more = self._rate(WITHOUT_LIMIT) / rate > MORE_HELPS
        longer = prefill if prefill.seconds > self.load.osl * decode.seconds else decode
        limit: Limit = "memory" if more else longer.limit
        return Bound(*facts, prefill, decode, self.decode(1).rate, rate, batch * self.load.osl / rate, limit)

    def prefill(self, batch: int) -> Phase:
        """All prompts in one pass."""
        tokens = batch * self.load.isl
        moved = weights_read(self.cfg, tokens, self.storage.each)
        moved += batch * (self._states + self.load.isl * self._kv)
        work = flops(self.cfg, Case("prefill", batch, self.load.isl))
        return self._phase(tokens, moved, work, self._quick(tokens, batch))

    def decode(self, batch: int) -> Phase:
        """A step in the middle of the answers."""
        case = Case("decode", batch, self.load.isl, self.load.osl)
        moved = read_bytes(self.cfg, case, self.storage.each, torch.bfloat16, CACHES[self.cache])
        moved += batch * (self._states + self._kv)
        return self._phase(batch, moved, flops(self.cfg, case) / self.load.osl, self._quick(batch, batch))

    def _phase(self, tokens: int, moved: float, work: float, quick: float) -> Phase:
        moving = moved / self.gpu.bandwidth
        computing = quick / self.gpu.flops_8 + (work - quick) / self.gpu.flops_16
        seconds = max(moving, computing)
        return Phase(seconds, tokens / seconds, moved, work, "bandwidth" if moving > computing else "compute")

    def _quick(self, tokens: int, logits: int) -> float:
        """Operations in 8 bits of a pass that computes the logits of so many tokens."""
        head = self.cfg.vocab_size * self.cfg.d_model * self.storage.quick_head
        return 2 * (tokens * self.storage.quick + logits * head)

    def _rate(self, batch: int) -> float:
        seconds = self.prefill(batch).seconds + self.load.osl * self.decode(batch).seconds
        return batch * self.load.osl / seconds

    @property
    def _states(self) -> int:
        return slot_bytes(self.cfg, torch.bfloat16)

    @property
    def _kv(self) -> int:
        return page_bytes(self.cfg, 1, CACHES[self.cache])
