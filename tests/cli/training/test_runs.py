"""`nano3 runs`: the list, each state of a run, and the comparison."""

import json
import shutil

import pytest
from matplotlib.image import imread

from nano3.cli.app import main
from nano3.config.presets import load_extend_context, load_pretrain, load_sft, to_toml
from nano3.files import exclusive
from nano3.train.tracking.metrics import MetricsWriter


def make_run(folder, *, steps=4, cfg=None, rate=1.0, final=True):
    """A run of 4 steps of 64 tokens of which `steps` are done."""
    folder.mkdir(parents=True)
    cfg = cfg or load_pretrain("tiny", ["train.tokens=256"])
    (folder / "config.toml").write_text(to_toml(cfg))
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        values = {"seq_len": 64, "loss": 6 / step**rate, "load_max_over_mean": []}
        writer.write("train", step, 64 * step, values, {"seconds": 2.0 * step})
        if step == 2:
            _score(writer, step, {"loss": 3.5, "bits_per_byte": 2.5, "targets": 32})
    if steps == 4 and final:
        _score(writer, steps, {"loss": 3.0, "bits_per_byte": 2.25, "targets": 100, "final": True})
    writer.close()
    checkpoint = folder / "checkpoints" / f"step-{steps}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"1234")
    (checkpoint / "manifest.json").write_text(json.dumps({"files": {"weights": {"bytes": 4, "crc32": 0}}}))
    if steps == 4:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / "model.safetensors").write_bytes(b"")
    return folder


def _score(writer, step, values):
    writer.write("heldout", step, 64 * step, {"seq_len": 64, **values})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(run, *args):
    done = run("runs", *args, "--json")
    assert done.code == 0, done.err
    return {one["path"].split("/")[-1]: one for one in json.loads(done.out)["runs"]}


def test_the_runs_of_a_folder_with_what_they_are_and_how_they_went(here, run):
    make_run(here / "runs" / "pretrain-tiny-2")
    (here / "runs" / "eval-ruler-x").mkdir()
    (here / "runs" / "eval-ruler-x" / "result.json").write_text("{}")
    make_run(here / "runs" / "long", cfg=load_extend_context("tiny", ["train.tokens=256"]))
    make_run(here / "runs" / "phase1")
    found = listed(run)
    assert sorted(found) == ["long", "phase1", "pretrain-tiny-2"]
    assert found["phase1"]["preset"] is None, "a folder that somebody named so"
    assert (found["long"]["verb"], found["long"]["preset"]) == ("extend-context", None)
    mine = found["pretrain-tiny-2"]
    expected = {"verb": "pretrain", "preset": "tiny", "state": "finished", "step": 4, "tokens": 256, "seconds": 8.0}
    assert mine.items() >= expected.items()
    assert mine["scores"] == [{"seq_len": 64, "loss": 3.0, "bits_per_byte": 2.25, "targets": 100, "final": True}]
    done = run("runs")
    assert all(word in done.out for word in ("pretrain-tiny-2", "extend-context", "2.250", "finished", "256", "8s"))


