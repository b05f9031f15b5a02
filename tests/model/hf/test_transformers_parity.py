"""The same weights give the same function as transformers' NemotronHForCausalLM."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NemotronHConfig, NemotronHForCausalLM

from nano3.config.model import ModelConfig
from nano3.model.hf.config import to_hf
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM


@st.composite
def configs(draw) -> ModelConfig:
    groups = draw(st.sampled_from([1, 2, 3]))
    kv_heads = draw(st.sampled_from([1, 2]))
    experts = draw(st.integers(2, 6))
    return ModelConfig(
        pattern=draw(st.text("ME*-", min_size=1, max_size=6)),
        vocab_size=61,
        d_model=draw(st.sampled_from([24, 32])),
        init_std=0.15,
        n_heads=kv_heads * draw(st.sampled_from([1, 2, 3])),
        n_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([8, 16])),
        mamba_n_heads=groups * draw(st.sampled_from([1, 2, 4])),
        mamba_head_dim=draw(st.sampled_from([4, 8])),
        d_state=draw(st.sampled_from([4, 16])),
        n_groups=groups,
        d_conv=draw(st.sampled_from([2, 4])),
        chunk_size=draw(st.sampled_from([8, 32])),
        n_experts=experts,
        top_k=draw(st.integers(1, min(experts, 4))),
        d_expert=12,
        d_shared=20,
        d_ff=28,
        routed_scale=draw(st.sampled_from([1.0, 2.5])),
    )


def peer_model(cfg: ModelConfig, seed: int) -> NemotronHForCausalLM:
    torch.manual_seed(seed)
    keys = {k: v for k, v in to_hf(cfg).items() if k not in ("architectures", "model_type", "torch_dtype", "dtype")}
    peer = NemotronHForCausalLM(NemotronHConfig(**keys))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith(("A_log", "dt_bias", ".D", "norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in peer.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))  # as time_step_min=0 when a folder is loaded
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.copy_(torch.randn(cfg.n_experts) * 0.1)
    return peer


# Gradients of both, by the published names; experts stacked.
def peer_gradients(peer: NemotronHForCausalLM) -> dict[str, torch.Tensor]:
    return {n.removeprefix("model."): p.grad for n, p in peer.named_parameters() if p.grad is not None}


def our_gradients(model) -> dict[str, torch.Tensor]:
    return {n.replace("blocks.", "layers."): p.grad for n, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=12)
@given(cfg=configs(), seed=st.integers(0, 1000), length=st.integers(1, 70))
def test_logits_and_gradients_agree(tmp_path_factory, cfg, seed, length):
    folder = tmp_path_factory.mktemp("peer")
    peer = peer_model(cfg, seed)
    peer.save_pretrained(folder)
    ours = load(folder, dtype=torch.float32)

    tokens = torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(seed))
    theirs = peer(tokens, use_cache=False).logits
    logits = ours(tokens)
    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)

    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 1))
    (theirs * direction).sum().backward()
    (logits * direction).sum().backward()
    expected, got = peer_gradients(peer), our_gradients(ours)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-5, name  # zero for one token's q and k


@settings(max_examples=4)
@given(cfg=configs(), seed=st.integers(0, 1000))
def test_folders_round_trip_bit_exact_in_both_directions(tmp_path_factory, cfg, seed):
    theirs, mine = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("mine") / "model"
    peer = peer_model(cfg, seed)
    peer.save_pretrained(theirs)
    save(load(theirs), mine)
    back = NemotronHForCausalLM.from_pretrained(mine)
    assert back.config.hybrid_override_pattern == cfg.pattern
    expected = peer.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_port_agrees_once_it_does_not_clamp_the_step(tmp_path):
    """With steps far below time_step_min, which the port clamps at and the model's definition does not."""
    cfg = ModelConfig(
        pattern="MM*M", vocab_size=61, d_model=32, init_std=0.15, n_heads=2, n_kv_heads=1, head_dim=16, mamba_n_heads=4,
        mamba_head_dim=8, d_state=16, n_groups=2, d_conv=4, chunk_size=8,
    )  # fmt: skip
    model = LM(cfg).init_weights(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(-10.0)  # softplus(-10) = 4.5e-5
    save(model, tmp_path / "model")
    tokens = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(tokens)
        as_it_is = NemotronHForCausalLM.from_pretrained(tmp_path / "model")(tokens, use_cache=False).logits
        unclamped = NemotronHForCausalLM.from_pretrained(tmp_path / "model", time_step_min=0.0)
        torch.testing.assert_close(logits, unclamped(tokens, use_cache=False).logits, atol=2e-5, rtol=2e-5)
    assert (logits - as_it_is).abs().max() > 1e-3
