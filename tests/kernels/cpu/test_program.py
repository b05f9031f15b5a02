"""The decoding step in one C++ call equals the reference ops one after the other."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from nano3.kernels.cpu.best import best_tokens
from nano3.kernels.cpu.draw import Draw, draw_tokens
from nano3.kernels.cpu.native import native
from nano3.kernels.cpu.program.check import SIZES, Case
from nano3.kernels.cpu.program.decode import BlockState

from tests.kernels.cpu.program_cases import FEW, TOLERANCE, WIDE, replace_states, same, step


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
    # A new key that is rounded to the other side is read in the same step.
    tolerance = TOLERANCE if dtype == torch.float32 else 3e-3
    if native().rounds(dtype):
        check_step(case, 3e-2, 3e-2)
    else:
        check_step(case, tolerance, TOLERANCE)


def check_step(case, tolerance, state_tolerance, compute=None):
    """Results within the first, float32 states within the second, of what the reference has."""
    hidden, logits, states = step(case, compute=compute)
    expected = case.expected()
    same(hidden, expected[0], tolerance)
    same(logits, expected[1], tolerance)
    for got, wanted in zip(states, case.states, strict=True):
        for a, b in zip(got or (), wanted or (), strict=True):
            assert a.dtype == b.dtype
            same(a, b, state_tolerance if b.dtype == torch.float32 else max(1e-2, tolerance))


@pytest.mark.parametrize(("conv", "pages"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_conv_states_and_pages_may_have_different_types(dtype, conv, pages):
    case = Case(WIDE, dtype, (5, 9, 4))
    types = [conv, None, pages, None]
    case.states = [
        s and BlockState(s.first.to(kind), s.second if kind is conv else s.second.to(kind))
        for s, kind in zip(case.states, types, strict=True)
    ]
    check_step(case, 3e-3, TOLERANCE, torch.float32)
    assert case.states[2].first.dtype == pages  # which `check_step` has compared


@pytest.mark.parametrize(("sizes", "lengths"), [(SIZES, (10, 4)), (WIDE, (5,)), (WIDE, tuple(range(1, 65)))])
@torch.inference_mode()
def test_narrow_weights_are_widened_where_activations_are_float32(sizes, lengths):
    case = Case(sizes, torch.bfloat16, lengths)
    case.states = [s and BlockState(*(t.float() for t in s)) for s in case.states]
    check_step(case, TOLERANCE, TOLERANCE, torch.float32)


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
            if native().library is not None:  # the reference's products may turn on the threads
                assert torch.equal(step(case)[1], together[1])
            for m in range(len(case.lengths)):
                hidden, logits, _ = step(case, slice(m, m + 1))
                if native().isa in ("avx512", "avx2"):  # tiles, and the reference's products, turn on the rows
                    assert torch.equal(hidden[0], together[0][m])
                    assert torch.equal(logits[0], together[1][m])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_tokens_are_those_of_the_logits(dtype):
    if native().library is None:
        pytest.skip("needs the C++ library")
    case = Case(WIDE, dtype, (2100, 4, 30, 1, 7, 8))
    program, states = case.program(), case.copied_states()
    _, logits, expected = step(case)
    indices = [t.tolist() for t in (case.tokens, case.slots, case.table, case.lengths)]
    draws = [
        Draw(0, 0, 1, 0, 0.5),
        None,
        Draw(1, 0, 1, 0, 0.7),
        Draw(0.8, 0, 0.9, 0, 0.4),
        None,
        Draw(1, 5, 1, 0.1, 0.9),
    ]
    got = program.choose(*indices, states, 100, draws)
    chosen = [m for m, draw in enumerate(draws) if draw]
    assert [got.tokens[m] for m in chosen] == draw_tokens(logits[chosen], 100, [draws[m] for m in chosen])
    assert got.tokens[1] is got.tokens[4] is got.expert_ids is None
    assert torch.equal(got.logits, logits[[1, 4]])
    ids, totals = best_tokens(logits[:1], 100)
    assert got.tokens[0][:2] == (int(ids), pytest.approx(float(logits[0, ids]) - float(totals), abs=2e-6))
    for a, b in zip(states, expected, strict=True):
        assert a is None or (torch.equal(a.first, b.first) and torch.equal(a.second, b.second))
    with pytest.raises(IndexError, match="out of range"):
        program.choose([0], [0], [[10**6]], [1], states, 100, [None])


@torch.inference_mode()
def test_experts_of_each_token_are_told():
    """By both kinds of step, of all blocks with experts, and those that the router chooses."""
    if native().library is None:
        pytest.skip("needs the C++ library")
    case = Case(WIDE, torch.float32, (5, 9, 4))
    case.blocks[0], case.blocks[2] = case.blocks[1], case.blocks[3]
    case.blocks[3] = replace(case.blocks[1], router=case.blocks[1].router.flip(0).contiguous())
    case.states = [None] * 4
    expected = []
    run_experts = case._run_experts
    case._run_experts = lambda w, x: expected.append(route_of(w, x, WIDE.K)) or run_experts(w, x)
    case.expected()
    program, arguments = case.program(), (case.tokens, case.slots, case.table, case.lengths)
    got = program.run(*arguments, case.states, logits=False, experts=True)[2]
    assert got.dtype == torch.int16
    assert torch.equal(got.long(), torch.stack(expected))
    lists = [t.tolist() for t in arguments]
    chosen = program.choose(*lists, case.states, 100, [None] * 3, experts=True)
    assert torch.equal(chosen.expert_ids, got)
    assert program.choose(*lists, case.states, 100, [None] * 3).expert_ids is None


def route_of(w, x, top_k):
    return torch.topk(torch.sigmoid(x @ w.router.T) + w.router_bias, top_k).indices


@torch.inference_mode()
def test_no_sequences():
    case = Case(SIZES, torch.float32, ())
    if native().library is None:
        pytest.skip("needs the C++ library")
    hidden, logits, _ = step(case)
    assert hidden.shape == (0, SIZES.D)
    assert logits.shape == (0, SIZES.V)


@torch.inference_mode()
def test_results_are_of_their_types_whatever_the_default_is():
    case = Case(SIZES, torch.float32, (10, 4))
    expected = step(case)
    torch.set_default_dtype(torch.float64)
    try:
        hidden, logits, _ = step(case)
    finally:
        torch.set_default_dtype(torch.float32)
    if native().library is not None:
        assert hidden.dtype == logits.dtype == torch.float32
        assert torch.equal(hidden, expected[0])
        assert torch.equal(logits, expected[1])


def test_threads_share_a_program():
    """Each has its own states, and reads its results while the others are at their next step."""
    if native().library is None:
        pytest.skip("needs the C++ library")
    cases = [Case(WIDE, torch.float32, (5, 9, 4)[: 1 + i % 3]) for i in range(4)]
    for case in cases[1:]:  # the same weights
        for name in ("embeddings", "blocks", "norm", "head"):
            setattr(case, name, getattr(cases[0], name))
    program = cases[0].program()

    def steps(case):
        states = case.copied_states()
        with torch.inference_mode():
            arguments = case.tokens, case.slots, case.table, case.lengths
            return [program.run(*arguments, states, logits=True) for _ in range(30)]

    expected = [steps(case) for case in cases]
    with ThreadPoolExecutor(len(cases)) as pool:
        got = list(pool.map(steps, cases))
    for ours, theirs in zip(got, expected, strict=True):
        for (hidden, logits, _), (other_hidden, other_logits, _) in zip(ours, theirs, strict=True):
            assert torch.equal(hidden, other_hidden)
            assert torch.equal(logits, other_logits)


@torch.inference_mode()
def test_steep_decays():
    """The state all but vanishes, without subnormal numbers and without a NaN."""
    case = Case(WIDE, torch.float32, (5, 9, 4))
    mamba = case.blocks[0]
    # exp(A_log) times a step of about 0.7: log decays of about -95 and less, which no normal number holds.
    case.blocks[0] = replace(mamba, A_log=torch.full_like(mamba.A_log, 5.0), dt_bias=torch.zeros_like(mamba.dt_bias))
    case.states[0].second.mul_(1e20)
    hidden, logits, states = step(case)
    expected = case.expected()
    same(hidden, expected[0])
    same(logits, expected[1])
    own = states[0].second[case.slots]
    same(own, case.states[0].second[case.slots])
    assert not ((own != 0) & (own.abs() < torch.finfo(torch.float32).tiny)).any()
