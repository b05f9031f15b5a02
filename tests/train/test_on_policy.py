"""The shape of reinforcement learning: rollouts from the present weights, a loss with metrics of its own, no text."""

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nano3.config.errors import UserError
from nano3.train.checkpoint.checkpointer import CheckpointError
from nano3.train.tracking.metrics import read_metrics, without_clock

pytestmark = pytest.mark.any_isa

SCRIPT = Path(__file__).with_name("on_policy.py")


@pytest.fixture(scope="module")
def rl():
    spec = importlib.util.spec_from_file_location("on_policy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["on_policy"] = module
    spec.loader.exec_module(module)
    return module


def _lines(run_dir):
    return without_clock(read_metrics(run_dir / "metrics.jsonl"))


def test_step_n_is_asked_for_after_the_update_of_the_step_before(rl, tiny, tmp_path):
    run = rl.trainer(tmp_path, tiny.MODEL)
    updated, step = [run.model.norm_f.weight.detach().clone()], run.optimizer.step

    def recording():
        step()
        updated.append(run.model.norm_f.weight.detach().clone())

    run.optimizer.step = recording
    assert run.fit().step == 4
    source = run.feed.source
    assert len(source.seen) == 4
    assert all(torch.equal(seen, weight) for seen, weight in zip(source.seen, updated[:-1], strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(updated))
    assert source.closed


def test_steps_of_any_shape_count_their_own_tokens_and_metrics_have_the_names_of_the_loss(
    draws_charts, rl, tiny, tmp_path
):
    run = rl.trainer(tmp_path, tiny.MODEL)
    result = run.fit()
    lines = [line for line in _lines(tmp_path) if line["kind"] == "train"]
    counts = [(2 + n % 2) * (3 + n + 4 + n) for n in range(4)]
    assert [line["tokens"] for line in lines] == [sum(counts[: n + 1]) for n in range(4)]
    assert [line["seq_len"] for line in lines] == [4, 5, 6, 7]
    assert [line["lr"] for line in lines] == pytest.approx([5.5e-3, 1e-2, 1e-2, 1e-2])
    assert [line["rollouts"] for line in lines] == [4, 6, 4, 6]
    assert all("loss" not in line and 0 <= line["reward"] <= 1 for line in lines)
    assert result.loss == lines[-1]["policy_loss"]
    assert ["short_length" in line for line in lines] == [True, False, False, False]
    assert lines[0]["short_length"] == 3.0
    assert {p.name for p in (tmp_path / "charts").iterdir()} >= {"loss.png", "metrics.png"}


def test_a_stopped_run_goes_on_from_the_state_of_its_source(rl, tiny, tmp_path):
    whole = rl.trainer(tmp_path / "whole", tiny.MODEL)
    whole.fit()
    cfg = rl.RlConfig()
    rl.trainer(tmp_path / "parts", tiny.MODEL, replace(cfg, train=replace(cfg.train, steps=2))).fit()
    second = rl.trainer(tmp_path / "parts", tiny.MODEL)
    assert second.resume().name == "step-2"
    second.fit()
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())


def test_each_rank_keeps_a_state_of_its_own_and_another_number_of_ranks_is_refused(rl, tiny, processes, tmp_path):
    started = processes(str(SCRIPT), str(tmp_path), ranks=2)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    (whole, parts), (other, other_parts) = ([json.loads(line) for line in out.splitlines()] for out, _ in outputs)
    assert (whole, other) == (parts, other_parts)
    assert whole != other
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")
    # One micro-batch of one rank has rollouts of three tokens.
    assert "short_length" in _lines(tmp_path / "whole")[0]
    with pytest.raises(CheckpointError, match=r"state of 2 ranks, and this run has 1: resume it with 2"):
        rl.trainer(tmp_path / "whole", tiny.MODEL).resume()


def test_a_metric_with_a_name_of_the_trainers_own_is_refused(rl, tiny, tmp_path):
    class Taken(rl.PolicyGradient):
        def __call__(self, model, batch, scale):
            parts = super().__call__(model, batch, scale)
            parts.metrics["lr"] = parts.metrics["reward"]
            return parts

    run = rl.trainer(tmp_path, tiny.MODEL)
    run.recipe = replace(run.recipe, loss=Taken())
    with pytest.raises(UserError, match="metric named lr"):
        run.fit()


def test_a_source_without_tokens_or_with_a_state_that_cannot_be_saved_is_an_error(rl, tiny, tmp_path, monkeypatch):
    run = rl.trainer(tmp_path / "state", tiny.MODEL)
    monkeypatch.setattr(rl.OnPolicy, "state", lambda self: {"engine": object()})
    with pytest.raises(UserError, match="state 'engine' is neither a tensor nor JSON"):
        run.fit()
    run = rl.trainer(tmp_path / "empty", tiny.MODEL)
    monkeypatch.setattr(rl.OnPolicy, "step", lambda self, n: [])
    with pytest.raises(UserError, match="a step has no tokens"):
        run.fit()
