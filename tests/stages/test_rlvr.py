"""Reinforcement learning on verifiable rewards, from a folder to a folder."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from nano3.cli.app import app
from nano3.config.errors import UserError
from nano3.config.presets import load_rlvr
from nano3.config.rlvr import EnvironmentsConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.hf.config import read_stage
from nano3.reading import read_json
from nano3.rl.rollout_files import read_rollouts, rollouts_path
from nano3.rl.saved.groups import saved_steps
from nano3.rl.training.domains import open_domains
from nano3.rl.training.profile import Profile
from nano3.stages.rlvr import main, profile_tasks
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer

from .policy_runs import Killed, loads_of, save_base, steps_of, tasks_of

ENVIRONMENTS = '''
import itertools
import os
import signal

import numpy as np

from nano3.rl.environments.base import EnvironmentFaultError, Reward, Task, user


class Letters:
    """Rewards answers for their share of a letter's tokens; tasks differ in how much is enough."""

    name = "letters"

    def __init__(self, n=12, broken=False, long=0):
        self.n, self.broken, self.long = n, broken, long

    def tasks(self):
        words = ["quick " * (900 if i < self.long else 1) for i in range(self.n)]
        return [Task(f"letters-{i}", user(f"{words[i]}{i}"), truth=i) for i in range(self.n)]

    def verify(self, task, rollout):
        if self.broken:
            raise EnvironmentFaultError("no judge", "it does not answer")
        even = sum(i % 2 == 0 for i in rollout.token_ids)
        return Reward(even / 8, passed=even > task.truth % 8, parts={"even": np.float32(even)})


class Souring(Letters):
    """Every answer is worth the same from the 65th on."""

    name = "souring"

    def __init__(self):
        super().__init__()
        self.calls = itertools.count()

    def verify(self, task, rollout):
        return super().verify(task, rollout) if next(self.calls) < 64 else Reward(0.0)


class Interrupted(Letters):
    """Like Ctrl-C at a certain call of verify."""

    name, calls, at = "interrupted", 0, -1

    def verify(self, task, rollout):
        Interrupted.calls += 1
        if Interrupted.calls == Interrupted.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().verify(task, rollout)


class Equal(Letters):
    """Every answer is worth the same."""

    name = "equal"

    def verify(self, task, rollout):
        return Reward(0.0)
