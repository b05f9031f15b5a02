"""A module that wraps a Linear or the Experts (LoRA, expert parallelism) takes part wherever the model computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nano3.config.errors import UserError
from nano3.data.tokens.batch import Batch
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model import step
from nano3.model.head import log_probs
from nano3.model.hf.folder import save
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.moe import Experts
from nano3.train.heldout import evaluate
from nano3.train.loss import NextTokenLoss, Scale
from nano3.train.world import World

TOKENS = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(3))
TARGETS = TOKENS.roll(-1, 1)


class Adapter(nn.Module):
    """Knows nothing of what it wraps but how to call it."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.inner(*arguments) * self.gain.to(arguments[0].dtype)


class Heldout:
    def __len__(self) -> int:
        return 2

    def batch(self, start: int, count: int) -> Batch:
        return batch()

    def bytes_of(self, start: int, count: int) -> int:
        return 40


def batch() -> Batch:
    targets = TARGETS.clone()
    targets[0, 5] = -100
    return Batch(tokens=TOKENS, targets=targets, document_ids=torch.zeros_like(TOKENS), documents=[])


def adapt(model: LM) -> dict[str, Adapter]:
    """Wrap every Linear and Experts, by name."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, Linear | Experts)}
    adapters = {}
    for name, module in found.items():
        width = module.weight.shape[0] if isinstance(module, Linear) else module.down_proj.shape[1]
        owner, leaf = name.rpartition(".")[::2]
        adapters[name] = Adapter(module, width)
        setattr(model.get_submodule(owner), leaf, adapters[name])
    return adapters


def loss(model: LM) -> Tensor:
    return NextTokenLoss(0.1)(model, batch(), Scale(batch().n_targets, 1)).total


def in_pieces(model: LM) -> Tensor:
    model.sequence_chunk = 9
    try:
        return loss(model)
    finally:
        model.sequence_chunk = 0


def heldout(model: LM) -> Tensor:
    return torch.tensor(evaluate(model, Heldout(), 2, 2, World()).loss)


def decoded(model: LM) -> Tensor:
    """Log-probabilities from an engine: one prompt in one pass, then token by token."""
    tokenizer = Tokenizer.train(["a b"], 263)
    engine = Engine(model, tokenizer, memory=8 << 20, page_size=8, max_context=64)
    sampling = Sampling(temperature=0.0, max_tokens=4, ignore_eos=True)
    (output,) = run(engine, [Request("one", tuple(TOKENS[0].tolist()), sampling)])[0]
    return torch.tensor([[token.id, token.log_prob] for token in output.tokens])


def policy_terms(model: LM) -> Tensor:
    """Log-probabilities and entropies at a temperature, as a mean with another coefficient for each token."""
    targets = batch().targets
    found, entropies = log_probs(model.lm_head, model.hidden(TOKENS).x, targets, 0.7, entropy=True)
    assert torch.equal(found == 0, targets == -100)
    assert torch.equal(entropies == 0, targets == -100)
    return ((found + 0.3 * entropies) * torch.linspace(-1, 1, targets.numel()).view_as(targets)).mean()


PATHS = {
    "logits": lambda model: model(TOKENS),
    "log_probs": lambda model: model.log_probs(TOKENS, TARGETS),
    "policy terms": policy_terms,
    "loss": loss,
    "loss in pieces": in_pieces,
    "heldout": heldout,
    "engine": decoded,
}


@pytest.fixture
def small_model(small_config) -> LM:
    return LM(replace(small_config, vocab_size=300)).init_weights(seed=1).eval()


@pytest.mark.parametrize("path", PATHS)
def test_every_adapter_changes_the_result_of_every_path(small_model, path):
    with torch.inference_mode(path == "engine"):
        plain = PATHS[path](small_model).detach()
        adapters = adapt(small_model)
        torch.testing.assert_close(PATHS[path](small_model).detach(), plain, atol=1e-5, rtol=1e-5)
        for name, adapter in adapters.items():
            adapter.gain.data[::2] = 1.5
            assert not torch.allclose(PATHS[path](small_model).detach(), plain, atol=1e-5, rtol=1e-5), name
            adapter.gain.data.fill_(1.0)


@pytest.mark.parametrize("path", ["loss", "loss in pieces", "policy terms"])
def test_every_adapter_gets_gradients(small_model, path):
    adapters = adapt(small_model.train())
    PATHS[path](small_model).backward()
    plain = {n: p.grad.clone() for n, p in small_model.named_parameters() if p.grad is not None}
    for name, adapter in adapters.items():
        assert adapter.gain.grad is not None, name
        assert adapter.gain.grad.abs().max() > 0, name
    # The weights' own gradients are those of the model without adapters.
    for adapter_name, adapter in adapters.items():
        owner, leaf = adapter_name.rpartition(".")[::2]
        setattr(small_model.get_submodule(owner), leaf, adapter.inner)
    small_model.zero_grad()
    PATHS[path](small_model).backward()
    for name, parameter in small_model.named_parameters():
        module, leaf = name.rpartition(".")[::2]
        known = plain.get(name, plain.get(f"{module}.inner.{leaf}"))
        torch.testing.assert_close(known, parameter.grad, atol=1e-6, rtol=1e-4)


def test_decoding_with_adapters_goes_op_by_op_and_says_why(small_model):
    adapt(small_model)
    assert step.explain(small_model) == ("op by op", step.why_not() or "the model has a Adapter")


@pytest.mark.parametrize("name", ["lm_head", "blocks.3.mixer.up_proj", "blocks.1.mixer.shared_experts.down_proj"])
def test_a_hook_on_a_projection_is_heard(small_model, name):
    plain = small_model.log_probs(TOKENS, TARGETS)
    small_model.get_submodule(name).register_forward_hook(lambda module, given, y: y * 1.5)
    assert not torch.allclose(small_model.log_probs(TOKENS, TARGETS), plain, atol=1e-4)


def test_a_folder_is_not_written_with_weights_that_no_reader_knows(small_model, tmp_path):
    adapt(small_model)
    with pytest.raises(UserError, match=r"the model has .*, which a nemotron_h folder has no place for: merge"):
        save(small_model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
