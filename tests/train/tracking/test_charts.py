import pytest
from matplotlib.image import imread

from nano3.train.tracking.chart_style import smooth
from nano3.train.tracking.charts import draw
from nano3.train.tracking.metrics import MetricsWriter
from nano3.train.tracking.redraw import Redraw

pytestmark = pytest.mark.any_isa


def _metrics(path, *, experts=True, heldout=True):
    writer = MetricsWriter(path)
    for step in range(1, 41):
        load = [1 + 1 / step, 1.5] if experts else []
        values = {
            "loss": 9 / step**0.3,
            "lr": 1e-3 * min(1, step / 5),
            "grad_norm": 1 + 1 / step,
            "load_max_over_mean": load,
        }
        writer.write("train", step, step * 16384, values)
        if heldout and step % 10 == 0:
            writer.write("heldout", step, step * 16384, {"loss": 9 / step**0.28, "bits_per_byte": 3 / step**0.28})
            writer.write("load", step, step * 16384, {"shares": [[0.1, 0.2, 0.3, 0.4]] * 2 if experts else []})
    writer.close()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["loss.png", "learning_rate.png", "expert_load.png"]),
        ({"experts": False}, ["loss.png", "learning_rate.png"]),
        ({"heldout": False}, ["loss.png", "learning_rate.png", "expert_load.png"]),
    ],
)
def test_charts_are_drawn_for_what_was_measured(tmp_path, options, names):
    _metrics(tmp_path / "metrics.jsonl", **options)
    drawn = draw(tmp_path / "metrics.jsonl", tmp_path / "charts")
    assert [path.name for path in drawn] == names
    for path in drawn:
        image = imread(path)
        assert min(image.shape[:2]) > 400
        assert image[..., :3].std() > 0.02


def test_a_run_without_steps_draws_nothing(tmp_path):
    assert draw(tmp_path / "metrics.jsonl", tmp_path / "charts") == []


def test_smoothing_keeps_a_constant_and_does_not_lag_behind_a_slope():
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    slope = [float(i) for i in range(200)]
    assert smooth(slope)[100] == pytest.approx(100.0, abs=0.5)
    noise = [(-1.0) ** i for i in range(200)]
    assert max(abs(value) for value in smooth(noise)[20:-20]) < 0.3