'''
SETTINGS = [
    "environments.weights={much=3, little=1}",
    "environments.specs={much='rlvr_environments:Letters', little='rlvr_environments:Letters'}",
    "environments.options={much={n=16}}",
    "environments.heldout_fraction=0.3",
    "rollout.prompts=4",
    "rollout.group=4",
    "rollout.max_tokens=12",
    "rollout.sequences=16",
    "curriculum.profile_samples=4",
    "curriculum.stall_steps=2",
    "curriculum.stall_rise=0.5",
    "train.steps=6",
    "train.pack_length=512",
    "checkpoint.every_steps=2",
    "heldout.tasks=4",
    "heldout.samples=2",
    "stop.truncated=1",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module", autouse=True)
def module_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environments")
    (folder / "rlvr_environments.py").write_text(ENVIRONMENTS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


def run(folder, base, *settings):
    return main(load_rlvr("tiny", [*SETTINGS, *settings]), folder, base, progress=Silent())


def resume(folder, *settings):
    return main(load_rlvr(str(folder), settings), folder, resume=True, progress=Silent())


def value(sample):
    assert sample.reward is not None
    return sample.reward.value


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory, module_folder):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return run(folder, base), folder


def test_a_run_leaves_a_folder_like_the_others(finished, base):
    result, folder = finished
    assert read_stage(folder / "model") == "rlvr"
    ends = read_json(folder / "model" / "generation_config.json")["eos_token_id"]
    tokenizer = Tokenizer.load(folder / "model")
    assert ends == [tokenizer.eos_id, tokenizer.token_id("<|im_end|>")]
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    moved = {name for name in before if not before[name].equal(after[name])}
    assert not any(name.endswith("gate.weight") for name in moved)
    assert {name for name in before if name.endswith("e_score_correction_bias")} & moved
    # An expert that no token chose stands still too.
    assert {name for name in before if ".experts." not in name and not name.endswith("gate.weight")} <= moved
    summary = result.summary()
    assert summary["stopped"] is None
    assert {row["environment"] for row in summary["heldout"]} == {"much", "little"}
    json.dumps(summary)


def test_each_step_tells_what_its_samples_came_to(finished):
    _, folder = finished
    steps = steps_of(folder)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        names = {"reward", "pass_rate", "zero_variance", "truncated", "drawn_pass_rate", "target_mean", "entropy"}
        assert names <= line.keys()
        assert line["groups"] == 4
        assert line["dropped"] == 0
        assert line["mismatch_largest"] < 1e-4
        assert line["dlogp_generated_mean"] < 1e-5
        saved = list(read_rollouts(rollouts_path(folder, line["step"])))
        assert len(saved) == 16
        assert line["reward"] == pytest.approx(sum(value(s) for s in saved) / 16)
        of_much = [value(s) for s in saved if s.environment == "much"]
        assert line["reward/much"] == pytest.approx(sum(of_much) / len(of_much))
        assert {s.source.package for s in saved} == {"rlvr_environments"}
        assert all(s.source.sha256 for s in saved)
    means = [line["target_mean"] for line in steps]
    assert (means[0], means[-1]) == (0.6, pytest.approx(0.3))
    assert sum(len({s.task for s in read_rollouts(rollouts_path(folder, n)) if s.environment == "much"})
               for n in range(1, 7)) == 18  # fmt: skip


def test_a_model_with_more_ids_than_its_tokenizer(tmp_path):
    """Loss, reference and sync score what the engine drew over the ids that it draws from."""
    base = save_base(tmp_path / "base", spare_ids=160)
    tokenizer = Tokenizer.load(base)
    assert read_json(base / "config.json")["vocab_size"] >= 1.5 * tokenizer.vocab_size
    settings = "train.steps=1", "train.dtype=float32", "objective.kl_coef=0.1", "heldout.tasks=0"
    assert run(tmp_path / "run", base, *settings).stopped == ""
    for line in steps_of(tmp_path / "run"):
        assert max(line[f"dlogp_{part}_largest"] for part in ("generated", "prompt")) < 1e-4
        assert line["mismatch_largest"] < 1e-4
        assert line["entropy"] < math.log(tokenizer.vocab_size)
    assert steps_of(tmp_path / "run")[0]["kl"] < 1e-8  # the reference is the policy still


def test_held_out_tasks_are_never_drawn(finished):
    _, folder = finished
    asked = read_json(folder / "heldout.json")
    drawn = {(s.environment, s.task) for n in range(1, 7) for s in read_rollouts(rollouts_path(folder, n))}
    profiled = {(name, task) for name, rates in Profile.read(folder).rates.items() for task in rates}
    for side in ("before", "after"):
        held = {(name, task) for name, rewards in asked[side].items() for task in rewards}
        assert held
        assert not held & (drawn | profiled)
    assert drawn <= profiled


@pytest.mark.parametrize("refill", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_run_that_was_not_stopped(finished, base, tmp_path, monkeypatch, refill):
    whole = finished[1]
    if refill:
        whole = tmp_path / "whole"
        run(whole, base, f"rollout.refill={refill}")
    step = Trainer._step

    def stopping(self, stop):
        if self.position.step == 5:
            raise Killed
        return step(self, stop)

    parted = tmp_path / "parted"
    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(Killed):
        run(parted, base, f"rollout.refill={refill}")
    monkeypatch.undo()
    assert resume(parted).training.step == 6
    assert steps_of(parted) == steps_of(whole)
    assert [tasks_of(parted, n) for n in range(1, 7)] == [tasks_of(whole, n) for n in range(1, 7)]
    assert read_json(parted / "heldout.json") == read_json(whole / "heldout.json")
    # The reward stalls at once by these settings, so that pass rates are measured anew on both sides of the stop.
    again = sorted(path.name for path in whole.glob("profile-step-*.json"))
    assert again == sorted(path.name for path in parted.glob("profile-step-*.json")) != []
    for name in again:
        assert read_json(whole / name) == read_json(parted / name)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parted))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_scores_of_other_samples_are_not_compared(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    with pytest.raises(UserError, match=r"heldout\.samples is 3; those from before the run are of 2"):
        resume(tmp_path / "run", "heldout.samples=3", "train.steps=7")


def test_groups_without_variance_are_filled_up(base, tmp_path):
    run(tmp_path / "run", base, "rollout.refill=3", "train.steps=2", "heldout.tasks=0")
    for line in steps_of(tmp_path / "run"):
        drawn = [sample[:2] for sample in tasks_of(tmp_path / "run", line["step"])]
        assert len(drawn) == 4 * line["groups"]
        # No task twice in a step, and with refills each environment keeps its part in what is drawn first.
        assert len(set(drawn)) == line["groups"]
        assert [name for name, _ in drawn[:16]].count("little") == 4


def test_equal_rewards_end_the_run_with_the_reason(base, tmp_path):
    equal = "environments.specs={much='rlvr_environments:Equal', little='rlvr_environments:Equal'}"
    settings = equal, "stop.window=3", "heldout.tasks=0", "checkpoint.every_steps=1"
    result = run(tmp_path / "run", base, *settings)
    assert "100% of the groups had equal rewards" in result.stopped
    assert result.training.step == 2
    assert result.last_good is None
    assert result.summary()["model"] is None
    assert not (tmp_path / "run" / "model").exists()
    # With the rule switched off the run goes on from its checkpoint.
    assert resume(tmp_path / "run", "stop.zero_variance=1").training.step == 6


def test_the_last_good_checkpoint_stays_and_can_be_gone_on_from(base, tmp_path, monkeypatch):
    sours = "environments.weights={sours=1}", "environments.specs={sours='rlvr_environments:Souring'}"
    settings = "environments.options={}", "curriculum.sampling=uniform", "heldout.tasks=0", "checkpoint.every_steps=1"
    result = run(
        tmp_path / "run", base, *sours, *settings, "checkpoint.keep=1", "stop.window=2", "environments.workers=1"
    )
    # Steps 5 and 6 were without variance; step 5 was saved too.
    assert "100% of the groups had equal rewards" in result.stopped
    assert (result.last_good, result.training.step) == (tmp_path / "run" / "checkpoints" / "step-4", 5)
    assert result.last_good.is_dir()
    cfg = load_rlvr(str(tmp_path / "run"), ["schedule.peak_lr=1e-4"])
    monkeypatch.setattr(Trainer, "fit", lambda self: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        main(cfg, tmp_path / "run", resume=True, progress=Silent(), checkpoint=4)
    # What came after it is gone from the rollouts as from the metrics.
    assert list(saved_steps(tmp_path / "run")) == [1, 2, 3, 4] == [line["step"] for line in steps_of(tmp_path / "run")]
    monkeypatch.undo()
    again = main(cfg, tmp_path / "run", resume=True, progress=Silent(), checkpoint=4)
    assert again.training.step == 6
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert result.last_good.is_dir()


def test_a_mismatch_in_the_last_step_ends_the_run_too(base, tmp_path):
    settings = "train.steps=1", "heldout.tasks=0", "curriculum.sampling=uniform", "stop.mismatch=1e-12"
    result = run(tmp_path / "run", base, *settings)
    assert "more than stop.mismatch = 1e-12" in result.stopped
    assert (result.training.step, result.last_good, result.summary()["model"]) == (1, None, None)
    assert not (tmp_path / "run" / "model").exists()
    # What the checkpoint of that step remembers.
    assert resume(tmp_path / "run").stopped == result.stopped
    assert resume(tmp_path / "run", "stop.mismatch=0").stopped == ""
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_truncated_samples_end_the_run(base, tmp_path):
    result = run(
        tmp_path / "run", base, "stop.truncated=0.1", "stop.window=2", "heldout.tasks=0", "rollout.max_tokens=2"
    )
    assert "reached their limit of tokens" in result.stopped


def test_an_environment_that_fails_ends_the_run_and_is_named(base, tmp_path):
    broken = "environments.options={much={broken=true}, little={broken=true}}"
    uniform = "curriculum.sampling=uniform"
    result = run(tmp_path / "run", base, broken, uniform, "stop.faults=3", "heldout.tasks=0")
    assert "3 groups in a row of environment much" in result.stopped
    assert "no judge" in result.stopped
    [first, *_] = read_rollouts(rollouts_path(tmp_path / "run", 1))
    assert first.fault == "no judge"
    result = run(tmp_path / "other", base, broken, uniform, "stop.faults=0", "heldout.tasks=0")
    assert "all 4 groups of step 1 ended in a fault (much: no judge, it does not answer)" in result.stopped


def test_prompts_that_are_too_long_are_dropped_and_counted(base, tmp_path):
    long = "environments.options={much={n=16, long=6}, little={long=5}}"
    # One prompt a step: every other call of the engine has nothing but a prompt that is too long.
    few = "rollout.prompts=1", "rollout.refill=3", "train.steps=4", "curriculum.sampling=uniform", "heldout.tasks=0"
    assert run(tmp_path / "run", base, long, *few, "environments.heldout_fraction=0").training.step == 4
    lines = steps_of(tmp_path / "run")
    kinds = {name for line in lines for name in line if name.startswith("faults/")}
    assert kinds <= {"faults/much: prompt too long", "faults/little: prompt too long"} != set() != kinds
    assert sum(line["dropped"] for line in lines) >= 1


def test_an_environment_whose_prompts_are_all_too_long_is_refused_before_the_run(base, tmp_path):
    long = "environments.options={little={long=99}}", "heldout.tasks=0"
    match = r"environment little: all of its \d+ prompts are too long: the shortest has .* a context of 512"
    with pytest.raises(UserError, match=match):
        run(tmp_path / "run", base, *long)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(UserError, match=match):
        profile_tasks(load_rlvr("tiny", [*SETTINGS, *long]), base, tmp_path / "profile.json")


def test_half_of_the_environments_fail_and_the_others_train(base, tmp_path):
    one = "environments.options={little={broken=true}}"
    run(tmp_path / "run", base, one, "curriculum.sampling=uniform", "train.steps=2", "heldout.tasks=0")
    for line in steps_of(tmp_path / "run"):
        assert line["dropped"] == line["faults/little: no judge"] == 1
        assert "reward/little" not in line
        assert line["policy_loss"] is not None


def test_a_profile_is_used_again_only_by_the_run_that_it_is_of(finished, base, tmp_path):
    file = tmp_path / "profile.json"
    mine = tmp_path / "profile.served" / "mine"
    mine.mkdir(parents=True)
    result = profile_tasks(load_rlvr("tiny", SETTINGS), base, file)
    assert mine.is_dir()
    assert {row["environment"] for row in result.summary()["profile"]} == {"much", "little"}
    run(tmp_path / "run", base, f"curriculum.profile={file}", "train.steps=1")
    assert Profile.read(tmp_path / "run").rates == Profile.read(file).rates
    # An environment that the profile advises against is left out.
    alone = "environments.weights={much=1}", "environments.specs={much='rlvr_environments:Letters'}"
    run(tmp_path / "alone", base, *alone, f"curriculum.profile={file}", "train.steps=1", "heldout.tasks=0")
    assert {sample[0] for sample in tasks_of(tmp_path / "alone", 1)} == {"much"}
    with pytest.raises(UserError, match="another sampling"):
        run(tmp_path / "other", base, f"curriculum.profile={file}", "rollout.temperature=0.7", "heldout.tasks=0")


def test_an_interrupted_profile_goes_on_with_the_tasks_that_are_left(base, tmp_path, capsys):
    alone = "environments.weights={letters=1}", "environments.options={}"
    kinds = {kind: f"environments.specs={{letters='rlvr_environments:{kind}'}}" for kind in ("Letters", "Interrupted")}
    whole = tmp_path / "whole.json"
    profile_tasks(load_rlvr("tiny", [*SETTINGS, *alone, kinds["Interrupted"], "environments.seconds=60"]), base, whole)
    environment = sys.modules["rlvr_environments"].Interrupted
    cfg = load_rlvr("tiny", [*SETTINGS, *alone, kinds["Interrupted"], "rollout.sequences=8"])
    environment.calls, environment.at = 0, 20
    with pytest.raises(KeyboardInterrupt):
        profile_tasks(cfg, base, tmp_path / "parts.json")
    environment.at = -1
    assert not (tmp_path / "parts.json").exists()
    [kept] = tmp_path.glob(".parts.json.measured-0.jsonl")
    # As a process that is killed leaves it.
    kept.write_text(kept.read_text() + '{"environment": "let')
    n_before = len(kept.read_text().splitlines()) - 2
    assert n_before >= 1
    environment.calls = 0
    profile_tasks(cfg, base, tmp_path / "parts.json")
    found = Profile.read(whole)
    assert environment.calls == 4 * (len(found.rates["letters"]) - n_before)
    assert f"{n_before} of {len(found.rates['letters'])} tasks are measured already" in capsys.readouterr().err
    assert Profile.read(tmp_path / "parts.json") == found
    assert not kept.exists()


def test_what_was_measured_by_other_settings_is_measured_anew(base, tmp_path):
    settings = [*SETTINGS, "environments.weights={much=1}"]
    out = tmp_path / "profile.json"
    profile_tasks(load_rlvr("tiny", [*settings, "rollout.max_tokens=6"]), base, tmp_path / "other.json")
    of = Profile.read(tmp_path / "other.json")
    lines = [{"fingerprint": of.fingerprint, "seed": 0, "profiles": 0}]
    lines += [{"environment": "much", "task": task, "pass_rate": 0.5, "samples": 4, "truncated": 0, "fault": ""}
              for task in of.rates["much"]]  # fmt: skip
    log = tmp_path / ".profile.json.measured-0.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    log.write_text(text)
    profile_tasks(load_rlvr("tiny", settings), base, out)
    assert set(Profile.read(out).rates["much"].values()) != {0.5}
    log.write_text(text)
    profile_tasks(load_rlvr("tiny", [*settings, "rollout.max_tokens=6"]), base, out)
    assert set(Profile.read(out).rates["much"].values()) == {0.5}


def test_an_environment_that_fails_ends_a_profile(base, tmp_path):
    broken = [*SETTINGS, "environments.options={little={broken=true}}", "stop.faults=3"]
    result = profile_tasks(load_rlvr("tiny", broken), base, tmp_path / "profile.json")
    assert "3 groups in a row of environment little ended in a fault" in result.stopped
    assert not (tmp_path / "profile.json").exists()
    args = ["rlvr", "profile", "--from", base, "--out", tmp_path / "profile.json"]
    done = CliRunner().invoke(app, [*map(str, args), *(part for text in broken for part in ("--set", text))])
    assert done.exit_code == 3, done.output
    assert "the same command goes on with the tasks that are left" in done.stderr
    # In a run too, before its first step.
    stopped = main(load_rlvr("tiny", broken), tmp_path / "run", base, progress=Silent())
    assert stopped.stopped == result.stopped
    assert (stopped.training.step, stopped.last_good) == (0, None)


def test_an_environment_without_any_pass_rate_is_named(base, tmp_path):
    one = "environments.options={little={broken=true}}"
    with pytest.raises(UserError, match=r"environment little: none of its tasks has a pass rate \(little: no judge"):
        run(tmp_path / "run", base, one, "heldout.tasks=0")


def test_rows_with_other_answers_are_other_tasks(tmp_path):
    prints = []
    for answer in (1, 2):
        rows = [{"id": f"{i}", "prompt": f"{i} and?", "answer": f"{i + answer}"} for i in range(5)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"math": {"rows": str(tmp_path / "rows.jsonl")}}
        prints.append(open_domains(EnvironmentsConfig({"math": 1.0}, options=options), 0)["math"].fingerprint())
    assert prints[0] != prints[1]


@pytest.mark.slow
@pytest.mark.parametrize("arranged", [[], ["parallel.context=2", "parallel.expert=2"]], ids=str)
def test_two_ranks_do_what_one_does(base, tmp_path, module_folder, arranged):
    few = [
        "train.steps=3",
        "train.dtype=float32",
        "curriculum.stall_steps=0",
        "heldout.tasks=2",
        "objective.kl_coef=0.1",
    ]
    run(tmp_path / "one", base, *few)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nano3"]
    settings = [word for setting in [*SETTINGS, *few, *arranged] for word in ("--set", setting)]
    command = [*ranks, "rlvr", "--from", str(base), "--out", str(tmp_path / "two"), *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(module_folder)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert [tasks_of(one, n) for n in range(1, 4)] == [tasks_of(two, n) for n in range(1, 4)]
    assert Profile.read(one).rates == Profile.read(two).rates
    assert read_json(one / "heldout.json")["before"] == read_json(two / "heldout.json")["before"]
    for ours, theirs in zip(steps_of(one), steps_of(two), strict=True):
        for name in ("reward", "zero_variance", "truncated", "groups", "tokens"):
            assert ours[name] == theirs[name], name
        for name in ("policy_loss", "entropy", "grad_norm", "kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    assert loads_of(one) == loads_of(two) != []


@pytest.mark.slow
def test_rewards_that_a_policy_can_raise_rise(base, tmp_path):
    settings = "train.steps=30", "schedule.peak_lr=1e-2", "rollout.group=8", "curriculum.sampling=uniform"
    run(tmp_path / "run", base, *settings, "heldout.tasks=0", "stop.zero_variance=1")
    rewards = [line["reward"] for line in steps_of(tmp_path / "run")]
    # Of the first two steps: half of the rise is in the first four updates.
    assert sum(rewards[-5:]) / 5 > sum(rewards[:2]) / 2 + 0.1


@pytest.mark.parametrize("settings", [["objective.kl_coef=0.1"], ["lora.rank=4"], ["rollout.replay_experts=true"]])
def test_divergence_adapters_and_replayed_experts(base, tmp_path, settings):
    result = run(tmp_path / "run", base, *settings, "train.steps=2", "heldout.tasks=0")
    assert result.training.step == 2
    lines = steps_of(tmp_path / "run")
    assert all(line["mismatch_largest"] < 1e-4 for line in lines)
    if "kl" in settings[0]:
        assert (lines[0]["kl"], lines[1]["kl"] > 0) == (pytest.approx(0, abs=1e-6), True)
    if "lora" in settings[0]:
        assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
