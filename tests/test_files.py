"""Files and folders that are replaced are whole at every moment, whatever is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nano3 import files
from nano3.config.errors import UserError
from nano3.files import atomic_folder, check_free, check_writable, exclusive, in_use, usual_mode, write_atomic


def save(path, text) -> None:
    with atomic_folder(path) as folder:
        (folder / "a.txt").write_text(text)


def content(path) -> str:
    return (path / "a.txt").read_text()


def test_a_folder_is_replaced_whole(tmp_path):
    save(tmp_path / "m", "old")
    (tmp_path / "m" / "extra.txt").write_text("of the old one")
    save(tmp_path / "m", "new")
    assert os.listdir(tmp_path / "m") == ["a.txt"]
    assert content(tmp_path / "m") == "new"
    assert os.listdir(tmp_path) == ["m"]


def test_a_link_goes_on_pointing_to_what_it_pointed_to(tmp_path):
    save(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == "new"


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    save(tmp_path / "m", "old")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "m") as folder:
        (folder / "missing" / "a.txt").write_text("half")
    assert content(tmp_path / "m") == "old"
    assert os.listdir(tmp_path) == ["m"]


WATCHED = """
import os, sys
from pathlib import Path
import nano3.files as files
path, calls = Path(sys.argv[1]), []
if sys.argv[2] == "without-exchange":
    files._exchange = lambda *_: False
def watch(event, args):
    if event in ("os.rename", "os.remove", "shutil.rmtree") or event == "ctypes.dlsym":
        calls.append(path.exists())
        if len(calls) == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
sys.addaudithook(watch)
with files.atomic_folder(path) as folder:
    (folder / "a.txt").write_text("new")
print(all(calls))
"""


def replace_and_die(path, how, call) -> subprocess.CompletedProcess:
    """Replace `path` in a process that is killed before its n-th change of names; 0 for never."""
    command = [sys.executable, "-c", WATCHED, str(path), how, str(call)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_kill_at_any_moment_leaves_a_whole_folder(tmp_path, call):
    save(tmp_path / "m", "old")
    done = replace_and_die(tmp_path / "m", "with-exchange", call)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert content(tmp_path / "m") in ("old", "new")
    save(tmp_path / "m", "newest")
    assert content(tmp_path / "m") == "newest"
    assert os.listdir(tmp_path) == ["m"]


def test_without_an_exchange_the_old_folder_comes_back(tmp_path):
    save(tmp_path / "m", "old")
    assert replace_and_die(tmp_path / "m", "without-exchange", 2).returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "m"):
        raise RuntimeError
    assert content(tmp_path / "m") == "old"
    assert os.listdir(tmp_path) == ["m"]


def test_what_others_are_writing_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "m") as first, atomic_folder(tmp_path / "m.v2") as other:
        save(tmp_path / "m", "second")
        assert first.is_dir()
        assert other.is_dir()
    (tmp_path / ".m.json.tmp").write_text("a file of somebody else")
    save(tmp_path / "m", "third")
    assert (tmp_path / ".m.json.tmp").exists()


def test_the_scratch_folder_of_a_killed_process_goes_with_the_next_write(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from nano3.files import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as work: (work / 'large').touch(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "m"], check=False).returncode == 9
    assert len(os.listdir(tmp_path)) == 1
    with files.scratch_folder(tmp_path / "m") as own:
        save(tmp_path / "m", "new")
        assert own.is_dir()
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("data", ["text é", b"\x00\xff"])
def test_a_file_is_replaced_or_kept(tmp_path, data, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomic(path, "other")
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    folder = tmp_path / "run"
    with exclusive(folder), pytest.raises(UserError, match="in use by another process"), exclusive(folder):
        pass
    with exclusive(tmp_path / "run"):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_without_locks_a_folder_is_held_all_the_same_and_a_line_says_so(tmp_path, monkeypatch, capsys, code):
    def no_lock(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "try_lock", no_lock)
    with exclusive(tmp_path):
        assert not in_use(tmp_path)
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path} has no locks")
    assert said.count("\n") == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO, errno.ESTALE])
def test_a_lock_that_fails_is_no_lock_that_is_held(tmp_path, monkeypatch, code):
    def failing_lock(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "try_lock", failing_lock)
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be locked .*{os.strerror(code)}"), exclusive(tmp_path):
        pytest.fail("entered")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_only_be_read_tells_whether_it_is_in_use(tmp_path, monkeypatch, code):
    real = Path.open

    def read_only(path, mode="r", *arguments, **options):
        if mode != "r":
            raise OSError(code, os.strerror(code), str(path))
        return real(path, mode, *arguments, **options)

    with exclusive(tmp_path):
        monkeypatch.setattr(Path, "open", read_only)
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


def test_a_file_gets_the_usual_mode_while_the_mask_of_the_process_stays(tmp_path, monkeypatch):
    def written(name):
        with usual_mode(tmp_path / name):
            (tmp_path / name).unlink()
            (tmp_path / name).touch(0o600)
        return (tmp_path / name).stat().st_mode & 0o777

    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.delattr(os, "umask")  # other threads make files meanwhile
            assert written("a") == 0o640
    finally:
        os.umask(before)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["/proc/x/y", "{here}/file/x", "{here}/file"])
def test_a_folder_that_cannot_be_written_is_named_with_its_option(tmp_path, place):
    (tmp_path / "file").touch()
    path = Path(place.format(here=tmp_path))
    with pytest.raises(UserError, match=f"^--out {path}: cannot be written"):
        check_writable(path, "--out")


def test_a_folder_with_other_files_is_not_free(tmp_path):
    (tmp_path / ".hidden").touch()
    check_free(tmp_path)
    check_free(tmp_path / "missing")
    for name in "dcba":
        (tmp_path / name).touch()
    check_free(tmp_path, own="abcd")
    with pytest.raises(UserError, match=rf"^--out {tmp_path}: holds other files \(a, c, d\): give a new or"):
        check_free(tmp_path, own="b")
    with pytest.raises(UserError, match=r"\(a, b, c, \.\.\.\)"):
        check_free(tmp_path)
