"""Sizes and steps of decoding programs, for the tests of them."""

import pytest
import torch
from nano3.kernels.cpu.program import decode
from nano3.kernels.cpu.program.check import Case
from nano3.kernels.cpu.program.decode import ProgramSizes, UnfitError

TOLERANCE = 3e-5

WIDE = ProgramSizes(
    D=96, V=130, eps=1e-5, H=8, P=16, N=32, G=4, W=4, kv_heads=2, query_heads=8, head_dim=16, E=12, K=3, F=80,
    routed_scale=1.5,
)  # fmt: skip

FEW = ProgramSizes(D=5, V=3, eps=1e-3, H=1, P=3, N=2, G=1, W=2, kv_heads=1, query_heads=1, head_dim=1, E=9, K=9, F=1)


def step(case, rows=slice(None), logits=True, compute=None):
    """Hidden states, logits and the states after a step of some of the case's sequences, by the C++ call."""
    states = case.copied_states()
    if decode.native().library is None:  # as a test may have set it
        with pytest.raises(UnfitError, match=r"\w"):
            case.program()
        case = replace_states(case, states)
        hidden, scores = case.expected()
        return hidden[rows], scores[rows], states
    indices = (t[rows].contiguous() for t in (case.tokens, case.slots, case.table, case.lengths))
    return *case.program(compute).run(*indices, states, logits=logits)[:2], states


def replace_states(case, states):
    other = object.__new__(Case)
    other.__dict__ |= vars(case) | {"states": states}
    return other


def same(got, expected, tolerance=TOLERANCE):
    scale = expected.float().abs().max().clamp_min(1e-6)
    torch.testing.assert_close(got.float() / scale, expected.float() / scale, atol=tolerance, rtol=0)
