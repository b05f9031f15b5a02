"""Blocks of a decoding step by themselves: what they move, and that the measured launches are the step's own."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from nano3.bench.device.blocks import _bytes, main, measure
from nano3.bench.device.ceilings import DeviceCeilings
from nano3.config.presets import load_model
from nano3.model.decode.graphed import GraphSteps
from nano3.model.decode.interface import Ahead
from nano3.model.lm import LM
from nano3.model.state.pool import StatePool

CPU = torch.device("cpu")
BF16 = {"experts": 2.0, "embeddings": 2.0, "rest": 2.0}


@pytest.mark.parametrize(("kind", "microseconds"), [("M", (19, 82, 272)), ("E", (37, 576, 604)), ("*", (13, 136, 510))])
def test_the_30b_blocks_least_times_at_a_copy_rate_of_4_3_tb(kind, microseconds):
    """Reckoned by hand for an H200: 1, 64 and 256 sequences at 8,192 tokens."""
    cfg = load_model("nano3-30b-a3b")
    one, two = (replace(cfg, pattern=kind * n, vocab_size=256) for n in (1, 2))
    for batch, least in zip((1, 64, 256), microseconds, strict=True):
        moved = _bytes(two, batch, 8192, torch.bfloat16, BF16) - _bytes(one, batch, 8192, torch.bfloat16, BF16)
        assert moved / 4.3e12 * 1e6 == pytest.approx(least, rel=0.06)


@pytest.mark.parametrize("kind", ["M", "E", "*"])
def test_a_block_is_the_difference_of_two_depths(kind, monkeypatch):
    times = iter([3.0, 3.0, 3.0, 7.0, 7.0, 7.0])
    monkeypatch.setattr("nano3.bench.device.timer.Timer.seconds", lambda self, run, count=1: run() or next(times))
    found = measure(load_model("tiny"), kind, 2, 70, torch.float32, CPU, 1e9)
    depth = {"M": 4, "E": 1, "*": 4}[kind]
    assert found["seconds"] == 4.0 / depth
    assert found["share_of_copy"] == pytest.approx(found["bytes"] / 1e9 / (4.0 / depth))


@torch.inference_mode()
def test_launches_advance_the_sequences_as_a_step_does():
    cfg = replace(load_model("tiny"), pattern="M*E", vocab_size=64)
    model = LM(cfg).init_weights(0).eval()
    steps = [Ahead(5 + i, i, [i], 1) for i in range(3)]
    pools = [StatePool(cfg, 3, 3, 8) for _ in range(2)]
    for pool in pools:
        for i in range(3):
            pool.clear_slot(i)
    GraphSteps(model, "").launches(model, steps, pools[0])()
    GraphSteps(model, "").choose(model, steps, pools[1], 60, [None] * 3, experts=False, exact=False)
    assert torch.equal(pools[0].blocks[0].ssm, pools[1].blocks[0].ssm)
    assert pools[0].blocks[0].ssm.any()
    assert torch.equal(pools[0].blocks[1].keys[:, 0], pools[1].blocks[1].keys[:, 0])


def test_a_wrong_size_of_batch_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["blocks", "--model", "tiny", "--device", "cpu", "--batches", "0"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "batches are from 1 to 256" in capsys.readouterr().err


def test_the_result_is_json(monkeypatch, capsys):
    arguments = ["--model", "tiny", "--device", "cpu", "--batches", "2", "--kinds", "M", "--context", "9"]
    monkeypatch.setattr("sys.argv", ["blocks", *arguments])
    monkeypatch.setattr("nano3.bench.device.blocks.DeviceCeilings", partial(DeviceCeilings, copied=1 << 20))
    main()
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert (case["name"], case["context"]) == ("Mamba-2 block, batch 2", 9)
