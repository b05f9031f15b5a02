import json
import random
import signal

import pytest
import torch

from nano3.train.tracking.metrics import read_metrics, without_clock

pytestmark = pytest.mark.any_isa

SLOW = {"train": {"tokens": 20 * 64}, "heldout": {"every_tokens": 256}}


def _wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the run ended without {text!r}: {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_signal_saves_and_exits_with_0(launch, tmp_path, number):
    (process,) = launch(tmp_path, "--source", "slow", settings={**SLOW, "checkpoint": {"every_tokens": 0}})
    _wait_for(process, "step 2")
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{number.name}: finishing this step" in out
    assert "interrupted True" in out
    (folder,) = (tmp_path / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert state["position"]["step"] == lines[-1]["step"] < 20


def test_a_killed_run_resumes_to_the_metrics_and_weights_of_an_uninterrupted_one(launch, tiny, tmp_path):
    kill_at = random.randint(2, 8)
    (process,) = launch(tmp_path / "killed", "--source", "slow", settings=SLOW)
    _wait_for(process, f"step {kill_at}\n")
    process.kill()
    process.wait()
    resumed = tiny.trainer(tmp_path / "killed", tiny.config(**SLOW))
    assert resumed.resume() is not None, f"killed at step {kill_at}"
    resumed.fit()
    whole = tiny.trainer(tmp_path / "whole", tiny.config(**SLOW))
    whole.fit()
    lines, joined = (without_clock(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("whole", "killed"))
    assert joined == lines, f"killed at step {kill_at}"
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), f"{name}, killed at step {kill_at}"
