from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nano3.data.readers import PROBED_RECORDS, Skipped, find_files

TEXTS = ["first\ntext", "zweiter Text: äöü", "三"]


def parquet(column: str, values: list, type_: pa.DataType | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(values, type_), "id": range(len(values))}), buffer, row_group_size=2)
    return buffer.getvalue()


def jsonl(field: str, values: list) -> bytes:
    return "".join(json.dumps({field: value, "id": i}) + "\n" for i, value in enumerate(values)).encode()


def read(spec) -> tuple[list[tuple[str, str]], dict[str, int]]:
    skipped = Skipped()
    found = [d for file in find_files(str(spec), skipped) for d in file.documents(skipped)]
    return [(d.name, d.text) for d in found if d is not None], dict(skipped.counts)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("suffix", "content"), [(".jsonl", jsonl("text", TEXTS)), (".parquet", parquet("text", TEXTS))]
)
def test_records_in_every_compression(write_texts, ending, suffix, content):
    folder = write_texts({f"a{suffix}{ending}": COMPRESS[ending](content)})
    documents, skipped = read(folder)
    assert documents == [(f"a{suffix}{ending}:{i}", text) for i, text in enumerate(TEXTS, start=1)]
    assert not skipped


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py"])
def test_plain_texts_in_every_compression(write_texts, ending, suffix):
    folder = write_texts({f"sub/x{suffix}{ending}": COMPRESS[ending](TEXTS[1].encode())})
    assert read(folder) == ([(f"sub/x{suffix}{ending}", TEXTS[1])], {})


def test_zstandard_files_of_several_frames_are_read_to_the_end(write_texts):
    frames = b"".join(COMPRESS[".zst"](jsonl("text", [text])) for text in TEXTS)
    assert [text for _, text in read(write_texts({"a.jsonl.zst": frames}))[0]] == TEXTS


def test_another_text_field(write_texts):
    folder = write_texts({"a.jsonl": jsonl("body", TEXTS), "b.parquet": parquet("body", TEXTS)})
    assert [text for _, text in read(f"{folder}::body")[0]] == TEXTS * 2
    assert [text for _, text in read(f"{folder / 'a.jsonl'}::body")[0]] == TEXTS


def test_a_field_that_no_record_has_names_those_there(write_texts):
    folder = write_texts({"a.jsonl": jsonl("body", TEXTS), "b.parquet": parquet("body", TEXTS)})
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(ValueError, match=rf"{name}: no record has a text in 'text'; fields there: body, id"):
            read(folder / name)


def test_a_wrong_field_is_noticed_before_a_long_file_is_read(write_texts):
    folder = write_texts({"a.jsonl": jsonl("body", ["x"] * PROBED_RECORDS) + jsonl("text", ["late"])})
    with pytest.raises(ValueError, match="no record has a text"):
        read(folder)


def test_bad_and_empty_documents_are_skipped_and_counted(write_texts):
    lines = [
        b'{"text": "good"}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"{broken",
        b"[1]",
        b'{"text": 3}',
        b'{"text": " "}',
    ]
    folder = write_texts(
        {
            "bad.txt": b"\xff\xfe\x00bad",
            "empty.txt": b"",
            "blank.md": b" \n\t\n",
            "lines.jsonl": b"\n".join(lines),
            "rows.parquet": parquet("text", ["good", None, ""]),
            "raw.parquet": parquet("text", [b"good", b"\xff"], pa.binary()),
            "picture.png": b"\x89PNG",
        }
    )
    documents, skipped = read(folder)
    assert [text for _, text in documents] == ["good"] * 3
    assert skipped == {
        "not UTF-8": 4,
        "empty": 4,
        "not a JSON object": 2,
        "without a text in 'text'": 2,
        "files of unknown type": 1,
    }


def test_folders_are_read_in_sorted_order_without_hidden_files(write_texts):
    folder = write_texts(
        {"b/1.txt": "b1", "a.txt": "a", "b/0.txt": "b0", ".git/x.txt": "no", "b/.y.txt": "no", "c.unknown": "no"}
    )
    assert [name for name, _ in read(folder)[0]] == ["a.txt", "b/0.txt", "b/1.txt"]


def test_a_named_file_may_have_any_suffix(write_texts):
    assert read(write_texts({"notes.unknown": "text"}) / "notes.unknown")[0] == [("notes.unknown", "text")]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.txt.zst"])
def test_a_damaged_file_is_an_error_that_names_it(write_texts, name):
    whole = {"gz": gzip.compress, "zst": COMPRESS[".zst"]}.get(name.rpartition(".")[2], bytes)(bytes(range(256)) * 99)
    folder = write_texts({name: whole[: len(whole) // 2]})
    with pytest.raises(ValueError, match=f"{name} is damaged or cut short"):
        read(folder)


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        find_files(str(tmp_path / "none"), Skipped())


def test_byte_order_marks_are_no_part_of_a_document(write_texts):
    mark = b"\xef\xbb\xbf"
    folder = write_texts(
        {
            "a.txt": mark + b"plain",
            "b.jsonl": mark + b'{"text": "one"}\n' + mark + b'{"text": "two"}\n' + mark + b"\n",
            "c.txt.gz": gzip.compress(mark + b"packed"),
            "d.txt": mark,
        }
    )
    skipped = Skipped()
    files = find_files(str(folder), skipped)
    assert [d.text for file in files for d in file.documents(skipped) if d is not None] == [
        "plain", "one", "two", "packed",
    ]  # fmt: skip
    assert skipped.counts == {"empty": 1}


def test_records_nested_too_deeply_are_counted_and_long_numbers_lose_no_text(write_texts):
    deep = '{"text": "x", "m": ' + "[" * 200_000 + "]" * 200_000 + "}"
    lines = ['{"text": "a"}', deep, '{"text": "b", "n": ' + "9" * 5000 + "}", '{"a":' * 100_000]
    folder = write_texts({"a.jsonl": "\n".join(lines)})
    skipped = Skipped()
    (file,) = find_files(str(folder), skipped)
    assert [d.text for d in file.documents(skipped) if d is not None] == ["a", "b"]
    assert skipped.counts == {"not a JSON object": 2}
