"""What the graphs of a decoding step read and write, at places that stay: indices and draws, logits and tokens.

The host writes one buffer and copies it in one piece; the chosen tokens come back in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nano3.kernels.cpu.draw import NOTHING, Draw, Drawn
from nano3.kernels.eager.draw import choose_tokens
from nano3.model.state.step_plan import StepPlan

TOKEN, SLOT, COUNT = range(3)
"""Rows of numbers in the buffer, before those of the draws."""
DRAW_ROWS = len(Draw._fields)
PADDING = np.array([[0], [-1], [0]])


@dataclass(frozen=True)
class StepSizes:
    """Of a model and a pool."""

    vocab: int
    width: int
    expert_blocks: int
    top_k: int
    slots: int
    """0: no block has any."""
    pages: int
    """0: no block has any."""
    page_size: int


class Outputs:
    """What comes of the model for `rows` rows."""

    def __init__(self, rows: int, sizes: StepSizes, device: torch.device) -> None:
        self.logits = torch.zeros(rows, sizes.vocab, device=device)
        self.hidden = torch.zeros(rows, sizes.width, device=device)
        self.experts = torch.zeros(sizes.expert_blocks, rows, sizes.top_k, dtype=torch.int16, device=device)
        self.chosen = torch.zeros(3, rows, dtype=torch.int64, device=device)
        """Ids, and as the bits of float64 both log-probabilities."""
        self._host, self._host_experts = _pinned((3, rows), device), _pinned(self.experts.shape, device, torch.int16)

    def choose(self, limit: int, draws: Tensor, *, drawn: bool, cut: bool) -> None:
        """The next token of each row; see `choose_tokens`."""
        found = choose_tokens(self.logits, limit, draws, drawn=drawn, cut=cut)
        self.chosen[0].copy_(found.ids)
        numbers = self.chosen.view(torch.float64)
        numbers[1].copy_(found.log_probs)
        numbers[2].copy_(found.drawn_log_probs)

    def read(self, n: int, *, experts: bool) -> tuple[list[Drawn], Tensor | None]:
        """Tokens, and experts (blocks, n, K), of the first n rows, when the device has come this far."""
        self._host.copy_(self.chosen, non_blocking=True)
        if experts:
            self._host_experts.copy_(self.experts, non_blocking=True)
        if self.chosen.is_cuda:
            torch.cuda.current_stream(self.chosen.device).synchronize()
        numbers = self._host.numpy()
        one, other = numbers[1:, :n].view(np.float64).tolist()
        tokens = list(zip(numbers[0, :n].tolist(), one, other, strict=True))
        return tokens, self._host_experts[:, :n].clone() if experts else None


class Indices:
    """Tokens, slots, lengths, pages and draws of up to `rows` sequences of up to `width` pages."""

    def __init__(self, rows: int, width: int, sizes: StepSizes, device: torch.device) -> None:
        self.rows, self.width, self._sizes = rows, width, sizes
        count = (3 + DRAW_ROWS) * rows
        self._host = _pinned((count + -(-rows * width // 2),), device)
        self._device = torch.zeros_like(self._host, device=device, pin_memory=False)
        host, device_numbers = self._host.numpy(), self._device[:count].view(-1, rows)
        numbers = host[:count].reshape(-1, rows)
        self._numbers, self._draws = numbers[:3], numbers[3:].view(np.float64)
        self._table = host[count:].view(np.int32)[: rows * width].reshape(rows, width)
        self._numbers[:] = PADDING
        self._draws[:] = np.array(NOTHING)[:, None]
        self._sent = torch.cuda.Event() if device.type == "cuda" else None
        self._pages: list[list[int]] = [[]] * rows
        """What the rows of the table begin with."""
        self.tokens = device_numbers[TOKEN]
        self.draws = device_numbers[3:].view(torch.float64)
        self._slots, self._counts = device_numbers[SLOT], device_numbers[COUNT]
        self._device_table = self._device[count:].view(torch.int32)[: rows * width].view(rows, width)

    def plan(self) -> StepPlan:
        """Where the rows' states are, as the device computes it."""
        return StepPlan.of(self._slots, self._counts, self._device_table, max(self._sizes.page_size, 1))

    def fill(
        self, tokens: Sequence[int], slots: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]]
    ) -> None:
        """Enter n sequences, the rest of the rows as padding; of the page table, what is not there yet.

        Raises:
            IndexError: a token, slot or page that does not exist.
            ValueError: two sequences in one slot, or too few pages.
        """
        if self._sent is not None and not self._sent.query():
            self._sent.synchronize()  # the device has yet to read what the buffer holds
        n, numbers, sizes = len(tokens), self._numbers, self._sizes
        numbers[:, n:] = PADDING
        numbers[TOKEN, :n], numbers[SLOT, :n], numbers[COUNT, :n] = tokens, slots, lengths
        _check("token", numbers[TOKEN, :n], sizes.vocab)
        if sizes.slots:
            _check("slot", numbers[SLOT, :n], sizes.slots)
            if len(set(slots)) != n:
                raise ValueError(f"slots {list(slots)} for {n} sequences; each needs its own")
        else:
            numbers[SLOT, :n] = 0
        if sizes.pages:
            self._fill_table(lengths, pages)

    def _fill_table(self, lengths: Sequence[int], pages: Sequence[Sequence[int]]) -> None:
        for m, (row, length) in enumerate(zip(pages, lengths, strict=True)):
            if len(row) * self._sizes.page_size < length:
                raise ValueError(f"{len(row)} pages of {self._sizes.page_size} for a sequence of {length} tokens")
            if row == self._pages[m]:
                continue
            self._pages[m] = []
            self._table[m, : len(row)] = row
            _check("page", self._table[m, : len(row)], self._sizes.pages)
            self._pages[m] = list(row)

    def fill_draws(self, draws: Sequence[Draw | None]) -> tuple[bool, bool]:
        """Enter how the first rows' tokens are chosen; whether any is drawn, and whether any of these after a cut."""
        n = len(draws)
        self._draws[:, :n] = np.array([draw or NOTHING for draw in draws]).T
        self._draws[:, n:] = np.array(NOTHING)[:, None]
        temperature, top_k, top_p = self._draws[:3, :n]
        drawn = temperature > 0
        return bool(drawn.any()), bool((drawn & ((top_k > 0) | (top_p < 1))).any())

    def send(self) -> None:
        """To the device."""
        self._device.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device.device))


def _pinned(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def _check(what: str, numbers: np.ndarray, count: int) -> None:
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= count):
        raise IndexError(f"a {what} of {numbers.tolist()} does not exist; there are {count}")
