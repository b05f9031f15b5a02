from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nano3.cli.data.app import app

PROSE = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / f"texts/{i}.txt").write_text(f"text {i}: " + PROSE * (i % 4))
    (tmp_path / "texts/bad.txt").write_bytes(b"\xff")
    return tmp_path / "texts"


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def test_prepare_then_inspect(texts, tmp_path):
    result = run("prepare", texts, "--vocab-size", 300, "--out", tmp_path / "out", "--json")
    (row,) = json.loads(result.stdout)["prepared"]
    assert (row["path"], row["documents"], row["vocab_size"]) == (str(tmp_path / "out"), 30, 300)
    assert result.stderr == "text: skipped 1 not UTF-8\n"
    found = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert (found["documents"], found["tokens"]) == (30, row["tokens"])
    shown = run("inspect", tmp_path / "out", "--samples", 1).stdout
    assert f"{row['tokens']:,}" in shown
    assert " · begins ────\ntext " in shown


def test_inspect_tells_what_prepare_told_of_what_was_left_out(texts, tmp_path):
    for i in range(7):
        (texts / f"{i}.pdf").write_bytes(b"%PDF")
    prepared = run("prepare", texts, "--vocab-size", 300, "--out", tmp_path / "out")
    told = "1 not UTF-8"
    named = "7 files of unknown type (0.pdf, 1.pdf, 2.pdf, 3.pdf, 4.pdf, ...)"
    assert f"text: skipped {named}, {told}; a file that you name itself is read" in prepared.stderr
    shown = " ".join(run("inspect", tmp_path / "out").stdout.split())
    assert f"{named}, {told}" in shown
    found = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert found["skipped"] == {"files of unknown type": 7, "not UTF-8": 1}
    assert found["skipped_names"]["files of unknown type"][-1] == "4.pdf"


def test_without_out_the_cache_is_filled(texts, tmp_path):
    result = run("prepare", texts, "--vocab-size", 300)
    assert str(tmp_path / "cache/nano3/shards/text-") in result.stdout


def test_help_needs_no_torch():
    code = "import sys; import nano3.cli.data.app; assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preparing_needs_no_torch(texts, tmp_path):
    code = (
        "import sys; from nano3.cli.data.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    args = ["prepare", str(texts), "--vocab-size", "300", "--out", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, *args], check=True, capture_output=True)
