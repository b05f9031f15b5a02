"""What the settings of a run contradict is told before anything is computed; and torchrun's command of the README."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.cli import app
from nano3.config.errors import UserError
from nano3.config.presets import load_pretrain
from nano3.stages.settings import check_settings, fit_micro_batch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "fitted"),
    [(4, 4, 1, 4), (4, 4, 2, 2), (4, 2, 2, 2), (4, 4, 4, 1), (12, 4, 2, 3), (10, 5, 2, 5), (14, 2, 2, 1), (6, 6, 3, 2)],
)
def test_the_micro_batch_is_the_greatest_that_divides_each_ranks_part(batch, micro, ranks, fitted):
    cfg = load_pretrain("tiny", [f"train.batch_size={batch}", f"train.micro_batch_size={micro}"])
    assert fit_micro_batch(cfg, ranks).train.micro_batch_size == fitted
    check_settings(cfg, ranks)
    if fitted == micro:
        assert fit_micro_batch(cfg, ranks) is cfg


def test_a_batch_that_ranks_cannot_share_is_refused_with_one_that_they_can():
    with pytest.raises(
        UserError, match=r"batch_size 4 cannot be shared evenly by 3 processes: --set train.batch_size=6"
    ):
        check_settings(load_pretrain("tiny", []), 3)


@pytest.mark.parametrize(
    "settings",
    [
        ("schedule.warmup_tokens=9e9", "schedule.warmup_limit=0"),
        ("train.batch_size=5", "train.micro_batch_size=2"),
        ("data.sources.mine=nowhere", "data.blend={mine=1}"),
    ],
)
def test_wrong_settings_are_refused_without_torch(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("NANO3_CPU_ISA", raising=False)  # with it a command looks at the kernels first
    code = "import sys, nano3.cli.app as app\ntry: app.main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    arguments = ["pretrain", *(part for text in settings for part in ("--set", text))]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False"), done.stderr
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (("parallel.context=4",), "error: data.sources.mine: "),  # the next that is wrong
        (("parallel.context=2", "train.batch_size=2"), "error: data.sources.mine: "),
        (("parallel.context=3",), "error: parallel.context is 3: 4 processes cannot be divided"),
        (("parallel.context=2", "train.batch_size=3"), "batch_size 3 cannot be shared evenly by 2 processes"),
        (("parallel.expert=3",), "error: parallel.expert is 3: "),
    ],
)
def test_processes_that_share_sequences_count_once(settings, error, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.chdir(tmp_path)
    settings = ("train.batch_size=1", "train.micro_batch_size=1", "data.sources.mine=nowhere", *settings)
    arguments = [part for text in (*settings, "data.blend={mine=1}") for part in ("--set", text)]
    with pytest.raises(SystemExit):
        app.main(["pretrain", "--out", "runs/x", *arguments])
    assert error in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_other_ranks_leave_an_error_to_the_main_one(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(app.time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            app.main(["pretrain", "--preset", "nothing"])
        assert capsys.readouterr().err.startswith("error: ")
    assert waited == [app.OTHER_RANKS_WAIT_S]


@pytest.fixture
def torchrun(tmp_path):
    """Runs the README's torchrun command with more options."""
    shown = re.search(r"^ {4}(torchrun .*)$", (ROOT / "README.md").read_text(), re.M)
    assert shown is not None
    scripts = Path(sys.executable).parent
    (tmp_path / "notes.txt").write_text("the cat sat on the mat, and then it ran away\n" * 3000)

    def torchrun(*more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        command = [*shlex.split(shown[1], comments=True), *more]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    return torchrun


@pytest.mark.slow
def test_the_torchrun_command_of_the_readme_trains(torchrun, tmp_path):
    done = torchrun("--data", "notes.txt", "--set", "train.tokens=4096", "--set", "sample.tokens=0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train.micro_batch_size 4 becomes 2: 2 processes share the 4 sequences of a step") == 1
    assert (tmp_path / "runs" / "two" / "model" / "config.json").is_file()
    assert "micro_batch_size = 2" in (tmp_path / "runs" / "two" / "config.toml").read_text()


@pytest.mark.slow
def test_torchrun_divides_the_experts_and_goes_on_with_them(torchrun, tmp_path):
    short = ("--data", "notes.txt", "--set", "sample.tokens=0", "--set", "parallel.expert=2")
    short = (*short, "--set", "schedule.horizon_tokens=8192")
    done = torchrun(*short, "--set", "train.tokens=4096")
    assert done.returncode == 0, done.stderr
    done = torchrun("--resume", "--set", "train.tokens=8192")
    assert done.returncode == 0, done.stderr
    assert "expert = 2" in (tmp_path / "runs" / "two" / "config.toml").read_text()
    assert "resuming from" in done.stderr
    done = torchrun(*short, "--set", "parallel.expert=3", "--out", "runs/three")
    assert done.returncode != 0
    assert "error: parallel.expert is 3: 8 experts of" in done.stderr
    assert not (tmp_path / "runs" / "three").exists()


@pytest.mark.slow
def test_torchrun_divides_the_one_sequence_of_a_step(torchrun, tmp_path):
    one = ("--set", "parallel.context=2", "--set", "train.batch_size=1", "--set", "train.micro_batch_size=1")
    done = torchrun("--data", "notes.txt", "--set", "sample.tokens=0", *one, "--set", "train.tokens=2048")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "two" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_torchrun_divides_the_blocks(torchrun, tmp_path):
    stages = ("parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.stages_per_rank=2")
    settings = [part for text in (*stages, "train.micro_batch_size=1") for part in ("--set", text)]
    done = torchrun("--data", "notes.txt", "--set", "sample.tokens=0", *settings, "--set", "train.tokens=4096")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "two" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_an_error_under_torchrun_stands_once(torchrun):
    done = torchrun("--set", "train.tokens=0")
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    first, *_, last = (number for number, line in enumerate(lines) if "error: preset 'tiny'" in line)
    assert lines[first].startswith("error: preset 'tiny'")
    assert last >= len(lines) - 2, "torchrun's own report ends with the error"


@pytest.mark.slow
def test_torchrun_in_a_folder_with_another_nano3_runs_the_installed_one(torchrun, tmp_path):
    for name in ("nano3", "kernels", "presets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the impostor')")
    done = torchrun("--data", "notes.txt", "--set", "train.tokens=512", "--set", "sample.tokens=0")
    assert done.returncode == 0, done.stderr
    assert "impostor" not in done.stderr
    assert "the nano3 in the current folder is another one" in done.stderr
