"""A model's decoding step over Triton's kernels, beside the pass op by op in PyTorch; run by test_interpreted.py."""

import pytest
import torch
from nano3.kernels.triton import MODULES, experts, mamba, norm, paged, route

from nano3 import kernels
from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.model.state.plan import Plan
from tests.model.steps import PAGE, SIZES, assert_same_pools, filled_pool, run, spans


def seen_launches(monkeypatch):
    """Names of kernels, which every launch from now on adds its own to; those of self-checks are over."""
    names = set()
    for op in MODULES:
        kernels.choose(op, "cpu", "triton")
    for module in (experts, mamba, norm, paged, route):

        def launch(kernel, *arguments, original=module.launch, **constants):
            names.add(kernel.fn.__name__)
            original(kernel, *arguments, **constants)

        monkeypatch.setattr(module, "launch", launch)
    return names


@pytest.mark.slow
def test_a_padded_step_of_a_model_equals_the_pass_op_by_op(monkeypatch):
    model, plan = LM(ModelConfig(pattern="M*E", **SIZES)).init_weights(seed=3).eval(), Plan(spans(3), PAGE)
    pool, other = filled_pool(model), filled_pool(model)
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    expected = run(model, other, plan)
    launched = seen_launches(monkeypatch)
    monkeypatch.setenv("NANO3_BACKEND", "triton")
    monkeypatch.setenv("NANO3_GRAPHS", "1")
    got = run(model, pool, plan)
    assert not got.routing, "it went op by op"
    mixers = {"scan_step_kernel", "norm_step_kernel", "decode_kernel", "route_kernel", "product_kernel"}
    assert launched >= {"norm_kernel", *mixers}
    torch.testing.assert_close(got.x, expected.x, atol=1e-5, rtol=1e-5)
    assert_same_pools(pool, other, 1e-5)
