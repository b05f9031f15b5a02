"""Reinforcement learning whose samples real `nano3 serve` processes draw."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nano3.cli.app import app
from nano3.config.errors import UserError
from nano3.config.presets import load_rlhf, load_rlvr
from nano3.rl.rollout_files import read_rollouts, rollouts_path
from nano3.stages.new_run import check_new_run
from nano3.stages.rlhf import main as rlhf
from nano3.stages.rlvr import main, profile_tasks
from nano3.train.tracking.progress import Silent

from ..forked import ONE_THREAD, Forked
from .policy_runs import loads_of, save_base, steps_of, tasks_of

ENVIRONMENT = '''
import os
import signal

from nano3.rl.environments.base import Reward, Task, user


class Letters:
    """Rewards answers for their share of a letter's tokens; at calls of verify that KILL names it kills a process."""

    name, calls = "letters", 0

    def tasks(self):
        return [Task(f"letters-{i}", user(f"quick {i}"), truth=i) for i in range(12)]

    def verify(self, task, rollout):
        Letters.calls += 1
        for at, pid in (each.split(":") for each in os.environ.get("KILL", "").split()):
            if int(at) == Letters.calls:
                os.kill(int(pid), signal.SIGKILL)
        even = sum(i % 2 == 0 for i in rollout.token_ids)
        return Reward(even / 8, passed=even > task.truth % 8)
