"""Whether rounding alone made two ways of computing a text draw different tokens."""

import pytest
import torch

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.output import Output
from nano3.engine.request import Request
from nano3.engine.sampler import sample
from nano3.engine.sequence_sampler import derive_seed, penalized_ids
from nano3.model.lm import LM

ROUNDING = 2e-5
"""What float32 may do to a logit of the tests' model: ten times what it was seen to."""


def assert_same(got: Output, expected: Output, count: int | None = None) -> None:
    """Equal ids, log-probabilities and alternatives, of the first `count` tokens or of all."""
    assert got.ids[:count] == expected.ids[:count]
    for one, other in zip(got.tokens[:count], expected.tokens[:count], strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.sampled_log_prob == pytest.approx(other.sampled_log_prob, abs=1e-4)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert one.forced == other.forced


def assert_same_but_for_ties(model: LM, tokenizer: Tokenizer, request: Request, got: Output, expected: Output) -> int:
    """`assert_same` up to the first token that rounding decides, whose number is returned; all tokens without one.

    A seed's number in (0, 1) chooses between tokens. Among hundreds of draws one lies so near the edge between two that
    the rounding of a processor decides.
    """
    count = next((i for i, (one, two) in enumerate(zip(got.ids, expected.ids, strict=False)) if one != two), None)
    assert_same(got, expected, count)
    if count is None:
        return len(got.ids)
    drawn = drawn_with_noise(model, tokenizer, request, got.index, tuple(got.ids[:count]))
    assert {got.ids[count], expected.ids[count]} <= drawn, f"token {count}: rounding draws one of {drawn}"
    return count


def drawn_with_noise(
    model: LM, tokenizer: Tokenizer, request: Request, index: int, output: tuple[int, ...]
) -> set[int]:
    """The next tokens that a request's output may go on with, where rounding moves each logit by up to ROUNDING."""
    engine = Engine(model, tokenizer, memory=8 << 20, page_size=8)
    seed = derive_seed(request.sampling.seed or 0, index)
    sampler = engine._new_sequence(request, index, seed, penalized_ids(request.sampling, request.prompt)).sampler
    for token in output:
        sampler.accept(token)
    with torch.inference_mode():
        logits = model(torch.tensor([request.prompt + output], device=engine.device))[0, -1].cpu()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(32, len(logits), generator=generator) * 2 - 1
    return {token.id for token in sample(logits + ROUNDING * noise, [sampler] * 32, engine.ids_limit)}
