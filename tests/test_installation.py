"""Which nano3 runs in worker processes, and how to add to it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import nano3
from nano3 import installation
from nano3.bench.processes import SideError, Worker
from nano3.bench.workload import Job
from nano3.installation import install_command, module_command


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
