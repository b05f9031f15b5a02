"""Reinforcement learning from a judge's feedback, from a folder to a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partialmethod

import pytest
from safetensors.torch import load_file

from nano3.config.errors import UserError
from nano3.config.presets import load_rlhf, load_rlvr
from nano3.model.hf.config import read_stage
from nano3.reading import read_json
from nano3.rl.feedback.reward import TERMS
from nano3.rl.feedback.scoring import UNREAD, Patience
from nano3.rl.rollout_files import read_rollouts, rollouts_path
from nano3.rl.saved.explained import explain_prompt, prompt_lines
from nano3.stages import rlvr
from nano3.stages.rlhf import main
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer

from ..rl import answering_server
from .policy_runs import Killed, save_base, steps_of, tasks_of

JUDGES = '''
from nano3.rl.feedback.comparison import JudgeStoppedError, Verdict
from nano3.rl.genrm import Judgement

ROUNDS, SILENT, SHOWN = [], set(), []


class Letters:
    """Scores an answer by its letters; does not answer in the rounds of SILENT."""

    def __init__(self, unread=()):
        self.calls, self.unread = 0, set(unread)

    def compare(self, comparisons):
        ROUNDS.append(len(comparisons))
        if len(ROUNDS) in SILENT:
            raise JudgeStoppedError("judge letters: it is asleep")
        self.calls += len(comparisons)
        SHOWN.extend(each.response_1 for each in comparisons)
        return [Verdict(self.judgement(each), "by letters") for each in comparisons]

    def judgement(self, asked):
        if asked.environment in self.unread:
            return None
        one, other = (1 + sum(map(ord, text)) % 5 for text in (asked.response_1, asked.response_2))
        return Judgement(one, other, 3.5 + (other > one) - (one > other))


class Elsewhere(Letters):
    """The same judge at another place."""


def equal(messages, first, second):
    return 3, 3, 3.5


class OfOneRank(Letters):
    """Can be made on the first rank alone, and outside of torchrun."""

    def __init__(self):
        import os

        if os.environ.get("RANK", "0") != "0":
            raise TypeError("no judge on this rank")
        super().__init__()
'''
SETTINGS = [
    "prompts.weights={mine=3, made=1}",
    "prompts.tasks=12",
    "prompts.heldout_fraction=0.3",
    "judge.spec=rlhf_judges:Letters",
    "judge.tries=1",
    "rollout.prompts=4",
    "rollout.group=4",
    "rollout.max_tokens=12",
    "rollout.sequences=16",
    "train.steps=6",
    "train.pack_length=512",
    "checkpoint.every_steps=2",
    "heldout.tasks=4",
    "heldout.samples=2",
    "stop.truncated=1",
    "stop.zero_variance=1",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "base", "</think>")


@pytest.fixture(scope="module", autouse=True)
def module_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    (folder / "rlhf_judges.py").write_text(JUDGES, "utf-8")
    rows = [{"prompt": f"quick {i}"} for i in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("rlhf_judges", None)


@pytest.fixture(autouse=True)
def judge(module_folder, monkeypatch):
    """The judge's module, before it was asked anything."""
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])
    import rlhf_judges  # type: ignore[import-not-found]

    for kept in (rlhf_judges.ROUNDS, rlhf_judges.SILENT, rlhf_judges.SHOWN):
        kept.clear()
    return rlhf_judges


@pytest.fixture(scope="module")
def begin(module_folder, base):
    """Run with these settings in a folder."""
    sources = f"prompts.sources={{mine='{module_folder / 'prompts.jsonl'}', made='generate:count?levels=3-4'}}"

    def run(folder, *settings):
        return main(load_rlhf("tiny", [*SETTINGS, sources, *settings]), folder, base, progress=Silent())

    return run


def resume(folder, *settings):
    return main(load_rlhf(str(folder), settings), folder, resume=True, progress=Silent())


