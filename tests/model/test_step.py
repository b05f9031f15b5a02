"""A pass of one token of each of some sequences in one C++ call equals the same pass op by op."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nano3.kernels.cpu.native import native
from torch import nn

from nano3.config.model import ModelConfig
from nano3.model import step as step_module
from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from tests.model.steps import (
    HAVE,
    PAGE,
    SIZES,
    assert_same_pools,
    both,
    filled_pool,
    in_one_call,
    run,
    spans,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model():
    return LM(ModelConfig(pattern="M*ME-", **SIZES)).init_weights(seed=3).eval()


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_hidden_and_states_equal_those_of_the_blocks(model, monkeypatch, count):
    (got, pool), (expected, other) = both(model, monkeypatch, spans(count))
    assert in_one_call(got) == HAVE
    assert len(expected.routing) == 1
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)


def test_narrow_activations(monkeypatch):
    """Without routing, whose choices may turn on a last bit."""
    model = LM(ModelConfig(pattern="M*M-", **SIZES)).init_weights(seed=3).to_dtype(torch.bfloat16).eval()
    (got, pool), (expected, other) = both(model, monkeypatch, spans(9), torch.bfloat16)
    assert got.x.dtype == torch.bfloat16
    torch.testing.assert_close(got.x, expected.x, atol=6e-2, rtol=6e-2)
    assert_same_pools(pool, other, 6e-2)


def test_narrow_weights_under_wide_activations(model, monkeypatch):
    model.to_dtype(torch.bfloat16, torch.float32)
    (got, pool), (expected, other) = both(model, monkeypatch, spans(5))
    assert in_one_call(got) == HAVE
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)


def test_states_are_kept_where_the_plan_says(model, monkeypatch):
    saving = [*spans(2), Span(1, 40, 3, [150], saves=((1, 60),)), Span(1, 41, 0, [151], saves=((1, 61),))]
    (got, pool), (_, other) = both(model, monkeypatch, saving)
    assert in_one_call(got) == HAVE
    assert_same_pools(pool, other, 2e-5)
    assert torch.equal(pool.blocks[0].ssm[60], pool.blocks[0].ssm[40])
    assert torch.equal(pool.blocks[2].conv[61], pool.blocks[2].conv[41])


@pytest.mark.parametrize("plan_spans", [[*spans(3), Span(2, 0, 0, [150])], spans(65), []])
def test_other_passes_go_op_by_op(model, plan_spans):
    pool = filled_pool(model)
    assert not in_one_call(run(model, pool, Plan(plan_spans, PAGE)))


def test_gradients_go_op_by_op(model):
    pool, plan = filled_pool(model), Plan(spans(2), PAGE)
    hidden = model.hidden(torch.tensor([[1, 2]]), state=pool.state(plan))
    assert hidden.x.requires_grad
    assert hidden.routing


class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_what_the_program_does_not_know_goes_op_by_op(model):
    assert (step_module.why_not(model) is None) == HAVE
    pool, plan = filled_pool(model), Plan(spans(2), PAGE)
    seen = []
    handle = model.blocks[3].register_forward_hook(lambda *_: seen.append(1))
    assert not in_one_call(run(model, pool, plan))
    assert seen == [1]
    handle.remove()
    assert in_one_call(run(model, pool, plan)) == HAVE
    inner = model.blocks[0].mixer.in_proj
    model.blocks[0].mixer.in_proj = Scaled(inner)
    assert not in_one_call(run(model, pool, plan))
    if HAVE:
        assert "Scaled" in step_module.why_not(model)
    model.blocks[0].mixer.in_proj = inner
    assert in_one_call(run(model, pool, plan)) == HAVE


def test_explain_says_what_runs(model):
    for backend, reason in (step_module.explain(), step_module.explain(model)):
        assert (backend, reason) == (("cpu", "decoding step: one C++ call") if HAVE else ("op by op", native().reason))


def test_why_not_says_what_forced_another_backend(model, monkeypatch):
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    assert step_module.why_not() == step_module.why_not(model) == "NANO3_BACKEND is eager"


@pytest.mark.parametrize("pattern", ["M", "*", "MM-", "E*"])
def test_models_without_some_kinds_of_blocks(pattern, monkeypatch):
    model = LM(ModelConfig(pattern=pattern, **SIZES)).init_weights(seed=4).eval()
    (got, pool), (expected, other) = both(model, monkeypatch, spans(3))
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)


def test_no_wider_types(model, monkeypatch):
    model.to_dtype(torch.float64)
    (got, _), (expected, _) = both(model, monkeypatch, spans(3), torch.float64)
    torch.testing.assert_close(got.x, expected.x)
    assert len(got.routing) == 1


def test_logits_stay_after_the_next_step(model):
    if not HAVE:
        pytest.skip("needs the C++ library")
    with torch.inference_mode():
        pool, plan = filled_pool(model), Plan(spans(3), PAGE)
        first = step_module.step(model, torch.tensor([[1, 2, 3]]), pool.state(plan), logits=True).logits
        copied = first.clone()
        step_module.step(model, torch.tensor([[4, 5, 6]]), pool.state(plan), logits=True)
    assert torch.equal(first, copied)


THREADS = """
import os, sys, torch
from nano3 import openmp
from nano3.kernels.cpu.native import native
from nano3.model.lm import LM
from nano3.model.state.plan import Plan
from nano3.model import step as step_module
from nano3.model.decode import program
from nano3.config.model import ModelConfig
from tests.model.steps import PAGE, SIZES, filled_pool, spans

model, case = LM(ModelConfig(pattern="M*ME-", **SIZES)).init_weights(seed=3).eval(), sys.argv[1]


@torch.inference_mode()
def decode(pool):
    "Hidden states of a step, and how many threads there are more after it."
    tokens, state = torch.arange(7).unsqueeze(0), pool.state(Plan(spans(7), PAGE))
    before = len(os.listdir("/proc/self/task"))
    found = step_module.step(model, tokens, state, exact=case == "exact")
    return None if found is None else found.hidden, len(os.listdir("/proc/self/task")) - before


torch.set_num_threads(1)
pools = [filled_pool(model) for _ in range(3)]
decode(pools[0])  # with the self-check
torch.set_num_threads(9)
if case == "long" and native().library is not None:  # the weights alone would be few bytes
    program.SMALL_STEP = step_module._STEPS[model].program.weight_bytes + 1000
openmp._WATCH._shared_until = float("inf")
alone, more = decode(pools[1])
openmp._WATCH._shared_until = 0.0
together, others = decode(pools[2])
have = native().library is not None
print(more > 0, not have or more > 0 or others > 0, alone is together is None or torch.equal(alone, together))
"""


@pytest.mark.parametrize(
    ("case", "asked", "several"),
    [("short", None, False), ("exact", None, False), ("long", None, HAVE), ("short", "9", HAVE)],
)
def test_a_small_step_takes_one_thread_while_cores_are_shared(case, asked, several):
    """Not one of long sequences, whose keys are many bytes, nor where the environment asks for more threads."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": asked} if asked else {}
    command = [sys.executable, "-c", THREADS, case]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.stdout == f"{several} True True\n", done.stderr
