"""Cgroups of both versions in a hierarchy of ordinary folders; only what the kernel does in it by itself is played."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.sandbox import cgroup
from nano3.sandbox.limits import Limits

LIMITS = Limits(processes=7, memory=123 << 20)
FILES = {"pids": ["pids.max"], "memory": ["memory.max", "memory.swap.max"], "memory v1": ["memory.limit_in_bytes"]}


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """Fills new groups with the files of the controllers that were passed on, and removes them whole."""
    new_folder = cgroup._new_folder

    def filled(parent):
        folder = new_folder(parent)
        if folder is not None:
            passed_on = parent / "cgroup.subtree_control"
            controllers = passed_on.read_text().split() if passed_on.exists() else [parent.parent.name]
            for name in ["cgroup.procs", *(file for c in controllers for file in FILES.get(c, []))]:
                (folder / name).write_text("")
        return folder

    monkeypatch.setattr(cgroup, "_new_folder", filled)
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)


def hierarchy(tmp_path, *, lines, mounts, passed_on=None):
    """/proc of a process in these groups."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    info = [f"30 29 0:26 {root} {tmp_path / place} rw shared:4 - {kind} {kind} {options}\n"
            for root, place, kind, options in mounts]  # fmt: skip
    (proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(info))
    for place, controllers in (passed_on or {}).items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "cgroup.subtree_control").write_text(controllers)
    return proc


def made(tmp_path, proc):
    """Groups, and the files of each of their folders, by the folder above it."""
    with cgroup.groups_for(LIMITS, proc) as groups:
        found = {
            str(folder.parent.relative_to(tmp_path)): {f.name: f.read_text() for f in folder.iterdir()}
            for folder in groups.folders
        }
        assert groups.entries == [str(folder / "cgroup.procs") for folder in groups.folders]
    assert not any(folder.exists() for folder in groups.folders)
    return groups, found


BOUNDS = {"cgroup.procs": "", "pids.max": "7", "memory.max": str(123 << 20), "memory.swap.max": "0"}


@pytest.mark.parametrize(
    ("root", "line"), [("/", "0::/user/run"), ("/docker/9", "0::/docker/9/user/run")], ids=["host", "container"]
)
@pytest.mark.parametrize("parent", ["user/run", "user"])
def test_version_2_bounds_both_in_one_group_where_controllers_are_passed_on(tmp_path, root, line, parent):
    passed_on = {"cg/user/run": "", f"cg/{parent}": "cpu pids memory"}
    proc = hierarchy(tmp_path, lines=[line], mounts=[(root, "cg", "cgroup2", "rw")], passed_on=passed_on)
    groups, found = made(tmp_path, proc)
    assert (groups.holds_processes, groups.holds_memory) == (True, True)
    assert found == {f"cg/{parent}": BOUNDS}


def test_version_2_that_passes_only_one_on_holds_only_that(tmp_path):
    passed_on = {"cg/run": "memory", "cg": "cpu"}
    proc = hierarchy(tmp_path, lines=["0::/run"], mounts=[("/", "cg", "cgroup2", "rw")], passed_on=passed_on)
    groups, found = made(tmp_path, proc)
    assert (groups.holds_processes, groups.holds_memory) == (False, True)
    assert list(found) == ["cg/run"]


@pytest.mark.parametrize("passed_on", [{"cg/run": "", "cg": "cpu io"}, {}])
def test_version_2_without_controllers_holds_nothing(tmp_path, passed_on):
    proc = hierarchy(tmp_path, lines=["0::/run"], mounts=[("/", "cg", "cgroup2", "rw")], passed_on=passed_on)
    groups, found = made(tmp_path, proc)
    assert (groups.holds_processes, groups.holds_memory, found) == (False, False, {})


def test_version_1_has_a_group_for_each_controller(tmp_path):
    for place in ("pids/run", "memory v1/run"):
        (tmp_path / place).mkdir(parents=True)
    mounts = [("/", "pids", "cgroup", "rw,pids"), ("/", "memory\\040v1", "cgroup", "rw,memory")]
    proc = hierarchy(tmp_path, lines=["4:memory:/run", "3:pids:/run", "0::/"], mounts=mounts)
    groups, found = made(tmp_path, proc)
    assert (groups.holds_processes, groups.holds_memory) == (True, True)
    assert found["pids/run"]["pids.max"] == "7"
    assert found["memory v1/run"]["memory.limit_in_bytes"] == str(123 << 20)


def test_without_a_hierarchy_there_are_no_groups(tmp_path):
    groups, found = made(tmp_path, tmp_path / "nothing")
    assert (groups.holds_processes, groups.holds_memory, found) == (False, False, {})


def test_all_processes_of_a_group_are_killed_and_one_that_is_gone_is_no_error(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "cgroup.procs").write_text(f"{gone.pid}\n{child.pid}\n")
    cgroup.Groups([tmp_path, tmp_path / "missing"]).kill()
    assert child.wait(timeout=120) == -9