@pytest.mark.parametrize("columns", [72, 80, 120])
def test_the_list_fits_the_terminal_and_has_no_empty_column(here, columns, monkeypatch, capsys):
    for name, steps in (("mine", 4), ("stopped", 3), ("a-run-with-a-longer-name", 4)):
        make_run(here / "runs" / name, steps=steps)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("nano3.cli.output.PIPE_WIDTH", columns)
    with pytest.raises(SystemExit):
        main(["runs"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    (head,) = [line for line in lines if line.lstrip().startswith("run ")]
    assert "preset" not in head
    assert ("changed" in head) == (columns == 120)
    (stopped,) = [line for line in lines if line.lstrip().startswith("stopped")]
    assert all(word in stopped for word in ("interrupted", "192 of 256", "~2.500"))


def test_a_run_that_stopped_shows_how_far_it_came_and_that_its_score_is_of_a_sample(here, run):
    make_run(here / "all" / "stopped", steps=3)
    assert listed(run, "all")["stopped"]["state"] == "interrupted"
    done = run("runs", "all")
    assert all(word in done.out for word in ("interrupted", "192 of 256", "~2.500", "sample"))


def test_a_run_that_has_to_score_or_export_yet_is_not_finished(here, run):
    folder = make_run(here / "runs" / "a", final=False)
    shutil.rmtree(folder / "model")
    assert listed(run)["a"]["state"] == "interrupted"


def test_a_run_whose_length_was_raised_after_it_ended_is_not_finished(here, run):
    folder = make_run(here / "runs" / "a")
    (folder / "config.toml").write_text(to_toml(load_pretrain("tiny", ["train.tokens=512"])))
    assert listed(run)["a"]["state"] == "interrupted"


def test_a_run_that_goes_on_is_known_by_its_lock_and_looking_does_not_stop_one_that_begins(here, run):
    folder = make_run(here / "runs" / "a", steps=3)
    with exclusive(folder):
        assert listed(run)["a"]["state"] == "running"
        assert "running" in run("runs").out
    assert listed(run)["a"]["state"] == "interrupted"
    with exclusive(folder):
        pass


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda run: (run / "config.toml").write_text("[train"), "config.toml cannot be read"),
        (lambda run: (run / "config.toml").write_bytes(b"\xff"), "config.toml cannot be read"),
        (lambda run: (run / "config.toml").write_text("train = 3\n"), "has no [train]"),
        (lambda run: (run / "config.toml").unlink(), "no config.toml"),
        (lambda run: (run / "checkpoints" / "step-4" / "weights").write_bytes(b"12"), "no checkpoint is whole"),
        (lambda run: (run / "checkpoints" / "step-4" / "manifest.json").unlink(), "no checkpoint is whole"),
        (lambda run: (run / "checkpoints" / "step-4" / "manifest.json").write_text("[1]"), "no checkpoint is whole"),
        (lambda run: (run / "model" / "model.safetensors").unlink(), "has no weights"),
    ],
)
def test_a_damaged_run_says_what_is_wrong_beside_those_that_are_not(here, run, harm, words):
    harm(make_run(here / "runs" / "bad"))
    make_run(here / "runs" / "good")
    assert {name: one["state"] for name, one in listed(run).items()} == {"bad": "damaged", "good": "finished"}
    done = run("runs")
    assert done.code == 0
    assert words in done.err


@pytest.mark.parametrize("text", ['{"kind": "train"}\n', "[1, 2]\n", "null\n", '{"kind": "train", "step": "x"}\n', ""])
def test_lines_of_other_kinds_in_metrics_are_no_traceback(here, run, text):
    folder = make_run(here / "runs" / "odd")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)
    assert listed(run)["odd"]["step"] == 4
    assert run("runs", "compare", folder, folder).code == 0


def test_a_folder_that_is_a_run_is_listed_alone_and_one_that_is_not_there_is_an_error(here, run):
    folder = make_run(here / "one")
    assert list(listed(run, folder)) == ["one"]
    done = run("runs", "nowhere")
    assert (done.code, done.out) == (2, "")
    assert "nowhere: no such folder" in done.err
    (here / "empty").mkdir()
    done = run("runs", "empty")
    assert (done.code, done.out) == (0, "")
    assert "holds no runs" in done.err


def test_runs_beside_each_other_with_their_curves(here, run):
    make_run(here / "a")
    make_run(here / "b", steps=3, rate=0.5)
    done = run("runs", "compare", "fast=a", "b", "--out", "charts/both.png")
    assert done.code == 0
    assert all(word in done.out for word in ("fast", "finished", "interrupted", "2.250", "~2.500", "32", "100", "192"))
    assert imread(here / "charts" / "both.png")[..., :3].std() > 0.02
    assert [path.name for path in (here / "charts").iterdir()] == ["both.png"]
    rows = json.loads(run("runs", "compare", "fast=a", "b", "--json").out)["runs"]
    assert [row["label"] for row in rows] == ["fast", "b"]
    assert [row["tokens_per_second"] for row in rows] == [32.0, 32.0]


