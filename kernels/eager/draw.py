"""The next token of each row of logits in operations on tensors, none of which waits for the device.

"z": (logit - largest) / temperature; the order: largest z first, of equals the smallest id first. `uniform` is where in
a row's distribution its token lies, above 0 and below 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.best import best_tokens

BLOCK = 512
"""Tokens a block in the two-level search for the drawn one."""
ALL = 1 << 40
"""Stands for a top-k that cuts nothing."""
CANDIDATES = 1024
"""Most probable tokens among which `choose_tokens` looks for the end of a cut, where there are twice as many."""


class Cuts(NamedTuple):
    """What is left of the distributions of R rows."""

    top_k: Tensor
    """(R, 1) int64, ALL where nothing is cut."""
    top_p: Tensor
    """(R, 1) float64."""
    floor: Tensor | None
    """(R, 1) float32 lowest z that min-p keeps; None: no row has a min-p."""


class ChosenTokens(NamedTuple):
    """Result of `choose_tokens`."""

    ids: Tensor
    """(R,) int64; -1 where the cut lies beyond the candidates, and the row has to be drawn elsewhere."""
    log_probs: Tensor
    """(R,) float64 under the softmax of the logits."""
    drawn_log_probs: Tensor
    """(R,) float64 under the distribution that the token was drawn from."""


def choose_tokens(logits: Tensor, limit: int, draws: Tensor, *, drawn: bool, cut: bool) -> ChosenTokens:
    """As nano3.kernels.cpu.draw.draw_tokens, but for rounding, on any device and fit for a CUDA graph.

    A row depends on nothing but its own logits and draw. Where logits are nan, or the largest is infinite, the
    log-probabilities are nan and the id means nothing.

    Args:
        logits: (R, V) float32.
        limit: only ids below it are chosen; the first log-probability counts all.
        draws: (5, R) float64: temperature (0: the most probable token), top_k (0: all), top_p, min_p and uniform.
        drawn: whether any row has a temperature above 0.
        cut: whether any of these has a top_p below 1 or a top_k below the limit.
    """
    allowed = logits[:, :limit]
    ids, totals = best_tokens(logits, limit)
    best = logits.gather(1, ids[:, None])
    log_probs = best[:, 0].double() - totals.double()
    if not drawn:
        return ChosenTokens(ids, log_probs, log_probs + (best - best)[:, 0])
    temperature, top_k, top_p, min_p, uniform = draws[:, :, None]
    z = (allowed - best).div_(temperature.clamp(min=1e-6).float())
    floor = min_p.log().clamp(max=0).float()
    found, drawn_log_probs = draw_whole(z, floor, uniform)
    if cut:
        all_kept = (top_k == 0) | (top_k >= allowed.shape[1])
        cuts = Cuts(top_k.long().masked_fill(all_kept, ALL), top_p, floor)
        narrow, narrow_log_probs, exact = _draw_cut(z, cuts, uniform)
        is_cut = ((cuts.top_k < allowed.shape[1]) | (top_p < 1))[:, 0]
        found = torch.where(is_cut, narrow.masked_fill(~exact, -1), found)
        drawn_log_probs = torch.where(is_cut, narrow_log_probs, drawn_log_probs)
    greedy = temperature[:, 0] == 0
    found = torch.where(greedy, ids, found)
    raw = logits.gather(1, found.clamp(min=0)[:, None])[:, 0]
    chosen = raw.double() - totals.double()
    return ChosenTokens(found, chosen, torch.where(greedy, chosen + (raw - raw), drawn_log_probs))


def _draw_cut(z: Tensor, cuts: Cuts, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if z.shape[1] > 2 * CANDIDATES:
        values, ids = candidates(z, CANDIDATES)
        return draw_sorted(values, ids, cuts, uniforms, z.exp().sum(-1, keepdim=True).double())
    values, ids = z.sort(dim=-1, descending=True, stable=True)
    found, log_probs, exact = draw_sorted(values, ids, cuts, uniforms, None)
    return found, log_probs, torch.ones_like(exact)


def draw_whole(z: Tensor, floor: Tensor | None, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from whole distributions, without sorting: ids (R,) and their log-probabilities (R,) float64.

    Args:
        z: (R, N) float32; what lies below `floor` (R, 1) is not drawn.
        floor: see Cuts.
        uniforms: (R, 1) float64.
    """
    if floor is not None:
        z = z.masked_fill(z < floor, -math.inf)
    ids, totals = _search_blocks(z.exp(), uniforms)
    return ids[:, 0], (z.gather(1, ids).double() - totals.log())[:, 0]


def _search_blocks(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of the cumulated weights (R, N) at uniforms (R, 1): ids (R, 1), total weights (R, 1).

    Sums of blocks first, then inside one block: cumulating all of N would be sequential. Weights that are no numbers
    give some id and a total of nan.
    """
    size = weights.shape[1]
    spare = -size % BLOCK
    if spare:
        weights = F.pad(weights, (0, spare))
    blocks = weights.view(len(weights), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    block, rest = _search(ends, uniforms * ends[:, -1:])
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    position, _ = _search(inner, rest)
    return (block * BLOCK + position).clamp_(max=size - 1), ends[:, -1:]


def _search(ends: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """First position (R, 1) where the cumulated weights `ends` (R, N) pass `goal` (R, 1), and the goal within it.

    A position that adds nothing is never returned: the goal is kept below the last sum, where rounding may put it.
    """
    last = ends[:, -1:]
    goal = torch.minimum(goal, torch.nextafter(last, torch.zeros_like(last)))
    position = torch.searchsorted(ends, goal, right=True).clamp_(max=ends.shape[1] - 1)
    before = ends.gather(1, (position - 1).clamp(min=0)).masked_fill(position == 0, 0.0)
    return position, goal - before


def candidates(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row with their ids, in the order."""
    ids = z.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = z.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def draw_sorted(
    values: Tensor, ids: Tensor, cuts: Cuts, uniforms: Tensor, totals: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut and draw from sorted z: ids (R,), log-probabilities (R,) float64, whether the cut was inside (R,).

    Args:
        values: (R, N) z in the order; `ids` (R, N) are theirs.
        cuts: of the R rows.
        uniforms: (R, 1) float64.
        totals: (R, 1) weight of the whole vocabulary when the N are only its most probable part.
    """
    n, (top_k, top_p, floor) = values.shape[1], cuts
    ends = values.exp().double().cumsum(-1)
    within = ends.gather(1, top_k.clamp(max=n) - 1)
    mass = within if totals is None else torch.where(top_k > n, totals, within)
    share = torch.where(top_p < 1, top_p * mass, math.inf)
    by_p = torch.searchsorted(ends, share, right=False) + 1
    limit = torch.minimum(by_p, top_k)
    kept = limit.clamp(max=n)
    # Equal values at the edge of the candidates may have equals outside with smaller ids.
    exact = (limit <= n) & (values.gather(1, kept - 1) > values[:, -1:])
    if floor is not None:
        above = (values >= floor).sum(-1, keepdim=True).clamp(min=1)
        exact |= (values[:, -1:] < floor) & (above <= limit)
        kept = torch.minimum(kept, above)
    exact &= (top_k <= n) | (top_k == ALL)
    total = ends.gather(1, kept - 1)
    position, _ = _search(torch.minimum(ends, total), uniforms * total)
    log_probs = values.gather(1, position).double() - total.log()
    return ids.gather(1, position)[:, 0], log_probs[:, 0], exact[:, 0]
