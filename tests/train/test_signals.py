import io
import signal
import subprocess
import sys

import pytest

from nano3.train.signals import StopRequest

pytestmark = pytest.mark.any_isa

WAIT = """
import time
from nano3.train import signals
from nano3.train.signals import StopRequest
signals.ECHO_SECONDS *= 4  # the second one comes within it on a busy machine too
with StopRequest(lambda message: print(message, flush=True)) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(600 if "LONG" else 0)
"""


@pytest.fixture
def start():
    """Starts a process that waits for a signal, and then takes a while, or not."""
    running = []

    def begin(long):
        code = WAIT.replace('"LONG"', str(long))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_a_ctrl_c_that_arrives_twice_at_once_is_one(start):
    process = start(long=False)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("SIGINT: finishing this step")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    assert process.wait(timeout=120) == 0


def test_a_second_one_later_ends_the_process(start):
    process = start(long=True)
    process.send_signal(signal.SIGTERM)
    while process.stdout.readline() != "stopping\n":
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == -signal.SIGTERM


class Interrupting(io.RawIOBase):
    """A stream in which a Ctrl-C arrives while a line is written."""

    def writable(self):
        return True

    def write(self, data):
        if b"step" in bytes(data):
            signal.raise_signal(signal.SIGINT)
        return len(data)


def test_one_that_arrives_while_a_line_is_written_is_told_and_leaves_the_run_alone(capfd):
    stream = io.TextIOWrapper(io.BufferedWriter(Interrupting()), write_through=True)
    handler = signal.getsignal(signal.SIGINT)
    with StopRequest(lambda message: print(message, file=stream, flush=True)) as stop:
        print("step 1", file=stream, flush=True)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr().err.startswith("SIGINT: finishing this step")
