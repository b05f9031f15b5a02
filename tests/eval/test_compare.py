"""Stages side by side: intervals, paired differences, what may not be compared, and the chart."""

from __future__ import annotations

import json
import random

import pytest

from nano3.config.errors import UserError
from nano3.eval import compare_chart
from nano3.eval.compare import compare, document, notes
from nano3.eval.compare_chart import draw
from nano3.eval.compare_stage import RowKey, load_stage
from nano3.eval.compare_text import FIRST, PREVIOUS, card, cell_text
from nano3.eval.store import Result, Score, open_store

ALL = "string_match_all"


def ruler(folder, scores: dict[tuple[str, int], list[float]], seed: int = 0, complete: bool = True) -> None:
    """A result folder with these samples, and the mean of the tasks."""
    tasks = list(dict.fromkeys(task for task, _ in scores))
    settings = {"seed": seed, "sources": {"words": "w"}, "tasks": tasks, "lengths": [512], "samples": 4}
    with open_store(folder, settings) as store:
        table = []
        for (task, length), values in scores.items():
            for index, value in enumerate(values):
                store.add({"task": task, "length": length, "index": index, "score": value})
            table.append(Score(task, length, ALL, 100 * sum(values) / len(values), 1.0, len(values)))
        mean = sum(score.value for score in table) / len(table)
        table.append(Score("average", 512, "mean of the tasks", mean, 1.0, 8))
        store.finish(Result("ruler", "ruler-offline", "m", complete, settings, table))


def better(values: list[float], rng: random.Random) -> list[float]:
    """The same samples, one in five of the failed ones answered."""
    return [1.0 if value or rng.random() < 0.2 else 0.0 for value in values]


@pytest.fixture
def folders(tmp_path):
    rng = random.Random(1)
    before = [float(rng.random() < 0.5) for _ in range(100)]
    after = better(before, rng)
    ruler(tmp_path / "a", {("vt", 512): before, ("cwe", 512): before})
    ruler(tmp_path / "b", {("vt", 512): after, ("cwe", 512): after})
    return tmp_path


def row_of(rows, task: str):
    return next(row for row in rows if row.key.task == task)


def test_the_same_samples_are_compared_one_by_one(folders):
    stages = [load_stage(str(folders / "a")), load_stage(f"after={folders / 'b'}")]
    assert [stage.label for stage in stages] == ["a", "after"]
    rows = compare(stages)
    first, second = row_of(rows, "vt").cells
    assert first.low < first.value < first.high
    assert first.change is None
    assert second.change == pytest.approx(second.value - first.value)
    assert second.paired
    assert second.differs, "a paired difference shows what two overlapping intervals hide"
    assert second.low < first.high
    mean = row_of(rows, "average").cells[1]
    assert mean.paired
    assert mean.change_low < mean.change < mean.change_high
    assert document(stages, rows) == document(stages, compare(stages))


def test_few_samples_get_no_star_by_chance(tmp_path):
    ruler(tmp_path / "a", {("vt", 512): [0.0], ("cwe", 512): [0.0] * 5})
    ruler(tmp_path / "b", {("vt", 512): [1.0], ("cwe", 512): [1.0] * 5})
    ruler(tmp_path / "c", {("vt", 512): [1.0], ("cwe", 512): [1.0] * 5}, seed=1)
    for other, paired in (("b", True), ("c", False)):
        rows = compare([load_stage(str(tmp_path / name)) for name in ("a", other)])
        for task in ("vt", "cwe"):
            cell = row_of(rows, task).cells[1]
            assert (cell.change, cell.paired) == (100.0, paired)
            assert cell.change_low < 100.0
        assert not row_of(rows, "vt").cells[1].differs
    assert not row_of(compare([load_stage(str(tmp_path / name)) for name in ("a", "b")]), "cwe").cells[1].differs


def test_a_mean_of_tasks_that_are_all_right_has_an_interval(tmp_path):
    ruler(tmp_path / "a", {("vt", 512): [1.0] * 3, ("cwe", 512): [1.0] * 3})
    cell = row_of(compare([load_stage(str(tmp_path / "a"))]), "average").cells[0]
    assert cell.high == 100.0
    assert 50 < cell.low < 80, "six right answers"


def test_only_the_sources_of_a_task_decide_whether_its_samples_are_the_same(tmp_path):
    values = {("vt", 512): [1.0, 0.0] * 10, ("cwe", 512): [1.0, 0.0] * 10}
    for name, words in (("a", "w"), ("b", "other")):
        ruler(tmp_path / name, values)
        file = tmp_path / name / "result.json"
        file.write_text(file.read_text().replace('"words": "w"', f'"words": "{words}"'))
    rows = compare([load_stage(str(tmp_path / name)) for name in ("a", "b")])
    assert row_of(rows, "vt").cells[1].paired, "vt uses no words"
    assert not row_of(rows, "cwe").cells[1].paired


