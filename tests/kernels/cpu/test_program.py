"""The decoding step in one C++ call equals the reference ops one after the other."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from nano3.kernels.cpu.best import best_tokens
from nano3.kernels.cpu.draw import Draw, draw_tokens
from nano3.kernels.cpu.native import native
from nano3.kernels.cpu.program.check import SIZES, Case, problem
from nano3.kernels.cpu.program.decode import BlockState, ProgramSizes, UnfitError

TOLERANCE = 3e-5
WIDE = ProgramSizes(
    D=96, V=130, eps=1e-5, H=8, P=16, N=32, G=4, W=4, kv_heads=2, query_heads=8, head_dim=16, E=12, K=3, F=80,
    routed_scale=1.5,
)  # fmt: skip
FEW = ProgramSizes(D=5, V=3, eps=1e-3, H=1, P=3, N=2, G=1, W=2, kv_heads=1, query_heads=1, head_dim=1, E=9, K=9, F=1)


def step(case, rows=slice(None), logits=True, compute=None):
    """Hidden states, logits and the states after a step of some of the case's sequences, by the C++ call."""
    states = case.copied_states()
    if native().library is None:
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


@pytest.mark.parametrize("name", ["tokens", "slots", "table", "lengths"])
@torch.inference_mode()
def test_indices_out_of_range_are_told_before_anything_is_touched(name):
    case = Case(SIZES, torch.float32, (10, 4))
    if native().library is None:
        assert problem() == native().reason
        pytest.skip("needs the C++ library")
    before, program = case.copied_states(), case.program()
    for wrong in (-1, 1000):
        arguments = {k: getattr(case, k).clone() for k in ("tokens", "slots", "table", "lengths")}
        arguments[name].view(-1)[0] = wrong
        with pytest.raises(IndexError, match="out of range"):
            program.run(*arguments.values(), case.states, logits=False)
    if name == "table":  # the last page in use too
        table = case.table.clone()
        table[0, 2] = 1000
        with pytest.raises(IndexError, match="out of range"):
            program.run(case.tokens, case.slots, table, case.lengths, case.states, logits=False)
    assert all(
        torch.equal(a, b) for s, t in zip(before, case.states, strict=True) if s for a, b in zip(s, t, strict=True)
    )
    with pytest.raises(ValueError, match="sequences"):
        program.run(case.tokens[:1], case.slots, case.table, case.lengths, case.states, logits=False)
    with pytest.raises(ValueError, match="int64"):
        program.run(case.tokens.int(), case.slots, case.table, case.lengths, case.states, logits=False)


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


UNFIT = {
    "no sequences": ({"tokens": [], "slots": [], "pages": [], "key_lengths": [], "draws": []}, "0 tokens"),
    "rows of pages missing": ({"pages": [[0, 1, 2]]}, "1 rows of pages"),
    "no pages": ({"pages": [[], []]}, "0 pages of"),
    "too few pages": ({"pages": [[0, 1], [3]]}, "2 pages of"),
    "one slot for two": ({"slots": [1, 1]}, "each needs its own"),
    "too few slots": ({"slots": [1]}, "slots"),
    "too few draws": ({"draws": [None]}, "size"),
    "no id below the limit": ({"limit": 0}, "no id is left"),
}


@pytest.mark.parametrize(("wrong", "message"), UNFIT.values(), ids=UNFIT)
@torch.inference_mode()
def test_what_a_choice_cannot_be_made_of_is_refused_before_anything_changes(wrong, message):
    """Also where an earlier step has left pages of other sequences in the table."""
    if native().library is None:
        pytest.skip("needs the C++ library")
    case = Case(SIZES, torch.float32, (10, 4))
    fit = {
        "tokens": case.tokens.tolist(),
        "slots": case.slots.tolist(),
        "pages": case.table.tolist(),
        "key_lengths": case.lengths.tolist(),
        "limit": SIZES.V,
        "draws": [None, None],
    }
    program, states = case.program(), case.copied_states()
    program.choose(**fit, states=states)
    before = [s and BlockState(*(t.clone() for t in s)) for s in states]
    with pytest.raises(ValueError, match=message):
        program.choose(**{**fit, **wrong}, states=states)
    assert all(torch.equal(a, b) for s, t in zip(before, states, strict=True) if s for a, b in zip(s, t, strict=True))


