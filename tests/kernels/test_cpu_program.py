"""The decoding step in one C++ call equals the reference ops one after the other."""

from dataclasses import replace

import pytest
import torch
from nano3.kernels.cpu.native import native
from nano3.kernels.cpu.program import BlockState, ProgramSizes, UnfitError
from nano3.kernels.cpu.program_check import SIZES, Case, problem

TOLERANCE = 3e-5
WIDE = ProgramSizes(
    D=96, V=130, eps=1e-5, H=8, P=16, N=32, G=4, W=4, kv_heads=2, query_heads=8, head_dim=16, E=12, K=3, F=80,
    routed_scale=1.5,
)  # fmt: skip
FEW = ProgramSizes(D=5, V=3, eps=1e-3, H=1, P=3, N=2, G=1, W=2, kv_heads=1, query_heads=1, head_dim=1, E=9, K=9, F=1)


def step(case, rows=slice(None), logits=True):
    """Hidden states, logits and the states after a step of some of the case's sequences, by the C++ call."""
    states = case.copied_states()
    if native().library is None:
        with pytest.raises(UnfitError, match=r"\w"):
            case.program()
        case = replace_states(case, states)
        hidden, scores = case.expected()
        return hidden[rows], scores[rows], states
    indices = (t[rows].contiguous() for t in (case.tokens, case.slots, case.table, case.lengths))
    return *case.program().run(*indices, states, logits=logits), states


def replace_states(case, states):
    other = object.__new__(Case)
    other.__dict__ |= vars(case) | {"states": states}
    return other


def same(got, expected, tolerance=TOLERANCE):
    scale = expected.float().abs().max().clamp_min(1e-6)
    torch.testing.assert_close(got.float() / scale, expected.float() / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        (SIZES, (1,)),
        (SIZES, (10, 4)),
        (WIDE, (5, 9, 4)),
        (WIDE, tuple(range(1, 65))),
        (FEW, (3, 4, 5)),
        (WIDE, (4200, 3)),
    ],
)
@torch.inference_mode()
def test_step_equals_reference(dtype, sizes, lengths):
    case = Case(sizes, dtype, lengths)
    hidden, logits, states = step(case)
    expected = case.expected()
    # A new key that is rounded to the other side is read in the same step.
    tolerance = TOLERANCE if dtype == torch.float32 else 3e-3
    same(hidden, expected[0], tolerance)
    same(logits, expected[1], tolerance)
    for got, wanted in zip(states, case.states, strict=True):
        for a, b in zip(got or (), wanted or (), strict=True):
            assert a.dtype == b.dtype
            same(a, b, TOLERANCE if b.dtype == torch.float32 else 1e-2)


@torch.inference_mode()
def test_no_shared_expert_and_taps_as_checkpoints_hold_them():
    case = Case(WIDE, torch.float32, (3, 7))
    mamba, experts, *rest = case.blocks
    case.blocks = [mamba, replace(experts, shared_up=None, shared_down=None), *rest]
    expected = replace_states(case, case.copied_states()).expected()
    case.blocks[0] = replace(mamba, taps=mamba.taps.unsqueeze(1))
    if native().library is not None:
        same(step(case)[0], expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_result_depends_neither_on_neighbours_nor_on_threads(dtype):
    case = Case(WIDE, dtype, (2100, 4, 30, 1, 2, 9, 12))
    threads = torch.get_num_threads()
    try:
        together = step(case)
        for count in (1, 3, 6):
            torch.set_num_threads(count)
            assert torch.equal(step(case)[1], together[1])
            for m in range(len(case.lengths)):
                hidden, logits, _ = step(case, slice(m, m + 1))
                torch.testing.assert_close(hidden[0], together[0][m], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(logits[0], together[1][m], atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_nan_of_one_sequence_stays_there_and_shows():
    case = Case(WIDE, torch.float32, (5, 9, 4))
    case.states[0].second[case.slots[1]] = torch.nan
    hidden, logits, _ = step(case)
    assert torch.isnan(hidden[1]).all()
    assert torch.isnan(logits[1]).all()
    assert torch.isfinite(hidden[[0, 2]]).all()
    assert torch.isfinite(logits[[0, 2]]).all()


@torch.inference_mode()
def test_only_what_belongs_to_the_sequences_is_written():
    case = Case(WIDE, torch.float32, (5, 9, 4))
    before = case.copied_states()
    hidden, logits, states = step(case, logits=native().library is None)
    assert (logits is None) == (native().library is not None)
    others = [i for i in range(len(before[0].first)) if i not in case.slots.tolist()]
    assert torch.equal(states[0].first[others], before[0].first[others])
    assert torch.equal(states[0].second[others], before[0].second[others])
    changed = (states[2].first != before[2].first).any(-1).any(-1)
    assert int(changed.sum()) == len(hidden)


@pytest.mark.parametrize("name", ["tokens", "slots", "table", "lengths"])
@torch.inference_mode()
def test_indices_out_of_range_are_told_before_anything_is_touched(name):
    case = Case(SIZES, torch.float32, (10, 4))
    if native().library is None:
        assert problem() == native().reason
        return
    before, program = case.copied_states(), case.program()
    for wrong in (-1, 1000):
        arguments = {k: getattr(case, k).clone() for k in ("tokens", "slots", "table", "lengths")}
        arguments[name].view(-1)[0] = wrong
        with pytest.raises(IndexError, match="out of range"):
            program.run(*arguments.values(), case.states, logits=False)
    assert all(
        torch.equal(a, b) for s, t in zip(before, case.states, strict=True) if s for a, b in zip(s, t, strict=True)
    )
    with pytest.raises(ValueError, match="sequences"):
        program.run(case.tokens[:1], case.slots, case.table, case.lengths, case.states, logits=False)
    with pytest.raises(ValueError, match="int64"):
        program.run(case.tokens.int(), case.slots, case.table, case.lengths, case.states, logits=False)


def test_weights_and_states_that_do_not_fit():
    case = Case(SIZES, torch.float32, (10, 4))
    mamba, experts, *rest = case.blocks
    for wrong in (
        replace(mamba, in_proj=mamba.in_proj[1:]),
        replace(mamba, in_proj=mamba.in_proj.t().contiguous().t()),
        replace(mamba, A_log=mamba.A_log.bfloat16()),
        replace(mamba, out_proj=mamba.out_proj.bfloat16()),
        replace(experts, up=experts.up[:, :-1]),
    ):
        case.blocks = [wrong, experts, *rest]
        with pytest.raises(UnfitError):
            case.program()
    case.blocks = [mamba, experts, *rest]
    if native().library is None:
        return
    conv, scan = case.states[0]
    for states in (
        [BlockState(conv.double(), scan), *case.states[1:]],
        [BlockState(conv[:, :-1].contiguous(), scan), *case.states[1:]],
        [BlockState(conv, scan.bfloat16()), *case.states[1:]],
        [BlockState(conv.bfloat16(), scan), *case.states[1:]],
        [None, *case.states[1:]],
    ):
        with pytest.raises(UnfitError):
            case.program().run(case.tokens, case.slots, case.table, case.lengths, states, logits=False)


@torch.inference_mode()
def test_no_sequences():
    case = Case(SIZES, torch.float32, ())
    if native().library is not None:
        hidden, logits, _ = step(case)
        assert hidden.shape == (0, SIZES.D)
        assert logits.shape == (0, SIZES.V)