@pytest.fixture(scope="module")
def finished(begin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return begin(folder), folder


def assert_same_run(one, other, steps=6):
    assert steps_of(one) == steps_of(other)
    assert [tasks_of(one, n) for n in range(1, steps + 1)] == [tasks_of(other, n) for n in range(1, steps + 1)]
    assert read_json(one / "heldout.json") == read_json(other / "heldout.json")
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_run_leaves_a_folder_like_the_others(finished, base):
    result, folder = finished
    assert read_stage(folder / "model") == "rlhf"
    summary = result.summary()
    json.dumps(summary)
    assert (summary["stopped"], summary["paused"]) == (None, False)
    measures = {(row["measure"], row["environment"]) for row in summary["heldout"]}
    assert {("quality", "all"), ("quality", "mine"), ("think_tokens", "made"), ("answer_tokens", "all")} <= measures
    assert set(summary["rollouts"]["figures"]) >= {"reward", "quality", "think_tokens", "final_tokens", "truncated"}
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert not any(name.endswith("gate.weight") for name in moved)


def test_the_judge_is_asked_as_often_as_there_are_answers_and_sees_only_final_ones(begin, tmp_path, judge):
    result = begin(tmp_path / "run", "train.steps=2", "heldout.tasks=0")
    # It counts itself, and so do the metrics.
    assert judge.ROUNDS == [4 * 4, 4 * 4]
    assert [line["judge_calls"] for line in steps_of(tmp_path / "run")] == [16, 16]
    assert result.summary()["rollouts"]["judge_calls"] == 32
    saved = [sample for n in (1, 2) for sample in read_rollouts(rollouts_path(tmp_path / "run", n))]
    assert [sample.rollout.answer for sample in saved] == judge.SHOWN
    assert any(sample.messages[-1].get("reasoning_content") for sample in saved)
    assert "" in judge.SHOWN


def test_every_term_of_the_reward_is_kept_and_measured(finished):
    _, folder = finished
    for line in steps_of(folder):
        saved = list(read_rollouts(rollouts_path(folder, line["step"])))
        parts = [sample.reward.parts for sample in saved if sample.reward]
        assert len(parts) == 16
        for sample in saved:
            assert sample.reward.value == pytest.approx(sum(sample.reward.parts[name] for name in TERMS), abs=1e-6)
            tokens = sample.reward.parts["think_tokens"] + sample.reward.parts["answer_tokens"]
            # Without the one that ends the turn.
            assert tokens == sample.n_drawn - (not sample.truncated)
        assert line["reward"] == pytest.approx(sum(sample.reward.value for sample in saved) / 16)
        for name, part in {"quality": "base", "think_adjustment": "think_adjustment", "answer_bonus": "answer_bonus",
                           "think_tokens": "think_tokens", "final_tokens": "answer_tokens"}.items():  # fmt: skip
            assert line[name] == pytest.approx(sum(abs(each[part]) for each in parts) / 16), name
        for first in range(0, 16, 4):
            group = parts[first : first + 4]
            assert sum(each["think_adjustment"] + each["answer_adjustment"] for each in group) == pytest.approx(0)


def test_held_out_prompts_are_never_drawn(finished):
    _, folder = finished
    drawn = {(s.environment, s.task) for n in range(1, 7) for s in read_rollouts(rollouts_path(folder, n))}
    kept = read_json(folder / "heldout.json")
    assert kept["judge"] == "rlhf_judges:Letters"  # the rules do not know these prompts
    for side in ("before", "after"):
        for values in kept[side].values():
            held = {(name, task) for name, of_tasks in values.items() for task in of_tasks}
            assert {name for name, _ in held} == {"mine", "made"}
            assert not held & drawn


def test_a_killed_run_that_is_resumed_is_the_run_that_was_not(finished, begin, tmp_path, monkeypatch):
    step = Trainer._step

    def stopping(self, stop):
        if self.position.step == 5:
            raise Killed
        return step(self, stop)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(Killed):
        begin(tmp_path / "run")
    monkeypatch.undo()
    assert resume(tmp_path / "run").training.step == 6
    assert_same_run(finished[1], tmp_path / "run")


@pytest.mark.parametrize("silent", [2, 5])
def test_a_judge_that_stops_leaves_a_checkpoint_from_which_the_run_goes_on(finished, begin, tmp_path, judge, silent):
    # The first round is of held-out prompts.
    judge.SILENT.add(silent)
    result = begin(tmp_path / "run")
    done = silent - 2
    assert result.stopped == "judge letters: it is asleep"
    assert result.paused
    assert result.training.step == done
    assert result.last_good == tmp_path / "run" / "checkpoints" / f"step-{done}"
    assert result.summary()["model"] is None
    assert len(steps_of(tmp_path / "run")) == done
    judge.SILENT.clear()
    assert resume(tmp_path / "run").training.step == 6
    assert_same_run(finished[1], tmp_path / "run")


def test_a_judge_that_answers_again_is_waited_for(finished, begin, tmp_path, judge, capsys):
    judge.SILENT.update({4, 5})
    assert begin(tmp_path / "run", "judge.tries=3", "judge.wait=0.01").stopped == ""
    assert_same_run(finished[1], tmp_path / "run")
    assert "it is asleep; the run waits 0.01 s and asks again, at most 2 more times" in capsys.readouterr().err


def test_a_signal_ends_the_wait_for_a_judge(begin, tmp_path, judge, monkeypatch):
    judge.SILENT.update(range(3, 100))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Patience, "__init__", partialmethod(Patience.__init__, sleep=sleep))
    result = begin(tmp_path / "run", "judge.tries=5", "judge.wait=600", "heldout.tasks=0")
    assert result.paused
    assert result.training.step == 2
    assert result.last_good == tmp_path / "run" / "checkpoints" / "step-2"
    assert sum(slept) <= 1


