"""The difference between a configuration and the report."""

import re
from importlib.resources import files

import pytest

from nano3.config.presets import load_extend_context, load_pretrain
from nano3.config.report import diff_from_report, published_sections

LONG = "extend-context/long-context"


def rows(*args):
    return {row.key: row for row in diff_from_report(load_pretrain(*args))}


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_the_reports_own_phases_do_not_differ(phase):
    assert rows(phase) == {}


def test_the_reports_context_extension_differs_in_its_parallelism_alone_and_its_unpublished_shares_may():
    shares = ["context.lengths={524288=1, 4096=9}", "schedule.horizon_tokens=9"]
    for settings in ([], shares):
        (row,) = diff_from_report(load_extend_context("long-context", settings))
        assert (row.key, row.here, row.section) == ("parallelism", "data (FSDP)", "§2.5")
        assert row.report == "context 8, tensor 8, expert 8, pipeline 4"
    own = [f"parallel.{name}={n}" for name, n in {"context": 8, "tensor": 8, "expert": 8, "pipeline": 4}.items()]
    assert diff_from_report(load_extend_context("long-context", own)) == []
    (row,) = diff_from_report(load_extend_context("long-context", own[:-1]))
    assert row.here == "data (FSDP), context 8, tensor 8, expert 8"


def test_other_lengths_are_one_row():
    found = diff_from_report(load_extend_context("long-context", ["context.lengths={524288=1}"]))[:-1]
    assert [(row.key, row.here, row.report) for row in found] == [("context.lengths", [524288], [524288, 4096])]
    tiny = {row.key: row for row in diff_from_report(load_extend_context("tiny"))}
    assert tiny["schedule.peak_lr"].report == 1e-5
    assert tiny["context.lengths"].section == "§2.5"


def test_what_a_constant_rate_leaves_out_is_no_difference():
    settings = ["schedule.min_lr=3e-4", "schedule.stable_fraction=0.1"]
    assert [row.key for row in diff_from_report(load_extend_context("long-context", settings))] == ["parallelism"]
    assert set(rows("phase2", settings)) == {"schedule.min_lr", "schedule.stable_fraction"}


def test_a_changed_number_is_a_row_with_both_values_and_its_section():
    row = rows("phase1", ["train.batch_size=6"])["train.batch_size"]
    assert (row.here, row.report, row.section) == (6, 3072, "§2.4")


def test_values_of_ours_are_no_difference():
    assert rows("phase1", ["schedule.decay=cosine", "train.seed=7", "train.micro_batch_size=2"]) == {}


def test_one_share_of_the_blend_is_one_row():
    assert list(rows("phase2", ["data.blend.math=3"])) == ["data.blend.math"]
    assert rows("phase2", ["data.blend.math=3"])["data.blend.math"].report == 12.5


def test_another_blend_is_one_row():
    for change in ("data.blend={mine=1}", "data.blend.mine=1"):
        assert list(rows("phase1", [change])) == ["data.blend"]


def test_the_phase_follows_the_start_on_the_horizon():
    assert rows("phase1", ["schedule.start_tokens=1"])["train.tokens"].report == 1_500_000_000_000


def test_tiny_differs_in_its_sizes():
    found = rows("tiny")
    assert found["model.n_experts"].report == 128
    assert found["model.n_experts"].section == "§2.1 Table 1"
    assert "optimizer.beta2" not in found


@pytest.mark.parametrize("name", ["models/nano3-30b-a3b", "pretrain/phase1", "pretrain/phase2", LONG])
def test_every_number_of_the_reports_presets_names_its_section_or_is_ours(name):
    text = (files("nano3.presets") / f"{name}.toml").read_text(encoding="utf-8")
    settings = [line for line in text.splitlines() if re.match(r'^["\w+-]+\s*=', line) and not line.startswith("base")]
    assert settings
    for line in settings:
        assert re.search(r"# (§2\.\d|ours)", line), line


def test_published_numbers_are_those_with_a_section():
    sections = published_sections("phase1")
    assert sections["model.pattern"] == "§2.1 Figure 2"
    assert "schedule.decay" not in sections
    assert "model.d_ff" not in sections
    assert sections["data.blend.crawl++"] == "§2.3"
