"""How the sides take turns, and what happens when one fails."""

import sys

import pytest

from nano3.bench.compute import Plan, Rotation
from nano3.bench.processes import SideError, Worker
from nano3.bench.workload import Case, Job
from nano3.config.errors import UserError

CASES = [Case("prefill", 1, 8), Case("prefill", 1, 16)]


class Scripted:
    """A side without a process: takes a second a run, and fails at the runs it is told to."""

    def __init__(self, name, log, fails_at=None):
        self.name, self.log, self.fails_at = name, log, fails_at
        self.count, self.closed = 0, False

    def ready(self):
        if self.fails_at == 0:
            raise SideError("cannot load")
        return {"name": self.name}

    def run(self, case):
        assert not self.closed
        self.log.append((self.name, case.length))
        self.count += 1
        if self.count == self.fails_at:
            raise SideError("did not finish")
        return {"seconds": float(self.count), "peak_memory": 100 * self.count}

    def close(self):
        self.closed = True


def rotation(log, **fails_at):
    names = ["nano3", "peer", "ceilings"]
    return Rotation({name: Scripted(name, log, fails_at.get(name)) for name in names}, lambda text: None)


def test_sides_take_turns_and_the_first_round_does_not_count():
    log = []
    turns = rotation(log)
    runs = turns.case(CASES[0], repeat=2)
    assert [name for name, _ in log] == ["nano3", "peer", "nano3", "peer", "ceilings", "nano3", "peer", "ceilings"]
    assert set(runs) == {"nano3", "peer"}
    assert runs["peer"].seconds == [2.0, 3.0]
    assert runs["peer"].peak_memory == 300
    assert len(turns.ceilings) == 2
    assert turns.about["peer"] == {"name": "peer"}


def test_a_peer_that_fails_is_out_and_the_others_go_on():
    log = []
    turns = rotation(log, peer=3)
    first, second = (turns.case(case, repeat=3) for case in CASES)
    assert (first["peer"].seconds, first["peer"].failed) == ([2.0], "did not finish")
    assert (second["peer"].seconds, second["peer"].failed) == ([], "did not finish")
    assert len(second["nano3"].seconds) == 3
    assert turns.workers["peer"].closed


def test_a_peer_that_cannot_load_is_out_from_the_start():
    turns = rotation([], peer=0)
    assert turns.case(CASES[0], repeat=1)["peer"].failed == "cannot load"


def test_nano3s_own_failure_is_no_result():
    with pytest.raises(RuntimeError, match="nano3: did not finish"):
        rotation([], nano3=2).case(CASES[0], repeat=1)


def test_a_process_that_takes_too_long_is_ended():
    worker = Worker(Job("ceilings", "train"), limit=0.01)
    with pytest.raises(SideError, match=r"did not finish in 0\.01 s"):
        worker.ready()
    worker.close()


def test_a_process_that_dies_is_told_with_its_last_words(monkeypatch, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho 'the disk is full' >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    worker = Worker(Job("ceilings", "train"), limit=60)
    with pytest.raises(SideError, match=r"ended with code 2: .*the disk is full"):
        worker.ready()
    worker.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "int8"}, "--dtype int8"),
        ({"repeat": 0}, "--repeat is 0"),
        ({"threads": -1}, "--threads is -1"),
        ({"peer_dtypes": ("float16",)}, "--peer-dtype float16"),
        ({"peer_timeout": 0.0}, "--peer-timeout is 0"),
        ({"against": ("ollama",)}, "--against ollama"),
    ],
)
def test_a_wrong_setting_is_named(settings, words):
    with pytest.raises(UserError, match=words):
        Plan("prefill", CASES, **settings)
