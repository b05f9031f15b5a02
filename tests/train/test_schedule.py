import json
from pathlib import Path

import pytest

from nano3.config.schema import ScheduleConfig
from nano3.train.schedule import Schedule, build_schedule

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
