from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from nano3.config.errors import UserError
from nano3.config.lora import LoraConfig
from nano3.model.hf.folder import fill, load, save
from nano3.model.hf.names import is_adapter
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.lora.apply import adapted, apply_lora, init_lora, matched
from nano3.model.lora.merge import merge, merged
from nano3.model.lora.modules import trained_where_used
from nano3.model.moe import Experts

CFG = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture
def ids():
    return (torch.arange(40) // 13).expand(2, 40)


def merge_copy(model, dtype=torch.float32):
    plain = deepcopy(model).to_dtype(dtype)
    merge(plain)
    return plain


def test_all_projections_get_an_adapter_and_at_first_nothing_changes(small_model, tokens, ids):
    before = small_model(tokens, ids)
    report = apply_lora(small_model, CFG)
    kinds = {name.partition(".mixer.")[2] for name in report.names}
    assert kinds == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj", "up_proj", "down_proj"),
        *("experts.up_proj", "experts.down_proj", "shared_experts.up_proj", "shared_experts.down_proj"),
    }
    torch.testing.assert_close(small_model(tokens, ids), before, rtol=1e-5, atol=1e-5)
    trained = {name for name, p in small_model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in small_model.named_parameters() if is_adapter(name)}
    assert report.trained == sum(p.numel() for p in small_model.parameters() if p.requires_grad)
    lines = "\n".join(report.lines())
    assert "experts.up_proj" in lines
    assert f"{report.trained:,} of {report.total:,} parameters train" in lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerged_computes_what_merged_does(small_model, tokens, ids, dtype, filled):
    filled(small_model)
    unmerged = small_model(tokens, ids)
    plain = merge_copy(small_model, dtype)
    assert {type(m) for m in plain.modules() if isinstance(m, Linear | Experts)} == {Linear, Experts}
    found = plain(tokens, ids).float()
    if dtype == torch.float32:
        torch.testing.assert_close(found, unmerged, rtol=1e-4, atol=1e-4)
    else:
        assert torch.nn.functional.cosine_similarity(found.flatten(), unmerged.flatten(), dim=0) > 0.99


def test_merging_rounds_once_and_keeps_the_type(small_model, filled):
    small_model.to_dtype(torch.bfloat16)
    filled(small_model)
    wanted = {}
    for name, module in adapted(small_model):
        for a in module.adapters():
            exact = a.weight.double() + module.scale * (a.B.double() @ a.A.double())
            wanted[f"{name}.{a.name}"] = exact.to(torch.bfloat16)
    merge(small_model)
    for name, value in small_model.named_parameters():
        if name in wanted:
            assert value.dtype == torch.bfloat16
            assert (value != wanted[name]).float().mean() < 0.01
            torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=1e-6)
        assert value.requires_grad
        assert not is_adapter(name)


def test_weights_are_the_same_bits_after_a_merge_for_now(small_model, tokens, filled):
    filled(small_model)
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    logits = small_model(tokens)
    with merged(small_model):
        torch.testing.assert_close(small_model(tokens), logits, rtol=1e-4, atol=1e-4)
        name = "blocks.0.mixer.in_proj.weight"
        assert not torch.equal(small_model.state_dict()[name], before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())
    assert torch.equal(small_model(tokens), logits)


def gradients(model, tokens, ids):
    model.train()
    model.zero_grad()
    hidden = model.hidden(tokens, ids)
    loss = model.lm_head(hidden.x).float().log_softmax(-1)[..., 3].mean() + 0.1 * hidden.balance_loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_merged_weights(small_model, tokens, ids, filled):
    """dA and dB from dW of a plain model with W + scale B A: the chain rule by hand."""
    filled(small_model)
    plain = merge_copy(small_model)
    found, of_plain = gradients(small_model, tokens, ids), gradients(plain, tokens, ids)
    assert set(found) == {name for name, _ in small_model.named_parameters() if is_adapter(name)}
    for name, module in adapted(small_model):
        for a in module.adapters():
            stem = f"{name}." if a.name == "weight" else f"{name}.{a.name}_"
            dW = of_plain[f"{name}.{a.name}"]
            torch.testing.assert_close(found[f"{stem}lora_A"], module.scale * a.B.mT @ dW, rtol=2e-3, atol=1e-6)
            torch.testing.assert_close(found[f"{stem}lora_B"], module.scale * dW @ a.A.mT, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("how", ["checkpoint_activations", "sequence_chunk"])
def test_recomputed_and_cut_passes_have_the_same_gradients(small_model, tokens, ids, how, filled):
    filled(small_model)
    whole = gradients(small_model, tokens, ids)
    small_model.checkpoint_activations = True
    small_model.sequence_chunk = 16 if how == "sequence_chunk" else 0
    found = gradients(small_model, tokens, ids)
    assert found.keys() == whole.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, whole[name], rtol=1e-3, atol=1e-6)


