"""Pools, passes and changes of a small model, for the tests of the decoding step."""

import copy

import torch
from nano3.kernels.cpu.native import native
from torch import nn

from nano3.model.attention import Attention
from nano3.model.mlp import MLP
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool

PAGE = 4

SIZES = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "mamba_n_heads": 4}

SIZES |= {"mamba_head_dim": 8, "d_state": 16, "n_groups": 2, "chunk_size": 8, "n_experts": 4, "top_k": 2}

SIZES |= {"d_expert": 16, "d_shared": 16, "d_ff": 32, "init_std": 0.2}

HAVE = native().library is not None


def filled_pool(model, dtype=torch.float32, seed=0):
    pool = StatePool(model.cfg, n_slots=80, n_pages=200, page_size=PAGE, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for block in pool.blocks:
        for name in ("conv", "ssm", "keys", "values"):
            if (tensor := getattr(block, name, None)) is not None:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return pool


def spans(count, length=1, saves=()):
    return [
        Span(
            length,
            79 - i,
            context=i % 9,
            pages=range(3 * i, 3 * i + 3) if i % 2 else [3 * i, 199 - i, 3 * i + 2],
            saves=saves,
        )
        for i in range(count)
    ]


@torch.inference_mode()
def run(model, pool, plan):
    tokens = (torch.arange(plan.n_tokens) * 7 % 64).unsqueeze(0)
    return model.hidden(tokens, state=pool.state(plan))


def both(model, monkeypatch, plan_spans, dtype=torch.float32):
    """(result, pool) in one call and op by op."""
    results = []
    for backend in ("", "eager"):
        with monkeypatch.context() as patched:
            patched.setenv("NANO3_BACKEND", backend)
            pool = filled_pool(model, dtype)
            results.append((run(model, pool, Plan(plan_spans, PAGE)), pool))
    return results


def in_one_call(hidden):
    return not hidden.routing


def assert_same_pools(one, other, tolerance):
    for a, b in zip(one.blocks, other.blocks, strict=True):
        for name in ("conv", "ssm", "keys", "values"):
            if hasattr(a, name):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=tolerance, rtol=tolerance)


def changed_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def swapped_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.25


def replaced_parameters(model):
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.25))


def replaced_blocks(model):
    blocks = copy.deepcopy(list(model.blocks))
    swapped_data(nn.ModuleList(blocks))
    for i, block in enumerate(blocks):
        model.blocks[i] = block


def loaded(model):
    model.load_state_dict({name: tensor * 1.25 for name, tensor in model.state_dict().items()}, assign=True)


def converted(model):
    model.to_dtype(torch.bfloat16, torch.float32)


def biased(model):
    model.expert_biases()[0].copy_(torch.tensor([5.0, -5.0, 5.0, -5.0]))


def transposed(model):
    """Square weights under another layout, at the same place."""
    for block in model.blocks:
        if isinstance(block.mixer, Attention):
            assert block.mixer.q_proj.weight.shape == (32, 32)
            block.mixer.q_proj.weight.data = block.mixer.q_proj.weight.data.t()


def spread(model):
    """The first number of a norm's weights in place of all, at the same place."""
    weight = model.norm_f.weight
    with torch.no_grad():
        weight.copy_(torch.arange(2.0, 34.0))
    weight.data = weight.data[:1].expand(32)


def narrowed(model):
    """Fewer dense MLP channels: the first ones, at the same place."""
    mlp = model.blocks[4].mixer
    mlp.up_proj.weight.data = mlp.up_proj.weight.data[:16]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :16].contiguous()


def other_eps(model):
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 0.5


def one_eps(model):
    model.blocks[1].norm.eps = 0.5


def gate_eps(model):
    model.blocks[0].mixer.norm.eps = 0.5


def gate_scale(model):
    model.blocks[3].mixer.gate.scale *= 3


def gate_choices(model):
    model.blocks[3].mixer.gate.top_k = 1


def replaced_mixer(model):
    mixer = model.blocks[1].mixer
    mixer.forward = lambda *arguments: (2 * Attention.forward(mixer, *arguments)[0], None)


def replaced_method(model):
    shared = model.blocks[3].mixer.shared_experts
    shared.apply_to = lambda x: 3 * MLP.apply_to(shared, x)


STILL_ONE_CALL = {narrowed, other_eps, gate_scale, gate_choices}
