"""Records from files and data sets."""

import gzip
import json

import pytest
import zstandard

from nano3.config.errors import UserError
from nano3.data.chat.records import read_records
from nano3.data.texts.skipped import Skipped

ROWS = [{"messages": [{"role": "user", "content": f"é {i}"}, {"role": "assistant", "content": "x"}]} for i in range(3)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read(spec):
    skipped = Skipped()
    return list(read_records(str(spec), skipped)), skipped


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lines),
        ("a.ndjson", lambda rows: b"\xef\xbb\xbf" + lines(rows)),
        ("a.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
        ("a.jsonl.zst", lambda rows: zstandard.compress(lines(rows))),
        ("a.json", lambda rows: json.dumps(rows).encode()),
    ],
)
def test_records_of_every_kind_of_file_carry_file_and_number(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(ROWS))
    found, _ = read(tmp_path / name)
    assert [record.value for record in found] == ROWS
    assert [record.name for record in found] == [f"{name}:{i}" for i in (1, 2, 3)]


def test_parquet_gives_nested_messages(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    found, _ = read(tmp_path / "a.parquet")
    assert [record.value for record in found] == ROWS


def test_a_bad_line_is_a_record_with_its_problem_and_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:1]) + b"\n{oops\n[1]\n\xff\n" + lines(ROWS[:1]))
    found, _ = read(tmp_path / "a.jsonl")
    assert [(record.number, record.value is None) for record in found] == [
        (1, False), (3, True), (4, True), (5, True), (6, False)
    ]  # fmt: skip
    assert [record.problem.split(":")[0] for record in found[1:4]] == ["not a JSON object"] * 3


def test_a_folder_is_searched_and_what_holds_no_records_is_counted(tmp_path):
    for name in ("b/two.jsonl", "a.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines(ROWS[:1]) if "jsonl" in name else b"about")
    found, skipped = read(tmp_path)
    assert [record.name for record in found] == ["a.jsonl:1", "b/two.jsonl:1"]
    assert skipped.line() == "1 file that holds no records (README.md)"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"hello", "is no file of records"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-9], "is damaged or cut short"),
        ("a.parquet", b"PAR1 no", "is damaged or cut short"),
        ("a.json", b"[{]", "not valid JSON"),
    ],
)
def test_what_is_no_file_of_records_is_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.*{words}"):
        read(tmp_path / name)


def test_a_folder_without_records_and_a_missing_path_are_named(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(UserError, match="no records in"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.jsonl")


def test_a_hub_data_set_is_read_by_its_package(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    # The package takes ORG/NAME for a folder where there is one.
    folder = tmp_path / "org" / "chats"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(lines(ROWS))
    found, _ = read("hub:org/chats")
    assert [record.value for record in found] == ROWS
    assert found[2].name == "org/chats:3"
    with pytest.raises(UserError, match="hub:org/chats::test: the data set cannot be read"):
        read("hub:org/chats::test")
    with pytest.raises(UserError, match="is not hub:ORG/NAME"):
        read("hub:@x")
