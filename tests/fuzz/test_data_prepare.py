"""`nano3 data prepare` as a whole: from a folder of files of every kind to shards, or one line and exit code 2."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nano3.cli.app import main
from nano3.data.tokens.shards import ShardFolder
from nano3.engine.launch import small_tokenizer
from tests.fuzz.inputs import damaged, files, fuzz, mutated, tried

TEXT = "A fox runs. " * 12
ROWS = [{"text": f"{TEXT}{i}", "content": "other words", "n": i} for i in range(3)]
WRAPPED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
NAMES = ["a", "b b", ".hidden", "é", "x::y", "-o", "[a]*", "README"]
VOCABULARIES = ["300", "300", "300", "0", "1", "257", "100000000"]
OPTIONS = [[], [], ["--set", "data.heldout_fraction=0.9"], ["--set", "data.seed=-1"], ["--preset", "phase1"]]


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]}), file)
    return file.getvalue()


@st.composite
def content(draw: Any, kind: str) -> bytes:
    """Bytes of a file of this kind, most often right."""
    if kind == "parquet":
        return draw(st.one_of(st.just(parquet()), damaged(parquet())))
    if kind == "jsonl":
        rows = draw(st.lists(st.one_of(st.sampled_from(ROWS).map(lambda row: json.dumps(row).encode()),
                                       files(ROWS[0])), max_size=4))  # fmt: skip
        return b"\n".join(rows)
    if kind == "json":
        return draw(files(ROWS))
    texts = st.one_of(st.just(TEXT), st.text(max_size=200), st.just("\0" * 50), st.just("\n" * 30))
    return draw(st.one_of(texts.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)))


@st.composite
def folders(draw: Any) -> list[tuple[str, bytes | None]]:
    """Names and bytes of files; None: a link to nowhere."""
    found = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["txt", "txt", "md", "jsonl", "jsonl", "json", "parquet", "", "bin"]))
        packed = draw(st.sampled_from(list(WRAPPED)))
        data = WRAPPED[packed](draw(content(kind)))
        data = draw(st.sampled_from([data, data, data, data[: len(data) // 2]]))
        suffix = f".{kind}" * bool(kind) + packed
        found.append((name + suffix, draw(st.sampled_from([data, data, data, data, None]))))
    return found


def nano3(*args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. Any other end than an exit is a fault."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def assert_one_line(code: int, err: str) -> None:
    assert code == 2, err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error:")] == err.splitlines()[-1:], err


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(600).save(folder)
    return folder / "tokenizer.json"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def texts_in(place: Path, drawn: list[tuple[str, bytes | None]]) -> list[str]:
    """The folder `texts` with these files alone, and their names."""
    shutil.rmtree(place / "texts", ignore_errors=True)
    (place / "texts").mkdir()
    for name, data in drawn:
        if data is None:
            (place / "texts" / name).symlink_to("nowhere")
        else:
            (place / "texts" / name).write_bytes(data)
    return [name for name, _ in drawn]


@fuzz(12)
@given(data=st.data())
def test_any_folder_becomes_shards_or_one_line(place, tokenizer, data):
    names = texts_in(place, data.draw(folders()))
    shutil.rmtree(place / "out", ignore_errors=True)
    paths = data.draw(st.sampled_from([["texts"], ["texts"], [f"texts/{name}" for name in names], ["texts::content"]]))
    made = data.draw(st.sampled_from([["--vocab-size", v] for v in VOCABULARIES] + [["--tokenizer", str(tokenizer)]]))
    tried["data prepare"] += 1
    code, out, err = nano3(
        "data", "prepare", "--out", "out", "--json", *made, *data.draw(st.sampled_from(OPTIONS)), "--", *paths
    )
    if code:
        assert_one_line(code, err)
        assert not (place / "out" / "manifest.json").exists()
        return
    [row] = json.loads(out)["prepared"]
    folder = ShardFolder(place / "out")
    assert len(folder) == row["documents"] > 0
    code, out, err = nano3("data", "inspect", "out", "--json")
    assert (code, json.loads(out)["tokens"]) == (0, row["tokens"]), err
    # Again into the same place is the same, or a refusal; never another set of tokens beside it.
    code, again, err = nano3("data", "prepare", "--out", "out", "--json", *made, "--", *paths)
    assert code == 2 or json.loads(again)["prepared"] == [row], err


@fuzz(10)
@given(data=st.data())
def test_a_damaged_tokenizer_manifest_or_shard_is_one_line(place, tokenizer, data):
    texts_in(place, [("a.txt", TEXT.encode())])
    given_ = json.loads(tokenizer.read_text("utf-8"))
    if data.draw(st.booleans()):
        (place / "tokenizer.json").write_bytes(data.draw(files({k: given_[k] for k in given_ if k != "model"})))
        tried["data prepare: tokenizer"] += 1
        code, _, err = nano3("data", "prepare", "texts", "--tokenizer", "tokenizer.json", "--out", "damaged")
        if code:
            assert_one_line(code, err)
        return
    shutil.rmtree(place / "out", ignore_errors=True)
    assert nano3("data", "prepare", "texts", "--tokenizer", tokenizer, "--out", "out")[0] == 0
    file = data.draw(st.sampled_from(sorted(file for file in (place / "out").rglob("*") if file.is_file())))
    whole = file.read_bytes()
    if file.suffix == ".json":
        file.write_bytes(data.draw(mutated(json.loads(whole)).map(lambda value: json.dumps(value).encode())))
    else:
        file.write_bytes(data.draw(damaged(whole)))
    tried["data prepare: a prepared folder"] += 1
    for command in (["inspect", "out"], ["prepare", "out"]):
        code, _, err = nano3("data", *command)
        if code:
            assert_one_line(code, err)