@pytest.mark.parametrize("silent", [1, 8])
def test_a_judge_that_stops_at_held_out_prompts(finished, begin, tmp_path, judge, silent):
    judge.SILENT.add(silent)
    result = begin(tmp_path / "run")
    assert result.paused
    assert result.training.step == (0 if silent == 1 else 6)
    judge.SILENT.clear()
    resume(tmp_path / "run")
    assert_same_run(finished[1], tmp_path / "run")


def test_groups_whose_judgements_cannot_be_read_are_dropped_and_counted(begin, tmp_path):
    begin(tmp_path / "run", "judge.options={unread=['generate:count']}", "train.steps=2", "heldout.tasks=0")
    for line in steps_of(tmp_path / "run"):
        assert line["dropped"] == line[f"faults/made: {UNREAD}"] == 1
        assert line["judge_calls"] == 16
        assert "reward/made" not in line
        assert line["unread"] == 0
    told = [explain_prompt(tmp_path / "run", n) for n in range(4)]
    assert [each["fault"] for each in told if "fault" in each] == [UNREAD]
    assert all("judgements without scores" in each["fault_message"] for each in told if "fault" in each)
    result = begin(
        tmp_path / "none", "judge.options={unread=['generate:count', 'mine']}", "heldout.tasks=0", "stop.faults=3"
    )
    assert UNREAD in result.stopped
    assert not result.paused


def test_without_length_control_the_reward_is_the_judges_score(begin, tmp_path):
    begin(tmp_path / "run", "length_control.enabled=false", "train.steps=1", "heldout.tasks=0")
    [line] = steps_of(tmp_path / "run")
    assert line["reward"] == pytest.approx(line["quality"])
    assert line["think_adjustment"] == line["answer_bonus"] == 0


def test_explain_works_the_rewards_out_again(finished):
    _, folder = finished
    saved = list(read_rollouts(rollouts_path(folder, 4)))
    told = explain_prompt(folder, 2, step=4)
    group = saved[8:12]
    assert told["task"] == group[0].task
    assert told["answers"] == [sample.rollout.answer for sample in group]
    assert [each["reward"] for each in told["responses"]] == [sample.reward.value for sample in group]
    assert len(told["comparisons"]) == 4
    lines = prompt_lines(json.loads(json.dumps(told)))
    assert lines[0].startswith(f"step 4 · prompt 2 · {group[0].environment}")
    assert sum("(empty)" in line for line in lines) == any(not answer for answer in told["answers"]), "equal ones once"
    assert explain_prompt(folder, 0)["step"] == 6
    with pytest.raises(UserError, match=r"--prompt 4: step 4 of .* has the prompts 0 to 3"):
        explain_prompt(folder, 4, step=4)