def test_each_metric_of_the_harness_has_its_own_samples(tmp_path):
    for name, norm in (("a", [0.0] * 10 + [1.0] * 10), ("b", [0.0, 1.0] * 10)):
        with open_store(tmp_path / name, {"seed": 0}) as store:
            for index, value in enumerate(norm):
                metrics = {"acc": 1.0, "acc_norm": value}
                store.add({"task": "arc", "length": None, "index": index, "score": 1.0, "metrics": metrics})
            scores = [Score("arc", None, "acc", 100.0, 0.0, 20), Score("arc", None, "acc_norm", 50.0, 11.5, 20)]
            store.finish(Result("lm", "lm", "m", True, {"seed": 0}, scores))
    rows = compare([load_stage(str(tmp_path / name)) for name in ("a", "b")])
    cells = {row.key.metric: row.cells[1] for row in rows}
    assert cells["acc_norm"].paired
    assert cells["acc"].paired
    assert cells["acc_norm"].change == 0


def test_other_questions_are_not_compared_one_by_one(folders):
    ruler(folders / "c", {("vt", 512): [1.0, 0.0] * 50, ("cwe", 512): [1.0, 0.0] * 50}, seed=1)
    stages = [load_stage(str(folders / name)) for name in ("a", "c")]
    cell = row_of(compare(stages), "vt").cells[1]
    assert not cell.paired
    assert cell.change_low < cell.change < cell.change_high
    assert notes(stages) == ["c: ruler-offline was run with seed 1 (a: 0)"]


def test_a_mean_over_other_tasks_gets_no_difference(folders):
    ruler(folders / "d", {("vt", 512): [1.0] * 100}, complete=False)
    stages = [load_stage(str(folders / name)) for name in ("a", "d")]
    rows = compare(stages)
    assert row_of(rows, "average").cells[1].change is None
    assert row_of(rows, "cwe").cells[1] is None
    alike = row_of(rows, "vt").cells[1]
    assert alike.low < alike.high == 100.0, "a hundred right answers are no proof of all"
    assert notes(stages)[0] == "d: ruler-offline is not complete"
    assert "other tasks (1; a: 2)" in notes(stages)[1]


