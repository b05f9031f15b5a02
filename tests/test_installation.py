"""Which nano3 runs in worker processes, and how to add to it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nano3
from nano3 import installation
from nano3.bench.processes import SideError, Worker
from nano3.bench.workload import Job
from nano3.installation import install_command, module_command, which_kernels, which_nano3
from nano3.train.tracking.metrics import MetricsWriter
from nano3.train.tracking.redraw import Redraw


@pytest.fixture
def impostors(tmp_path, monkeypatch) -> Path:
    """A current folder with packages of nano3's names, as a checkout has them, that end whoever imports them."""
    for name in ("nano3", "kernels", "presets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the impostor')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_worker_runs_this_nano3_from_a_folder_that_holds_another(impostors):
    worker = Worker(Job(side="nano3", kind="none", model="none", threads=1), 60)
    try:
        with pytest.raises((SideError, ValueError)) as told:
            worker.ready()
        assert "impostor" not in str(told.value)
    finally:
        worker.close()


def test_a_command_for_a_module_finds_this_nano3(impostors):
    command = module_command("nano3.cli.app")
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"nano3 {nano3.__version__}\n", done.stderr


def test_charts_of_a_run_that_goes_on_are_drawn_by_this_nano3(impostors):
    writer = MetricsWriter(impostors / "metrics.jsonl")
    for step in (1, 2):
        values = {"loss": 4.0, "lr": 1e-3, "grad_norm": 1.0, "load_max_over_mean": []}
        writer.write("train", step, step * 4096, values)
    writer.close()
    redraw = Redraw(impostors / "metrics.jsonl", impostors / "charts", "loss", seconds=0)
    redraw.poke()
    redraw.wait()
    assert (impostors / "charts" / "loss.png").is_file()


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ({"url": "file://{here}", "dir_info": {"editable": True}}, "pip install -e '.[eval]'"),
        ({"url": "file://{here}", "dir_info": {}}, "pip install '.[eval]'"),
        ({"url": "file://{here}/no%20more", "dir_info": {}}, "pip install 'nano3[eval]'"),
        ({"url": "https://host/nano3", "vcs_info": {"vcs": "git"}},
         "pip install 'nano3[eval] @ git+https://host/nano3'"),
    ],
)  # fmt: skip
def test_the_command_for_an_extra_is_that_of_the_installation(record, command, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    found = json.loads(json.dumps(record).replace("{here}", str(tmp_path)))
    monkeypatch.setattr(installation, "_direct_url", lambda: found)
    assert install_command("eval") == command


@pytest.mark.parametrize(
    ("prefix", "installer", "tool"),
    [
        ("/home/me/.venv", "pip\n", "pip install"),
        ("/home/me/.venv", "uv", "uv pip install"),
        ("/home/me/.local/share/pipx/venvs/nano3", "pip", "pipx runpip nano3 install"),
        (
            "/home/me/.local/share/uv/tools/nano3",
            "uv",
            "uv pip install --python '/home/me/.local/share/uv/tools/nano3'",
        ),
    ],
)
def test_the_tool_is_the_one_that_installed_nano3(prefix, installer, tool, monkeypatch):
    files = {"INSTALLER": installer, "direct_url.json": json.dumps({"url": "file:///gone", "dir_info": {}})}
    monkeypatch.setattr(installation, "_record", files.__getitem__)
    monkeypatch.setattr(sys, "prefix", prefix)
    assert install_command("eval") == f"{tool} 'nano3[eval]'"


def test_every_extra_that_a_message_or_page_names_can_be_installed():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [*(root / "nano3").rglob("*.py"), *(root / "docs").rglob("*.md"), root / "README.md", root / ".ci" / "run"]
    words = r"install_command\([\"'](\w+)[\"']\)|pip install [^\n]*?\[(\w+)\]|the extra `(\w+)`"
    named = {(file.name, next(filter(None, match))) for file in files for match in re.findall(words, file.read_text())}
    assert {"eval", "mistral", "sandbox", "rl", "vllm", "dev"} <= {name for _, name in named}
    assert [pair for pair in sorted(named) if pair[1] not in extras] == []


def test_the_start_of_a_run_says_which_nano3_and_which_kernels_run(impostors, monkeypatch):
    own = str(Path(nano3.__file__).resolve().parent)
    assert own in which_nano3()
    assert "the nano3 in the current folder is another one" in which_nano3()
    monkeypatch.chdir(Path(own).parent)
    assert which_nano3().endswith(own)
    assert "C++ kernels" in which_kernels()
