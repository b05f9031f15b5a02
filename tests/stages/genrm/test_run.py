"""A generative reward model, from a folder to a folder that judges."""

import dataclasses
import itertools
import json

import pytest
from safetensors.torch import load_file

from nano3.config.errors import UserError
from nano3.config.presets import load_genrm, load_sft
from nano3.data.preferences.layouts import read_pairs
from nano3.data.preferences.made import made_pairs
from nano3.data.preferences.pair import in_both_orders
from nano3.data.preferences.prompt import training_row
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.hf.folder import save
from nano3.model.lm import LM
from nano3.reading import read_json
from nano3.rl.environments.base import Task
from nano3.rl.feedback.comparison import Comparison
from nano3.rl.feedback.find import find_judge
from nano3.rl.rollout_files import read_rollouts, rollouts_path
from nano3.stages import sft
from nano3.stages.genrm.heldout import judgements_file, read_judged
from nano3.stages.genrm.run import main
from nano3.stages.new_run import START
from nano3.train.tracking.progress import Silent
from nano3.train.tracking.run_comparison import read_curves
from nano3.train.tracking.runs import read_run
from nano3.train.trainer import Trainer

PAIRS = "generate:preferences?tasks=spell"
SETTINGS = [
    f"data.sources={PAIRS}",
    "data.generated_pairs=12",
    "warm_start.pack_length=512",
    "warm_start.train.steps=2",
    "warm_start.train.batch_size=2",
    "warm_start.train.micro_batch_size=2",
    "warm_start.checkpoint.every_steps=1",
    "rollout.prompts=4",
    "rollout.group=4",
    "rollout.max_tokens=40",
    "rollout.thinking=false",
    "train.pack_length=512",
    "train.steps=3",
    "checkpoint.every_steps=1",
    "judging.pairs=8",
    "judging.memory=0.1",
    "stop.truncated=1",
]
START_SETTINGS = [
    "data.blend={pairs=1}",
    f"data.sources={{pairs=['{PAIRS}']}}",
    "data.generated_rows=200",
    "data.heldout_fraction=0",
    "data.pack_length=512",
    "reasoning.strip_fraction=1",
    "reasoning.truncate_fraction=0",
    "train.steps=60",
    "train.batch_size=2",
    "train.micro_batch_size=2",
    "schedule.peak_lr=1e-2",
    "answers.tasks=0",
]
"""A model that goes through these writes judgements that have the right form, and are no better than chance."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model that writes judgements."""
    rows = [training_row(pair)["messages"] for pair in made_pairs(PAIRS, 40)]
    tokenizer = Tokenizer.train(["\n".join(message["content"] for message in row) for row in rows], 400)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 64, "d_expert": 32, "d_shared": 32, "pattern": "M*E"}
    folder = tmp_path_factory.mktemp("base")
    new = LM(dataclasses.replace(load_sft("tiny").model, **sizes, **ids)).init_weights(0)
    save(new, folder / "new", extra=tokenizer.save)
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        sft.main(load_sft("tiny", START_SETTINGS), folder / "base", folder / "new", progress=Silent())
    return folder / "base" / "model"


def without_charts(patch, judging=True):
    """Those of training, which take a second each, and those of `judging`."""
    patch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])
    if judging:
        patch.setattr("nano3.stages.genrm.run.draw_judging", lambda scoring, stages, path: path)


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    without_charts(monkeypatch)


def run(folder, base, *settings):
    return main(load_genrm("tiny", [*SETTINGS, *settings]), folder, base, progress=Silent())


def resume(folder, *settings):
    return main(load_genrm(str(folder), settings), folder, resume=True, progress=Silent())


