"""Answers kept on disk."""

import os
import signal
import subprocess
import sys

import pytest

from nano3.client import cache
from nano3.client.cache import AnswerCache, answer_key
from nano3.config.errors import UserError

MESSAGES = [{"role": "user", "content": "hello"}]


def test_answers_are_found_again_also_in_other_files(tmp_path):
    first = AnswerCache(tmp_path / "a.sqlite")
    first.put(b"key", {"text": "ä\ud800"}, 1.5)
    second = AnswerCache(tmp_path / "b.sqlite", [tmp_path / "a.sqlite", tmp_path / "missing.sqlite"])
    assert second.get(b"key") == ({"text": "ä\ud800"}, 1.5)
    assert second.get(b"other") is None
    second.put(b"key", {"text": "new"}, 2.0)
    assert second.get(b"key") == ({"text": "new"}, 2.0)
    assert first.get(b"key") == ({"text": "ä\ud800"}, 1.5)
    assert not (tmp_path / "missing.sqlite").exists()


def test_an_answer_outlives_a_process_that_is_killed_right_after(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from nano3.client.cache import AnswerCache\n"
        "AnswerCache(Path(sys.argv[1])).put(b'key', 'kept', 0.0); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.sqlite"], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert AnswerCache(tmp_path / "a.sqlite").get(b"key") == ("kept", 0.0)


@pytest.mark.parametrize(("kind", "local"), [("nfs4", False), ("fuse.sshfs", False), ("xfs", True)])
def test_no_write_ahead_log_lies_on_a_file_system_that_machines_share(tmp_path, monkeypatch, kind, local):
    folder = tmp_path / "of a cluster"
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nhost:/x {str(folder).replace(' ', chr(92) + '040')} {kind} rw 0 0\n")
    monkeypatch.setattr(cache, "MOUNTS", mounts)
    first, second = AnswerCache(folder / "a.sqlite"), AnswerCache(folder / "a.sqlite")
    first.put(b"one", "answer", 1.0)
    second.put(b"two", "another", 1.0)
    assert first.get(b"two") == ("another", 1.0)
    assert second.get(b"one") == ("answer", 1.0)
    assert any(path.name.endswith(("-wal", "-shm")) for path in folder.iterdir()) == local


def test_everything_that_decides_an_answer_is_in_its_key():
    keys = {
        answer_key("m", MESSAGES, {"temperature": 0.5}, "p", 0),
        answer_key("n", MESSAGES, {"temperature": 0.5}, "p", 0),
        answer_key("m", [{"role": "user", "content": "hullo"}], {"temperature": 0.5}, "p", 0),
        answer_key("m", MESSAGES, {"temperature": 0.6}, "p", 0),
        answer_key("m", MESSAGES, {"temperature": 0.5, "max_tokens": 5}, "p", 0),
        answer_key("m", MESSAGES, {"temperature": 0.5}, "q", 0),
        answer_key("m", MESSAGES, {"temperature": 0.5}, "p", 1),
    }
    assert len(keys) == 7
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert answer_key("m", MESSAGES, one, "p", 0) == answer_key("m", MESSAGES, other, "p", 0)


def test_a_file_that_is_damaged_later_is_named(tmp_path):
    path = tmp_path / "a.sqlite"
    cache = AnswerCache(path)
    for i in range(500):
        cache.put(f"key{i}".encode(), os.urandom(200).hex(), 1.0)
    cache.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    cache = AnswerCache(path)
    with pytest.raises(UserError, match=r"a\.sqlite: no file of answers .*; delete it"):
        cache.get(b"key7")


def test_a_full_disk_is_no_reason_to_delete_what_is_kept(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache.put(b"first", "kept", 1.0)
    cache._own.execute("PRAGMA max_page_count = 3")
    with pytest.raises(UserError, match=r"a\.sqlite: database or disk is full; what was answered before is kept"):
        cache.put(b"second", os.urandom(100_000).hex(), 1.0)
    assert cache.get(b"first") == ("kept", 1.0)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"a\.sqlite: no file of answers .*; delete it"):
        AnswerCache(tmp_path / "a.sqlite")
