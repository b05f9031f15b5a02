"""Plain decoding of a batch that advances together: prefill, then one token a step."""

from __future__ import annotations

import torch
from torch import Tensor

from nano3.model.lm import LM


@torch.inference_mode()
def generate(
    model: LM,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    seed: int = 0,
) -> list[list[int]]:
    """Continue each row of `tokens`.

    Args:
        model: in evaluation mode.
        tokens: (B, T) prompts of equal length, at least one token.
        max_new_tokens: tokens to add to each row.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability.
        stop_ids: a row ends at the first of these, which is not returned.
        seed: of the draws.

    Returns:
        The new token ids of each row.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed)
    state = model.new_state(tokens.shape[0], capacity=tokens.shape[1] + max_new_tokens)
    rows: list[list[int]] = [[] for _ in range(tokens.shape[0])]
    open_rows = set(range(len(rows)))
    for _ in range(max_new_tokens):
        x = model.hidden(tokens, state=state).x[:, -1]
        tokens = sample(model.lm_head(x).float(), temperature, top_p, generator)[:, None]
        for row in list(open_rows):
            token = int(tokens[row, 0])
            if token in stop_ids:
                open_rows.discard(row)
            else:
                rows[row].append(token)
        if not open_rows:
            break
    return rows


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token (B,) from logits (B, V) float32; temperature comes before top-p, as in the common engines."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p stays in
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