def steps_of(folder):
    """All that metrics.jsonl says of the steps, but for wall-clock values."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "clock"} for line in lines if line["kind"] == "train"]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch, judging=False)
        return run(folder, base), folder


def test_a_run_trains_twice_and_is_scored_twice(finished):
    result, folder = finished
    summary = result.summary()
    json.dumps(summary)
    assert summary["pairs"] == {"train": 12, "heldout": 8, "refused": 0}
    assert (summary["warm_start"]["steps"], summary["grpo"]["steps"]) == (2, 3)
    assert (summary["interrupted"], summary["stopped"]) == (False, None)
    measures = {measure["name"]: measure for measure in summary["judging"]["measures"]}
    assert set(measures) == {"order_agreement", "score_error", "ranking_error", "format_violations", "reward"}
    for measure in measures.values():
        assert set(measure["stages"]) == {"warm_start", "grpo"}
    judged = read_judged(judgements_file(folder, "step-000003"))
    assert any(each.said for each in judged)
    assert measures["format_violations"]["stages"]["grpo"]["value"] == sum(not each.said for each in judged) / 8
    assert read_json(folder / "judging.json") == summary["judging"]
    assert (folder / "charts" / "judging.png").read_bytes().startswith(b"\x89PNG")


def test_the_parts_train_on_the_pairs_in_both_orders_and_the_model_moves_in_both(finished, base):
    _, folder = finished
    pairs = in_both_orders(read_pairs(str(folder / "pairs" / "train.jsonl")))
    assert read_json(folder / "warm-start" / "data.json")[0]["rows"] == 24
    samples = [sample for n in (1, 2, 3) for sample in read_rollouts(rollouts_path(folder / "grpo", n))]
    assert len({sample.task for sample in samples}) > 6
    assert {sample.task.endswith("-swapped") for sample in samples} == {True, False}
    assert {sample.task for sample in samples} < {pair.id for pair in pairs}
    states = [load_file(base / "model.safetensors"), weights(folder / "warm-start"), weights(folder / "grpo")]
    for before, after in itertools.pairwise(states):
        assert any(not before[name].equal(after[name]) for name in before)
    last = weights(folder)
    assert all(last[name].equal(states[2][name]) for name in last)


def test_the_folder_is_a_judge(finished):
    _, folder = finished
    judge = find_judge(str(folder), max_tokens=40, memory=0.1, thinking=False)
    pairs = list(read_pairs(str(folder / "pairs" / "heldout.jsonl")))
    verdicts = judge.compare(
        [Comparison("x", Task(pair.id, tuple(pair.prompt)), pair.response_1, pair.response_2) for pair in pairs]
    )
    assert judge.calls == 8
    # What it says there is what it was scored by.
    judged = read_judged(judgements_file(folder, "step-000003"))
    assert [verdict.judgement for verdict in verdicts] == [each.said for each in judged]
    assert any(verdict.judgement for verdict in verdicts)


class Killed(BaseException):
    """The process was killed here."""


def killed_at(monkeypatch, stage, step):
    """Kill the training of a stage before one of its steps."""
    made = Trainer._step

    def stopping(self, stop):
        if self.model.stage == stage and self.position.step == step:
            raise Killed
        return made(self, stop)

    monkeypatch.setattr(Trainer, "_step", stopping)


@pytest.mark.parametrize(("stage", "step"), [("sft", 0), ("sft", 1), ("rlvr", 0), ("rlvr", 2)])
def test_a_resumed_run_is_the_run_that_was_not_stopped(finished, base, tmp_path, monkeypatch, stage, step):
    whole, parted = finished[1], tmp_path / "parted"
    killed_at(monkeypatch, stage, step)
    with pytest.raises(Killed):
        run(parted, base)
    assert not (parted / "model").exists()
    monkeypatch.undo()
    without_charts(monkeypatch)
    if (stage, step) == ("sft", 1):
        with pytest.raises(UserError, match=r"^warm_start: .*--set warm_start\.schedule\.horizon_steps=2"):
            resume(parted, "warm_start.train.steps=5")
    result = resume(parted)
    assert result.summary()["judging"] == finished[0].summary()["judging"]
    for part in ("warm-start", "grpo"):
        assert steps_of(parted / part) == steps_of(whole / part)
    for name in ("warm-start", "step-000003"):
        assert judgements_file(parted, name).read_text() == judgements_file(whole, name).read_text()
    ours, theirs = weights(whole), weights(parted)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_run_that_was_killed_while_it_prepared_a_part_begins_it_again(finished, base, tmp_path, monkeypatch):
    monkeypatch.setattr("nano3.stages.sft.keep_start", lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(tmp_path / "run", base)
    assert (tmp_path / "run" / "warm-start" / "rows").is_dir()
    assert not (tmp_path / "run" / "warm-start" / START).exists()
    monkeypatch.undo()
    without_charts(monkeypatch)
    assert resume(tmp_path / "run").summary()["judging"] == finished[0].summary()["judging"]


def test_a_finished_run_goes_on_with_more_steps_and_is_scored_again(base, tmp_path):
    folder = tmp_path / "run"
    run(folder, base, "train.steps=1", "warm_start.train.steps=1")
    assert resume(folder).summary()["grpo"]["steps"] == 1
    before = weights(folder)
    result = resume(folder, "train.steps=2")
    assert result.summary()["grpo"]["steps"] == 2
    assert len(read_judged(judgements_file(folder, "step-000002"))) == 8
    assert any(not before[name].equal(value) for name, value in weights(folder).items())
    for setting, words in (
        ("warm_start.train.steps=2", r"warm_start\.train\.steps: 1 -> 2"),
        ("data.seed=1", r"data\.seed: 0 -> 1"),
        ("reward.c1=5", r"reward\.c1: 10\.0 -> 5\.0"),
        ("judging.pairs=5", r"judging\.pairs: 8 -> 5"),
        ("rollout.group=5", r"rollout\.group: 4 -> 5"),
    ):
        with pytest.raises(UserError, match=words):
            resume(folder, setting)
    assert resume(folder, "judging.memory=0.2").summary()["grpo"]["steps"] == 2


def test_a_stop_rule_ends_the_run_without_a_model(base, tmp_path):
    result = run(tmp_path / "run", base, "stop.truncated=0.1", "stop.window=2", "rollout.max_tokens=2")
    summary = result.summary()
    assert "reached their limit of tokens" in summary["stopped"]
    assert summary["model"] is None
    assert not (tmp_path / "run" / "model").exists()
    assert set(summary["judging"]["measures"][0]["stages"]) == {"warm_start"}


def test_what_cannot_be_leaves_nothing_behind(base, tmp_path):
    for settings, words in (
        (["data.sources=nowhere.jsonl"], "nowhere.jsonl"),
        (["data.sources=generate:preferences?tasks=talk"], "cannot be judged by rule"),
    ):
        with pytest.raises((UserError, ValueError, FileNotFoundError), match=words):
            run(tmp_path / "run", base, *settings)
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--from"):
        run(tmp_path / "run", None)


def test_the_list_of_runs_knows_it(finished):
    _, folder = finished
    found = read_run(folder)
    assert (found.verb, found.state, found.step) == ("rlhf genrm", "finished", 3)
    assert found.reward is not None
    assert found.loss is None
    (curves, _) = read_curves([str(folder), str(folder / "grpo")])
    assert curves.metric == "reward"


def test_settings_of_the_supervised_start_are_named_with_their_section():
    with pytest.raises(UserError, match=r"warm_start\.train\.batch_size is 0"):
        load_genrm("tiny", ["warm_start.train.batch_size=0"])
