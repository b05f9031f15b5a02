from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nano3.cli.data.app import app
from nano3.config.errors import UserError

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
    assert result.stderr == "text: skipped 1 not UTF-8 (bad.txt)\n"
    found = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert (found["documents"], found["tokens"]) == (30, row["tokens"])
    shown = run("inspect", tmp_path / "out", "--samples", 1).stdout
    assert f"{row['tokens']:,}" in shown
    assert " · begins ────\ntext " in shown


def test_inspect_tells_what_prepare_told_of_what_was_left_out(texts, tmp_path):
    for i in range(7):
        (texts / f"{i}.pdf").write_bytes(b"%PDF")
    prepared = run("prepare", texts, "--vocab-size", 300, "--out", tmp_path / "out")
    told = "1 not UTF-8 (bad.txt)"
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


def refused(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_a_folder_of_texts_with_a_file_that_is_none_is_prepared_and_the_file_named(texts, tmp_path):
    (texts / "rows.jsonl").write_text('{"messages": []}\n' * 3)
    (texts / "cut.txt.gz").write_bytes(b"\x1f\x8b")
    result = run("prepare", texts, "--vocab-size", 300, "--out", tmp_path / "out")
    assert "1 file damaged or cut short (cut.txt.gz)" in result.stderr
    assert "1 file without a text in 'text' (rows.jsonl)" in result.stderr
    again = run("prepare", texts, "--vocab-size", 300)
    assert "(rows.jsonl)" in again.stderr
    assert "(rows.jsonl)" in run("prepare", texts, "--vocab-size", 300).stderr, "from the cache"
    assert "rows.jsonl: no record has a field 'text'" in refused("prepare", texts, texts / "rows.jsonl")


@pytest.mark.parametrize("own", ["notes.txt", "blend.toml", "texts/a.txt"])
def test_a_folder_that_holds_files_of_the_users_own_is_not_written_to(texts, tmp_path, own):
    kept = tmp_path / "mine" / own
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    blend = ["--set", "data.blend={a=1,b=1}", "--set", f"data.sources={{a=['{texts}'],b=['{texts}']}}"]
    for args in ([texts], blend):
        assert f"--out {tmp_path / 'mine'}: holds other files" in refused("prepare", *args, "--out", tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").rglob("*") if path.is_file()] == ["mine"]


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    assert refused("prepare", tmp_path / "missing", "--out", "/proc/x").startswith("--out /proc/x: cannot be written")
    (tmp_path / "file").touch()
    assert "--out" in refused("generate", "retrieval", "--out", tmp_path / "file" / "x.jsonl")


def test_prepared_folders_of_several_categories_are_gone_on_with(texts, tmp_path):
    blend = ["--set", "data.blend={a=1,b=1}", "--set", f"data.sources={{a=['{texts}'],b=['{texts}']}}"]
    for _ in range(2):
        run("prepare", *blend, "--vocab-size", 300, "--out", tmp_path / "out")
    assert f"several prepared folders: name one of {tmp_path / 'out' / 'a'}" in refused("inspect", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing: no such folder; `nano3 data prepare PATHS --out "),
        ("texts", "texts holds no prepared data: `nano3 data prepare {path} --out DIR` makes it of texts"),
        ("texts/0.txt", "0.txt is a file: "),
        ("begun", "begun is not prepared to its end: give the command that began it again"),
    ],
)
def test_inspect_says_what_a_folder_is_instead_and_what_to_do(texts, tmp_path, name, message):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text("{}")
    assert message.format(path=tmp_path / name) in refused("inspect", tmp_path / name)


def test_errors_name_the_options_as_typed(texts):
    assert "(--vocab-size)" in refused("prepare", texts, "--vocab-size", 5)
    assert "(model.vocab_size)" in refused("prepare", texts, "--set", "model.vocab_size=5")