def test_a_training_run_brings_its_held_out_loss_and_the_results_inside_it(folders):
    run = folders / "run"
    ruler(run / "eval-ruler", {("vt", 512): [1.0] * 4})
    lines = [{"kind": "heldout", "step": s, "tokens": s, "bits_per_byte": 2.0 - s / 10, "loss": 1.0} for s in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = load_stage(str(run))
    assert stage.scores[RowKey("heldout", "held-out", None, "bits_per_byte")]["value"] == 1.8
    assert RowKey("ruler", "vt", 512, ALL) in stage.scores


def test_held_out_loss_at_several_sequence_lengths_is_a_row_for_each(folders):
    lines = [{"kind": "heldout", "step": step, "seq_len": length, "bits_per_byte": bits}
             for step, length, bits in ((1, 512, 3.0), (1, 8192, 2.9), (2, 512, 2.0), (2, 8192, 1.9))]  # fmt: skip
    (folders / "run").mkdir()
    (folders / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = load_stage(str(folders / "run"))
    rows = compare([stage, stage])
    assert [(row.key.length, row.cells[0].value) for row in rows] == [(512, 2.0), (8192, 1.9)]
    assert draw([stage, stage], rows, folders / "c.png").is_file()


def test_bits_per_byte_of_other_texts_get_a_note(tmp_path):
    for name, size in (("a", 86_201), ("b", 33_752), ("same", 86_201)):
        line = {"kind": "heldout", "step": 1, "seq_len": 512, "bits_per_byte": 2.0, "bytes": size}
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    stages = [load_stage(str(tmp_path / name)) for name in ("a", "same", "b")]
    assert notes(stages) == ["b: held-out texts differ: 33,752 bytes, 86,201 bytes in a"]


def without_samples(folder, value, n):
    """A stage of one accuracy with a standard error of 2."""
    folder.mkdir()
    score = {"task": "arc", "length": None, "metric": "acc", "value": value, "stderr": 2.0, "n": n}
    result = {"kind": "lm", "name": "lm", "model": folder.name, "complete": True, "settings": {}, "scores": [score]}
    (folder / "result.json").write_text(json.dumps(result))
    return load_stage(str(folder))


def test_numbers_without_samples_use_their_standard_error(tmp_path):
    (row,) = compare([without_samples(tmp_path / "a", 50.0, 625), without_samples(tmp_path / "b", 60.0, 625)])
    assert row.cells[0].high == pytest.approx(53.92, abs=0.01)
    assert row.cells[1].change_low == pytest.approx(10 - 1.96 * 8**0.5, abs=0.01)


@pytest.mark.parametrize("kept", [0, 5])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_lost_samples_are_told_and_make_no_certainty(tmp_path, kept, value):
    ruler(tmp_path / "a", {("vt", 512): [value] * 25, ("cwe", 512): [value] * 25})
    ruler(tmp_path / "b", {("vt", 512): [value] * 25, ("cwe", 512): [value] * 25})
    file = tmp_path / "b" / "samples.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:kept]))
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    for score in result["scores"][:2]:
        score.update(stderr=0.0, low=None, high=None)
    result["scores"][2].update(stderr=0.0, low=value * 93.0, high=7.0 + value * 93.0)
    (tmp_path / "b" / "result.json").write_text(json.dumps(result))
    stages = [load_stage(str(tmp_path / name)) for name in "ab"]
    assert notes(stages) == [
        f"{tmp_path / 'b'}: samples.jsonl has {kept} of 50 samples; intervals are those of result.json"
    ]
    for row in compare(stages):
        cell = row.cells[1]
        assert 5 < cell.high - cell.low < 15, row.key
        assert 0.0 <= cell.low <= cell.value <= cell.high <= 100.0
        assert cell.change_low < cell.change < cell.change_high
        assert not cell.paired
    assert draw(stages, compare(stages), tmp_path / "c.png").is_file()


def test_an_interval_of_shares_ends_at_none_and_all(tmp_path):
    (row,) = compare([without_samples(tmp_path / "a", 1.0, 25), without_samples(tmp_path / "b", 99.5, 25)])
    assert row.cells[0].low == 0.0
    assert row.cells[1].high == 100.0


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not JSON"), ("[]", "not a JSON object"), ('{"kind": "lm"}', "not a result of nano3")]
)
def test_a_broken_result_is_one_line(tmp_path, content, said):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_stage(str(tmp_path))


def test_nothing_to_compare_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no result\.json with scores"):
        load_stage(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        load_stage(str(tmp_path / "missing"))


def test_a_chart_is_drawn_of_lengths_and_of_single_numbers(folders):
    (folders / "a" / "metrics.jsonl").write_text('{"kind": "heldout", "step": 1, "tokens": 1, "bits_per_byte": 2}\n')
    stages = [load_stage(str(folders / name)) for name in ("a", "b")]
    path = draw(stages, compare(stages), folders / "charts" / "c.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_held_out_tasks_of_reinforcement_learning_are_rows(tmp_path):
    rewards = {"count": {f"t{i}": i % 2 for i in range(40)}}
    lengths = {"quality": rewards, "think_tokens": {"count": {f"t{i}": 30 + i % 3 for i in range(40)}}}
    after = {"count": dict.fromkeys(rewards["count"], 1)}
    for name, table in (("rlvr", {"before": rewards, "after": after}), ("rlhf", {"before": lengths})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "heldout.json").write_text(json.dumps(table), "utf-8")
    rows = compare([load_stage(str(tmp_path / name)) for name in ("rlvr", "rlhf")])
    cells = {(row.key.task, row.key.metric): row.cells for row in rows}
    assert cells["count", "reward"][0].value == 1  # after the run
    assert cells["count", "quality"][1].value == 0.5  # before it, where it has not ended
    assert cells["count", "quality"][1].low < 0.5 < cells["count", "quality"][1].high
    assert cells["count", "reward"][1] is None
    assert [row.higher_is_better for row in rows if row.key.metric == "think_tokens"] == [False]
    (tmp_path / "rlhf" / "heldout.json").write_text('{"before": [1]}', "utf-8")
    with pytest.raises(UserError, match=r"heldout\.json: no held-out tasks"):
        load_stage(str(tmp_path / "rlhf"))


def test_one_result_has_one_interval(folders):
    """However often and wherever it stands."""
    stages = [load_stage(str(folders / name)) for name in ("a", "a", "b", "a")]
    for row in compare(stages):
        first, again, _, last = row.cells
        assert (first.low, first.high) == (again.low, again.high) == (last.low, last.high)
        assert (again.change, again.change_low < 0 < again.change_high) == (0.0, True)


def test_each_stage_can_be_compared_with_the_one_before(folders):
    names = ("a", "b", "empty", "a")
    (folders / "empty").mkdir()
    (folders / "empty" / "metrics.jsonl").write_text('{"kind": "heldout", "step": 1, "bits_per_byte": 2}\n')
    stages = [load_stage(str(folders / name)) for name in names]
    first, previous = (row_of(compare(stages, previous=each), "vt").cells for each in (False, True))
    assert first[3].change == 0
    assert previous[3].change == pytest.approx(-first[1].change), "the stage between has no such number"
    assert previous[1] == first[1]
    assert previous[3].paired


def tasks(folder, lengths: list[float]) -> None:
    """A result of held-out tasks, all of them solved, by so many tokens of reasoning."""
    with open_store(folder, {"seed": 0, "sets": {"sort": True}}) as store:
        for index, tokens in enumerate(lengths):
            metrics = {"accuracy": 1.0, "thinking_tokens": tokens}
            store.add({"task": "sort", "length": None, "index": index, "score": 1.0, "metrics": metrics})
        n, mean = len(lengths), sum(lengths) / len(lengths)
        scores = [
            Score("sort", None, "accuracy", 100.0, 0.0, n),
            Score("sort", None, "thinking_tokens", mean, 9.0, n, False),
        ]
        store.finish(Result("tasks", "tasks", "m", True, {"seed": 0}, scores))


def test_numbers_that_are_no_shares_are_compared_sample_by_sample(tmp_path):
    """Lengths that differ much from task to task, each 2 tokens shorter or as long: far clearer than their spread."""
    before = [float(10 + 7 * i % 60) for i in range(40)]
    tasks(tmp_path / "a", before)
    tasks(tmp_path / "b", [length - 2 * (i % 2) for i, length in enumerate(before)])
    cell = {row.key.metric: row.cells[1] for row in compare([load_stage(str(tmp_path / name)) for name in "ab"])}
    lengths = cell["thinking_tokens"]
    assert lengths.paired
    assert lengths.change == pytest.approx(-1.0)
    assert -1.4 < lengths.change_low < lengths.change_high < -0.6
    assert lengths.low < lengths.value < lengths.high


def test_a_card_has_every_number_and_names_its_baseline(folders):
    stages = [load_stage(f"{label}={folders / name}") for label, name in (("one", "a"), ("2*", "b"))]
    rows = compare(stages)
    page = card(stages, rows, ["a note"], "c.png", FIRST)
    assert page.startswith("# one to 2*\n\n![scores by stage, with 95 % intervals](c.png)\n")
    assert "difference from the first" in page
    assert "difference from the one before" in card(stages, rows, [], "c.png", PREVIOUS)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines[0] == "|  | length | one | 2\\* |"
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(rows)
    for row in rows:
        assert any(cell_text(row.cells[0]) in line for line in lines)
    assert page.endswith("- a note\n")


def test_a_chart_of_many_stages_draws_each_number_over_them(folders, monkeypatch):
    """A panel for each task, with a line for each length and a point for each stage that has the number."""
    from nano3.eval import compare_course

    (folders / "d").mkdir()
    (folders / "d" / "metrics.jsonl").write_text('{"kind": "heldout", "step": 1, "bits_per_byte": 2}\n')
    stages = [load_stage(str(folders / name)) for name in ("a", "b", "d", "a")]
    drawn = []
    draw_panel = compare_course.draw_panel
    monkeypatch.setattr(compare_course, "draw_panel", lambda axis, *rest: (draw_panel(axis, *rest), drawn.append(axis)))
    assert draw(stages, compare(stages), folders / "c.png").is_file()
    lines = {axis.get_title("left"): [list(line.get_ydata()) for line in axis.lines] for axis in drawn}
    vt = [row_of(compare(stages), "vt").cells[place].value for place in (0, 1, 3)]
    assert vt in lines["RULER: vt, %"]
    assert [2.0] in lines["held-out: bits per byte (lower is better)"]


@pytest.mark.parametrize("names", [["count"], ["count", "spell", "sort", "json", "tool", "talk"]])
def test_a_number_of_several_tasks_is_one_panel_whose_bars_and_names_have_room(tmp_path, monkeypatch, names):
    with open_store(tmp_path / "a", {"seed": 0}) as store:
        scores = [Score(name, None, "accuracy", 50.0, 1.0, 9) for name in names]
        scores += [Score(name, None, "thinking_tokens", 150.0, 1.0, 9, False) for name in names]
        store.finish(Result("tasks", "tasks", "m", True, {"seed": 0}, scores))
    stages, figures = [load_stage(str(tmp_path / "a"))] * 2, []
    new_figure = compare_chart.new_figure
    monkeypatch.setattr(compare_chart, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[0])
    draw(stages, compare(stages), tmp_path / "c.png")
    axes = [axis for axis in figures[0].axes if axis.get_visible()]
    titles = ["tasks: accuracy, %", "tasks: thinking tokens (lower is better)"]
    assert [axis.get_title("left") for axis in axes] == titles
    for axis in axes:
        low, high = axis.get_xlim()
        assert max(bar.get_width() for bar in axis.patches) < (high - low) / 4
        shown = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert len(shown) == len(names)
        assert not any(a.overlaps(b) for i, a in enumerate(shown) for b in shown[:i])
