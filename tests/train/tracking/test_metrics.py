import re
import sys
from unittest.mock import MagicMock

import pytest

from nano3.config.errors import UserError
from nano3.config.schema import LogConfig
from nano3.train.tracking.metrics import MetricsWriter, cut_metrics, read_metrics, without_clock
from nano3.train.tracking.trackers import check_trackers, open_trackers

pytestmark = pytest.mark.any_isa


def _write(path, steps):
    writer = MetricsWriter(path)
    for step in steps:
        writer.write("train", step, 10 * step, {"loss": 1 / step}, {"seconds": 0.1})
    return writer


def test_lines_are_readable_at_once_without_closing(tmp_path):
    writer = _write(tmp_path / "metrics.jsonl", [1, 2])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    writer.close()


def test_a_cut_drops_later_final_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = _write(path, [1, 2, 3])
    writer.write("heldout", 2, 20, {"final": True})
    writer.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 4, "to')
    cut_metrics(path, 2)
    assert [(line["kind"], line["step"]) for line in read_metrics(path)] == [("train", 1), ("train", 2)]


def test_wall_clock_values_can_be_left_out(tmp_path):
    _write(tmp_path / "m", [1]).close()
    assert without_clock(read_metrics(tmp_path / "m")) == [{"kind": "train", "step": 1, "tokens": 10, "loss": 1.0}]


def test_tensorboard_gets_numbers_by_kind(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers, closers = open_trackers(LogConfig(tensorboard=True), tmp_path, {})
    trackers[0]({"kind": "train", "step": 3, "loss": 2.5, "load_max_over_mean": [1.0], "clock": {"mfu": 0.5}})
    closers[0]()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/mfu"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 2.5)]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_tracker_package_is_one_line_that_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"log\.{name} needs the package {name}.*pip install {name}$") as error:
        check_trackers(LogConfig(**{name: "project"}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_run_tells_a_tracker_its_project_settings_numbers_and_end(tmp_path, monkeypatch, name):
    """The packages are not here: a module that keeps the calls stands for the one asked for."""
    calls = MagicMock()
    monkeypatch.setitem(sys.modules, name, calls)
    trackers, closers = open_trackers(LogConfig(**{name: "bread"}), tmp_path / "mine", {"train.tokens": 64})
    trackers[0]({"kind": "train", "step": 3, "tokens": 9, "loss": 2.5, "final": True, "clock": {"mfu": 0.5}})
    closers[0]()
    told = str(calls.mock_calls)
    assert all(part in told for part in ("'bread'", "'mine'", "'train.tokens': 64"))
    assert "{'train/loss': 2.5, 'train/mfu': 0.5}, step=3" in told
    assert re.search(r"(finish|end_run)\(\)\]$", told)
