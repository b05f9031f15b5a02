"""Figures computed from runs whose times are known."""

import dataclasses
import json

import pytest
from matplotlib.image import imread

from nano3.bench.ceilings import MATMULS, MOVES, READS
from nano3.bench.compute import SINGLE, Measured, Plan, Runs
from nano3.bench.compute_chart import ceiling_rate, conditions
from nano3.bench.compute_report import (
    cache_notes,
    failures,
    scaled,
    shown_ceilings,
    speed_rows,
    summary,
    use_rows,
    write,
)
from nano3.bench.costs import flops, read_bytes
from nano3.bench.workload import Case
from nano3.config.presets import load_model

CFG = load_model("tiny")
CASE = Case("decode", 8, 128, 64)
PEER, DEAD = "transformers float32", "transformers bfloat16"
TWO = {"experts": 2.0, "embeddings": 2.0, "rest": 2.0}


def measured(**changes):
    ours = {"weights": "bfloat16", "activations": "float32", "bytes_each": TWO, "config": dataclasses.asdict(CFG),
            "backends": {"linear": {"backend": "cpu", "reason": "C++"}}}  # fmt: skip
    names = [*MATMULS.values(), *MOVES, *READS]
    ceilings = [dict.fromkeys(names, rate) | {"read_4_MiB": 2 * rate} for rate in (1e9, 3e9, 4e9)]
    runs = {
        "nano3": Runs([2.0, 1.0, 4.0], 1 << 30),
        PEER: Runs([6.0, 5.0, 8.0], 3 << 30),
        DEAD: Runs(failed="did not finish in 9 s"),
    }
    about = {"nano3": ours, PEER: {"version": "5"}, DEAD: {}, "ceilings": {"cache_bytes": 64 << 20}}
    whole = Measured(Plan("decode", [CASE], "tiny", repeat=3), 2, about, [runs], ceilings, [])
    return dataclasses.replace(whole, **changes)


def test_rates_are_tokens_over_seconds():
    figures = summary(measured(), "a CPU")
    (case,) = figures["cases"]
    side = case["sides"]["nano3"]
    assert (figures["machine"]["cpu"], figures["machine"]["threads"]) == ("a CPU", 2)
    assert case["tokens"] == 512
    assert side["seconds"]["all"] == [2.0, 1.0, 4.0]
    assert side["tokens_per_second"] == {"median": 256.0, "min": 128.0, "max": 512.0}
    assert side["peak_memory_bytes"] == 1 << 30


def test_ratio_of_medians_and_spread_of_neighbouring_runs():
    (case,) = summary(measured(), "a CPU")["cases"]
    assert case["ratios"] == {PEER: {"median": 3.0, "min": 2.0, "max": 5.0}}
    assert case["best_peer"] == PEER


def test_the_best_peer_is_the_one_that_is_hardest_to_beat():
    whole = measured()
    whole.runs[0]["llama.cpp x"] = Runs([1.0, 1.0, 1.0])
    assert summary(whole, "a CPU")["cases"][0]["best_peer"] == "llama.cpp x"


def test_one_thread_is_a_ratio_but_no_peer():
    whole = measured()
    whole.runs[0][SINGLE] = Runs([3.0, 1.8, 7.0], 1 << 30)
    (case,) = summary(whole, "a CPU")["cases"]
    assert case["ratios"][SINGLE] == {"median": 1.5, "min": 1.5, "max": 1.8}
    assert case["best_peer"] == PEER


def test_use_of_the_machine_is_measured_against_its_own_ceilings():
    import torch

    figures = summary(measured(), "a CPU")
    side = figures["cases"][0]["sides"]["nano3"]
    assert figures["ceilings"]["copy"] == {"median": 3e9, "min": 1e9, "max": 4e9, "unit": "B/s"}
    assert side["flops_per_second"] == pytest.approx(flops(CFG, CASE) / 2)
    assert side["share_of_matmul"] == pytest.approx(flops(CFG, CASE) / 2 / 4e9)
    assert side["seconds_per_step"] == pytest.approx(2 / 64)
    read = read_bytes(CFG, CASE, TWO, torch.float32)
    assert side["read_bytes_per_second"] == pytest.approx(read * 32)
    assert side["share_of_read"] == pytest.approx(read * 32 / 8e9)
    nearest = max(side["share_of_read"], side["share_of_matmul"])
    assert ceiling_rate(figures["cases"][0]) == pytest.approx(256 / nearest)


