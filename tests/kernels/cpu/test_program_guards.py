"""What the decoding step refuses, before it changes anything."""

from dataclasses import replace

import pytest
import torch
from nano3.kernels.cpu.native import native
from nano3.kernels.cpu.program.check import SIZES, Case, problem
from nano3.kernels.cpu.program.decode import BlockState, UnfitError

from tests.kernels.cpu.program_cases import WIDE, step


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


def test_sizes_that_do_not_go_together():
    case = Case(SIZES, torch.float32, (10, 4))
    for wrong in ({"K": 6}, {"K": 0}, {"G": 0}, {"G": 3}):
        case.sizes = replace(SIZES, **wrong)
        with pytest.raises(UnfitError):
            case.program()