@torch.inference_mode()
def test_slots_of_a_step_are_all_different():
    case = Case(SIZES, torch.float32, (10, 4))
    if native().library is None:
        pytest.skip("needs the C++ library")
    with pytest.raises(ValueError, match="each needs its own"):
        case.program().run(case.tokens, case.slots[[0, 0]], case.table, case.lengths, case.states, logits=False)


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
        pytest.skip("needs the C++ library")
    (conv, scan), (keys, values) = case.states[0], case.states[2]
    for states in (
        [BlockState(conv.double(), scan), *case.states[1:]],
        [BlockState(conv[:, :-1].contiguous(), scan), *case.states[1:]],
        [BlockState(conv, scan.bfloat16()), *case.states[1:]],
        [*case.states[:2], BlockState(keys, values.bfloat16()), None],
        [*case.states[:2], BlockState(keys.double(), values.double()), None],
        [None, *case.states[1:]],
    ):
        with pytest.raises(UnfitError):
            case.program().run(case.tokens, case.slots, case.table, case.lengths, states, logits=False)


@torch.inference_mode()
def test_no_sequences():
    case = Case(SIZES, torch.float32, ())
    if native().library is None:
        pytest.skip("needs the C++ library")
    hidden, logits, _ = step(case)
    assert hidden.shape == (0, SIZES.D)
    assert logits.shape == (0, SIZES.V)


def refuses(case, states):
    """Nothing is computed on these states, and nothing written."""
    before = [s and BlockState(*(t.clone() for t in s)) for s in states]
    with pytest.raises((IndexError, UnfitError)):
        case.program().run(case.tokens, case.slots, case.table, case.lengths, states, logits=False)
    for s, t in zip(before, states, strict=True):
        assert s is None or all(torch.equal(a, b) for a, b in zip(s, t, strict=True))


@torch.inference_mode()
def test_states_without_slots_pages_or_places_are_refused():
    if native().library is None:
        pytest.skip("needs the C++ library")
    case = Case(SIZES, torch.float32, (10, 4))
    (conv, scan), _, (keys, values), _ = case.states
    rest = case.states[1:]
    refuses(case, [BlockState(conv[:0], scan[:0]), *rest])
    refuses(case, [BlockState(torch.zeros(()), scan), *rest])
    refuses(case, [case.states[0], None, BlockState(keys[:0], values[:0]), None])
    refuses(case, [case.states[0], None, BlockState(keys[:, :0].contiguous(), values[:, :0].contiguous()), None])
    case.lengths[0] = torch.iinfo(torch.int64).max
    refuses(case, case.states)


@torch.inference_mode()
def test_other_tensors_at_the_place_of_a_state_are_looked_at():
    if native().library is None:
        pytest.skip("needs the C++ library")
    case = Case(SIZES, torch.float32, (10, 4))
    program, (conv, scan) = case.program(), case.states[0]
    arguments = case.tokens, case.slots, case.table, case.lengths
    program.run(*arguments, case.states, logits=False)
    half = scan.view(torch.bfloat16)[..., : scan.shape[-1]]
    for other in (scan[:1], half, scan.as_strided(scan.shape, (0, *scan.stride()[1:]))):
        with pytest.raises(UnfitError):
            program.run(*arguments, [BlockState(conv, other), *case.states[1:]], logits=False)


@torch.inference_mode()
def test_a_step_after_one_without_memory(monkeypatch):
    if native().library is None:
        pytest.skip("needs the C++ library")
    case = Case(WIDE, torch.float32, (5, 9, 4))
    expected, _, _ = step(case)
    program, few = case.program(), [t[:1].contiguous() for t in (case.tokens, case.slots, case.table, case.lengths)]
    arguments, real = (case.tokens, case.slots, case.table, case.lengths), torch.empty
    program.run(*few, case.copied_states(), logits=False)

    def no_bytes(*shape, dtype=None, **options):
        if dtype == torch.uint8:
            raise MemoryError
        return real(*shape, dtype=dtype, **options)

    monkeypatch.setattr(torch, "empty", no_bytes)
    for _ in range(2):
        states = case.copied_states()
        with pytest.raises(MemoryError):
            program.run(*arguments, states, logits=False)
        assert all(torch.equal(a, b) for a, b in zip(states[0], case.states[0], strict=True))
    monkeypatch.undo()
    assert torch.equal(program.run(*arguments, case.copied_states(), logits=False)[0], expected)


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


def test_sizes_that_do_not_go_together():
    case = Case(SIZES, torch.float32, (10, 4))
    for wrong in ({"K": 6}, {"K": 0}, {"G": 0}, {"G": 3}):
        case.sizes = replace(SIZES, **wrong)
        with pytest.raises(UnfitError):
            case.program()