def test_products_of_integer_weights_are_held_against_those_of_integers():
    whole = measured()
    whole.about["nano3"]["integers"] = True
    for rates in whole.ceilings:
        rates["matmul_int8"] *= 10
    assert summary(whole, "a CPU")["cases"][0]["sides"]["nano3"]["share_of_matmul"] < flops(CFG, CASE) / 2 / 3e10


def test_what_fits_the_cache_is_told():
    figures = summary(measured(), "a CPU")
    (note,) = cache_notes(figures)
    assert "8 sequences" in note
    assert "64 MiB" in note
    assert shown_ceilings(figures) == [*MATMULS.values(), *MOVES, "read_4_MiB", "read_1_GiB"]
    whole = measured()
    whole.about["ceilings"]["cache_bytes"] = 1 << 20
    assert cache_notes(summary(whole, "a CPU")) == []


def test_a_side_without_a_run_says_why():
    figures = summary(measured(), "a CPU")
    assert figures["cases"][0]["sides"][DEAD] == {"failed": "did not finish in 9 s"}
    ours, peer, dead = speed_rows(figures)
    assert ours[2:5] == ("256.0", "128.0 - 512.0", "")
    assert peer[4] == "3.00 (2.00 - 5.00)"
    assert set(dead[2:]) == {"-"}
    assert failures(figures) == [f"{DEAD}, 8 sequences: did not finish in 9 s"]
    (use,) = use_rows(figures)
    assert use[3] == "31.25"


def test_a_peer_that_failed_midway_keeps_its_runs():
    whole = measured()
    whole.runs[0][PEER] = Runs([6.0], 1, failed="ended with code -9")
    side = summary(whole, "a CPU")["cases"][0]
    assert side["ratios"][PEER] == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert side["sides"][PEER]["failed"] == "ended with code -9"


def test_one_run_has_no_spread(tmp_path):
    whole = measured()
    whole.runs[0] = {"nano3": Runs([2.0], 1 << 30), PEER: Runs([6.0], 1 << 30)}
    figures = summary(whole, "a CPU")
    ours, peer = speed_rows(figures)
    assert (ours[3], peer[3], peer[4]) == ("one run", "one run", "3.00")
    assert write(figures, tmp_path)[1].exists()


def test_the_chart_says_on_what_and_in_what_types():
    assert conditions(summary(measured(), "a CPU")) == (
        "a CPU, 2 threads",
        "nano3: weights bfloat16, activations float32",
    )


def test_files(tmp_path):
    figures = summary(measured(), "a CPU")
    result, chart = write(figures, tmp_path / "new" / "folder")
    assert json.loads(result.read_text()) == json.loads(json.dumps(figures))
    image = imread(chart)
    assert min(image.shape[:2]) > 400
    assert image[..., :3].std() > 0.02


def test_many_lengths_become_lines(tmp_path):
    cases = [Case("prefill", 1, length) for length in (1024, 2048, 4096)]
    whole = measured()
    plan = dataclasses.replace(whole.plan, kind="prefill", cases=cases)
    figures = summary(dataclasses.replace(whole, plan=plan, runs=whole.runs * 3), "a CPU")
    bars = summary(
        dataclasses.replace(whole, plan=dataclasses.replace(plan, cases=cases[:2]), runs=whole.runs * 2), "a"
    )
    sizes = [imread(write(each, tmp_path / each["machine"]["cpu"])[1]).shape for each in (figures, bars)]
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(("value", "text"), [(1.55e12, "1.6 T"), (96.3e9, "96.3 G"), (2e6, "2.0 M"), (12.0, "12.0 ")])
def test_rates_in_words(value, text):
    assert scaled(value) == text