def test_another_judge_of_held_out_prompts_is_not_compared(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    with pytest.raises(UserError, match=r"heldout\.judge is rlhf_judges:equal; those from before the run are of"):
        resume(tmp_path / "run", "heldout.judge=rlhf_judges:equal", "train.steps=7")


def test_a_run_goes_on_with_its_judge_at_another_place_but_not_with_other_lengths(finished, tmp_path, capsys):
    shutil.copytree(finished[1], tmp_path / "run")
    moved = "judge.spec=rlhf_judges:equal", "heldout.judge=rlhf_judges:Letters", "train.steps=7"
    assert resume(tmp_path / "run", *moved).training.step == 7
    with pytest.raises(UserError, match=r"length_control\.think_weight"):
        resume(tmp_path / "run", "length_control.think_weight=0.1")


def test_a_judge_that_also_scores_held_out_prompts_may_be_at_another_place(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    assert resume(tmp_path / "run", "judge.spec=rlhf_judges:Elsewhere", "train.steps=7").training.step == 7


def test_the_rules_judge_generated_tasks_and_hold_out_those_they_know(begin, tmp_path):
    begin(tmp_path / "run", "prompts.weights={made=1}", "judge.spec=rules", "train.steps=1")
    assert read_json(tmp_path / "run" / "heldout.json")["judge"] == "rules"
    [line] = steps_of(tmp_path / "run")
    assert 1 <= line["quality"] <= 5


def test_a_judge_that_cannot_be_read_is_refused_before_anything_is_drawn(begin, base, tmp_path, capsys):
    settings = "judge.memory=0.02", "judge.max_tokens=4", "judge.max_context=1024"
    with pytest.raises(UserError, match=r"none of 4 judgements asked for before the run can be read"):
        begin(tmp_path / "run", f"judge.spec={base}", *settings)  # an untrained model
    assert "judge: 0.1 M parameters" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of 4 judgements"):
        begin(tmp_path / "run", f"heldout.judge={base}", *settings)
    assert not (tmp_path / "run").exists()


def test_a_judge_that_never_answered_is_not_waited_for_and_one_that_did_is(begin, tmp_path, capsys):
    judgement = json.dumps({"score_1": 5, "score_2": 2, "ranking": 1})
    asked = []

    def answer(messages):
        asked.append(messages)
        return (200, judgement) if len(asked) <= 4 else (401, "asleep")

    few = "train.steps=1", "heldout.tasks=0", "judge.tries=2"
    with answering_server.server(answer) as (url, _):
        result = begin(tmp_path / "run", f"judge.spec={url}", "judge.wait=0.01", *few)
        assert result.paused
        assert "the run waits 0.01 s and asks again" in capsys.readouterr().err
    # The server is gone: with this judge the run began, so it waits again; another one that is not there is refused.
    assert resume(tmp_path / "run").paused
    with pytest.raises(UserError, match="is a server running there"):
        resume(tmp_path / "run", "judge.spec=http://127.0.0.1:9", "judge.wait=600")
    with pytest.raises(UserError, match="is a server running there"):
        begin(tmp_path / "other", "judge.spec=http://127.0.0.1:9", "judge.wait=600", *few)
    assert not (tmp_path / "other").exists()


def test_a_judge_that_does_not_fit_beside_training_is_refused(begin, base, tmp_path):
    with pytest.raises(UserError, match=r"other models and rollouts 1[01]\d\d\d GB, and"):
        begin(tmp_path / "run", f"judge.spec={base}", "judge.memory=10000")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_do_what_one_does_and_end_together(begin, base, tmp_path, module_folder):
    few = ["train.steps=3", "train.dtype=float32", "heldout.tasks=2"]
    begin(tmp_path / "one", *few)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nano3"]
    sources = f"prompts.sources={{mine='{module_folder / 'prompts.jsonl'}', made='generate:count?levels=3-4'}}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(module_folder)}

    def run(folder, *more):
        settings = [word for setting in [*SETTINGS, sources, *few, *more] for word in ("--set", setting)]
        command = [*ranks, "rlhf", "--from", str(base), "--out", str(folder), *settings]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)

    done = run(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert [tasks_of(one, n) for n in range(1, 4)] == [tasks_of(two, n) for n in range(1, 4)]
    assert read_json(one / "heldout.json")["before"] == read_json(two / "heldout.json")["before"]
    for ours, theirs in zip(steps_of(one), steps_of(two), strict=True):
        for name in ("reward", "quality", "judge_calls", "groups", "tokens"):
            assert ours[name] == pytest.approx(theirs[name]), name
        assert ours["policy_loss"] == pytest.approx(theirs["policy_loss"], rel=1e-3, abs=1e-5)
    # A judge that only the second rank cannot open ends both.
    failed = run(tmp_path / "failed", "heldout.judge=rlhf_judges:OfOneRank")
    assert failed.returncode != 0
    assert "no judge on this rank" in failed.stderr


def test_rlvr_goes_on_from_rlhf(finished, tmp_path):
    settings = ["environments.weights={count=1}", "environments.specs={}", "environments.tasks=8", "heldout.tasks=0"]
    settings += [
        "rollout.prompts=2",
        "rollout.group=2",
        "rollout.max_tokens=8",
        "train.steps=1",
        "train.pack_length=512",
    ]
    settings += ["environments.specs={count='generate:count'}", "curriculum.sampling=uniform"]
    result = rlvr.main(load_rlvr("tiny", settings), tmp_path / "run", finished[1], progress=Silent())
    assert result.training.step == 1
    assert read_stage(tmp_path / "run" / "model") == "rlvr"


@pytest.mark.slow
def test_of_equally_good_answers_the_policy_learns_the_short_ones(begin, tmp_path):
    """The judge finds all answers alike, so nothing but lengths is rewarded."""
    few = "train.steps=40", "rollout.group=8", "rollout.max_tokens=24", "schedule.peak_lr=1e-2", "heldout.tasks=0"
    lengths = {}
    for name, enabled in (("on", "true"), ("off", "false")):
        control = f"length_control.enabled={enabled}"
        begin(tmp_path / name, "judge.spec=rlhf_judges:equal", control, *few)
        thought = [line["think_tokens"] for line in steps_of(tmp_path / name)]
        lengths[name] = sum(thought[-5:]) / 5
    assert lengths["on"] < 0.75 * lengths["off"]
