"""From logits to the next token of each sequence, all sequences at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nano3.engine.request import Token
from nano3.engine.sequence_sampler import COLDEST, GREEDY, HOTTEST, SequenceSampler
from nano3.kernels import best_tokens
from nano3.kernels.cpu.draw import NOTHING, draw_tokens
from nano3.kernels.eager.draw import ALL, BLOCK, Cuts, candidates, draw_sorted, draw_whole
from nano3.model.step import forced_elsewhere

CANDIDATES = (256, 8192)
"""Most probable tokens looked at first for top-k and top-p, and next; a row that needs more is sorted whole."""
STRONGEST = 1e6
"""Repetition penalties beyond this, or its inverse, act like it: more would leave the range of float32."""

Top = tuple[tuple[int, float], ...]


def sample(logits: Tensor, rows: Sequence[SequenceSampler], ids_limit: int | None = None) -> list[Token]:
    """Choose the next token of each sequence; `accept` is left to the caller.

    A row's result depends on its own logits and state only, not on the rows beside it. Where the logits are no
    numbers, or nothing is left to choose, `log_prob` or at least `sampled_log_prob` is NaN and the id means nothing.

    Args:
        logits: (R, V), any float dtype and device; not changed.
        rows: the R sequences' states.
        ids_limit: ids from here on are never drawn or reported (the model's vocabulary may exceed the tokenizer's).
    """
    assert logits.shape[0] == len(rows)
    if not rows:
        return []
    raw = logits.float()
    chosen = _drawn_in_one_call(raw, rows, ids_limit)
    left = [r for r, token in enumerate(chosen) if token is None]
    rest = iter(_sample(_pick_rows(raw, left, {}), [rows[r] for r in left], ids_limit) if left else ())
    return [next(rest) if token is None else token for token in chosen]


def _drawn_in_one_call(raw: Tensor, rows: Sequence[SequenceSampler], ids_limit: int | None) -> list[Token | None]:
    """What C++ chooses: the same tokens as `_sample` but for rounding; None for what has to come from there."""
    draws = [row.draw() for row in rows]
    if forced_elsewhere() or not any(draws):
        return [None] * len(rows)
    drawn = draw_tokens(raw, ids_limit or raw.shape[1], [draw or NOTHING for draw in draws])
    if drawn is None:
        return [None] * len(rows)
    return [draw and Token(*found) for draw, found in zip(draws, drawn, strict=True)]


def _sample(raw: Tensor, rows: Sequence[SequenceSampler], ids_limit: int | None) -> list[Token]:
    """`sample` with tensors."""
    if all(row.draw() == GREEDY for row in rows):
        return _best_tokens(raw, ids_limit)
    allowed = raw if ids_limit is None else raw[:, :ids_limit]
    changed = {r: processed(allowed[r], row) for r, row in enumerate(rows) if row.forced is None and row.has_extras}
    ids, drawn = [0] * len(rows), [math.nan] * len(rows)
    known: dict[int, float] = {}
    for method, members in _methods(rows, allowed.shape[1]).items():
        chosen, log_probs = method(_pick_rows(allowed, members, changed), [rows[r] for r in members])
        for r, token, log_prob in zip(members, chosen.tolist(), log_probs.tolist(), strict=True):
            ids[r], drawn[r] = token, log_prob
            if method is _draw and allowed is raw and r not in changed and _is_unshaped(rows[r]):
                known[r] = log_prob
    log_probs = _raw_log_probs(raw, ids, known)
    tops = _tops(raw, allowed, rows)
    return [
        Token(
            ids[r], log_probs[r], drawn[r] + (0 if _is_drawn(row) else log_probs[r]), tops.get(r, ()), _is_forced(row)
        )
        for r, row in enumerate(rows)
    ]


def score(logits: Tensor, targets: Tensor, top: int, ids_limit: int | None = None) -> list[Token]:
    """Log-probabilities of given tokens with the `top` most probable alternatives: logits (T, V), targets (T,)."""
    raw = logits.float()
    totals = _log_totals(raw)
    log_probs = (raw.gather(1, targets.to(raw.device)[:, None])[:, 0].double() - totals).tolist()
    tops: list[Top] = [()] * len(log_probs)
    if top:
        tops = _best(raw if ids_limit is None else raw[:, :ids_limit], totals, top)
    return [Token(i, p, p, t) for i, p, t in zip(targets.tolist(), log_probs, tops, strict=True)]


def _is_forced(row: SequenceSampler) -> bool:
    return row.forced is not None


def _is_drawn(row: SequenceSampler) -> bool:
    return row.sampling.temperature > 0 or _is_forced(row)


def _best_tokens(raw: Tensor, ids_limit: int | None) -> list[Token]:
    ids, totals = best_tokens(raw, ids_limit or raw.shape[1])
    best = raw.gather(1, ids[:, None])[:, 0].tolist()
    # b - b: nan where the best is no finite number.
    return [Token(i, b - t, b - t + (b - b)) for i, b, t in zip(ids.tolist(), best, totals.tolist(), strict=True)]


def _is_unshaped(row: SequenceSampler) -> bool:
    return row.sampling.temperature == 1 and row.sampling.min_p == 0


def _methods(rows: Sequence[SequenceSampler], vocab_size: int) -> dict:
    """Row numbers by the way to choose their token."""
    groups = defaultdict(list)
    for r, row in enumerate(rows):
        s = row.sampling
        if row.forced is not None:
            method = _take_forced
        elif s.temperature == 0:
            method = _take_best
        elif s.top_p < 1 or 0 < s.top_k < vocab_size:
            method = _draw_cut
        else:
            method = _draw
        groups[method].append(r)
    return groups


def _pick_rows(x: Tensor, members: list[int], changed: dict[int, Tensor]) -> Tensor:
    if not any(r in changed for r in members):
        return x if len(members) == len(x) else x[members]
    return torch.stack([changed[r] if r in changed else x[r] for r in members])


def processed(x: Tensor, row: SequenceSampler) -> Tensor:
    """Logits (V,) of one row after penalties, bias, min_tokens and grammar."""
    x, s = x.clone(), row.sampling
    if row.output_ids is not None:
        _penalize(x, row, *row.output_ids)
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=x.device)
        x[ids] += torch.tensor(list(s.logit_bias.values()), dtype=x.dtype, device=x.device)
    grammar = row.active_grammar
    if grammar is not None:
        mask = torch.from_numpy(grammar.mask()).to(x.device)
        x.masked_fill_(~mask[: len(x)], -math.inf)
    return _without(x, row.banned) if row.banned else x


def _penalize(x: Tensor, row: SequenceSampler, ids: np.ndarray, counts: np.ndarray) -> None:
    """Penalties for the prompt's ids and the output's `ids` with their `counts`, on logits (V,) in place."""
    s = row.sampling
    in_output, n = torch.from_numpy(ids).to(x.device), torch.from_numpy(counts).to(x.device)
    values = _less_likely(x[in_output], s.repetition_penalty) - s.frequency_penalty * n - s.presence_penalty
    if len(row.prompt_ids):
        in_prompt = torch.from_numpy(row.prompt_ids).to(x.device)
        x[in_prompt] = _less_likely(x[in_prompt], s.repetition_penalty)
    x[in_output] = values  # last: an id of both is penalised once


def _less_likely(values: Tensor, penalty: float) -> Tensor:
    penalty = min(max(penalty, 1 / STRONGEST), STRONGEST)
    return torch.where(values > 0, values / penalty, values * penalty)


def _without(x: Tensor, banned: tuple[int, ...]) -> Tensor:
    """Logits (V,) without the banned ids; unchanged where nothing else is left, as in a grammar that must end now."""
    left = x.index_fill(0, torch.tensor(banned, device=x.device), -math.inf)
    return torch.where(left.amax() == -math.inf, x, left)  # on a GPU an `if` would wait for it


def _take_forced(x: Tensor, rows: Sequence[SequenceSampler]) -> tuple[Tensor, Tensor]:
    return torch.tensor([row.forced for row in rows]), torch.zeros(len(rows))


def _take_best(x: Tensor, rows: Sequence[SequenceSampler]) -> tuple[Tensor, Tensor]:
    """Most probable ids (R,), and 0 for each, or NaN where the best is no finite number."""
    ids = _argmax(x)
    best = x.gather(1, ids[:, None])[:, 0]
    return ids, best - best


def _argmax(x: Tensor) -> Tensor:
    if x.shape[1] % BLOCK:
        return x.argmax(-1)
    # Largest values of blocks first: on CPU argmax is four times slower than amax.
    blocks = x.reshape(len(x), -1, BLOCK)
    block = blocks.amax(-1).argmax(-1)
    return block * BLOCK + blocks[torch.arange(len(x), device=x.device), block].argmax(-1)


def _column(values: list[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _scaled(x: Tensor, rows: Sequence[SequenceSampler]) -> Tensor:
    """(logits - best) / temperature, as a new tensor."""
    z = x - x.amax(-1, keepdim=True)
    temperatures = [min(max(row.sampling.temperature, COLDEST), HOTTEST) for row in rows]
    return z if all(t == 1 for t in temperatures) else z.div_(_column(temperatures, x))


def _min_p_floor(rows: Sequence[SequenceSampler], like: Tensor) -> Tensor | None:
    """Lowest scaled logit (R, 1) that min-p keeps; None when no row has a min-p."""
    if all(row.sampling.min_p == 0 for row in rows):
        return None
    return _column([math.log(row.sampling.min_p) if row.sampling.min_p else -math.inf for row in rows], like)


def _draw(x: Tensor, rows: Sequence[SequenceSampler]) -> tuple[Tensor, Tensor]:
    """Draw from whole distributions, without sorting: ids (R,) and their log-probabilities (R,)."""
    z = _scaled(x, rows)
    return draw_whole(z, _min_p_floor(rows, z), _uniforms(rows, x))


def _draw_cut(x: Tensor, rows: Sequence[SequenceSampler], tried: int = 0) -> tuple[Tensor, Tensor]:
    """Draw after top-k, top-p and min-p, more than `tried` candidates looked at: ids (R,), log-probabilities (R,)."""
    count = next((n for n in CANDIDATES if n > tried and 2 * n < x.shape[1]), 0)
    if not count:
        return _draw_after_sort(x, rows)
    z = _scaled(x, rows)
    totals = z.exp().sum(-1, keepdim=True).double()
    chosen, log_probs, exact = draw_sorted(*candidates(z, count), _cuts(rows, z), _uniforms(rows, z), totals)
    redo = [r for r, holds in enumerate(exact.tolist()) if not holds]
    if redo:
        chosen[redo], log_probs[redo] = _draw_cut(x[redo], [rows[r] for r in redo], count)
    return chosen, log_probs


def _draw_after_sort(x: Tensor, rows: Sequence[SequenceSampler]) -> tuple[Tensor, Tensor]:
    """`_draw_cut` by sorting everything, for cuts that lie deep."""
    values, ids = _scaled(x, rows).sort(dim=-1, descending=True, stable=True)
    return draw_sorted(values, ids, _cuts(rows, x), _uniforms(rows, x), None)[:2]


def _cuts(rows: Sequence[SequenceSampler], like: Tensor) -> Cuts:
    top_k = _column([min(row.sampling.top_k or ALL, ALL) for row in rows], like, torch.int64)
    top_p = _column([row.sampling.top_p for row in rows], like, torch.float64)
    return Cuts(top_k, top_p, _min_p_floor(rows, like))


def _uniforms(rows: Sequence[SequenceSampler], like: Tensor) -> Tensor:
    return _column([row.uniform() for row in rows], like, torch.float64)


def _log_totals(x: Tensor) -> Tensor:
    """Logarithm of the sum of exp(x) over each row, (R,) float64."""
    return x.logsumexp(-1).double()


def _raw_log_probs(raw: Tensor, ids: list[int], known: dict[int, float]) -> list[float]:
    """Log-probabilities of the chosen ids under the model as it is; `known` are those already at hand."""
    if len(known) == len(ids):
        return [known[r] for r in range(len(ids))]
    rest = [r for r in range(len(ids)) if r not in known]
    x = raw if not known else raw[rest]
    chosen = torch.tensor([ids[r] for r in rest], device=raw.device)[:, None]
    found = (x.gather(1, chosen)[:, 0].double() - _log_totals(x)).tolist()
    by_row = known | dict(zip(rest, found, strict=True))
    return [by_row[r] for r in range(len(ids))]


def _tops(raw: Tensor, allowed: Tensor, rows: Sequence[SequenceSampler]) -> dict[int, Top]:
    """Alternatives by row number, for the rows that asked for some."""
    groups = defaultdict(list)
    for r, row in enumerate(rows):
        if row.sampling.log_probs:
            groups[row.sampling.log_probs].append(r)
    tops: dict[int, Top] = {}
    for count, members in groups.items():
        tops.update(zip(members, _best(allowed[members], _log_totals(raw[members]), count), strict=True))
    return tops


def _best(x: Tensor, totals: Tensor, count: int) -> list[Top]:
    """The `count` most probable (id, log-probability) of each row of x (R, V), given log totals (R,)."""
    values, ids = candidates(x, min(count, x.shape[1]))
    pairs = zip(ids.tolist(), (values.double() - totals[:, None]).tolist(), strict=True)
    return [tuple(zip(row_ids, log_probs, strict=True)) for row_ids, log_probs in pairs]