'''
SETTINGS = [
    "environments.weights={letters=1}", "environments.specs={letters='served_environment:Letters'}",
    "environments.heldout_fraction=0.3", "rollout.prompts=3", "rollout.group=4", "rollout.max_tokens=12",
    "rollout.sequences=8", "curriculum.profile_samples=2", "curriculum.stall_steps=0", "train.steps=4",
    "train.pack_length=512", "train.dtype=float32", "checkpoint.every_steps=1", "heldout.tasks=2", "heldout.samples=2",
    "stop.truncated=1", "stop.zero_variance=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "served_environment.py").write_text(ENVIRONMENT)
    save_base(folder / "base")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


class Server:
    """One `nano3 serve` of the base model."""

    def __init__(self, folder, port=0):
        command = ["-m", "nano3", "serve", "--model", str(folder / "base"), "--port", str(port)]
        command += ["--weights-folder", str(folder), "--dtype", "float32", "--memory", "64M", "--json"]
        self.process = Forked(command, {**os.environ, **ONE_THREAD})
        self.output = self.process.stdout

    def wait(self):
        self.url = json.loads(self.output.readline())["url"]
        return self

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def end(self):
        self.process.kill()
        self.process.wait()
        self.output.close()


@pytest.fixture(scope="module")
def servers(folder):
    found = [Server(folder), Server(folder)]  # both load at once
    yield [server.wait() for server in found]
    for server in found:
        server.end()


def on(servers):
    return f"rollout.servers={json.dumps([server.url for server in servers])}"


def run(folder, name, *settings):
    return main(load_rlvr("tiny", [*SETTINGS, *settings]), folder / name, folder / "base", progress=Silent())


def log_probs(folder, step):
    samples = read_rollouts(rollouts_path(folder, step))
    return np.concatenate([segment.log_probs for sample in samples for segment in sample.segments])


@pytest.fixture(scope="module")
def local(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])
        run(folder, "local")
    return folder / "local"


def check_same(run_dir, local, steps=4):
    for step in range(1, steps + 1):
        assert tasks_of(run_dir, step) == tasks_of(local, step)
        assert np.allclose(log_probs(run_dir, step), log_probs(local, step), atol=1e-5, rtol=0)
    for found, wanted in zip(steps_of(run_dir), steps_of(local), strict=True):
        for name in ("reward", "pass_rate", "zero_variance", "truncated", "answer_tokens", "drawn_pass_rate", "groups"):
            assert found[name] == pytest.approx(wanted[name]), name
        assert found["mismatch_largest"] < 1e-4
        assert 0 < found["dlogp_generated_mean"] < 1e-5


def test_a_run_on_servers_is_the_run_on_the_engine_of_the_process(folder, servers, local):
    result = run(folder, "served", on(servers))
    assert result.stopped == ""
    assert not result.paused
    check_same(folder / "served", local)
    assert [score.tasks for score in result.scores] == [2]
    said = [sample.weights_version for sample in read_rollouts(rollouts_path(folder / "served", 4))]
    assert set(said) == {5}  # one for the profile and one a step
    assert not (folder / "served" / "served").exists()  # a copy of the weights that nobody needs any more


def test_a_profile_is_measured_on_servers(folder, servers, local, tmp_path):
    profile_tasks(load_rlvr("tiny", [*SETTINGS, on(servers)]), folder / "base", folder / "profile.json")
    rates = [json.loads((place / "profile.json").read_text("utf-8"))["rates"] for place in (folder, local)]
    assert rates[0] == rates[1]
    assert not (folder / "profile.served").exists()


def test_rlhf_on_servers_is_rlhf_on_the_engine_of_the_process(folder, servers):
    settings = [
        "prompts.sources={made='generate:count?levels=3-4'}", "prompts.weights={made=1}", "prompts.tasks=4",
        "rollout.prompts=2", "rollout.group=4", "rollout.max_tokens=12", "train.steps=2", "train.pack_length=512",
        "train.dtype=float32", "heldout.tasks=0", "stop.truncated=1", "stop.zero_variance=1",
    ]  # fmt: skip
    for name, more in (("rlhf-local", []), ("rlhf-served", [on(servers)])):
        rlhf(load_rlhf("tiny", [*settings, *more]), folder / name, folder / "base", progress=Silent())
    for step in (1, 2):
        assert tasks_of(folder / "rlhf-served", step) == tasks_of(folder / "rlhf-local", step)
        assert np.allclose(log_probs(folder / "rlhf-served", step), log_probs(folder / "rlhf-local", step), atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('rollout.servers=["10.0.0.2:8000"]', "is no address; give such as http://10.0.0.2:8000"),
        ('rollout.servers=["http://127.0.0.1:9", "http://127.0.0.1:9"]', "twice"),
        ('rollout.servers=["http://127.0.0.1:9"]', "is a server running there"),
    ],
)
def test_servers_that_cannot_be_are_refused_in_a_line(folder, tmp_path, setting, words):
    command = ["rlvr", "--from", str(folder / "base"), "--out", str(tmp_path / "run")]
    for each in (*SETTINGS, setting):
        command += ["--set", each]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UserError)  # the command ends with exit code 2 and this line
    assert words in str(error)
    assert "rollout.servers" in str(error)
    assert "\n" not in str(error)
    check_new_run(tmp_path / "run")  # the mended command is taken as it stands


@pytest.mark.slow
def test_servers_that_die_one_by_one_and_come_back(folder, local, monkeypatch):
    mine = [Server(folder), Server(folder)]
    first, second = (server.wait() for server in mine)
    # After the profile (9 tasks by 2) and the held-out tasks (2 by 2) each step has 12 samples.
    before = 2 * len(json.loads((local / "profile.json").read_text())["rates"]["letters"]) + 4
    sys.modules["served_environment"].Letters.calls = 0  # the run on the engine here has made some
    monkeypatch.setenv("KILL", f"{before + 14}:{first.process.pid} {before + 26}:{second.process.pid}")
    try:
        result = run(folder, "dying", on((first, second)))
        assert result.paused
        assert "no server of rollout.servers is left" in result.stopped
        assert "\n" not in result.stopped
        done = result.training.step
        assert done in (2, 3)  # the second one dies in the third step or at its end
        check = steps_of(folder / "dying")
        assert len(check) == done
        monkeypatch.delenv("KILL")
        again = [Server(folder, server.port) for server in (first, second)]
        mine += again
        for server in again:
            server.wait()
        settings = load_rlvr(str(folder / "dying"), [])
        resumed = main(settings, folder / "dying", resume=True, progress=Silent())
        assert resumed.stopped == ""
        check_same(folder / "dying", local)
    finally:
        for server in mine:
            server.end()


@pytest.mark.slow
@pytest.mark.parametrize("arranged", [[], ["parallel.context=2", "parallel.expert=2"]], ids=str)
def test_two_ranks_share_the_servers(folder, servers, local, arranged):
    run_dir, pushed = folder / f"ranks-{len(arranged)}", folder / f"pushed-{len(arranged)}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nano3"]
    command += ["rlvr", "--from", str(folder / "base"), "--out", str(run_dir)]
    kept = [f"rollout.server_weights='{pushed}'", "export.dtype=float32"]
    for setting in (*SETTINGS, on(servers), *kept, *arranged):
        command += ["--set", setting]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for step in (1, 2):
        drawn = sorted(tasks_of(run_dir, step), key=str)
        assert drawn == sorted(tasks_of(local, step), key=str)
    assert all(line["dlogp_generated_mean"] < 1e-5 for line in steps_of(run_dir))
    for found, wanted in zip(steps_of(run_dir), steps_of(local), strict=True):
        for name in ("policy_loss", "entropy", "grad_norm"):
            assert found[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-5), name
    assert loads_of(run_dir) == loads_of(local) != []  # each token counted once
    # What servers were sent last is what the run exports, bit for bit.
    sent, exported = (load_file(place / "model.safetensors") for place in (pushed, run_dir / "model"))
    assert sent.keys() == exported.keys()
    assert all(torch.equal(value, exported[name]) for name, value in sent.items())
