import json
from pathlib import Path

import pytest

from nano3.config.presets import load_pretrain
from nano3.config.schema import ScheduleConfig
from nano3.train.schedule import Schedule, build_schedule

pytestmark = pytest.mark.any_isa

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rl.json").read_text())["wsd_phase1_lr_linear_decay"]
PHASE1 = ScheduleConfig(
    peak_lr=1e-3, min_lr=1e-5, warmup_tokens=8_400_000_000, stable_fraction=0.8, horizon_tokens=25_000_000_000_000
)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['tokens']:.0f}")
def test_phase_1_equals_the_golden_values_exactly(row):
    assert build_schedule(PHASE1, 23_500_000_000_000).lr(row["tokens"]) == row["expected"]


def test_the_rate_never_leaves_the_peak_between_warm_up_and_decay():
    schedule = build_schedule(PHASE1, 23_500_000_000_000)
    assert {schedule.lr(tokens) for tokens in range(8_400_000_000, 20_000_000_000_001, 10**11)} == {1e-3}


def test_the_horizon_defaults_to_the_end_of_the_run():
    schedule = build_schedule(ScheduleConfig(start_tokens=500, warmup_tokens=0, min_lr=1e-5), 1000)
    assert schedule.horizon == 1500
    assert schedule.lr(1501) == 1e-5


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5)])
def test_decay_shapes_run_from_peak_to_minimum(shape, halfway):
    schedule = Schedule(ScheduleConfig(peak_lr=1.0, min_lr=0.0, warmup_tokens=0, stable_fraction=0.5, decay=shape), 200)
    assert schedule.lr(100) == 1.0
    assert schedule.lr(150) == pytest.approx(halfway)
    assert schedule.lr(200) == pytest.approx(0.0)
    assert schedule.lr(900) == 0.0


def test_a_short_run_has_a_short_warmup_and_a_long_one_what_was_asked_for():
    cfg = ScheduleConfig(warmup_tokens=100, warmup_limit=0.05, stable_fraction=0.4)
    assert build_schedule(cfg, 1000).warmup == 50
    assert build_schedule(cfg, 1000).lr(25) == pytest.approx(cfg.peak_lr / 2)
    assert build_schedule(cfg, 4000).warmup == 100
    assert build_schedule(ScheduleConfig(warmup_tokens=100, stable_fraction=0.4), 1000).warmup == 100


@pytest.mark.parametrize("tokens", [1, 20_000, 74_999])
def test_the_tiny_preset_has_a_schedule_for_trial_runs_and_keeps_its_own(tokens):
    cfg = load_pretrain("tiny", [f"train.tokens={tokens}"])
    assert build_schedule(cfg.schedule, cfg.train.tokens).warmup == int(tokens * 0.05)
    assert build_schedule(load_pretrain("tiny", []).schedule, 1_400_000).warmup == 30_000


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"min_lr": 1.0}, "schedule.min_lr"),
        ({"stable_fraction": 1.5}, "stable_fraction"),
        ({"decay": "x"}, "decay"),
        ({"warmup_tokens": 801}, "warmup_tokens 801 reaches into the decay"),
    ],
)
def test_contradicting_settings_name_the_key(change, key):
    with pytest.raises(ValueError, match=key):
        Schedule(ScheduleConfig(**change), 1000)


def test_a_schedule_counts_steps_where_its_keys_or_the_run_do():
    sft = build_schedule(ScheduleConfig(peak_lr=5e-5, warmup_steps=800, decay="none"), 0, 13_000)
    assert (sft.unit, sft.lr(400), sft.lr(800), sft.lr(13_000)) == ("steps", 2.5e-5, 5e-5, 5e-5)
    by_tokens = build_schedule(ScheduleConfig(peak_lr=5e-5, warmup_steps=800, decay="none"), 4_000_000)
    assert (by_tokens.unit, by_tokens.lr(400)) == ("steps", 2.5e-5)
    ends = build_schedule(ScheduleConfig(peak_lr=1.0, min_lr=0.0, start_steps=10, stable_fraction=0.5), 0, 90)
    assert (ends.unit, ends.horizon, ends.lr(50), ends.lr(75), ends.lr(100)) == ("steps", 100, 1.0, 0.5, 0.0)
    assert build_schedule(ScheduleConfig(), 1000).unit == "tokens"
    assert build_schedule(ScheduleConfig(warmup_tokens=500, horizon_tokens=9000), 0, 90).unit == "tokens"


def test_warm_up_starts_at_start_lr():
    schedule = build_schedule(
        ScheduleConfig(peak_lr=3e-6, min_lr=0.0, start_lr=3e-7, warmup_steps=10, decay="none"), 0, 100
    )
    assert [schedule.lr(step) for step in (0, 5, 10, 100)] == pytest.approx([3e-7, 1.65e-6, 3e-6, 3e-6])


@pytest.mark.parametrize(
    ("settings", "run", "words"),
    [
        (
            {"warmup_tokens": 5, "warmup_steps": 8},
            (100, 0),
            r"schedule\.warmup_tokens = 5 and schedule\.warmup_steps = 8",
        ),
        ({"horizon_steps": 9, "start_tokens": 7}, (100, 0), r"start_tokens = 7 and schedule\.horizon_steps = 9"),
        ({"warmup_steps": 8}, (100, 0), r"horizon_steps is 0.*train\.tokens = 100: set schedule\.horizon_steps"),
        ({"warmup_tokens": 8}, (100, 20), r"horizon_tokens is 0.*train\.steps = 20: set schedule\.horizon_tokens"),
        ({"start_lr": 1e-6}, (100, 0), r"start_lr is 1e-06: it needs a warm-up"),
        ({"start_lr": 1.0, "warmup_steps": 5, "decay": "none"}, (100, 0), r"start_lr is 1\.0"),
        ({"warmup_steps": 90}, (0, 100), r"schedule\.warmup_steps 90 reaches into the decay.*warmup_steps=40"),
    ],
)
def test_a_wrong_mix_of_tokens_and_steps_names_the_keys(settings, run, words):
    with pytest.raises(ValueError, match=words):
        build_schedule(ScheduleConfig(**settings), *run)