def test_the_last_scores_of_several_lengths_are_not_written_over_each_other(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        values = {"loss": 7.0 - step / 10, "lr": 1e-3, "grad_norm": 1.0, "load_max_over_mean": []}
        writer.write("train", step, step * 4096, values)
        for seq_len in (512, 4096):
            bits = 3.0 - step / 10 + seq_len / 1e6
            writer.write("heldout", step, step * 4096, {"seq_len": seq_len, "loss": 7.0, "bits_per_byte": bits})
    writer.close()
    figures = []
    monkeypatch.setattr("nano3.train.tracking.charts.save", lambda figure, path: figures.append(figure) or path)
    draw(tmp_path / "metrics.jsonl", tmp_path / "charts")
    bits = figures[0].axes[1]
    figures[0].canvas.draw()
    texts = [text for text in [*bits.texts, *bits.get_legend().get_texts()] if text.get_text()]
    assert all(any(value in text.get_text() for text in texts) for value in ("2.601", "2.604"))
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_loss_of_another_name_is_drawn_under_it_and_its_other_metrics_beside_it(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for step in range(1, 9):
        values = {"seq_len": 64, "policy_loss": -0.01 * step, "reward": step / 8, "lr": 3e-6, "grad_norm": 1.0}
        values |= {"entropy": None if step == 3 else 2.0} | ({"clip_share": 0.1} if step % 2 else {})
        writer.write("train", step, step * 4096, {**values, "load_max_over_mean": []})
    writer.close()
    figures = {}
    monkeypatch.setattr(
        "nano3.train.tracking.charts.save", lambda figure, path: figures.setdefault(path.name, figure) and path
    )
    draw(tmp_path / "metrics.jsonl", tmp_path / "charts", "policy_loss")
    assert list(figures) == ["loss.png", "learning_rate.png", "metrics.png"]
    assert figures["loss.png"].axes[0].get_ylabel() == "policy loss"
    axes = {axis.get_ylabel(): axis for axis in figures["metrics.png"].axes}
    assert {"reward", "entropy", "clip share"} <= set(axes)
    assert [len(axes[name].lines[0].get_xdata()) for name in ("reward", "entropy", "clip share")] == [8, 7, 4]


def _figures(tmp_path, monkeypatch, lines):
    """Axes of each chart of a run with these lines."""
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for kind, step, values in lines:
        common = {"seq_len": 64, "loss": 4.0, "lr": 1e-3, "grad_norm": 1.0, "load_max_over_mean": [1.5]}
        writer.write(kind, step, step * 4096, {**common, **values} if kind == "train" else values)
    writer.close()
    found = {}
    monkeypatch.setattr(
        "nano3.train.tracking.charts.save", lambda figure, path: found.setdefault(path.name, figure) and path
    )
    draw(tmp_path / "metrics.jsonl", tmp_path / "charts")
    return {name: figure.axes for name, figure in found.items()}


def _labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_steps_of_several_lengths_are_lines_of_their_own_since_their_losses_differ(tmp_path, monkeypatch):
    lines = [
        ("train", step, {"seq_len": 512 if step % 2 else 4096, "loss": 2.5 + step % 2 * 2}) for step in range(1, 9)
    ]
    axes = _figures(tmp_path, monkeypatch, lines)["loss.png"]
    assert _labels(axes[0]) == ["training at 512", "training at 4,096"]
    lines = {line.get_label(): line.get_ydata() for line in axes[0].lines}
    assert lines["training at 512"] == pytest.approx([4.5] * 4)
    assert lines["training at 4,096"] == pytest.approx([2.5] * 4)


def test_an_axis_of_a_single_score_does_not_magnify_its_last_digits(tmp_path, monkeypatch):
    scores = [("heldout", 3, {"seq_len": n, "loss": 4.0, "bits_per_byte": 1.66765 + n / 1e8}) for n in (512, 2048)]
    axes = _figures(tmp_path, monkeypatch, [("train", step, {}) for step in (1, 2, 3)] + scores)["loss.png"]
    low, high = axes[1].get_ylim()
    assert low < 1.66
    assert high > 1.675


def test_expert_load_of_one_block_is_bars_under_the_blocks_place_in_the_model(tmp_path, monkeypatch):
    lines = [("train", 1, {}), ("load", 1, {"shares": [[0.1, 0.2, 0.3, 0.4]], "blocks": [3]})]
    line, bars = _figures(tmp_path, monkeypatch, lines)["expert_load.png"]
    assert _labels(line) == ["busiest expert", "perfect balance"]
    assert bars.get_xlabel() == "expert of block 3"
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.4, 0.8, 1.2, 1.6])


def test_charts_of_a_run_that_goes_on_are_drawn_beside_it_and_again_only_after_a_while(tmp_path):
    _metrics(tmp_path / "metrics.jsonl")
    early = Redraw(tmp_path / "metrics.jsonl", tmp_path / "early", "loss")
    early.poke()
    redraw = Redraw(tmp_path / "metrics.jsonl", tmp_path / "charts", "loss", seconds=0)
    redraw.poke()
    redraw.wait()
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == [
        "expert_load.png",
        "learning_rate.png",
        "loss.png",
    ]
    assert not (tmp_path / "early").exists()


def test_charts_that_cannot_be_drawn_leave_training_alone(tmp_path, monkeypatch):
    redraw = Redraw(tmp_path / "none" / "metrics.jsonl", tmp_path / "charts", "loss", seconds=0)
    redraw.poke()
    redraw.wait()
    monkeypatch.setattr("subprocess.Popen", _no_process)
    redraw.poke()
    redraw.close()


def _no_process(*args, **kwargs):
    raise OSError("no more processes")


def test_the_only_held_out_score_has_its_name_beside_it_and_an_axis_from_0(tmp_path, monkeypatch):
    score = ("heldout", 2, {"loss": 4.0, "bits_per_byte": 2.5, "final": True})
    steps = [("train", 1, {}), ("train", 2, {})]
    loss, bits = _figures(tmp_path, monkeypatch, [*steps, score])["loss.png"]
    assert [text.get_text() for text in loss.texts] == ["4.000"], "its name would lie on the curve"
    assert _labels(loss)[-1] == "held-out, at the end"
    assert bits.get_legend() is None, "a point in it would look like another score"
    assert [text.get_text() for text in bits.texts] == ["held-out, at the end: 2.500"]
    assert bits.get_ylim()[0] == 0
    sample = ("heldout", 1, {"loss": 5.0, "bits_per_byte": 3.0})
    (tmp_path / "metrics.jsonl").unlink()
    _, bits = _figures(tmp_path, monkeypatch, [steps[0], sample, steps[1], score])["loss.png"]
    assert _labels(bits) == ["held-out, a sample", "held-out, at the end"]
    assert bits.get_legend().get_frame_on()
