"""The command line from outside: help, errors, exit codes, start-up."""

import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from typer.main import get_command

from nano3.cli.app import VERBS, app, main
from nano3.config.errors import UserError

RUN = [sys.executable, "-c", "from nano3.cli.app import main; main()"]
# With NANO3_CPU_ISA a command looks at the kernels first, for which it loads torch.
LEFT_OUT = ("NANO3_DEBUG", "_NANO3_COMPLETE", "NANO3_CPU_ISA")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}


def nano3(*args, cwd=None, **environment):
    return subprocess.run(
        [*RUN, *args], capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT | environment, check=False
    )


def test_help_lists_the_verbs_and_says_how_to_start(run):
    done = nano3("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (*VERBS, "Start with"):
        assert word in done.stdout
    assert [run(*args) for args in (["-h"], [])] == [run("--help")] * 2


@pytest.mark.parametrize("args", [["--help"], ["pretrain", "--help"], ["pretrain", "--dry-run", "--json"],
                                  ["info", "--model", "nano3-30b-a3b", "--json"], ["--version"],
                                  ["runs", "."]])  # fmt: skip
def test_these_answer_without_torch(args):
    code = f"""
import sys
from nano3.cli.app import main
try:
    main({args!r})
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules, "torch was imported"
assert "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr


def all_verbs(group, path=()):
    """Every verb and inner verb, as its words."""
    for name in group.list_commands(None) if hasattr(group, "list_commands") else ():
        yield (*path, name)
        yield from all_verbs(group.get_command(None, name), (*path, name))


@pytest.mark.parametrize("verb", list(all_verbs(get_command(app))), ids=" ".join)
def test_help_at_80_columns_leaves_half_of_them_to_the_words_and_breaks_no_line(verb, monkeypatch, capsys):
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, "80")
    with pytest.raises(SystemExit) as end:
        main([*verb, "--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("│")]
    words = [line[:40].rstrip() for line in table]
    assert not [line for line in words if "x<=" in line or re.search(r"<\w+( range)?>", line)]
    began = [line for line in table if line[1:8].strip(" *").startswith("-")]  # others go on with the words before
    assert all(line[41:].strip(" │") for line in began), "a row without words in its right half"
    for line, later in pairwise([line.rstrip() for line in lines[: lines.index(table[0])]]):
        if line.startswith("   "):  # of an example
            assert later.startswith("   ") or not (later or line.endswith("\\")), f"{line!r} is broken"
        elif line and later and not later.startswith(("   ", "╭")):
            assert len(f"{line} {later.split()[0]}") > 79, f"{line!r} ends early"


def test_version():
    assert nano3("--version").stdout == "nano3 0.1.0\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pretrian"], ["pretrian", "pretrain"]),
        (["pretrain", "--prest", "tiny"], ["--prest", "--preset"]),
        (["pretrain", "--preset", "phase3", "--dry-run"], ["'phase3'", "did you mean 'phase"]),
        (["pretrain", "--preset", "none/x.toml"], ["none/x.toml", "no such file"]),
        (["pretrain", "--set", "train.batchsize=3"], ["'train.batchsize'", "'train.batch_size'"]),
        (["pretrain", "--set", "train.tokens=many"], ["'train.tokens'", "a whole number", "'many'"]),
        (["pretrain", "--set", "model.pattern=MXE"], ["model.pattern", "'X'"]),
        (["pretrain", "--set", "model.top_k=9"], ["model.top_k is 9", "n_experts 8"]),
        (["pretrain", "--set", "model.n_groups=3"], ["mamba_n_heads 4", "n_groups 3"]),
        (["pretrain", "--resume", "--out", "nowhere"], ["nowhere", "no run to resume"]),
        (["info", "--model", "nano3-30b-a3"], ["did you mean 'nano3-30b-a3b'"]),
        (["info", "--model", "."], ["no config.json"]),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    done = nano3("info", "--model", "nothing", NANO3_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UserError" in done.stderr


def test_an_error_inside_nano3_is_not_hidden():
    code = "import nano3.cli.app as a; a.VERBS['info'] = 'nano3.cli.no_such_file'; a.main(['info'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_exits_130_without_a_traceback(tmp_path):
    fifo = tmp_path / "slow.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*RUN, "pretrain", "--preset", str(fifo)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    writer = os.open(fifo, os.O_WRONLY)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    os.close(writer)
    assert process.returncode == 130
    assert b"Traceback" not in stderr


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen([*RUN, "info", "--model", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=ENVIRONMENT)  # fmt: skip
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert stderr == b""


def test_ctrl_c_in_a_verb_says_so(monkeypatch, capsys):
    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("nano3.cli.info.detect", stopped)
    with pytest.raises(SystemExit) as end:
        main(["info"])
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_an_error_on_a_terminal_breaks_at_spaces(monkeypatch, capsys):
    def fail(*args, **options):
        raise UserError("the shortest takes 4,804 tokens " * 6 + "x" * 90)

    monkeypatch.setattr("nano3.cli.app.app", fail)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        main([])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert all(len(line) <= 80 and line.split()[-1] in "error: the shortest takes 4,804 tokens" for line in lines[:-1])
    assert lines[-1] == "x" * 90


def test_an_error_is_left_for_torchrun_whose_report_ends_with_it(tmp_path, monkeypatch, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit):
        main(["pretrain", "--preset", "phase3"])
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: unknown pretrain preset 'phase3'")
    report = str(ChildFailedError("nano3", {0: ProcessFailure(0, 1, 2, str(file))}))
    assert f"traceback : {line}" in report.splitlines()[-2]
