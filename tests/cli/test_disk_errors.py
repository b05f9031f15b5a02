"""A full disk ends a command with one line."""

import errno
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from nano3.cli.disk_errors import disk_error

linux = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux that is always full")
RUN = [sys.executable, "-c", "from nano3.cli.app import main; main()"]


def one_kilobyte_a_file():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def fill():
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"text")


def error_of(call):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    return raised.value


@linux
def test_a_result_for_which_there_is_no_space_is_one_line_and_exit_code_2():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*RUN, "config"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the disk is full" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["prepare", "texts"], ["curate", "code", "--from", "texts", "--workers", "2"]])
def test_files_that_cannot_be_written_are_one_line_and_exit_code_2(verb, tmp_path):
    """Also where a worker process meets it."""
    (tmp_path / "texts").mkdir()
    for number in range(2):
        text = "\n".join(f"name_{i}_{number} = {i * i}" for i in range(4000))
        (tmp_path / "texts" / f"{number}.py").write_text(text)
    command = [*RUN, "data", *verb, "--out", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=one_kilobyte_a_file, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "larger than is allowed here" in done.stderr.splitlines()[-1]


@linux
def test_the_libraries_that_write_are_understood():
    import pyarrow as pa
    from pyarrow import parquet
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    def arrow():
        with pa.OSFile("/dev/full", "wb") as file:
            parquet.write_table(pa.table({"text": ["a" * 100]}), file)

    assert "the disk is full" in disk_error(error_of(arrow))
    assert "the disk is full" in disk_error(error_of(lambda: Tokenizer(WordLevel()).save("/dev/full")))


@linux
def test_an_error_of_a_worker_process_or_one_behind_another_is_understood():
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        error = error_of(pool.submit(fill).result)
    assert "the disk is full" in disk_error(error)
    outer = RuntimeError("the thread that writes has ended")
    outer.__cause__ = error
    assert "the disk is full" in disk_error(outer)


def test_what_is_no_error_of_the_disk_is_left_alone():
    assert disk_error(RuntimeError("a mistake in nano3")) == ""
    assert disk_error(ConnectionResetError(errno.ECONNRESET, "reset")) == ""
    assert disk_error(OSError(errno.EROFS, "read-only", "a.txt")).startswith("a.txt: the disk can only be read")