def test_an_expert_without_tokens_has_no_gradient(small_model, filled):
    filled(small_model)
    found = gradients(small_model, torch.tensor([[5]]), None)
    used = found["blocks.1.mixer.experts.up_proj_lora_A"].abs().sum((1, 2)).count_nonzero()
    assert used == small_model.cfg.top_k


def test_what_a_product_of_no_rows_leaves_is_no_gradient():
    weight = torch.randn(3, 2, 4, requires_grad=True)
    used = trained_where_used(weight, torch.tensor([2, 2, 5]))
    assert torch.equal(used, weight)
    given = torch.full((3, 2, 4), 7.0)
    given[1] = torch.nan
    (gradient,) = torch.autograd.grad(used, weight, given)
    assert gradient[:, 0, 0].tolist() == [7, 0, 7]
    assert not gradient.isnan().any()


def test_patterns_take_own_and_published_names_and_their_ends(small_model):
    assert matched(small_model, ["q_proj"]) == ["blocks.2.mixer.q_proj"]
    letters = [f"blocks.2.mixer.{letter}_proj" for letter in "qkvo"]
    assert matched(small_model, ["backbone.layers.2.mixer.?_proj"]) == letters
    experts = ["blocks.1.mixer.experts.up_proj", "blocks.1.mixer.shared_experts.up_proj"]
    assert matched(small_model, ["blocks.1.*experts.up_proj"]) == experts
    assert "lm_head" not in matched(small_model, [])
    assert matched(small_model, ["lm_head"]) == ["lm_head"]


@pytest.mark.parametrize("pattern", ["gate_proj", "gate", "conv1d", "embeddings"])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_what_there_is(small_model, pattern):
    with pytest.raises(UserError, match=f"lora.targets: no projection matches '{pattern}'; the nearest names are "):
        apply_lora(small_model, replace(CFG, targets=["q_proj", pattern]))
    assert not list(adapted(small_model))
    assert all(p.requires_grad for p in small_model.parameters())


def test_only_named_projections_get_adapters(small_model, tokens, filled):
    filled(small_model, replace(CFG, targets=["experts.down_proj", "lm_head"]))
    names = {name for name, p in small_model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in names} == {"down_proj_lora_A", "down_proj_lora_B", "lora_A", "lora_B"}
    torch.testing.assert_close(merge_copy(small_model)(tokens), small_model(tokens), rtol=1e-4, atol=1e-4)


def test_initial_values_depend_on_seed_and_name_alone(small_config):
    def values(seed, targets):
        model = LM(small_config).init_weights(0)
        apply_lora(model, replace(CFG, targets=targets), seed)
        return {n: p.clone() for n, p in model.named_parameters() if n.endswith("lora_A")}

    every, some = values(1, []), values(1, ["q_proj", "experts.up_proj"])
    assert len(some) == 3
    assert all(torch.equal(every[name], value) for name, value in some.items())
    name = "blocks.2.mixer.q_proj.lora_A"
    assert not torch.equal(values(2, ["q_proj"])[name], some[name])


def test_dropout_acts_in_training_alone(small_model, tokens, filled):
    filled(small_model, replace(CFG, dropout=0.5))
    small_model.eval()
    assert torch.equal(small_model(tokens), small_model(tokens))
    small_model.train()
    assert not torch.equal(small_model(tokens), small_model(tokens))


def test_the_base_may_be_narrower_than_the_adapters(small_model, tokens):
    apply_lora(small_model, replace(CFG, base_dtype="bfloat16"))
    types = {is_adapter(name): p.dtype for name, p in small_model.named_parameters() if "gate" not in name}
    assert small_model.dtype == torch.bfloat16
    assert types[True] == torch.float32
    assert small_model.compute_dtype == torch.float32
    assert small_model(tokens).dtype == torch.float32


def test_a_model_with_adapters_is_not_saved_as_if_it_had_none(small_model, tmp_path, tokens, filled):
    filled(small_model)
    with pytest.raises(UserError, match="merge adapters first"):
        save(small_model, tmp_path / "model")
    logits = small_model(tokens)
    with merged(small_model):
        save(small_model, tmp_path / "model")
    torch.testing.assert_close(load(tmp_path / "model")(tokens), logits, rtol=1e-4, atol=1e-4)


def test_a_folder_fills_a_model_that_has_adapters(small_model, small_config, tmp_path, tokens):
    save(small_model, tmp_path / "model")
    with torch.device("meta"):
        model = LM(small_config)
    apply_lora(model, CFG)
    model.to_empty(device="cpu")
    fill(model, tmp_path / "model")
    init_lora(model, 0)
    torch.testing.assert_close(model.eval()(tokens), small_model(tokens), rtol=1e-5, atol=1e-5)


def test_adapters_on_adapters_are_refused(small_model):
    apply_lora(small_model, CFG)
    with pytest.raises(UserError, match="has adapters already"):
        apply_lora(small_model, CFG)
