"""Reinforcement learning on several ranks: the same numbers as on one process."""

from __future__ import annotations

import pytest

from .conftest import same_run

BALANCED = {"balance": {"bias_rate": 0.05}, "optimizer": {"clip_norm": 0.5}}
OF_POLICY = ("policy_loss", "entropy", "mismatch", "mismatch_kl", "masked_tokens", "clipped_tokens", "kl")
HEADS = {"model": {"mamba_n_heads": 4, "n_groups": 2}}
WITH_KL = {"train": {"seed": 1}}


def same_policy(found, alone):
    same_run(found, alone)
    for here, there in zip(found.metrics, alone.metrics, strict=True):
        for name in OF_POLICY:
            if name in there:
                assert here[name] == pytest.approx(there[name], rel=1e-5 * max(1, here["step"]), abs=1e-7), name
    first = next(line for line in alone.metrics if "masked_tokens" in line)
    assert 0.1 < first["masked_tokens"] < 0.9  # by sequences that lie in several slices, too


@pytest.mark.parametrize("settings", [WITH_KL, pytest.param({}, marks=pytest.mark.slow)], ids=["kl", "left out"])
@pytest.mark.parametrize(
    "parallel", [{"context": 2}, {"expert": 2}, pytest.param({"tensor": 2}, marks=pytest.mark.slow)]
)
def test_a_policy_that_two_ranks_train_is_that_of_one(finish, parallel, settings):
    settings = {**BALANCED, **HEADS, **settings}
    run = finish("two", "--policy", ranks=2, **settings, parallel=parallel)
    same_policy(run, finish("one", "--policy", **settings))
