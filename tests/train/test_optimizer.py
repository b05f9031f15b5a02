import pytest
import torch

from nano3.config.schema import OptimizerConfig
from nano3.model.lm import LM
from nano3.train.optimizer import build_optimizer, clip_gradients, gradient_norm, parameters_of, set_lr


def test_only_matrices_and_embeddings_decay(tiny):
    model = LM(tiny.MODEL).init_weights(0)
    for p in model.parameters():
        p.data.fill_(1.0)
        p.grad = torch.zeros_like(p)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5))
    set_lr(optimizer, 0.1)
    optimizer.step()
    shrunk = {name for name, p in model.named_parameters() if p.flatten()[0] < 1.0}
    kept = {name for name, _ in model.named_parameters()} - shrunk
    assert {"embeddings.weight", "lm_head.weight", "blocks.0.mixer.in_proj.weight"} <= shrunk
    assert all(name.endswith(("norm.weight", "norm_f.weight", ".bias", "A_log", ".dt_bias", ".D")) for name in kept)
    assert {"blocks.0.mixer.A_log", "blocks.0.mixer.D", "norm_f.weight", "blocks.0.mixer.conv1d.bias"} <= kept


def test_clipping_scales_to_the_global_norm():
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norm = gradient_norm([p, q])
    assert norm.item() == pytest.approx(5.0)
    clip_gradients([p, q], norm, 1.0)
    assert gradient_norm([p, q]).item() == pytest.approx(1.0, abs=1e-5)
    clip_gradients([p, q], torch.tensor(1.0), 0.0)
    assert q.grad.item() == pytest.approx(0.8, abs=1e-5)


def test_frozen_parameters_are_left_out(tiny):
    model = LM(tiny.MODEL)
    model.embeddings.weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert all(p is not model.embeddings.weight for p in parameters_of(optimizer))