def test_the_chart_of_a_comparison_has_a_line_a_run_and_keeps_samples_apart_from_the_last_score(here, monkeypatch):
    from nano3.train.tracking import run_comparison

    figures = []
    monkeypatch.setattr(run_comparison, "save", lambda drawn, path: figures.append(drawn) or path)
    runs = run_comparison.read_curves(
        [str(make_run(here / "x" / "same")), str(make_run(here / "y" / "same", rate=0.5))]
    )
    run_comparison.draw(runs, here / "c.png")
    names = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figures[0].axes]
    assert names[0] == names[2] == ["same", "same (2)"]
    assert names[1] == [f"{run}, {part}" for run in names[0] for part in ("a sample: 2.500", "at the end: 2.250")]
    first, second = (line.get_ydata() for line in figures[0].axes[0].lines)
    assert first[-1] < second[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a"], "two runs or more"),
        (["a", "nope"], "nope: no such folder"),
        (["a", "void"], "void has no steps with a loss"),
        (["a", "a", "--out", "chart.svg"], "name of a PNG file"),
    ],
)
def test_what_cannot_be_compared_is_one_line(here, run, args, words):
    make_run(here / "a")
    (here / "void").mkdir()
    done = run("runs", "compare", *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert done.err.count("\n") == 1


def make_policy_run(folder, gain):
    """A run that is trained on rewards, of 4 steps."""
    make_run(folder)
    (folder / "metrics.jsonl").unlink()
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in range(1, 5):
        values = {"policy_loss": 0.01, "reward": gain * step, "pass_rate": gain * step / 2, "zero_variance": 0.5}
        writer.write("train", step, 64 * step, {**values, "load_max_over_mean": []}, {"seconds": 2.0 * step})
    writer.close()
    return folder


def test_a_run_that_is_trained_on_rewards_is_listed_with_its_reward(here, run):
    make_policy_run(here / "a", 0.1)
    assert (listed(run, "a")["a"]["reward"], listed(run, "a")["a"]["loss"]) == (0.4, None)
    text = run("runs", "a").out
    assert "reward" in text
    assert "0.400" in text
    make_run(here / "b")
    assert "reward" not in run("runs", "b").out


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        (load_sft("tiny"), "(pretrain and sft train on texts of two kinds)"),
        (load_pretrain("tiny", ["data.seed=7", "data.heldout_fraction=0.1"]), "(data.heldout_fraction, data.seed)"),
        (load_pretrain("tiny", ["data.blend={b=1}", 'data.sources={b=["x"]}']), "(data.blend)"),
        (load_pretrain("tiny", ["train.seed=7", "train.tokens=512"]), ""),
    ],
)
def test_losses_of_different_texts_are_told_in_a_line_and_in_the_chart(here, run, monkeypatch, cfg, told):
    make_run(here / "a")
    make_run(here / "b", cfg=cfg)
    notes = []
    monkeypatch.setattr(
        "nano3.train.tracking.run_comparison.save",
        lambda drawn, path: notes.append(drawn.get_supxlabel()) or path,
    )
    done = run("runs", "compare", "a", "b", "--out", "curves.png")
    said = f"these runs have different texts {told}: their losses and held-out scores cannot be compared"
    assert notes == [said if told else ""]
    assert (f"note: {said}\n" in done.err) == bool(told)
    assert ("note:" in done.err) == bool(told)


def test_runs_that_are_trained_on_rewards_are_compared_by_them(here, run, monkeypatch):
    make_policy_run(here / "a", 0.1), make_policy_run(here / "b", 0.2)
    done = run("runs", "compare", "a", "b", "--out", "curves.png", "--json")
    rows = json.loads(done.out)["runs"]
    assert [row["train_loss"] for row in rows] == [None, None]
    assert rows[1]["reward"] == pytest.approx(2 * rows[0]["reward"])
    assert rows[0]["pass_rate"] == pytest.approx(rows[0]["reward"] / 2)
    assert imread(here / "curves.png")[..., :3].std() > 0.02
    text = run("runs", "compare", "a", "b").out
    assert "reward, smoothed" in text
    assert "loss" not in text
    from nano3.train.tracking import run_comparison

    figures = []
    monkeypatch.setattr(run_comparison, "save", lambda drawn, path: figures.append(drawn))
    run_comparison.draw(run_comparison.read_curves(["a", "b"]), here / "again.png")
    axes = figures[0].axes
    assert [axis.get_xlabel() for axis in axes] == ["step", "minutes of training"]
    assert [list(line.get_xdata()) for line in axes[0].lines] == [[1, 2, 3, 4]] * 2


def test_a_reward_and_a_loss_are_not_drawn_over_each_other(here, run):
    make_policy_run(here / "a", 0.1), make_run(here / "b")
    done = run("runs", "compare", "a", "b")
    assert done.code == 2
    assert "no metric in common: a by its reward, b by its loss" in done.err
