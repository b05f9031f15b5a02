"""Job scripts of Slurm, run by a stand-in of sbatch that starts every task of an array at once, and Ray."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nano3.cli.data.app import app
from nano3.config.errors import UserError
from nano3.curate import executor, slurm
from nano3.curate.catalog import is_importable
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline

from .test_run import content, folder_of

STEPS = "".join(f'[[step]]\nuse = "{use}"\n' for use in ("read", "length", "exact-dedup", "near-dedup"))
SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
from pathlib import Path

log, script = Path(os.environ["FAKE_SLURM"]), Path(sys.argv[-1])
jobs = log.read_text().splitlines() if log.exists() else []
log.write_text("\\n".join([*jobs, " ".join([script.name, *sys.argv[1:-1]])]) + "\\n")
text = script.read_text()
array = re.search(r"^#SBATCH --array=0-(\\d+)", text, re.MULTILINE)
for task in reversed(range(int(array[1]) + 1 if array else 1)):
    environment = os.environ | {{"SLURM_ARRAY_TASK_ID": str(task)}}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
print(f"{{len(jobs) + 100}};cluster")
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(STEPS)
    return folder_of(tmp_path / "in", 8)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A machine that has sbatch."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "jobs.log"))
    return programs


def plan_of(source, tmp_path, out, tasks=3):
    return plan_run(load_pipeline("own.toml"), tmp_path / out, [str(source)], tasks=tasks)


def test_scripts_are_shell_and_each_waits_for_those_before(source, tmp_path):
    plan = plan_of(source, tmp_path, "a folder")
    found = slurm.scripts(plan, 2, ["partition=cpu", "exclusive", "comment=two words"])
    assert [script.name for script in found] == [*(f"{name}-0" for name in plan.manifest.segments), "finish"]
    assert [script.after for script in found] == list(range(len(found)))
    for script in found:
        assert subprocess.run(["bash", "-n"], input=script.text, text=True, check=False).returncode == 0
        assert "#SBATCH --partition=cpu\n#SBATCH --exclusive\n#SBATCH --comment='two words'\n" in script.text
        assert f"#SBATCH --output='{tmp_path}/a folder/slurm/{script.name}" in script.text
    assert "#SBATCH --array=0-2%2\n" in found[0].text
    assert "--array" not in found[-1].text
    assert not (tmp_path / "a folder").exists(), "nothing is written"


def test_an_array_has_at_most_so_many_tasks(source, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 2)
    found = slurm.scripts(plan_of(source, tmp_path, "out", 5), 0, [])
    first = [script for script in found if script.after == 0]
    assert [script.text.split("--array=")[1].split("\n")[0] for script in first] == ["0-1", "0-1", "0-0"]
    assert [script.text.split("$((")[1].split(" ")[0] for script in first] == ["0", "2", "4"]


@pytest.mark.slow
def test_jobs_leave_the_same_bytes_as_a_run_here(source, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 2)
    run_pipeline(plan_of(source, tmp_path, "here"), 1)
    jobs = slurm.submit(plan_of(source, tmp_path, "there"), 0, ["partition=cpu"])
    given = (tmp_path / "jobs.log").read_text().splitlines()
    assert len(jobs) == len(given)
    assert given[0].split() == ["00-until-02-exact-dedup-0.sbatch", "--parsable"]
    assert given[2].split()[2] == "--dependency=afterok:100:101"
    assert given[-1].split()[2] == "--dependency=afterok:" + ":".join(jobs[:-1])
    there = {name: data for name, data in content(tmp_path / "there").items() if not name.startswith("slurm/")}
    here = content(tmp_path / "here")
    assert there.keys() == here.keys()
    assert [name for name in here if not name.endswith(".png") and here[name] != there[name]] == []


def test_jobs_that_failed_are_submitted_again_alone(source, tmp_path, cluster, monkeypatch):
    plan = plan_of(source, tmp_path, "out")
    refused = "#!/bin/sh\necho no such partition >&2\nexit 1\n"
    (cluster / "sbatch").write_text(refused)
    with pytest.raises(UserError, match="no such partition"):
        slurm.submit(plan, 0, [])
    name = next(iter(plan.manifest.segments))
    slurm.main(str(tmp_path / "out"), name, "1")
    first = slurm.scripts(plan, 0, [])[0]
    assert "#SBATCH --array=0-1\n" in first.text, "one of three is done"


def test_what_is_queued_already_is_not_submitted_twice(source, tmp_path, cluster):
    (cluster / "squeue").write_text("#!/bin/sh\necho 77 running\n")
    (cluster / "squeue").chmod(0o755)
    (cluster / "sbatch").write_text("#!/bin/sh\necho 77\n")
    slurm.submit(plan_of(source, tmp_path, "out"), 0, [])
    with pytest.raises(UserError, match=r"still queued or running: .* scancel 77"):
        slurm.submit(plan_of(source, tmp_path, "out"), 0, [])
    here = ["curate", "own.toml", "--from", str(source), "--out", "out", "--tasks", "3"]
    assert "scancel 77" in str(CliRunner().invoke(app, here).exception), "nor carried out here beside its jobs"


@pytest.mark.parametrize(
    ("option", "told"), [("--mem=3G", "without dashes"), ("array=0-9", "sets array itself"), ("a\nb", "write")]
)
def test_options_of_sbatch_are_checked(source, tmp_path, option, told):
    with pytest.raises(UserError, match=told):
        slurm.scripts(plan_of(source, tmp_path, "out"), 0, [option])


def test_without_sbatch_it_is_said(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="login node"):
        slurm.submit(plan_of(source, tmp_path, "out"), 0, [])


@pytest.mark.slow
def test_workers_leave_the_same_bytes_as_one(source, tmp_path):
    run_pipeline(plan_of(source, tmp_path, "one", 8), 1)
    run_pipeline(plan_of(source, tmp_path, "two", 8), 2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(not is_importable("ray"), reason="needs ray")
def test_ray_leaves_the_same_bytes_as_a_run_here(source, tmp_path):
    run_pipeline(plan_of(source, tmp_path, "here", 8), 1)
    run_pipeline(plan_of(source, tmp_path, "there", 8), 2, ray=True)
    assert content(tmp_path / "here") == content(tmp_path / "there")


@pytest.mark.slow
@pytest.mark.skipif(not is_importable("ray"), reason="needs ray")
def test_a_process_of_ray_that_is_killed_is_one_line(source, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "0")
    monkeypatch.setattr(executor, "_run_task", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="a process of Ray was ended from outside") as error:
        run_pipeline(plan_of(source, tmp_path, "there"), 2, ray=True)
    assert len(str(error.value).splitlines()) == 1
