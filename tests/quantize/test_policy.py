"""Policies: what becomes FP8 follows from the pattern alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.config.presets import load_model
from nano3.quantize.policy import Policy, read_policy, select

REPORT = load_model("nano3-30b-a3b")
ATTENTION, BEFORE = (5, 12, 19, 26, 33, 42), (4, 11, 18, 25, 32, 41)
SMALL = ModelConfig(pattern="MEM*E-ME", n_experts=3)


def block(name: str) -> int:
    return int(name.split(".")[2])


def leaves(modules: list[str], number: int) -> set[str]:
    return {name.partition(".mixer.")[2] for name in modules if name.split(".")[2:3] == [str(number)]}


def test_the_reports_selection():
    selection = select(REPORT, Policy())
    expected = {"lm_head", "backbone.embeddings"}
    expected |= {f"backbone.layers.{i}.mixer.{letter}_proj" for i in ATTENTION for letter in "qkvo"}
    expected |= {f"backbone.layers.{i}.mixer.{side}_proj" for i in BEFORE for side in ("in", "out")}
    expected |= {f"backbone.layers.{i}.mixer.conv1d" for i, symbol in enumerate(REPORT.pattern) if symbol == "M"}
    assert set(selection.excluded) == expected
    assert len(selection.excluded) == len(expected)
    assert len(selection.modules) == len(set(selection.modules)) == 5968
    assert selection.cached == ATTENTION


@pytest.mark.parametrize(
    ("given", "axis", "value"),
    [
        ([], "mamba", "mixed"),
        (["attention=fp8"], "attention", "fp8"),
        (["mamba=bf16"], "mamba", "bf16"),
        (["everything", "kv=bf16"], "kv", "bf16"),
        (["kv=bf16", "everything"], "kv", "fp8"),  # a name stands for all axes
    ],
)
def test_options_change_axes_in_order(given, axis, value):
    assert getattr(read_policy(given), axis) == value


def test_axes_of_the_ablation():
    fp8 = {name: leaves(select(SMALL, read_policy([name])).modules, 3) for name in ("attention=fp8", "attention=bf16")}
    assert fp8 == {"attention=fp8": {"q_proj", "k_proj", "v_proj", "o_proj"}, "attention=bf16": set()}
    blocks = {kind: {block(n) for n in select(SMALL, read_policy([f"mamba={kind}"])).modules if "in_proj" in n}
              for kind in ("fp8", "mixed", "bf16")}  # fmt: skip
    assert blocks == {"fp8": {0, 2, 6}, "mixed": {0, 6}, "bf16": set()}
    assert select(SMALL, Policy(kv="bf16")).cached == ()
    edges = {block(n) for n in select(SMALL, read_policy(["everything", "edges=bf16"])).modules}
    assert edges == {2, 3, 4, 5}


def test_rules_of_a_file_win_in_their_order(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'base = "everything"\nkv = "bf16"\n[rules]\n"*.mixer.*" = "bf16"\n"*.experts.*.up_proj" = "fp8"\n'
        '"lm_head" = "fp8"\n'
    )
    policy = read_policy([str(file)])
    assert (policy.attention, policy.kv) == ("fp8", "bf16")
    modules = select(SMALL, policy).modules
    assert modules == [*(f"backbone.layers.{i}.mixer.experts.{e}.up_proj" for i in (1, 4, 7) for e in range(3)),
                       "lm_head"]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("backbone.layers.9.mixer.in_proj", "fits no module; did you mean 'backbone.layers.6.mixer.in_proj'"),
        ("backbone.layers.0.mixer.in_pro", "did you mean 'backbone.layers.0.mixer.in_proj'"),
        ("*.conv1d", "convolutions are never quantized"),
        ("*.gate", "routers are never quantized"),
        ("backbone.embeddings", "embeddings are looked up"),
        ("*.experts.1.up_proj", "fits 1 of the 3 experts of backbone.layers.1.mixer.experts.up_proj"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(rule, message):
    with pytest.raises(UserError) as error:
        select(SMALL, replace(Policy(), rules={rule: "fp8"}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("selektive", "did you mean 'selective'"),
        ("atention=fp8", "unknown key 'atention'; did you mean 'attention'"),
        ("attention=mixed", "'attention' must be one of 'fp8', 'bf16', not 'mixed'"),
        ("nowhere.toml", "nowhere.toml: cannot be read"),
    ],
)
def test_misspelt_policies_are_told(given, message):
    with pytest.raises(UserError) as error:
        read_policy([given])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
