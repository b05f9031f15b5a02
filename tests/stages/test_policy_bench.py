"""nano3's side of `nano3 bench rl`."""

import pytest
import torch

from nano3.bench.workload import Case, Job
from nano3.stages.policy.bench import PolicySide


def test_a_step_of_rl_trains_on_what_the_model_drew(small_sizes):
    case = Case("rl", 2, 9, 5, group=3)
    side = PolicySide(Job("nano3", "rl", small_sizes, dtype="float32"))
    before = {name: parameter.clone() for name, parameter in side.model.named_parameters()}
    times = side.run(case)
    assert times["seconds"] == pytest.approx(times["generate_seconds"] + times["update_seconds"])
    assert any(not torch.equal(before[name], parameter) for name, parameter in side.model.named_parameters())
    assert all(parameter.grad is None for parameter in side.model.parameters())
    policy = side.policy(case)
    samples = policy.draw()
    assert [int(sample.trained.sum()) for sample in samples] == [5] * 6
    # The trainer computes what the engine drew from: the update is on-policy.
    policy.update(samples)
    assert policy.loss.take_largest_mismatch() < 1e-4
    assert [sample.ids.tolist() for sample in policy.draw()] != [sample.ids.tolist() for sample in samples]
    policy.close()


def test_the_device_that_is_measured_decides_the_type_of_activations(small_sizes, monkeypatch):
    monkeypatch.setattr("nano3.model.dtype.cpu_flags", frozenset)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    job = Job("nano3", "rl", small_sizes, dtype="auto")
    side = PolicySide(job)
    assert side.model.compute_dtype == torch.float32
    side.device = torch.device("cuda")
    side.set_types(job)
    assert (side.model.dtype, side.model.compute_dtype) == (torch.float32, torch.bfloat16)
